"""Recommendations over the cache: the lists that jobs have made, and whom somebody follows.

    also-bought:{listing}    what goes with a listing, with scores; an empty list too
    suggested:{person}       whom somebody may want to follow, as it was made
    follows:{person}         whom somebody follows, the newest first: taken out of what is suggested
    most-followed            the chart

Only answers are made of them. What jobs count and what they make lists from is the database's.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from market.recommendations.follows import AUTHORS, CHART, CHART_HOME, FOLLOWS, MOST_FOLLOWED, FollowStore
from market.recommendations.store import LISTS, PurchaseStore
from springtide.cache import Cache
from springtide.db import Bucket, Database, Queries, WriteTransaction, bucket_of

__all__ = ["CachedFollows", "CachedPurchases"]

MAX_KEPT = 5_000
"""Followed people that are kept of somebody; more are looked for in the database."""

People = tuple[int, ...]


class _List(msgspec.Struct, frozen=True):
    others: tuple[int, ...]
    scores: tuple[float, ...]


class CachedPurchases(PurchaseStore):
    """`PurchaseStore` with a cache before what answers are made of."""

    def __init__(self, db: Database, cache: Cache) -> None:
        super().__init__(db)
        self._lists = cache.define("also-bought:{listing:int}", _List, database=db, load_many=_load_lists)

    async def lists(self, listings: Sequence[int]) -> list[tuple[Sequence[int], Sequence[float]]]:
        found = await self._lists.get_many(listings)
        return [(one.others, one.scores) for one in found.values()]

    def _stale_list(self, tx: WriteTransaction, listing: int) -> None:
        tx.invalidate(self._lists, listing)


class CachedFollows(FollowStore):
    """`FollowStore` with a cache before what answers are made of."""

    def __init__(self, db: Database, cache: Cache) -> None:
        super().__init__(db)
        self._suggested = cache.define("suggested:{person:int}", People, database=db, load=_load_suggested)
        self._follows = cache.define("follows:{person:int}", People, database=db, load=_load_follows)
        self._chart = cache.define("most-followed", People, database=db, load=_load_chart, key=_chart_home)

    async def followed(self, person: int, among: Sequence[int]) -> set[int]:
        known = await self._follows.get(person) or ()
        if len(known) == MAX_KEPT:
            return await super().followed(person, among)
        return set(known).intersection(among)

    async def authors(self, person: int) -> list[int]:
        return list(await self._suggested.get(person) or ())

    async def chart(self) -> list[int]:
        return list(await self._chart.get() or ())

    def _stale_follows(self, tx: WriteTransaction, person: int) -> None:
        tx.invalidate(self._follows, person)

    def _stale_authors(self, tx: WriteTransaction, person: int) -> None:
        tx.invalidate(self._suggested, person)

    def _stale_chart(self, tx: WriteTransaction) -> None:
        tx.invalidate(self._chart)


def _chart_home() -> Bucket:
    return CHART_HOME


async def _load_lists(source: Queries, listings: Sequence[int]) -> dict[int, _List]:
    rows = await source.fetch(LISTS, list(listings))
    made = {row["listing_id"]: _List(tuple(row["others"]), tuple(row["scores"])) for row in rows}
    return {listing: made.get(listing) or _List((), ()) for listing in listings}


async def _load_suggested(source: Queries, person: int) -> People:
    return tuple(await source.fetch_value(AUTHORS, bucket_of(person), person) or ())


async def _load_follows(source: Queries, person: int) -> People:
    rows = await source.fetch(FOLLOWS, bucket_of(person), person, MAX_KEPT)
    return tuple(row[0] for row in rows)


async def _load_chart(source: Queries) -> People:
    return tuple(await source.fetch_value(CHART, CHART_HOME.number, MOST_FOLLOWED) or ())
