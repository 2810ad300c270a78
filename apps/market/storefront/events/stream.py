"""`/events`: server-sent events for one page of somebody who is signed in.

    event: unread   id: <newest>.<count>   data: {"count": 3, "newest": 17}
    event: end      the session is over: do not connect again

A comment every `HEARTBEAT` seconds shows both sides that the other is there. A browser that comes back says
with Last-Event-ID what it knows, and hears only what is new. Nobody hears nothing: 204, which tells browsers
not to ask again. After `LIFETIME` the stream ends, and browsers connect anew, to whichever server there is.
"""

from __future__ import annotations

import asyncio

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from market.notifications.api import Unread
from market.storefront.events.hub import Hub, Listener
from market.storefront.rim import store_of
from market.storefront.table import Page
from market.storefront.visits import viewer_of, visit_of

__all__ = ["PAGES", "EventStream"]

HEARTBEAT = 15.0
LIFETIME = 600.0
RETRY_MS = 3_000

HEADERS = {"Cache-Control": "private, no-store", "X-Accel-Buffering": "no"}
"""The second tells nginx to pass on each piece as it comes."""


class EventStream(Response):
    """Joins the hub when it is sent, and leaves it whatever ends it. Raises Unavailable without room."""

    media_type = "text/event-stream"

    def __init__(self, hub: Hub, person: int, handle: str, last: str | None) -> None:
        super().__init__(None, 200, HEADERS)
        del self.headers["content-length"]
        self._hub = hub
        self._person = person
        self._handle = handle
        self._last = last

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        listener = self._hub.join(self._person, self._handle)
        try:
            await send(
                {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            await _send(send, f"retry: {RETRY_MS}\n\n")
            if scope["method"] != "HEAD":
                await self._tell(listener, send)
        finally:
            self._hub.leave(listener)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _tell(self, listener: Listener, send: Send) -> None:
        loop = asyncio.get_running_loop()
        ends, last = loop.time() + LIFETIME, self._last
        while loop.time() < ends:
            try:
                async with asyncio.timeout(HEARTBEAT):
                    await listener.changed()
            except TimeoutError:
                await _send(send, ": here\n\n")
                continue
            if listener.ended:
                break
            if listener.known is not None and _id(listener.known) != last:
                last = _id(listener.known)
                await _send(send, _event(listener.known))
        if listener.session_ended:
            await _send(send, "event: end\ndata: {}\n\n")


async def events(request: Request) -> Response:
    viewer, found = viewer_of(request), visit_of(request).presented
    if viewer is None or found is None:
        return Response(status_code=204)
    last = request.headers.get("last-event-id")
    return EventStream(store_of(request).hub, viewer, found.session.handle, last)


def _id(unread: Unread) -> str:
    return f"{unread.newest}.{unread.count}"


def _event(unread: Unread) -> str:
    data = msgspec.json.encode({"count": unread.count, "newest": unread.newest}).decode()
    return f"event: unread\nid: {_id(unread)}\ndata: {data}\n\n"


async def _send(send: Send, text: str) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


PAGES = (Page("GET", "/events", events),)
