"""What one operation under /market is: its route and its documentation are made from the same value."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

__all__ = ["PREFIX", "Operation"]

PREFIX = "/market"


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """`body` and `answer` are msgspec structs (or list types), None for none; `path` is below the prefix.

    errors:      the refusals beside 422 and what transport may answer.
    conditional: a GET answers ETag and 304; a change needs If-Match (412, 428).
    idempotent:  takes an Idempotency-Key: the effect happens once, however often it is sent.
    listed:      answers one page: takes `limit` and `after`.
    query:       name -> what it is, of the parameters beside those.
    """

    id: str
    method: Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
    path: str
    endpoint: Callable[[Request], Awaitable[Response]]
    tag: str
    summary: str
    says: str = ""
    auth: Literal["none", "optional", "required"] = "none"
    body: Any = None
    answer: Any = None
    status: int = 200
    errors: tuple[int, ...] = ()
    conditional: bool = False
    idempotent: bool = False
    listed: bool = False
    query: tuple[tuple[str, str], ...] = ()
