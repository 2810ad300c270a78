"""POST /api/users."""

from __future__ import annotations

import re
import unicodedata
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import AfterValidator, BaseModel, StringConstraints
from sqlalchemy.exc import IntegrityError

from bench.twin.auth import Passwords, Tokens
from bench.twin.database import Writing
from bench.twin.errors import Refusal
from bench.twin.tables import User

__all__ = ["router"]

router = APIRouter(prefix="/api")

EMAIL = r"^[^\s@\x00-\x1f\x7f]{1,64}@[^\s@\x00-\x1f\x7f.]+(\.[^\s@\x00-\x1f\x7f.]+)*$"
_FIRST = re.compile(r"\w")


def _name(value: str) -> str:
    if not (
        _FIRST.match(value)
        and all(c in "_-. " or c.isalnum() or unicodedata.category(c)[0] == "M" for c in value)
    ):
        raise ValueError("may have letters, digits, spaces and _ - . only")
    return value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("can't be blank")
    return value


class NewUser(BaseModel):
    username: Annotated[
        str, StringConstraints(strip_whitespace=True, min_length=1, max_length=64), AfterValidator(_name)
    ]
    email: Annotated[str, StringConstraints(strip_whitespace=True, max_length=254, pattern=EMAIL)]
    password: Annotated[str, StringConstraints(max_length=256), AfterValidator(_not_blank)]


class Registration(BaseModel):
    user: NewUser


class SignedIn(BaseModel):
    email: str
    token: str
    username: str
    bio: str | None
    image: str | None


class Answer(BaseModel):
    user: SignedIn


@router.post("/users", status_code=201)
async def register(request: Request, session: Writing, body: Registration) -> Answer:
    passwords: Passwords = request.app.state.passwords
    tokens: Tokens = request.app.state.tokens
    new = body.user
    password_hash = await passwords.hash(unicodedata.normalize("NFKC", new.password))
    now = datetime.now(UTC)
    user = User(
        username=new.username,
        username_key=_fold(new.username),
        email=new.email,
        email_key=_fold(new.email),
        password_hash=password_hash,
        created_at=now,
        updated_at=now,
    )
    session.add(user)
    try:
        await session.commit()
    except IntegrityError as error:
        field = "username" if "username_key" in str(error.orig) else "email"
        raise Refusal(409, {field: ["has already been taken"]}) from error
    return Answer(
        user=SignedIn(
            email=user.email, token=tokens.issue(user.id), username=user.username, bio=None, image=None
        )
    )


def _fold(value: str) -> str:
    """Names that differ only in case or in the form of their characters are the same."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", value).casefold())
