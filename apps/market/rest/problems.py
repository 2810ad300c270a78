"""Errors of the API under /market: `application/problem+json` (RFC 9457), whoever found them.

`type` is `about:blank` (the status says what kind of trouble it is), `title` its name, `detail` one sentence
for people, `errors` the field or kind of thing -> sentences, for programs and forms. Answers that no module
gave (an unknown address, a body that is too large, a busy server) have the same shape without `errors`.

Invalid 422   Taken, Conflict 409   NotFound 404   Forbidden 403   Unauthorized 401   Stale 412
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from market.faults import Conflict, Forbidden, Invalid, NotFound, Refused, Stale, Taken
from market.realworld.answers import Unauthorized
from springtide.context import current

__all__ = ["PROBLEM", "Problem", "VersionNeeded", "problem", "refusal", "routing_error"]

PROBLEM = "application/problem+json"


class VersionNeeded(Refused):
    """A change that does not say which version it is about: 428."""

    def __init__(self) -> None:
        super().__init__({"if-match": ["is missing: send the ETag of what you want to change"]})


STATUS: Mapping[type[Refused], int] = {
    Invalid: 422,
    Taken: 409,
    Conflict: 409,
    NotFound: 404,
    Forbidden: 403,
    Unauthorized: 401,
    Stale: 412,
    VersionNeeded: 428,
}

DETAIL: Mapping[int, str] = {
    400: "The request is malformed.",
    401: "Sign in first: send `Authorization: Bearer <token>`.",
    403: "It belongs to somebody else.",
    404: "There is no such thing.",
    405: "The method is not allowed at this address; see Allow.",
    409: "What there is does not allow this.",
    412: "It has changed since you looked; look again.",
    415: "The body must be JSON (application/json) in UTF-8.",
    422: "Values break rules; `errors` names each field.",
    428: "Say which version you want to change: send If-Match.",
}


class Problem(msgspec.Struct, frozen=True, omit_defaults=True):
    """An error, as RFC 9457 shapes it; `errors` names fields or kinds of things, with sentences."""

    title: str
    status: int
    detail: str
    type: str = "about:blank"
    errors: dict[str, list[str]] = {}
    request_id: str = ""


_encoder = msgspec.json.Encoder()


def problem(
    status: int, errors: Mapping[str, Sequence[str]] | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    context = current()
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": DETAIL.get(status, HTTPStatus(status).description or HTTPStatus(status).phrase),
        "request_id": "" if context is None else context.request_id,
    }
    if errors:
        body["errors"] = {name: list(said) for name, said in errors.items()}
    return Response(_encoder.encode(body), status, dict(headers or {}), media_type=PROBLEM)


async def refusal(request: Request, error: Exception) -> Response:
    """The answer to what a module or the rim refused."""
    assert isinstance(error, Refused)
    status = STATUS[type(error)]
    headers = {"WWW-Authenticate": 'Bearer realm="market"'} if status == 401 else None
    return problem(status, error.errors, headers)


async def routing_error(request: Request, error: Exception) -> Response:
    """The answer to Starlette's HTTPException: unknown address, wrong method, wrong type of body."""
    status: int = getattr(error, "status_code", 500)
    return problem(status, headers={"Allow": _allowed(request)} if status == 405 else None)


def _allowed(request: Request) -> str:
    """Every method of the address: one route knows only its own."""
    methods: set[str] = set()
    for route in request.app.router.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= set(getattr(route, "methods", None) or ())
    return ", ".join(sorted(methods))
