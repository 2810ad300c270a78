"""`/media/...`: the bytes behind the addresses that `Media.url` gives, from a folder or a bucket.

A blob never changes, so anybody may keep a public one for ever; a private one is kept by nobody. Whatever it
is, a browser may not guess another type, run it, or let it fetch anything. One range per request (RFC 9110):
that is what players of videos ask for; who asks for several gets the whole.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from market.media.api import PART_BYTES, Media, Part
from market.rest.rim import rest_of

__all__ = ["ROUTE", "serve"]

ROUTE = "/media/{address:path}"

_RANGE = re.compile(r"bytes=([0-9]{0,15})-([0-9]{0,15})")
_TAG = re.compile(r'(?:W/)?("[^"]*")')

SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Referrer-Policy": "no-referrer",
    "Accept-Ranges": "bytes",
}


async def serve(request: Request) -> Response:
    """Raises NotFound for what is not there, or not for whoever asks."""
    media, address, query = rest_of(request).media, request.path_params["address"], request.url.query
    part = await media.part(address, query)
    headers = {
        **SAFE,
        "ETag": part.etag,
        "Cache-Control": "public, max-age=31536000, immutable" if part.public else "private, no-store",
        "Cross-Origin-Resource-Policy": "cross-origin" if part.public else "same-origin",
        "Content-Disposition": part.disposition,
    }
    known = request.headers.get("if-none-match")
    if known is not None and (known.strip() == "*" or part.etag in _TAG.findall(known)):
        return Response(None, 304, headers)
    wanted = _wanted(request, part)
    if wanted is None:
        first, last, status = 0, part.size - 1, 200
    else:
        first, last = wanted
        status = 206
        if first > last:
            headers["Content-Range"] = f"bytes */{part.size}"
            return Response(None, 416, headers)
        headers["Content-Range"] = f"bytes {first}-{last}/{part.size}"
    headers["Content-Length"] = str(last + 1 - first)
    if request.method == "HEAD":
        return Response(None, status, headers, media_type=part.content_type)
    body = _bytes(media, address, query, part, first, last)
    return StreamingResponse(body, status, headers, media_type=part.content_type)


def _wanted(request: Request, part: Part) -> tuple[int, int] | None:
    """First and last byte; None for all of it. A first behind the last cannot be answered."""
    header, condition = request.headers.get("range"), request.headers.get("if-range")
    if header is None or (condition is not None and condition.strip() != part.etag):
        return None
    found = _RANGE.fullmatch(header.strip())
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        length = min(int(found[2]), part.size)
        return part.size - length, part.size - 1
    first, last = int(found[1]), int(found[2] or part.size - 1)
    if last < first and found[2]:
        return None  # not a range at all: ignored, as the RFC has it
    return first, min(last, part.size - 1)


async def _bytes(
    media: Media, address: str, query: str, part: Part, first: int, last: int
) -> AsyncIterator[bytes]:
    """`part` is the beginning, which is here already."""
    if first < len(part.content):
        piece = part.content[first : last + 1]
        yield piece
        first += len(piece)
    while first <= last:
        piece = (await media.part(address, query, first, min(PART_BYTES, last + 1 - first))).content
        if not piece:
            return  # it was deleted meanwhile: the connection closes before the promised end
        yield piece
        first += len(piece)
