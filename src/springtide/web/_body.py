"""What the client sends: its body under a limit, and the news that it has left.

One reader at a time asks the server for messages: the application, or (when it does not read) the watcher.
What the watcher hears is kept, one message at most, and the application gets it next, so nothing is stolen
and nothing is buffered. A client that left is heard by the watcher even while the application waits for SQL.

The limit counts bytes as they pass; nothing is collected here. Past it `receive` raises BodyTooLarge, again
and again, whatever the application makes of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from springtide.errors import BodyTooLarge
from springtide.web._types import Message, Receive

__all__ = ["BodyLimits", "Inbox", "declared_length"]


class BodyLimits:
    """How large a body may be, by path: `/a` is that path alone, `/a/` everything below it.

    The longest path that fits decides, `others` where none does. Raises ValueError.
    """

    __slots__ = ("_below", "_others", "_paths")

    def __init__(self, others: int, paths: Mapping[str, int]) -> None:
        if others < 0:
            raise ValueError(f"body_bytes must be >= 0, got {others}")
        for path, limit in paths.items():
            if not path.startswith("/"):
                raise ValueError(f"a path of body_limits begins with /, got {path!r}")
            if limit < 0:
                raise ValueError(f"body_limits must be >= 0, got {limit} for {path!r}")
        self._others = others
        self._paths = dict(paths)
        below = sorted((path for path in paths if path.endswith("/")), key=len, reverse=True)
        self._below = tuple((path, paths[path]) for path in below)

    def of(self, path: str) -> int:
        exact = self._paths.get(path)
        if exact is not None:
            return exact
        for prefix, limit in self._below:
            if path.startswith(prefix):
                return limit
        return self._others


def declared_length(content_length: bytes | None, transfer_encoding: bytes | None) -> int | None:
    """The body's length as declared; None when it is not. Raises ValueError for a header that lies."""
    if content_length is None:
        return None
    if transfer_encoding is not None:
        raise ValueError("content-length and transfer-encoding exclude each other")
    text = content_length.strip()
    if not text.isdigit() or len(text) > 18:
        raise ValueError("content-length must be one non-negative whole number")
    return int(text)


class Inbox:
    """The receiving side of one request."""

    __slots__ = (
        "_failure", "_held", "_reading", "_receive", "_room", "_seen", "_watching",
        "ended", "gone", "limit", "too_large", "waiting",
    )  # fmt: skip

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive = receive
        self.limit = limit
        self._seen = 0
        self._held: Message | None = None
        self._failure: BaseException | None = None
        self._reading = False
        self._watching: asyncio.Event | None = None
        self._room: asyncio.Event | None = None
        self.ended = False
        """The whole body has come in."""
        self.gone = False
        """The client has left."""
        self.too_large = False
        self.waiting = False
        """The application waits for the client to send more of the body."""

    async def receive(self) -> Message:
        """The application's `receive`."""
        while True:
            if self.too_large:
                raise BodyTooLarge(self.limit)
            if self._held is not None:
                message, self._held = self._held, None
                if self._room is not None:
                    self._room.set()
                return message
            if self.gone:
                return {"type": "http.disconnect"}
            if self._failure is not None:
                raise self._failure
            self.waiting = not self.ended
            try:
                if self._watching is None:
                    self._reading = True
                    try:
                        message = await self._receive()
                    finally:
                        self._reading = False
                        if self._room is not None:
                            self._room.set()
                    if self._note(message):
                        return message
                else:
                    await self._watching.wait()
            finally:
                self.waiting = False

    async def watch(self, on_gone: Callable[[], None], *, prefetch: bool) -> None:
        """Call `on_gone` when the client leaves, unless the application has heard it by itself.

        Without `prefetch` the body is left to the application, and listening begins at its end. What comes
        after a whole body is the client's leaving alone, so an application that never reads is watched, too.
        """
        self._room = asyncio.Event()
        while not self.gone:
            unread = self._held is not None and not self.ended
            if self._reading or unread or self.too_large or not (prefetch or self.ended):
                self._room.clear()
                await self._room.wait()
                continue
            self._watching = asyncio.Event()
            try:
                message = await self._receive()
                within_limit = self._note(message)
                if message["type"] == "http.disconnect":
                    on_gone()
                elif within_limit:
                    self._held = message
            except Exception as error:  # the server's fault: the application hears it when it reads
                self._failure = error
                return
            finally:
                self._watching.set()
                self._watching = None

    def _note(self, message: Message) -> bool:
        """Take note of what came in; whether the body is still within its limit."""
        if message["type"] == "http.disconnect":
            self.gone = True
        elif message["type"] == "http.request":
            self._seen += len(message.get("body", b""))
            if not message.get("more_body", False):
                self.ended = True
            if self._seen > self.limit:
                self.too_large = True
        return not self.too_large

    async def discard(self) -> None:
        """Read and drop until the body ends or the client leaves; the caller bounds the time."""
        while not (self.ended or self.gone):
            self._note(await self._receive())
