"""The most used tags, remembered for as long as counting them is worth.

Counting walks every tag of every bucket: a millisecond for a few thousand rows, a third of a second for a
million. A count of at most SMALL rows is made for every request, so that a new tag of a small site shows at
once; a larger one is kept for rows * SECONDS_PER_ROW (about 50 times as long as it takes), at most MAX_AGE.
Decided by rows and not by the clock, which would call a small site large on a busy machine.
Callers that came while one count ran share the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import NamedTuple

from springtide.clock import Clock

__all__ = ["MAX_TAGS", "Counted", "PopularTags"]

MAX_TAGS = 100
SMALL = 5_000
SECONDS_PER_ROW = 20e-6
MAX_AGE = 60.0


class Counted(NamedTuple):
    """Tag -> number of articles, and about how many rows were added up for it, those of other tags too."""

    uses: Mapping[str, int]
    rows: int


class PopularTags:
    """`count(limit)` counts at least the `limit` most used tags, over all shards."""

    def __init__(self, count: Callable[[int], Awaitable[Counted]], *, clock: Clock) -> None:
        self._count = count
        self._clock = clock
        self._known: list[str] = []
        self._begun = self._until = float("-inf")
        self._turn = asyncio.Lock()

    async def most_used(self) -> list[str]:
        """By number of articles, the largest first, then by name; at most MAX_TAGS."""
        arrived = self._clock.monotonic()
        if arrived < self._until:
            return list(self._known)
        async with self._turn:
            if self._begun < arrived and self._clock.monotonic() >= self._until:
                await self._refresh()
            return list(self._known)

    async def _refresh(self) -> None:
        begun = self._clock.monotonic()
        uses, rows = await self._count(MAX_TAGS)
        ranked = sorted(uses.items(), key=lambda use: (-use[1], use[0]))
        self._known, self._begun = [tag for tag, _ in ranked[:MAX_TAGS]], begun
        kept = min(rows * SECONDS_PER_ROW, MAX_AGE) if rows > SMALL else 0.0
        self._until = self._clock.monotonic() + kept
