"""Answers as bytes, with strong ETags; and which version a change is about.

An ETag is `"<hash of the body>"`, or `"<version>.<hash>"` for what can be changed. A GET whose If-None-Match
has it is answered 304. A change needs If-Match with that ETag as it came, or `"<version>"` alone, or `*` for
whichever is there: 428 without, 412 when the version is another one by now. Only the version is compared
then: what others may change (the stock of a listing) does not stand in the seller's way.
"""

from __future__ import annotations

import re
from hashlib import blake2b
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from market.faults import Stale
from market.rest.problems import VersionNeeded

__all__ = ["answer", "created", "read", "wanted_version"]

JSON = "application/json"

_VERSION = re.compile(r'"([0-9]{1,9})(?:\.[0-9a-f]{32})?"')
_TAG = re.compile(r'(?:W/)?("[^"]*")')

_encoder = msgspec.json.Encoder()


def answer(shape: Any, status: int = 200, *, version: int | None = None) -> Response:
    """`shape` as JSON; `version` makes an ETag that If-Match takes."""
    body = _encoder.encode(shape)
    headers = {} if version is None else {"ETag": _etag(body, version)}
    return Response(body, status, headers, media_type=JSON)


def created(shape: Any, location: str, *, version: int | None = None) -> Response:
    response = answer(shape, 201, version=version)
    response.headers["Location"] = location
    return response


def read(request: Request, shape: Any, *, version: int | None = None, private: bool = False) -> Response:
    """The answer to a GET: 304 when the client has it already. `private` keeps shared caches out."""
    body = _encoder.encode(shape)
    etag = _etag(body, version)
    headers = {
        "ETag": etag,
        "Cache-Control": "private, no-cache" if private else "no-cache",
        "Vary": "Authorization",
    }
    known = request.headers.get("if-none-match")
    if known is not None and (known.strip() == "*" or etag in _TAG.findall(known)):
        return Response(None, 304, headers)
    return Response(body, 200, headers, media_type=JSON)


def wanted_version(request: Request, thing: str) -> int | None:
    """The version that If-Match names, None for `*`. Raises VersionNeeded, Stale for what is no version."""
    header = request.headers.get("if-match")
    if header is None:
        raise VersionNeeded
    if header.strip() == "*":
        return None
    found = _VERSION.fullmatch(header.strip())
    if found is None:
        raise Stale(thing)
    return int(found[1])


def _etag(body: bytes, version: int | None) -> str:
    digest = blake2b(body, digest_size=16).hexdigest()
    return f'"{digest}"' if version is None else f'"{version}.{digest}"'
