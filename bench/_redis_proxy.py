"""A TCP proxy before one Redis that tells the connections which follow the bus from all others.

A connection is a *reader* from its first XREAD on. Faults are set for readers alone or for everybody; what
is counted shows that they were felt. One piece of bytes after the other passes, in order.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from types import TracebackType
from typing import Any

__all__ = ["RedisProxy"]

CHUNK = 1 << 16
BUS = b"XREAD"


class Passage:
    """One connection of a client, and its other half to the server."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self.near = near
        self.far = far
        self.reader = False
        self.delay = 0.0
        self.open = asyncio.Event()
        self.open.set()

    def cut(self) -> None:
        self.near.transport.abort()
        self.far.transport.abort()


class RedisProxy:
    """Forwards 127.0.0.1:`port` to 127.0.0.1:`target`. `felt` counts what was cut, held and delayed."""

    def __init__(self, target: int) -> None:
        self.target = target
        self.felt: Counter[str] = Counter()
        self.port = 0
        self._server: asyncio.Server | None = None
        self._passages: set[Passage] = set()
        self._handlers: set[asyncio.Task[Any]] = set()
        self._delay = 0.0

    async def __aenter__(self) -> RedisProxy:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.heal()
        for passage in list(self._passages):
            passage.cut()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    @property
    def readers(self) -> list[Passage]:
        return [passage for passage in self._passages if passage.reader]

    def cut_readers(self) -> int:
        """How many there were."""
        readers = self.readers
        for passage in readers:
            passage.cut()
        self.felt["cut"] += len(readers)
        return len(readers)

    def hold_readers(self, share: float, chance: random.Random) -> int:
        """Pass nothing on to or from this share of the readers, at least one; how many that is."""
        readers = self.readers
        chosen = chance.sample(readers, min(len(readers), max(1, round(share * len(readers)))))
        for passage in chosen:
            passage.open.clear()
        return len(chosen)

    def delay_readers(self, seconds: float) -> int:
        for passage in self.readers:
            passage.delay = seconds
        return len(self.readers)

    def slow(self, seconds: float) -> None:
        """Delay each piece of bytes of every connection, those to come as well."""
        self._delay = seconds

    def heal(self) -> None:
        self._delay = 0.0
        for passage in self._passages:
            passage.delay = 0.0
            passage.open.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        handler.add_done_callback(self._handlers.discard)
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target)
        except OSError:
            writer.transport.abort()
            return
        passage = Passage(writer, far_writer)
        self._passages.add(passage)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pump(passage, reader, far_writer, asking=True))
                group.create_task(self._pump(passage, far_reader, writer, asking=False))
        finally:
            self._passages.discard(passage)
            passage.cut()

    async def _pump(
        self, passage: Passage, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, asking: bool
    ) -> None:
        try:
            while piece := await reader.read(CHUNK):
                if asking and not passage.reader and BUS in piece:
                    passage.reader = True
                if delay := passage.delay or self._delay:
                    self.felt["delayed"] += 1
                    await asyncio.sleep(delay)
                if not passage.open.is_set():
                    self.felt["held"] += 1
                    await passage.open.wait()
                if writer.is_closing():
                    break
                writer.write(piece)
                await writer.drain()
        except OSError:
            pass  # either side has left
        passage.cut()
