"""What the users module offers to the rest of the application: the only part of it that may be imported.

Profiles are public; accounts carry the e-mail address and are for their owner. Usernames and addresses are
compared without regard to case and shown as they were written.
"""

from __future__ import annotations

import re
from typing import Protocol

import msgspec
from msgspec import UNSET, UnsetType

from market.faults import Invalid, NotFound, Taken
from springtide.services import raises

__all__ = [
    "BIO_LENGTH",
    "EMAIL_LENGTH",
    "FACES",
    "IMAGE_LENGTH",
    "PASSWORD_LENGTH",
    "USERNAME_LENGTH",
    "Account",
    "AccountChanges",
    "NewAccount",
    "Profile",
    "Users",
    "face_of",
]

USERNAME_LENGTH = 64
EMAIL_LENGTH = 254
PASSWORD_LENGTH = 256
BIO_LENGTH = 5_000
IMAGE_LENGTH = 2_048
"""The longest of each, in characters."""

FACES = "/faces/"
"""Begins the `image` of somebody who gave us a picture of themselves; its medium's id follows."""


_FACE = re.compile(re.escape(FACES) + r"([1-9][0-9]{0,15})")


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """A person as seen by themselves."""

    id: int
    username: str
    email: str
    bio: str | None
    image: str | None


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A person as seen by others; `following` is the viewer's, False for an anonymous one.

    `version` counts the person's changes of the account.
    """

    id: int
    username: str
    bio: str | None
    image: str | None
    following: bool
    version: int


class NewAccount(msgspec.Struct, frozen=True, kw_only=True):
    username: str
    email: str
    password: str


class AccountChanges(msgspec.Struct, frozen=True, kw_only=True):
    """UNSET leaves a field as it is; None clears bio and image."""

    username: str | UnsetType = UNSET
    email: str | UnsetType = UNSET
    password: str | UnsetType = UNSET
    bio: str | UnsetType | None = UNSET
    image: str | UnsetType | None = UNSET


def face_of(image: str | None) -> int | None:
    """The medium that `image` is, None for a picture on another server or none at all."""
    found = _FACE.fullmatch(image or "")
    return int(found[1]) if found is not None and int(found[1]) < 1 << 53 else None


class Users(Protocol):
    """Errors are those of `market.faults`; each method names the ones it raises."""

    @raises(Invalid, Taken)
    async def register(self, new: NewAccount) -> Account:
        """Create an account. Raises Invalid, Taken (username, email or both)."""

    @raises(Invalid)
    async def authenticate(self, email: str, password: str) -> Account | None:
        """The account, or None: one answer and one amount of work for a wrong address and a wrong password.

        Raises Invalid when a field is blank or cannot be anybody's by form.
        """

    async def account(self, id: int) -> Account | None: ...

    @raises(Invalid, Taken, NotFound)
    async def update(self, id: int, changes: AccountChanges) -> Account:
        """Change what is set. Raises Invalid, Taken, NotFound."""

    async def find(self, username: str) -> int | None:
        """The id of the person called `username`."""

    async def profile(self, username: str, viewer: int | None) -> Profile | None: ...

    async def profiles(self, ids: list[int], viewer: int | None) -> list[Profile]:
        """Many at once, in no order; ids of nobody are left out. More ids make no more statements."""

    @raises(Invalid, NotFound)
    async def follow(self, follower: int, username: str) -> Profile:
        """Idempotent. Raises NotFound, Invalid when somebody would follow themselves."""

    @raises(NotFound)
    async def unfollow(self, follower: int, username: str) -> Profile:
        """Idempotent. Raises NotFound."""

    async def following(self, follower: int) -> list[int]:
        """Whom `follower` follows, the newest first, at most 5,000."""
