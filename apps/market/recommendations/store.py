"""The tables of what is bought together: with `follows.py`, the only place with the module's SQL.

An order is in its own bucket, everything else in the bucket of the listing that it is about. Whoever changes
what is counted of a listing locks its row in `listing` first; one transaction is about one listing, so nobody
waits in a circle.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from market.recommendations.scoring import MIN_SUPPORT, REPEATS, Change, Counted, Purchase
from springtide.db import Database, WriteTransaction, bucket_of
from springtide.db.scatter import ASC

__all__ = ["CANDIDATES", "LISTS", "Basket", "Candidate", "Listed", "Old", "PurchaseStore"]

CANDIDATES = 200
"""Pairs of one listing that are scored, those with the most weight."""

INSERT_BASKET = """
insert into recommendations.basket (bucket, order_id, buyer_id, listings, undone, bought_at)
values ($1, $2, $3, $4, false, $5)
on conflict (bucket, order_id) do nothing
returning order_id
"""

UNDO_BASKET = """
insert into recommendations.basket as known (bucket, order_id, buyer_id, listings, undone, bought_at)
values ($1, $2, null, '{}', true, $3)
on conflict (bucket, order_id) do update set undone = true where not known.undone
returning listings
"""

BASKET = """
select buyer_id, listings, undone, bought_at from recommendations.basket where bucket = $1 and order_id = $2
"""

LOCK = """
insert into recommendations.listing as known (bucket, listing_id) values ($1, $2)
on conflict (bucket, listing_id) do update set version = known.version
returning version
"""

KNOWN = """
select undone from recommendations.purchase
where bucket = $1 and listing_id = $2 and buyer_id = $3 and order_id = $4
"""

PURCHASES = """
select order_id, weight, others from recommendations.purchase
where bucket = $1 and listing_id = $2 and buyer_id = $3 and not undone
order by weight desc, order_id desc
limit $4
"""

PUT_PURCHASE = """
insert into recommendations.purchase as known
    (bucket, listing_id, buyer_id, order_id, others, weight, undone, bought_at)
values ($1, $2, $3, $4, $5, $6, $7, $8)
on conflict (bucket, listing_id, buyer_id, order_id) do update set undone = excluded.undone
"""

FORGET_PURCHASE = """
delete from recommendations.purchase
where bucket = $1 and listing_id = $2 and buyer_id = $3 and order_id = $4
"""

COUNT_PAIRS = """
insert into recommendations.pair as known (bucket, listing_id, other_id, buyers, weight)
select $1::smallint, $2::bigint, added.other_id, 0, 0
from unnest($3::bigint[]) as added (other_id)
order by added.other_id
on conflict (bucket, listing_id, other_id) do nothing
"""

ADD_PAIRS = """
update recommendations.pair as known
set buyers = known.buyers + added.buyers, weight = known.weight + added.weight
from unnest($3::bigint[], $4::integer[], $5::double precision[]) as added (other_id, buyers, weight)
where known.bucket = $1 and known.listing_id = $2 and known.other_id = added.other_id
"""

DROP_PAIRS = """
delete from recommendations.pair
where bucket = $1 and listing_id = $2 and other_id = any($3::bigint[]) and buyers = 0
"""

COUNT_LISTING = """
update recommendations.listing
set buyers = buyers + $3, version = version + 1,
    weight = case when buyers + $3 = 0 then 0 else weight + $4 end
where bucket = $1 and listing_id = $2
"""

LISTING = "select weight, version from recommendations.listing where bucket = $1 and listing_id = $2"

CANDIDATE_PAIRS = f"""
select other_id, buyers, weight from recommendations.pair
where bucket = $1 and listing_id = $2 and buyers >= {MIN_SUPPORT}
order by weight desc
limit $3
"""  # noqa: S608 - a constant, written out so that the partial index is known to fit

WEIGHTS = """
select known.listing_id, known.weight
from unnest($1::bigint[]) as wanted (id)
cross join lateral (
    select listing_id, weight from recommendations.listing
    where bucket = (wanted.id & 1023)::smallint and listing_id = wanted.id
    limit 1
) as known
"""

PUT_LIST = """
insert into recommendations.also_bought as known (bucket, listing_id, others, scores, version, made_at)
values ($1, $2, $3, $4, $5, $6)
on conflict (bucket, listing_id) do update
set others = excluded.others, scores = excluded.scores, version = excluded.version, made_at = excluded.made_at
where known.version <= excluded.version
"""

LISTS = """
select known.listing_id, known.others, known.scores
from unnest($1::bigint[]) as wanted (id)
cross join lateral (
    select listing_id, others, scores from recommendations.also_bought
    where bucket = (wanted.id & 1023)::smallint and listing_id = wanted.id
    limit 1
) as known
"""

OLD_LISTS = "select listing_id, made_at from recommendations.also_bought where made_at < $1"

OLD_PURCHASES = """
select listing_id, buyer_id, order_id, bought_at from recommendations.purchase where bought_at < $1
"""

OLD_BASKETS = "select order_id, bought_at from recommendations.basket where bought_at < $1"

FORGET_BASKET = """
delete from recommendations.basket where bucket = $1 and order_id = $2 and bought_at < $3
"""


class Basket(msgspec.Struct, frozen=True):
    """An order as it is known now; `buyer` is None when only its end is."""

    buyer: int | None
    listings: list[int]
    undone: bool
    bought_at: datetime


class Candidate(NamedTuple):
    other: int
    counted: Counted


class Listed(NamedTuple):
    """A listing's weight, the version of its counts, and the pairs worth scoring, all of one moment."""

    weight: float
    version: int
    pairs: list[Candidate]


class Old(NamedTuple):
    listing: int
    buyer: int
    order: int


class PurchaseStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    def write(self, key: int) -> Any:
        """A transaction on the shard of `key`, for the methods that take `tx`."""
        return self._db.write(key)

    async def insert_basket(
        self, tx: WriteTransaction, order: int, buyer: int, listings: list[int], at: datetime
    ) -> bool:
        """False when the order is known already."""
        return await tx.fetch_value(INSERT_BASKET, bucket_of(order), order, buyer, listings, at) is not None

    async def undo_basket(self, tx: WriteTransaction, order: int, at: datetime) -> list[int]:
        """The listings that count no more; none when it never counted or was undone before."""
        found = await tx.fetch_value(UNDO_BASKET, bucket_of(order), order, at)
        return [] if found is None else list(found)

    async def basket(self, order: int) -> Basket | None:
        row = await self._db.read(order).fetch_one(BASKET, bucket_of(order), order)
        return None if row is None else Basket(*row)

    async def lock(self, tx: WriteTransaction, listing: int) -> None:
        """Nobody else changes what is counted of the listing before the transaction ends."""
        await tx.fetch_value(LOCK, bucket_of(listing), listing)

    async def known(self, tx: WriteTransaction, listing: int, buyer: int, order: int) -> bool | None:
        """Whether the purchase is undone, None when there is none."""
        undone: bool | None = await tx.fetch_value(KNOWN, bucket_of(listing), listing, buyer, order)
        return undone

    async def purchases(self, tx: WriteTransaction, listing: int, buyer: int) -> list[Purchase]:
        """The newest that count, enough of them to tell what one more or one less changes."""
        rows = await tx.fetch(PURCHASES, bucket_of(listing), listing, buyer, REPEATS + 1)
        return [Purchase(*row) for row in rows]

    async def put_purchase(
        self,
        tx: WriteTransaction,
        listing: int,
        buyer: int,
        purchase: Purchase,
        at: datetime,
        *,
        undone: bool,
    ) -> None:
        await tx.execute(
            PUT_PURCHASE, bucket_of(listing), listing, buyer, purchase.order_id, list(purchase.others),
            purchase.weight, undone, at,
        )  # fmt: skip

    async def forget_purchase(self, tx: WriteTransaction, old: Old) -> None:
        await tx.execute(FORGET_PURCHASE, bucket_of(old.listing), *old)

    async def count(self, tx: WriteTransaction, listing: int, change: Change) -> None:
        """Add `change` to the counts; the listing is locked."""
        bucket = bucket_of(listing)
        others = sorted(change.pairs)
        if others:
            added = [change.pairs[other] for other in others]
            if any(pair.buyers > 0 for pair in added):
                new = [other for other, pair in zip(others, added, strict=True) if pair.buyers > 0]
                await tx.execute(COUNT_PAIRS, bucket, listing, new)
            buyers, weights = [pair.buyers for pair in added], [pair.weight for pair in added]
            await tx.execute(ADD_PAIRS, bucket, listing, others, buyers, weights)
            if any(pair.buyers < 0 for pair in added):
                await tx.execute(DROP_PAIRS, bucket, listing, others)
        await tx.execute(COUNT_LISTING, bucket, listing, change.own.buyers, change.own.weight)

    async def listed(self, listing: int) -> Listed | None:
        bucket = bucket_of(listing)
        async with self._db.read(listing) as snapshot:
            row = await snapshot.fetch_one(LISTING, bucket, listing)
            if row is None:
                return None
            pairs = await snapshot.fetch(CANDIDATE_PAIRS, bucket, listing, CANDIDATES)
        return Listed(row[0], row[1], [Candidate(other, Counted(*rest)) for other, *rest in pairs])

    async def weights(self, listings: Sequence[int]) -> dict[int, float]:
        """One statement per shard."""
        return dict(map(tuple, await self._db.fetch_many(WEIGHTS, listings))) if listings else {}

    async def put_list(
        self, listing: int, scores: Sequence[tuple[int, float]], version: int, at: datetime
    ) -> None:
        """Changes nothing when there is a list of a later version."""
        others, worth = [other for other, _ in scores], [score for _, score in scores]
        async with self._db.write(listing) as tx:
            await tx.execute(PUT_LIST, bucket_of(listing), listing, others, worth, version, at)
            self._stale_list(tx, listing)

    async def lists(self, listings: Sequence[int]) -> list[tuple[Sequence[int], Sequence[float]]]:
        """In no order; one statement per shard."""
        return [(row["others"], row["scores"]) for row in await self._db.fetch_many(LISTS, listings)]

    async def old_lists(self, before: datetime, limit: int) -> list[int]:
        rows = await self._db.scatter(OLD_LISTS, before, order=[("made_at", ASC)], limit=limit)
        return [row["listing_id"] for row in rows]

    async def old_purchases(self, before: datetime, limit: int) -> list[Old]:
        rows = await self._db.scatter(OLD_PURCHASES, before, order=[("bought_at", ASC)], limit=limit)
        return [Old(row["listing_id"], row["buyer_id"], row["order_id"]) for row in rows]

    async def forget_baskets(self, before: datetime, limit: int) -> int:
        rows = await self._db.scatter(OLD_BASKETS, before, order=[("bought_at", ASC)], limit=limit)
        for row in rows:
            async with self._db.write(row["order_id"]) as tx:
                order = row["order_id"]
                await tx.execute(FORGET_BASKET, bucket_of(order), order, before)
        return len(rows)

    # What a write makes stale; here nothing is kept, so there is nothing to tell (`cached.py`).

    def _stale_list(self, tx: WriteTransaction, listing: int) -> None:
        """What goes with a listing."""
