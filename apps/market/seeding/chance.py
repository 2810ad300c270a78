"""What all seeded things share: how many there are, which chance they come from, and when they happen.

Each kind of thing has a random stream of its own, so that a change of one does not change the others. Pure.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from springtide.db import BUCKETS
from springtide.ops.load.zipf import Popularity

__all__ = ["DAY", "STRIDE", "YEAR", "Plan", "counted", "shares"]

DAY = timedelta(days=1)
YEAR = timedelta(days=365)
STRIDE = 2_147_483_647
"""A prime above any number of users: multiples of it visit each of them once."""

_MILLISECOND = timedelta(milliseconds=1)


@dataclass(frozen=True, slots=True)
class Plan:
    """So many `users`, by the chance of `seed`; everything happened before `today`."""

    users: int
    seed: int
    today: date

    @property
    def now(self) -> datetime:
        """Midnight: what is seeded depends on the day, not on the hour."""
        return datetime.combine(self.today, time(), UTC)

    def random(self, what: str) -> random.Random:
        return random.Random(f"{self.seed}:{what}")  # noqa: S311 - invents people, hides nothing

    def popularity(self, items: int, *, s: float, label: str) -> Popularity:
        return Popularity(items, s=s, seed=self.seed, label=label)

    def moment(self, begin: timedelta, span: timedelta, number: int, total: int) -> datetime:
        """Point `number` of `total` in the `span` that begins `begin` before now, to the millisecond."""
        return self.now - begin + (number * (span // _MILLISECOND) // total) * _MILLISECOND


def counted(buckets: Iterable[int]) -> list[int]:
    """How many there are in each bucket."""
    counts = [0] * BUCKETS
    for bucket in buckets:
        counts[bucket] += 1
    return counts


def shares(plan: Plan, items: int, total: int, most: int, *, label: str) -> array[int]:
    """`total` things given to `items` by Zipf's law (s = 0.8), at most `most` to one."""
    order = plan.popularity(items, s=1.0, label=label)
    whole = sum(rank**-0.8 for rank in range(1, items + 1))
    given = array("I", bytes(4 * items))
    reached = 0.0
    for rank in range(1, items + 1):
        before = int(reached)
        reached += total * rank**-0.8 / whole
        given[order.item(rank)] = min(int(reached) - before, most)
    return given
