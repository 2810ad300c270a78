"""The most used tags, remembered for as long as counting them is worth.

Counting walks every tag of every bucket: a millisecond for thousands of articles, much longer for millions.
An answer that took d seconds is kept for REUSE * d seconds, up to MAX_AGE, so that counting never takes more
than 1/REUSE of one connection's time; one that took less than CHEAP is not kept at all, and a new tag of a
small site shows at once. Callers that came while one count ran share the next one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from springtide.clock import Clock

__all__ = ["PopularTags"]

MAX_TAGS = 100
PER_SHARD = 1_000
CHEAP = 0.02
REUSE = 50
MAX_AGE = 60.0


class PopularTags:
    """`count(limit)` gives tags and their numbers of articles, the `limit` most used of each shard."""

    def __init__(self, count: Callable[[int], Awaitable[Mapping[str, int]]], *, clock: Clock) -> None:
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
            if self._begun < arrived:
                await self._refresh()
            return list(self._known)

    async def _refresh(self) -> None:
        begun = self._clock.monotonic()
        uses = await self._count(PER_SHARD)
        took = self._clock.monotonic() - begun
        ranked = sorted(uses.items(), key=lambda use: (-use[1], use[0]))
        self._known, self._begun = [tag for tag, _ in ranked[:MAX_TAGS]], begun
        self._until = begun + took + min(took * REUSE, MAX_AGE) if took >= CHEAP else begun
