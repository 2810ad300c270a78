"""Headers that every page carries, whoever made it: an endpoint, an error handler or the layers around both.

Pages load their own files only: no inline scripts or styles, nothing from other servers, no frames, no base.
What an endpoint says itself (the documentation has a style sheet inside) stays.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

__all__ = ["POLICY", "SafePages"]

POLICY = "; ".join(
    (
        "default-src 'none'", "script-src 'self'", "style-src 'self'", "img-src 'self' data:",
        "media-src 'self'", "connect-src 'self'", "worker-src 'self'", "form-action 'self'",
        "frame-ancestors 'none'", "base-uri 'none'",
    )
)  # fmt: skip

ALWAYS = ((b"x-content-type-options", b"nosniff"),)
PAGES = (
    (b"content-security-policy", POLICY.encode()),
    (b"referrer-policy", b"strict-origin-when-cross-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


class SafePages:
    """`app`, an ASGI application, with these headers on what it answers."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": _completed(list(message.get("headers", ())))}
            await send(message)

        await self._app(scope, receive, safe)


def _completed(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    given = {name.lower(): value for name, value in headers}
    html = given.get(b"content-type", b"").startswith(b"text/html")
    wanted = (*ALWAYS, *PAGES) if html else ALWAYS
    return headers + [pair for pair in wanted if pair[0] not in given]
