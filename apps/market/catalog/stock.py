"""The tables of stock and reservations, statement by statement; `reservations.py` says in which order.

What an order wants is on record in the order's bucket (`reservation`), what is held of each listing in the
listing's (`held`). All statements take the listings of one shard at once, whoever sells them. The listings'
rows are locked first, in order, so what is looked at then stays until the transaction ends; the conditions
in HOLD_STOCK and the table's CHECK hold even if that were forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from market.catalog.api import Line, Reservation, Reserved, ReservedLine
from market.catalog.jobs import StockTurned
from market.catalog.news import News
from market.catalog.rules import Fault, Offer, judge
from market.money import Money
from springtide.db import ASC, Consistency, Database, bucket_of

__all__ = ["ADD_MOVEMENTS", "LOCK", "Known", "Settling", "StockStore", "count", "flip"]

LOCK = """
select listing.bucket, listing.id, listing.seller_id, listing.title, listing.amount, listing.currency,
    listing.category, listing.status, listing.version
from catalog.listing
join unnest($1::bigint[]) as wanted (id)
    on listing.bucket = (wanted.id & 1023)::smallint and listing.id = wanted.id
order by listing.id
for no key update of listing
"""

LOOK = """
select stock.listing_id, stock.on_hand - stock.reserved as available, held.state
from unnest($1::bigint[]) as wanted (id)
join catalog.stock on stock.bucket = (wanted.id & 1023)::smallint and stock.listing_id = wanted.id
left join catalog.held
    on held.bucket = stock.bucket and held.order_id = $2 and held.listing_id = stock.listing_id
"""

HOLD = """
insert into catalog.held
    (bucket, order_id, listing_id, seller_id, title, quantity, amount, currency, state, expires_at)
select listing.bucket, $2, listing.id, listing.seller_id, listing.title, wanted.quantity, listing.amount,
    listing.currency, 'held', $4
from unnest($1::bigint[], $3::integer[]) as wanted (id, quantity)
join catalog.listing on listing.bucket = (wanted.id & 1023)::smallint and listing.id = wanted.id
"""

HOLD_STOCK = """
update catalog.stock
set reserved = stock.reserved + wanted.quantity
from unnest($1::bigint[], $2::integer[]) as wanted (id, quantity)
where stock.bucket = (wanted.id & 1023)::smallint and stock.listing_id = wanted.id
    and stock.on_hand - stock.reserved >= wanted.quantity
returning stock.listing_id, stock.on_hand, stock.reserved
"""

HELD = """
select held.listing_id, held.seller_id, held.title, held.quantity, held.amount, held.currency
from unnest($1::bigint[]) as wanted (id)
join catalog.held
    on held.bucket = (wanted.id & 1023)::smallint and held.order_id = $2 and held.listing_id = wanted.id
"""

SETTLE = """
update catalog.held
set state = $3
from unnest($1::bigint[]) as wanted (id)
where held.bucket = (wanted.id & 1023)::smallint and held.order_id = $2 and held.listing_id = wanted.id
    and held.state = $4
returning held.listing_id, held.quantity
"""

SETTLE_STOCK = """
update catalog.stock
set on_hand = stock.on_hand + moved.change,
    reserved = stock.reserved - moved.freed,
    movements = stock.movements + abs(sign(moved.change)::integer)
from unnest($1::bigint[], $2::integer[], $3::integer[]) as moved (id, change, freed)
where stock.bucket = (moved.id & 1023)::smallint and stock.listing_id = moved.id
returning stock.listing_id, stock.on_hand, stock.reserved, stock.movements
"""

ADD_MOVEMENTS = """
insert into catalog.movement
    (bucket, listing_id, number, kind, change, on_hand, order_id, note, created_at)
select (moved.id & 1023)::smallint, moved.id, moved.number, $3, moved.change, moved.on_hand, $6, $7, $8
from unnest($1::bigint[], $2::integer[], $4::integer[], $5::integer[]) as moved (id, number, change, on_hand)
"""

FLIP = """
update catalog.listing
set status = wanted.status, turns = listing.turns + 1
from unnest($1::bigint[], $2::text[]) as wanted (id, status)
where listing.bucket = (wanted.id & 1023)::smallint and listing.id = wanted.id
returning listing.bucket, listing.id, listing.seller_id, listing.category, listing.status
"""

COUNT = """
insert into catalog.category_count (bucket, category, listings)
select changed.bucket, changed.category, changed.by
from unnest($1::smallint[], $2::text[], $3::bigint[]) as changed (bucket, category, by)
order by changed.bucket, changed.category
on conflict (bucket, category) do update set listings = category_count.listings + excluded.listings
"""

BEGIN = """
insert into catalog.reservation
    (bucket, order_id, state, lines, settled, expires_at, created_at, updated_at)
values ($1, $2, $3, $4, $5, $6, $7, $7)
on conflict (bucket, order_id) do nothing
returning state, lines, refusal, settled, expires_at
"""

KNOWN = """
select state, lines, refusal, settled, expires_at
from catalog.reservation where bucket = $1 and order_id = $2
"""

STATES = """
select reservation.order_id, reservation.state
from unnest($1::bigint[]) as wanted (id)
join catalog.reservation
    on reservation.bucket = (wanted.id & 1023)::smallint and reservation.order_id = wanted.id
"""

DECIDE = """
update catalog.reservation
set state = $3, refusal = $4, settled = false, updated_at = $5
where bucket = $1 and order_id = $2 and state = any($6::text[])
    and ($7::timestamptz is null or expires_at <= $7)
returning state, lines, refusal, settled, expires_at
"""

SETTLED = """
update catalog.reservation set settled = true where bucket = $1 and order_id = $2 and state = $3
"""

OVERDUE = """
select expires_at, order_id, listing_id from catalog.held where state = 'held' and expires_at <= $1
"""

UNSETTLED = """
select updated_at, order_id from catalog.reservation
where not settled and state not in ('reserving', 'reserved') and updated_at <= $1
"""


SHOWN = frozenset({"active", "sold_out"})
"""Between these two the stock decides; a draft or a withdrawn listing stays what it is."""


class Known(NamedTuple):
    """A reservation on record."""

    state: str
    lines: list[Line]
    refusal: list[Fault]
    settled: bool
    expires_at: datetime

    @property
    def ids(self) -> list[int]:
        return [line.listing_id for line in self.lines]


class Settling(NamedTuple):
    """How what is held in state `before` comes to `after`: items leave the stock, come back, or neither."""

    before: str
    after: str
    kind: str
    leaves: int
    freed: int


class StockStore:
    """Methods take the open transaction they shall join, or None to make one of their own.

    What is reserved is read as it is now: the order, its payment and the sweep all end a reservation.
    """

    def __init__(self, db: Database, news: News | None = None) -> None:
        self._db = db
        self._news = news or News()

    def one_shard(self, order_id: int, ids: Sequence[int]) -> bool:
        return len(self._db.group([order_id, *ids])) == 1

    def by_shard(self, ids: Sequence[int]) -> list[list[int]]:
        return list(self._db.group(ids).values())

    def write(self, key: int) -> AbstractAsyncContextManager[Any]:
        return self._db.write(key)

    async def begin(
        self, tx: Any, order_id: int, lines: Sequence[Line], expires_at: datetime, at: datetime
    ) -> Known:
        """The order's reservation: a new one, or the one that it has."""
        return await self._begin(tx, order_id, "reserving", lines, expires_at, at)

    async def forbid(self, order_id: int, at: datetime) -> Known:
        """Put on record that nothing shall be reserved, unless something is on record."""
        return await self._begin(None, order_id, "released", [], at, at)

    async def known(self, tx: Any, order_id: int) -> Known | None:
        reader = tx or self._db.read(order_id, consistency=Consistency.STRONG)
        row = await reader.fetch_one(KNOWN, bucket_of(order_id), order_id)
        return None if row is None else _known(row)

    async def decide(
        self,
        tx: Any,
        order_id: int,
        state: str,
        before: Sequence[str],
        at: datetime,
        *,
        refusal: Sequence[Fault] = (),
        expired: bool = False,
    ) -> Known | None:
        """Give the reservation a new state; None when it is in none of `before` (or not `expired` yet)."""
        faults = msgspec.to_builtins(list(refusal)) if refusal else None
        async with self._in(tx, order_id) as tx:
            row = await tx.fetch_one(
                DECIDE,
                bucket_of(order_id),
                order_id,
                state,
                faults,
                at,
                list(before),
                at if expired else None,
            )
        return None if row is None else _known(row)

    async def settled(self, tx: Any, order_id: int, state: str) -> None:
        async with self._in(tx, order_id) as tx:
            await tx.execute(SETTLED, bucket_of(order_id), order_id, state)

    async def hold(
        self, tx: Any, order_id: int, lines: Sequence[Line], expires_at: datetime, *, take: bool
    ) -> list[Fault]:
        """Hold the lines of one shard, all or none; what stands against it. Without `take` it only looks.

        Lines that are held for this order already stay as they are.
        """
        ids = [line.listing_id for line in lines]
        async with self._in(tx, ids[0]) as tx:
            listings = await tx.fetch(LOCK, ids)
            looked = {row["listing_id"]: row for row in await tx.fetch(LOOK, ids, order_id)}
            new = [line for line in lines if not _is_held(looked.get(line.listing_id))]
            offers = {
                row["id"]: Offer(
                    row["status"], Money(row["amount"], row["currency"]), looked[row["id"]]["available"]
                )
                for row in listings
            }
            faults = judge(new, offers)
            if faults or not take or not new:
                return faults
            wanted = [line.listing_id for line in new]
            quantities = [line.quantity for line in new]
            await tx.execute(HOLD, wanted, order_id, quantities, expires_at)
            rows = await tx.fetch(HOLD_STOCK, wanted, quantities)
            if len(rows) != len(wanted):
                raise RuntimeError(f"stock of order {order_id} changed while its listings were locked")
            await flip(tx, listings, rows, self._news)
        return []

    async def settle(self, tx: Any, order_id: int, ids: Sequence[int], how: Settling, at: datetime) -> None:
        """Bring what is held of one shard's listings to its end; what is there already stays."""
        async with self._in(tx, ids[0]) as tx:
            listings = await tx.fetch(LOCK, ids)
            held = await tx.fetch(SETTLE, ids, order_id, how.after, how.before)
            if not held:
                return
            changes = {row["listing_id"]: -how.leaves * row["quantity"] for row in held}
            freed = [how.freed * row["quantity"] for row in held]
            rows = await tx.fetch(SETTLE_STOCK, list(changes), list(changes.values()), freed)
            if how.leaves:
                await tx.execute(
                    ADD_MOVEMENTS, [row["listing_id"] for row in rows], [row["movements"] for row in rows],
                    how.kind, [changes[row["listing_id"]] for row in rows], [row["on_hand"] for row in rows],
                    order_id, "", at,
                )  # fmt: skip
            await flip(tx, listings, rows, self._news)

    async def snapshot(self, tx: Any, order_id: int, known: Known) -> Reserved:
        """What the order has, as it was when it was reserved."""
        if tx is not None:
            rows = await tx.fetch(HELD, known.ids, order_id)
        else:
            rows = await self._db.fetch_many(HELD, known.ids, order_id, consistency=Consistency.STRONG)
        lines = [
            ReservedLine(
                listing_id=row["listing_id"],
                seller_id=row["seller_id"],
                title=row["title"],
                quantity=row["quantity"],
                price=Money(row["amount"], row["currency"]),
            )
            for row in sorted(rows, key=lambda row: int(row["listing_id"]))
        ]
        return Reserved(order_id=order_id, lines=lines, expires_at=known.expires_at)

    async def states(self, order_ids: Sequence[int]) -> list[Reservation]:
        """In no order."""
        rows = await self._db.fetch_many(STATES, order_ids, consistency=Consistency.STRONG)
        return [Reservation(order_id=row["order_id"], state=row["state"]) for row in rows]

    async def overdue(self, at: datetime, limit: int) -> dict[int, list[int]]:
        """Order -> its listings that are held longer than they should, the oldest first."""
        rows = await self._db.scatter(
            OVERDUE, at, order=[("expires_at", ASC), ("order_id", ASC)], limit=limit
        )
        found: dict[int, list[int]] = {}
        for row in rows:
            found.setdefault(row["order_id"], []).append(row["listing_id"])
        return found

    async def unsettled(self, before: datetime, limit: int) -> list[int]:
        """Orders that were decided before that and not brought to an end."""
        rows = await self._db.scatter(
            UNSETTLED, before, order=[("updated_at", ASC), ("order_id", ASC)], limit=limit
        )
        return [row["order_id"] for row in rows]

    async def _begin(
        self, tx: Any, order_id: int, state: str, lines: Sequence[Line], expires_at: datetime, at: datetime
    ) -> Known:
        bucket, settled = bucket_of(order_id), state == "released"
        stored = [[line.listing_id, line.quantity, line.price.amount, line.price.currency] for line in lines]
        async with self._in(tx, order_id) as tx:
            row = await tx.fetch_one(BEGIN, bucket, order_id, state, stored, settled, expires_at, at)
            if row is None:
                row = await tx.fetch_one(KNOWN, bucket, order_id)
        return _known(row)

    def _in(self, tx: Any, key: int) -> AbstractAsyncContextManager[Any]:
        return self._db.write(key) if tx is None else nullcontext(tx)


async def flip(tx: Any, listings: Sequence[Any], rows: Sequence[Any], news: News) -> None:
    """Make listings sold out whose stock has nothing left, and active again those that have something.

    Their sellers are told by a job. `listings` are locked (id, status), `rows` are of their stock
    (listing_id, on_hand, reserved).
    """
    for row in rows:
        news.available(tx, row["listing_id"])
    before = {row["id"]: row["status"] for row in listings}
    after = {row["listing_id"]: "active" if row["on_hand"] > row["reserved"] else "sold_out" for row in rows}
    ids = [id for id, status in after.items() if before[id] in SHOWN and before[id] != status]
    if not ids:
        return
    change: dict[tuple[int, str], int] = {}
    for row in await tx.fetch(FLIP, ids, [after[id] for id in ids]):
        key = (row["bucket"], row["category"])
        change[key] = change.get(key, 0) + (1 if row["status"] == "active" else -1)
        news.listing(tx, row["id"])
        news.on_sale(tx, row["seller_id"], row["category"])
    await tx.enqueue_many([StockTurned(id) for id in ids])
    await count(tx, change)


async def count(tx: Any, change: Mapping[tuple[int, str], int]) -> None:
    """Change the counters of (bucket, category) by so much: the last thing that a transaction does."""
    changed = {key: by for key, by in change.items() if by}
    if changed:
        buckets, categories = [key[0] for key in changed], [key[1] for key in changed]
        await tx.execute(COUNT, buckets, categories, list(changed.values()))


def _is_held(row: Any) -> bool:
    return row is not None and row["state"] is not None


def _known(row: Any) -> Known:
    lines = [
        Line(listing_id=id, quantity=quantity, price=Money(amount, currency))
        for id, quantity, amount, currency in row["lines"]
    ]
    refusal = msgspec.convert(row["refusal"] or [], list[Fault])
    return Known(row["state"], lines, refusal, row["settled"], row["expires_at"])
