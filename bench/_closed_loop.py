"""So many requests, no more and no less, over a few connections: what one request costs the server.

wrk runs for a time and leaves requests unfinished at its end, which blurs the cost of slow ones; this counts
them out. A text may hold `{n}`, which is another number in every request of a benchmark's run.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

__all__ = ["Call", "Numbers", "closed_loop"]

Numbers = Iterator[int]


@dataclass(frozen=True)
class Call:
    path: str
    method: str = "GET"
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None

    @property
    def unique(self) -> bool:
        return "{n}" in f"{self.path}{self.headers}{self.body}"

    def wire(self, host: str, number: int) -> bytes:
        """The request as it is sent."""
        body = (self.body or "").replace("{n}", str(number)).encode()
        lines = [f"{self.method} {self.path} HTTP/1.1", f"Host: {host}"]
        lines += [f"{name}: {value}" for name, value in self.headers.items()]
        if self.body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).replace("{n}", str(number)).encode() + body


class _Connection(asyncio.Protocol):
    """Sends what `requests` has next when an answer is whole; keeps how long each took."""

    def __init__(self, requests: Iterator[bytes], seconds: list[float]) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._requests = requests
        self._seconds = seconds
        self._buffer = b""
        self._begun = 0.0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, found, body = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return
        lowered = head.lower()
        start = lowered.find(b"content-length:")
        length = int(lowered[start + 15 :].split(b"\r\n", 1)[0]) if start >= 0 else 0
        if len(body) < length:
            return
        if head[9:10] != b"2":
            self._fail(RuntimeError(f"answered {self._buffer[:500]!r}"))
            return
        self._seconds.append(time.perf_counter() - self._begun)
        self._buffer = b""
        self._next()

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(error or RuntimeError("the server closed the connection"))

    def _next(self) -> None:
        assert self._transport is not None
        wire = next(self._requests, None)
        if wire is None:
            self._transport.close()
            if not self.done.done():
                self.done.set_result(None)
            return
        self._begun = time.perf_counter()
        self._transport.write(wire)

    def _fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)
            if self._transport is not None:
                self._transport.close()


async def closed_loop(
    url: str, calls: Sequence[Call], *, requests: int, connections: int, numbers: Numbers
) -> list[float]:
    """The seconds that each of `requests` took, from `calls` in turn.

    Raises RuntimeError for an answer that is not 2xx.
    """
    address = urlsplit(url)
    host = address.netloc
    fixed = [None if call.unique else call.wire(host, 0) for call in calls]

    def wires() -> Iterator[bytes]:
        for turn in itertools.islice(itertools.cycle(range(len(calls))), requests):
            yield fixed[turn] or calls[turn].wire(host, next(numbers))

    source, seconds = wires(), list[float]()
    loop = asyncio.get_running_loop()
    made = [
        (await loop.create_connection(lambda: _Connection(source, seconds), address.hostname, address.port))[
            1
        ]
        for _ in range(connections)
    ]
    async with asyncio.timeout(120):
        await asyncio.gather(*(one.done for one in made))
    return seconds
