"""Whether a class's hit rate is what is wanted of it, over the last minute. Pure.

A hit is a read that needed no load of its own. Nothing is said before a whole window has passed (after a
start everything is cold), and nothing of a class that few ask for.
"""

from __future__ import annotations

from collections import deque

from springtide.cache._stats import Stats

__all__ = ["HitRate"]

WINDOW = 60.0
LEAST_READS = 100
"""Reads in a window below which a rate says nothing."""


class HitRate:
    """Of one class. `rate`: of the last window, None while nothing is said; `low`: it is below `wanted`."""

    __slots__ = ("_seen", "low", "rate", "wanted")

    def __init__(self, wanted: float) -> None:
        if not 0 <= wanted <= 1:
            raise ValueError(f"wanted must be between 0 and 1, got {wanted}")
        self.wanted = wanted
        self.rate: float | None = None
        self.low = False
        self._seen: deque[tuple[float, int, int]] = deque()

    def look(self, stats: Stats, now: float) -> bool:
        """What has happened until `now` (monotonic seconds); whether `low` has changed."""
        hits = stats.l1_hits + stats.l2_hits + stats.joined + sum(stats.stale_served.values())
        reads = hits + stats.misses + sum(stats.bypassed.values())
        self._seen.append((now, hits, reads))
        while len(self._seen) > 1 and self._seen[1][0] <= now - WINDOW:
            self._seen.popleft()
        then, hits_then, reads_then = self._seen[0]
        before, self.rate = self.low, None
        if then <= now - WINDOW and reads - reads_then >= LEAST_READS:
            self.rate = (hits - hits_then) / (reads - reads_then)
            self.low = self.rate < self.wanted
        return self.low is not before
