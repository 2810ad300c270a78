"""Messages that a broker has given this process and that no worker has taken yet.

A broker pushes, or answers to a request after the one who asked went away. What lies here is held back from
other processes, so it is bounded twice: by what was asked for, and in time, `stale`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Collection

from springtide.clock import Clock
from springtide.jobs.transports.seam import Delivery

__all__ = ["Fetched"]


class Fetched:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lines: dict[str, deque[tuple[float, Delivery]]] = {}
        self._news = asyncio.Event()

    def put(self, delivery: Delivery) -> None:
        line = self._lines.setdefault(delivery.message.line, deque())
        line.append((self._clock.monotonic(), delivery))
        self._news.set()

    @property
    def lines(self) -> list[str]:
        return list(self._lines)

    def count(self, line: str) -> int:
        return len(self._lines.get(line, ()))

    def take(self, lines: Collection[str], most: int) -> list[Delivery]:
        """Up to `most`, those of earlier lines first, the oldest of a line first."""
        found: list[Delivery] = []
        for name in lines:
            line = self._lines.get(name, ())
            while line and len(found) < most:
                found.append(line.popleft()[1])
        return found

    def stale(self, seconds: float) -> bool:
        """Whether the oldest of some line has been here for so long."""
        before = self._clock.monotonic() - seconds
        return any(line[0][0] <= before for line in self._lines.values() if line)

    def take_all(self) -> list[Delivery]:
        found = [delivery for line in self._lines.values() for _, delivery in line]
        self._lines.clear()
        return found

    def wake(self) -> None:
        """Something else has happened that a waiter should look at."""
        self._news.set()

    async def news(self, seconds: float) -> None:
        """Return when something came, or `wake` was called, since the last call; after `seconds` at most."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            pass
        self._news.clear()
