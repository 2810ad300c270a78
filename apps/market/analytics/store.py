"""The table of what happened by day: the only place with the module's SQL."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Any

from springtide.db import Database

__all__ = ["ADD", "DAYS", "DayStore"]

# In one order, so that two that count at once in one bucket wait for each other and never in a circle.
ADD = """
insert into analytics.day as known (bucket, day, what, orders)
select $1::smallint, counted.*
from unnest($2::date[], $3::text[], $4::bigint[]) as counted (day, what, orders)
order by counted.day, counted.what
on conflict (bucket, day, what) do update set orders = known.orders + excluded.orders
"""

DAYS = """
select day, what, sum(orders)::bigint as orders from analytics.day
where day between $1 and $2
group by day, what
"""


class DayStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def add(self, tx: Any, counted: Mapping[tuple[date, str], int]) -> None:
        """So many more of each (day, what), in the transaction that moves the group on."""
        days, whats = [day for day, _ in counted], [what for _, what in counted]
        await tx.execute(ADD, tx.bucket, days, whats, list(counted.values()))

    async def days(self, first: date, last: date) -> dict[date, dict[str, int]]:
        """How many of what, by day, over all shards; without the days that have nothing."""
        found: dict[date, dict[str, int]] = {}
        for day, what, orders in await self._db.scatter(DAYS, first, last):
            counted = found.setdefault(day, {})
            counted[what] = counted.get(what, 0) + orders
        return found
