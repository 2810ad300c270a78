"""Pictures and videos under /market: send one, see what became of it, delete it."""

from __future__ import annotations

import asyncio
from typing import cast

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from market.faults import Invalid
from market.media.api import NAME_LENGTH, Medium, Purpose, Variant
from market.rest.answers import created, read
from market.rest.bodies import id_of, ids_of, once, text_of
from market.rest.operations import PREFIX, Operation
from market.rest.rim import member, rest_of, somebody
from market.rest.uploads import File, Sent, read_upload
from springtide.db.idempotency import Once
from springtide.web.idempotency import once_of, read_key

__all__ = ["OPERATIONS", "UPLOADS"]

MEDIA = "Media"
UPLOADS = f"{PREFIX}/media"
"""Where bodies may be as large as files are."""

UNNAMED = "unnamed"

VARIANTS = ("thumb", "large", "preview")
"""That somebody else may see."""


async def upload(request: Request) -> Response:
    key = read_key(request.scope["headers"])
    owner, rest = await member(request), rest_of(request)
    async with rest.uploads.place(owner):
        sent = await read_upload(request)
        file, name, purpose = _chosen(request, sent)
        same = None if key is None else await asyncio.to_thread(_once, request, file, name, purpose, key)
        del sent
        medium = await rest.media.store(owner, name, file.content, purpose, same)
    return created(medium, f"{UPLOADS}/{medium.id}")


class MediumUrl(msgspec.Struct, frozen=True):
    """`url` is relative to this server."""

    id: int
    url: str


class MediaUrls(msgspec.Struct, frozen=True):
    items: list[MediumUrl]


async def get_urls(request: Request) -> Response:
    ids, variant = text_of(request, "ids"), text_of(request, "variant") or "large"
    if ids is None:
        raise Invalid({"ids": ["is missing"]})
    if variant not in VARIANTS:
        raise Invalid({"variant": [f"must be one of {', '.join(VARIANTS)}"]})
    wanted = ids_of(ids)
    urls = await rest_of(request).media.urls(wanted, cast(Variant, variant))
    return read(request, MediaUrls([MediumUrl(id, urls[id]) for id in dict.fromkeys(wanted) if id in urls]))


async def get_medium(request: Request) -> Response:
    owner = somebody(request)
    return read(request, await rest_of(request).media.medium(id_of(request, "medium"), owner), private=True)


async def delete_medium(request: Request) -> Response:
    owner = somebody(request)
    await rest_of(request).media.delete(id_of(request, "medium"), owner, await once(request))
    return Response(status_code=204)


def _chosen(request: Request, sent: Sent) -> tuple[File, str, Purpose]:
    if len(sent.files) != 1:
        raise Invalid({"file": ["is missing" if not sent.files else "must be one"]})
    fields = {**request.query_params, **sent.fields}
    purpose = fields.get("purpose") or "public"
    if purpose not in ("public", "private"):
        raise Invalid({"purpose": ["must be public or private"]})
    (file,) = sent.files
    name = (fields.get("name") or file.name).strip()[:NAME_LENGTH]
    return file, name or UNNAMED, cast(Purpose, purpose)


def _once(request: Request, file: File, name: str, purpose: str, key: str) -> Once:
    """The same file again is the same request, whatever is around it. Hashes it all: call it off the loop."""
    headers = [pair for pair in request.scope["headers"] if pair[0].lower() != b"content-type"]
    said = f"{purpose}\n{name}\n".encode()
    return once_of({**request.scope, "headers": headers}, said + file.content, key)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        id="UploadMedium", method="POST", path="/media", endpoint=upload, tag=MEDIA,
        summary="Send a picture or a short video", auth="required", answer=Medium, status=201,
        errors=(401, 413, 415), idempotent=True,
        query=(("name", "what you call it"), ("purpose", "`public`, or `private`: for you alone")),
        says="The file is the body, or the one file of a multipart form (whose fields may be `name` and"
        " `purpose`). JPEG, PNG, WebP and GIF up to 10 MiB and 50 million pixels; MP4 and WebM up to 40 MiB."
        " What it is, is found by its content. Ask for it again to see when it is ready. What is attached to"
        " nothing is deleted after a day.",
    ),
    Operation(
        id="GetMediaUrls", method="GET", path="/media", endpoint=get_urls, tag=MEDIA,
        summary="Where public pictures and videos are", answer=MediaUrls, conditional=True,
        query=(
            ("ids", "of a listing's `media`, 200 at most: `1,2,3`"),
            ("variant", "`thumb` (320 pixels), `large` (1280, the default), or `preview` of a video"),
        ),
        says="Those that are ready and public, in the order of `ids`. Addresses never change.",
    ),
    Operation(
        id="GetMedium", method="GET", path="/media/{id}", endpoint=get_medium, tag=MEDIA,
        summary="What became of your picture or video", auth="required", answer=Medium, errors=(401, 404),
        conditional=True,
    ),
    Operation(
        id="DeleteMedium", method="DELETE", path="/media/{id}", endpoint=delete_medium, tag=MEDIA,
        summary="Delete your picture or video", auth="required", status=204, errors=(401, 404, 409),
        idempotent=True, says="Not while it is attached to something (409).",
    ),
)  # fmt: skip
