"""Files in forms: read within bounds, from a page of ours, once per rendered form.

A form with files is read before its token can be looked at, so what costs nothing is looked at first: the
session and where the request comes from. Only so many files are read at once in this process.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import Request

from market.faults import Invalid
from market.media.api import NAME_LENGTH
from market.rest.uploads import read_upload
from market.storefront.forms import KEY_FIELD, Form
from market.storefront.rim import store_of
from market.storefront.visits import member, visit_of
from springtide.db.idempotency import Once
from springtide.errors import CsrfRefused
from springtide.identity.cookies import check_origin
from springtide.web.idempotency import check_key
from springtide.web.sessions import CSRF_FIELD, CSRF_HEADER, verify_csrf

__all__ = ["PATHS", "Upload", "from_a_page", "uploaded"]

PATHS = ("/selling/photos/", "/account/face")
"""Where bodies may be as large as files are: below the first, and of the second itself."""

UNNAMED = "unnamed"


class Upload(NamedTuple):
    """The one file of a form; `once` stands for this rendering of the form with this file in it."""

    form: Form
    name: str
    content: bytes
    once: Once


async def from_a_page(request: Request) -> None:
    """What can be known of a form with files before it is read. Raises CsrfRefused, HTTPException 415."""
    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        await verify_csrf(request, token=request.headers.get(CSRF_HEADER, ""))
        raise HTTPException(415)
    check_origin(request.scope)
    if visit_of(request).presented is None:
        raise CsrfRefused("the request has no session")


@asynccontextmanager
async def uploaded(request: Request) -> AsyncIterator[tuple[int, Upload]]:
    """Who sends, and what. The place among the uploads is held inside the block.

    Call `from_a_page` first. Raises SignInFirst, CsrfRefused, Invalid (`file`), BodyTooLarge, Unavailable.
    """
    owner = await member(request)
    async with store_of(request).uploads.place(owner):
        sent = await read_upload(request)
        await verify_csrf(request, token=sent.fields.get(CSRF_FIELD, ""))
        if len(sent.files) != 1:
            raise Invalid({"file": ["is missing" if not sent.files else "must be one"]})
        (file,) = sent.files
        name = file.name.strip()[:NAME_LENGTH] or UNNAMED
        scope = (f"subject {owner}", request.url.path, check_key(sent.fields.get(KEY_FIELD, "")))
        once = await asyncio.to_thread(Once.of, scope, (name, file.content))
        yield owner, Upload(Form(sent.fields.items()), name, file.content, once)
