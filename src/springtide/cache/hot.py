"""Which keys of a class are asked for most: counted with a bound, at a cost that the hot path does not feel.

A `Sketch` counts at most 2 `keep` keys. When there are more, what the (keep + 1)-th most frequent one has is
taken from all, and who has nothing left is forgotten (Misra and Gries, "Finding repeated elements", 1982; the
subtraction for many keys at once). So a count is never too large, and too small by at most total / keep: a
key with more than that share of all reads is always there.

A `Tally` is what one class in one process has seen. Reads that ask another level or load are counted each;
of hits in memory, which are to cost a microsecond, one in `stride`, which then counts for so many. Strides
are random around their mean, so no rhythm of the callers hides a key, and the mean follows the traffic:
about `SAMPLES` between two ticks, every single one where there are fewer. It doubles with each `SAMPLES` in
between, so a storm that nobody expected costs its logarithm.

Old reads count less: half, after `HALF_LIFE` seconds.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Hashable, Mapping

__all__ = ["Sketch", "Tally"]

KEEP = 256
"""Keys per class and process that are told apart for certain."""

HALF_LIFE = 300.0
SAMPLES = 1000

HOT_SHARE = 0.01
"""Of a class's reads; so at most a hundred keys are hot."""

HOT_READS = 50.0
"""Reads, halved as they age, below which nothing is hot, whatever its share."""

MAX_TEXT = 256
"""Characters of a text argument beyond which a key is not counted: a table of them would have no bound."""


class Sketch:
    """Counts of the most frequent keys; see the module. `total`: all that was noted, aged as the counts."""

    __slots__ = ("_counts", "_keep", "total")

    def __init__(self, keep: int = KEEP) -> None:
        if keep < 1:
            raise ValueError(f"keep must be >= 1, got {keep}")
        self._keep = keep
        self._counts: dict[Hashable, float] = {}
        self.total = 0.0

    def __len__(self) -> int:
        return len(self._counts)

    def note(self, key: Hashable, weight: float = 1.0) -> None:
        """`key` was asked for `weight` times."""
        counts = self._counts
        counts[key] = counts.get(key, 0.0) + weight
        self.total += weight
        if len(counts) > 2 * self._keep:
            self._prune()

    def add(self, other: Sketch) -> None:
        """Take over what another one has counted."""
        total = self.total + other.total
        for key, count in other._counts.items():
            self.note(key, count)
        self.total = total  # what it had forgotten belongs to it, too

    def age(self, factor: float) -> None:
        """All that was noted until now counts `factor` of what it did; what is next to nothing goes."""
        self.total *= factor
        self._counts = {key: aged for key, count in self._counts.items() if (aged := count * factor) >= 0.01}

    def top(self, count: int) -> list[tuple[Hashable, float]]:
        """The most frequent keys and their counts, the first one first."""
        return heapq.nlargest(count, self._counts.items(), key=lambda item: item[1])

    def clear(self) -> None:
        self._counts = {}
        self.total = 0.0

    def _prune(self) -> None:
        spare = heapq.nlargest(self._keep + 1, self._counts.values())[-1]
        self._counts = {key: count - spare for key, count in self._counts.items() if count > spare}


class Tally:
    """What one class in this process was asked for. `hot`: the keys that deserve to be held.

    next_at: the hit in memory, counted from the first one, that is to be sampled.
    """

    __slots__ = ("_hits", "_new", "_sampled", "_stride", "hot", "next_at", "recent")

    def __init__(self) -> None:
        self.recent = Sketch()
        self.hot: frozenset[Hashable] = frozenset()
        self.next_at = 1
        self._new = Sketch()
        self._hits = 0
        self._sampled = 0
        self._stride = 1

    def note(self, key: Hashable) -> None:
        """`key` was asked for beyond this process's memory."""
        if _bounded(key):
            self._new.note(key)

    def sample(self, key: Hashable, hits: int) -> None:
        """`key` was hit in memory, and it is the turn of this hit, the `hits`-th."""
        stride = self._stride
        self.next_at = hits + (1 if stride == 1 else random.randrange(1, 2 * stride))  # noqa: S311 - a sample
        if _bounded(key):
            self._new.note(key, stride)
        self._sampled += 1
        if self._sampled == SAMPLES:
            self._sampled = 0
            self._stride = 2 * stride

    def tick(self, hits: int, seconds: float, *, most: int) -> list[tuple[Hashable, float]]:
        """`seconds` have passed since the last tick, with `hits` hits until now: age, find who is hot, set
        the stride. Answers up to `most` keys that were asked for since then, with how often."""
        self._stride = max(1, (hits - self._hits) // SAMPLES)
        self._hits, self._sampled = hits, 0
        self.next_at = min(self.next_at, hits + 2 * self._stride)
        news = self._new.top(most)
        self.recent.age(0.5 ** (seconds / HALF_LIFE))
        self.recent.add(self._new)
        self._new.clear()
        least = max(HOT_READS, HOT_SHARE * self.recent.total)
        self.hot = frozenset(key for key, count in self.recent.top(round(1 / HOT_SHARE)) if count >= least)
        return news

    def shares(self, count: int) -> Mapping[Hashable, float]:
        """The most frequent keys of late and their part of all reads."""
        total = self.recent.total
        return {key: reads / total for key, reads in self.recent.top(count)} if total else {}


def _bounded(key: Hashable) -> bool:
    parts = key if isinstance(key, tuple) else (key,)
    return all(not isinstance(part, str) or len(part) <= MAX_TEXT for part in parts)
