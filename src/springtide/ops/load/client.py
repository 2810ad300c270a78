"""A lean HTTP/1.1 client: keep-alive connections, a bound on their number, one request at a time on each.

It exists because a load generator must cost less than what it measures: no redirects, cookies, compression,
pipelining or TLS; about 0.1 ms of CPU per request with everything around it (docs/load.md has the figures).

A connection is connecting -> busy <-> idle -> closed. Invariant: open connections <= `connections`, and each
belongs to exactly one request or is idle. Whatever ends a request early (time-out, cancellation, malformed
answer) closes its connection, so an answer never reaches the wrong request.

A GET whose reused connection turns out to be closed before any byte of the answer came is sent once more on
a fresh one, as RFC 9112 section 9.3.1 allows and browsers do; `resent` counts these.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import NamedTuple, cast
from urllib.parse import urlsplit

import httptools

from springtide.errors import ConfigurationError

__all__ = ["Answer", "HttpClient", "RequestFailed"]

MAX_BODY_BYTES = 64 * 1024 * 1024
GONE_WITHIN = 0.5


class Answer(NamedTuple):
    """`timing` is the `Server-Timing` header as it came, "" without one; `sent` is `time.monotonic()`."""

    status: int
    body: bytes
    timing: str
    sent: float


class RequestFailed(Exception):
    """No complete answer came. `kind`: connect, timeout, reset or protocol; `sent` None when never sent."""

    def __init__(self, kind: str, detail: str, *, sent: float | None = None) -> None:
        self.kind = kind
        self.sent = sent
        super().__init__(f"{kind}: {detail}")


class HttpClient:
    """Requests to one origin, `http://host:port`. `timeout` covers waiting, connecting and the answer."""

    def __init__(self, url: str, *, connections: int = 100, timeout: float = 10.0) -> None:
        parts = urlsplit(url)
        if parts.scheme != "http" or not parts.hostname:
            raise ConfigurationError(f"the load's url must be http://host[:port], got {url!r}")
        if connections < 1:
            raise ValueError(f"connections must be >= 1, got {connections}")
        if not timeout > 0:
            raise ValueError(f"timeout must be > 0 seconds, got {timeout}")
        self.host = parts.hostname
        self.port = parts.port or 80
        self.timeout = timeout
        self.opened = 0
        self.resent = 0
        self._head = f" HTTP/1.1\r\nHost: {parts.netloc.rpartition('@')[2]}\r\n".encode()
        self._connections = connections
        self._open = 0
        self._idle: list[_Connection] = []
        self._waiters: deque[asyncio.Future[_Connection | None]] = deque()
        self._all: set[_Connection] = set()
        self._closed = False

    async def request(self, method: str, path: str, headers: bytes = b"", body: bytes = b"") -> Answer:
        """Send and wait for the whole answer. `headers` are complete lines ending in CRLF.

        Raises RequestFailed. A cancelled call leaves nothing behind.
        """
        if not (path.startswith("/") and path.isascii() and path.isprintable() and " " not in path):
            raise ValueError(f"path must start with / and be percent-encoded, got {path!r}")
        deadline = time.monotonic() + self.timeout
        head = (method + " " + path).encode() + self._head + headers
        if body or method in ("POST", "PUT", "PATCH"):
            head += b"Content-Length: %d\r\n" % len(body)
        message = head + b"\r\n" + body
        first = True
        while True:
            connection, fresh = await self._acquire(deadline, fresh=not first)
            try:
                return await connection.exchange(message, deadline)
            except RequestFailed as failure:
                if failure.kind == "reset" and method == "GET" and first and not fresh and connection.silent:
                    first = False
                    self.resent += 1
                    continue
                raise
            finally:
                self._release(connection)

    async def close(self) -> None:
        """Close every connection and return when they are gone; requests under way fail as "reset"."""
        self._closed = True
        self._idle.clear()
        gone = [connection.gone for connection in self._all]
        for connection in list(self._all):
            connection.abort()
        if gone:  # bounded: uvloop never says that a connection is lost whose making was cancelled
            await asyncio.wait(gone, timeout=GONE_WITHIN)

    async def _acquire(self, deadline: float, *, fresh: bool) -> tuple[_Connection, bool]:
        while True:
            if self._closed:
                raise RequestFailed("connect", "the client is closed")
            while self._idle:
                connection = self._idle.pop()  # last in, first out: the rest may grow old and be closed
                if connection.usable and not fresh:
                    return connection, False
                self._forget(connection)
            if self._open < self._connections:
                self._open += 1
                return await self._connect(deadline), True
            handed = await self._queue(deadline)
            if handed is None:
                return await self._connect(deadline), True
            if handed.usable and not fresh:
                return handed, False
            self._forget(handed)

    async def _connect(self, deadline: float) -> _Connection:
        """Open one; the caller has counted it in `_open` already."""
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), 0.0)):
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(
                    lambda: _Connection(loop, self._all), self.host, self.port
                )
        except TimeoutError as error:
            self._vacate()
            raise RequestFailed("timeout", f"not connected within {self.timeout} s") from error
        except OSError as error:
            self._vacate()
            raise RequestFailed("connect", str(error)) from error
        except BaseException:
            self._vacate()
            raise
        self.opened += 1
        return connection

    async def _queue(self, deadline: float) -> _Connection | None:
        """Wait in line for a connection; None means that the caller may open one, counted already.

        Handed over directly, so that whoever comes later cannot take it first.
        """
        waiter: asyncio.Future[_Connection | None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        try:
            async with asyncio.timeout(max(deadline - time.monotonic(), 0.0)):
                return await waiter
        except BaseException as error:
            if waiter.done() and not waiter.cancelled():  # it came while we were leaving: hand it on
                handed = waiter.result()
                if handed is None:
                    self._vacate()
                else:
                    self._release(handed)
            waiter.cancel()
            if isinstance(error, TimeoutError):
                message = f"all {self._connections} connections were busy for {self.timeout} s"
                raise RequestFailed("timeout", message) from error
            raise

    def _release(self, connection: _Connection) -> None:
        if not connection.usable or self._closed:
            self._forget(connection)
        elif (waiter := self._next()) is not None:
            waiter.set_result(connection)
        else:
            self._idle.append(connection)

    def _forget(self, connection: _Connection) -> None:
        connection.abort()
        self._vacate()

    def _vacate(self) -> None:
        """One connection fewer; whoever is first in line may open another."""
        waiter = self._next()
        if waiter is not None:
            waiter.set_result(None)
        else:
            self._open -= 1

    def _next(self) -> asyncio.Future[_Connection | None] | None:
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                return waiter
        return None


class _Connection(asyncio.Protocol):
    """One exchange after another. `usable` between exchanges; `silent` while no byte of the answer came.

    It is in `everyone` from when it is made until it is gone, also when its maker was cancelled meanwhile.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, everyone: set[_Connection]) -> None:
        self._loop = loop
        self._everyone = everyone
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[int] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = 0.0
        self._body: list[bytes] = []
        self._size = 0
        self._timing = b""
        self._until_eof = False
        self.usable = False
        self.silent = True
        self.gone: asyncio.Future[None] = loop.create_future()

    async def exchange(self, message: bytes, deadline: float) -> Answer:
        assert self._transport is not None and self._answer is None
        answer = self._answer = self._loop.create_future()
        self.usable = False
        self.silent = True
        self._deadline = deadline
        sent = time.monotonic()
        if self._transport.is_closing():
            self._answer = None
            raise RequestFailed("reset", "the connection was closed while idle", sent=sent)
        if self._timer is None:
            self._timer = self._loop.call_later(deadline - sent, self._check)
        self._transport.write(message)
        try:
            status = await answer
        except RequestFailed as failure:
            failure.sent = sent
            raise
        except asyncio.CancelledError:
            self.abort()
            raise
        finally:
            self._answer = None
        body = self._body
        timing = self._timing
        return Answer(
            status,
            body[0] if len(body) == 1 else b"".join(body),
            timing.decode("latin-1") if timing else "",
            sent,
        )

    def abort(self) -> None:
        self.usable = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()

    def _check(self) -> None:
        """One timer per connection, set again while requests pass under it: cheaper than one per request."""
        self._timer = None
        if self._answer is None or self._answer.done():
            return
        rest = self._deadline - time.monotonic()
        if rest > 0:
            self._timer = self._loop.call_later(rest, self._check)
        else:
            self._fail("timeout", "no complete answer in time")

    def _fail(self, kind: str, detail: str) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(RequestFailed(kind, detail))
        self.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._everyone.add(self)
        self.usable = True

    def data_received(self, data: bytes) -> None:
        self.silent = False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self._fail("protocol", f"the answer is not HTTP/1.1 ({error})")

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None and self._until_eof and self._answer is not None and not self._answer.done():
            self._answer.set_result(self._parser.get_status_code())
        self._fail("reset", str(exc) if exc is not None else "the server closed the connection")
        self._everyone.discard(self)
        if not self.gone.done():
            self.gone.set_result(None)

    # httptools callbacks

    def on_message_begin(self) -> None:
        if self._answer is None or self._answer.done():
            self._fail("protocol", "an answer that nobody asked for")
            return
        self._body = []
        self._size = 0
        self._timing = b""
        self._until_eof = True

    def on_header(self, name: bytes, value: bytes) -> None:
        length = len(name)
        if length == 13:
            if name.lower() == b"server-timing":
                self._timing = self._timing + b", " + value if self._timing else value
        elif (length == 14 and name.lower() == b"content-length") or (
            length == 17 and name.lower() == b"transfer-encoding"
        ):
            self._until_eof = False

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size > MAX_BODY_BYTES:
            self._fail("protocol", f"the answer is longer than {MAX_BODY_BYTES} bytes")
            return
        self._body.append(body)

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200 or self._answer is None or self._answer.done():
            return  # an interim answer: the final one follows
        self._until_eof = False
        self.usable = self._parser.should_keep_alive()
        self._answer.set_result(status)
