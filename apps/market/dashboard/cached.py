"""The dashboard's figures over the cache.

    days:{seller}:{first}:{last}           what was sold on each day
    top:{seller}:{first}:{last}:{limit}    what brought the most

They are sums of money: no process keeps them in its memory. A sale, or its end, makes all of a seller's
stale.
"""

from __future__ import annotations

from datetime import date
from typing import Any

import msgspec

from market.dashboard.api import Day, Top
from market.dashboard.store import CURRENCY, DAYS, TOP, SaleStore, day_of_row
from market.money import Money
from springtide.cache import FORBIDDEN, Cache
from springtide.db import Database, Queries, WriteTransaction, bucket_of

__all__ = ["CachedSales"]


class _Days(msgspec.Struct, frozen=True):
    currency: str
    days: tuple[Day, ...]


class CachedSales(SaleStore):
    """`SaleStore` with a cache before its figures; writes say what they make stale."""

    def __init__(self, db: Database, cache: Cache) -> None:
        super().__init__(db)
        options: dict[str, Any] = {"database": db, "tags": ("sales:{seller}",), "l1": FORBIDDEN}
        self._days = cache.define(
            "days:{seller:int}:{first:str}:{last:str}",
            _Days, load=_load_days, key=lambda seller, *_: seller, **options,
        )  # fmt: skip
        self._top = cache.define(
            "top:{seller:int}:{first:str}:{last:str}:{limit:int}",
            tuple[Top, ...], load=_load_top, key=lambda seller, *_: seller, **options,
        )  # fmt: skip

    async def days(self, seller: int, first: date, last: date) -> tuple[str, dict[date, Day]] | None:
        found = await self._days.get(seller, first.isoformat(), last.isoformat())
        return None if found is None else (found.currency, {day.day: day for day in found.days})

    async def top(self, seller: int, first: date, last: date, limit: int) -> list[Top]:
        return list(await self._top.get(seller, first.isoformat(), last.isoformat(), limit) or ())

    def _stale_sales(self, tx: WriteTransaction, seller: int) -> None:
        tag = [f"sales:{seller}"]
        tx.invalidate(self._days, tags=tag)
        tx.invalidate(self._top, tags=tag)


async def _load_days(source: Queries, seller: int, first: str, last: str) -> _Days | None:
    # A seller's currency never changes, so a sale between the two statements does no harm.
    window = date.fromisoformat(first), date.fromisoformat(last)
    currency = await source.fetch_value(CURRENCY, bucket_of(seller), seller)
    if currency is None:
        return None
    rows = await source.fetch(DAYS, bucket_of(seller), seller, *window)
    return _Days(currency, tuple(day_of_row(row, currency) for row in rows))


async def _load_top(source: Queries, seller: int, first: str, last: str, limit: int) -> tuple[Top, ...]:
    window = date.fromisoformat(first), date.fromisoformat(last)
    currency = await source.fetch_value(CURRENCY, bucket_of(seller), seller)
    if currency is None:
        return ()
    rows = await source.fetch(TOP, bucket_of(seller), seller, *window, limit)
    return tuple(
        Top(listing_id=row["listing_id"], items=row["items"], revenue=Money(row["revenue"], currency))
        for row in rows
    )
