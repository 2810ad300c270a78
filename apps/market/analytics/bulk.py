"""Bulk loading of the analytics module: the days of orders that ended long ago, by COPY, for seeds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING

from springtide.db import Database

if TYPE_CHECKING:
    from springtide.ops.load.seeding import BulkLoad

__all__ = ["Counted", "copy_days", "is_empty"]


ANY = 0
"""The bucket that all of it is counted in: a day is the sum over all buckets, whichever they are."""


class Counted:
    """What is counted of orders while they are loaded."""

    def __init__(self) -> None:
        self._orders: Counter[tuple[date, str]] = Counter()

    def add(self, at: datetime, *, declined: bool) -> None:
        """An order that was placed at `at`, and confirmed or declined in that moment."""
        day = at.astimezone(UTC).date()
        self._orders[day, "placed"] += 1
        self._orders[day, "failed:declined" if declined else "confirmed"] += 1

    def rows(self) -> Iterable[tuple[int, date, str, int]]:
        return ((ANY, *what, orders) for what, orders in self._orders.items())


async def is_empty(db: Database) -> bool:
    """Whether nothing is counted on any shard."""
    return not await db.scatter("select day from analytics.day", limit=1)


async def copy_days(load: BulkLoad, db: Database, counted: Counted) -> None:
    await load.copy(db, "day", ["bucket", "day", "what", "orders"], counted.rows())
