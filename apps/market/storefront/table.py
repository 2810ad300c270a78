"""One page: its address, its methods, the endpoint that makes it. Each area lists its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response

__all__ = ["Page", "number"]


class Page(NamedTuple):
    method: str
    path: str
    endpoint: Callable[[Request], Awaitable[Response]]


def number(request: Request, name: str = "id") -> int | None:
    """A number in the path; None for what is none."""
    text: str = request.path_params[name]
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 16 else None
