"""`/scaling`: how many workers the jobs need, as JSON for whoever adds and removes them.

The runner asks it here, and KEDA's `metrics-api` scaler anywhere. It answers from memory, so asking often
costs nothing, and 503 while the answer is not known: whoever asks then leaves everything as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from springtide.web._types import Receive, Scope, Send
from springtide.web.health import send_json

__all__ = ["ScalingPage"]


class ScalingPage:
    """An ASGI application for the page; `page` gives what it shows, None when that is not known."""

    def __init__(self, page: Callable[[], Mapping[str, object] | None]) -> None:
        self._page = page

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            await send_json(scope, send, 405, {"status": "method not allowed"})
            return
        page = self._page()
        await send_json(scope, send, *((503, {"status": "not known yet"}) if page is None else (200, page)))
