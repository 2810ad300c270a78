"""Answers as bytes: msgspec encodes, Starlette sends, refusals become a status and the RealWorld error shape.

Invalid 422   Taken 409   NotFound 404   Forbidden 403   Unauthorized 401
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from market.faults import Forbidden, Invalid, NotFound, Refused, Taken
from market.realworld.shapes import Shape

__all__ = ["Unauthorized", "answer", "error_body", "failure", "nothing", "refusal", "routing_error"]

JSON = "application/json"

STATUS = {Invalid: 422, Taken: 409, NotFound: 404, Forbidden: 403}

NAMES = {"tags": "tagList"}
"""Where the API calls a field otherwise than the modules do."""

TRANSPORT: Mapping[int, tuple[str, str]] = {
    400: ("request", "is malformed"),
    403: ("origin", "may not ask here"),
    404: ("route", "not found"),
    405: ("method", "is not allowed here"),
    408: ("body", "did not arrive in time"),
    413: ("body", "is too large"),
    415: ("body", "must be JSON (application/json) in UTF-8"),
    499: ("client", "is gone"),
    500: ("server", "failed to answer"),
    503: ("server", "is busy, try again later"),
    504: ("server", "took too long to answer"),
}
"""Status -> what the API says about an answer that no module gave."""

_encoder = msgspec.json.Encoder()


class Unauthorized(Refused):
    """Nobody, or not who they say: 401. `thing` is token or credentials."""

    def __init__(self, thing: str, sentence: str) -> None:
        super().__init__({thing: [sentence]})


def answer(shape: Shape, status: int = 200) -> Response:
    return Response(_encoder.encode(shape), status, media_type=JSON)


def nothing() -> Response:
    return Response(status_code=204)


def error_body(errors: Mapping[str, Sequence[str]]) -> bytes:
    return _encoder.encode({"errors": {NAMES.get(name, name): list(said) for name, said in errors.items()}})


async def refusal(request: Request, error: Exception) -> Response:
    """The exception handler of `Refused`."""
    assert isinstance(error, Refused)
    if isinstance(error, Unauthorized):
        headers = {"WWW-Authenticate": 'Token realm="market"'}
        return Response(error_body(error.errors), 401, headers, media_type=JSON)
    return Response(error_body(error.errors), STATUS[type(error)], media_type=JSON)


async def routing_error(request: Request, error: Exception) -> Response:
    """The exception handler of Starlette's HTTPException: unknown address, wrong method, wrong type."""
    status: int = getattr(error, "status_code", 500)
    headers = {"Allow": _allowed(request)} if status == 405 else None
    return Response(error_body(failure(status)), status, headers, media_type=JSON)


def failure(status: int) -> dict[str, list[str]]:
    """The errors of an answer that no module gave."""
    thing, sentence = TRANSPORT.get(status, ("request", "cannot be answered"))
    return {thing: [sentence]}


def _allowed(request: Request) -> str:
    """Every method of the address: one route knows only its own, and an address may have several routes."""
    methods: set[str] = set()
    for route in request.app.router.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= set(getattr(route, "methods", None) or ())
    return ", ".join(sorted(methods))
