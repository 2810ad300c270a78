"""Time that stands still until the test moves it."""

from __future__ import annotations

import asyncio
import heapq
import itertools

__all__ = ["ManualClock"]


class ManualClock:
    """A `Clock` whose time moves only by `advance`. Sleepers wake in the order of their times."""

    def __init__(self, *, monotonic: float = 1000.0, now: float = 1_700_000_000.0) -> None:
        self._monotonic = monotonic
        self._offset = now - monotonic
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = itertools.count()
        self._arrived = asyncio.Event()

    def monotonic(self) -> float:
        return self._monotonic

    def now(self) -> float:
        return self._monotonic + self._offset

    async def sleep(self, seconds: float) -> None:
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._monotonic + seconds, next(self._order), future))
        self._arrived.set()
        await future

    @property
    def sleepers(self) -> int:
        """How many callers are asleep."""
        return sum(1 for _, _, future in self._sleepers if not future.done())

    async def until_sleeping(self, count: int = 1) -> None:
        """Return once at least `count` callers are asleep."""
        while self.sleepers < count:
            self._arrived.clear()
            await self._arrived.wait()

    def step(self, seconds: float) -> None:
        """Move wall-clock time alone, as an operator or NTP does; may be negative."""
        self._offset += seconds

    async def advance(self, seconds: float) -> None:
        """Move time forward by `seconds`, waking sleepers one by one at their own time."""
        if seconds < 0:
            raise ValueError(f"monotonic time cannot go back, got {seconds}")
        target = self._monotonic + seconds
        while True:
            await _drain()
            if not self._sleepers or self._sleepers[0][0] > target:
                break
            at, _, future = heapq.heappop(self._sleepers)
            self._monotonic = max(self._monotonic, at)
            if not future.done():
                future.set_result(None)
        self._monotonic = max(self._monotonic, target)  # two advances may overlap
        await _drain()


async def _drain() -> None:
    """Let every task that can run do so; bounded, because a test must not hang here."""
    for _ in range(10):
        await asyncio.sleep(0)
