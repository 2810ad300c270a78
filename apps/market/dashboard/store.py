"""The tables of sales and what is counted of them: with `lists.py`, the only place with the module's SQL.

All about a seller is in the seller's bucket. Whoever records locks the seller's row first, so that what is
counted of one seller changes one sale at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import Any, NamedTuple

import msgspec

from market.dashboard.api import Day, Sale, Top
from market.money import Money
from springtide.db import Database, WriteTransaction, bucket_of

__all__ = ["CURRENCY", "DAYS", "TOP", "Added", "Line", "OtherCurrency", "SaleStore", "day_of_row"]

LOCK_SELLER = """
insert into dashboard.seller as known (bucket, seller_id, currency) values ($1, $2, $3)
on conflict (bucket, seller_id) do update set currency = known.currency
returning currency
"""

CURRENCY = "select currency from dashboard.seller where bucket = $1 and seller_id = $2"

CURRENCY_LOCKED = """
select currency from dashboard.seller where bucket = $1 and seller_id = $2 for update
"""

PUT_SOLD = """
insert into dashboard.sale as known (bucket, seller_id, order_id, sold_at) values ($1, $2, $3, $4)
on conflict (bucket, seller_id, order_id) do update set sold_at = excluded.sold_at
where known.sold_at is null
returning undone_at
"""

PUT_UNDONE = """
insert into dashboard.sale as known (bucket, seller_id, order_id, undone_at) values ($1, $2, $3, $4)
on conflict (bucket, seller_id, order_id) do update set undone_at = excluded.undone_at
where known.undone_at is null
returning sold_at
"""

INSERT_LINES = """
insert into dashboard.sale_line (bucket, seller_id, order_id, listing_id, title, quantity, price)
select $1::smallint, $2::bigint, $3::bigint, line.*
from unnest($4::bigint[], $5::text[], $6::integer[], $7::bigint[])
    as line (listing_id, title, quantity, price)
"""

LINES = """
select listing_id, quantity, price from dashboard.sale_line
where bucket = $1 and seller_id = $2 and order_id = $3
"""

COUNT_DAY = """
insert into dashboard.day as known
    (bucket, seller_id, day, orders, items, revenue, refunds, refunded_items, refunded)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9)
on conflict (bucket, seller_id, day) do update
set orders = known.orders + excluded.orders, items = known.items + excluded.items,
    revenue = known.revenue + excluded.revenue, refunds = known.refunds + excluded.refunds,
    refunded_items = known.refunded_items + excluded.refunded_items,
    refunded = known.refunded + excluded.refunded
"""

COUNT_LISTINGS = """
insert into dashboard.listing_day as known
    (bucket, seller_id, day, listing_id, items, revenue, refunded_items, refunded)
select $1::smallint, $2::bigint, $3::date, line.*
from unnest($4::bigint[], $5::bigint[], $6::bigint[], $7::bigint[], $8::bigint[])
    as line (listing_id, items, revenue, refunded_items, refunded)
on conflict (bucket, seller_id, day, listing_id) do update
set items = known.items + excluded.items, revenue = known.revenue + excluded.revenue,
    refunded_items = known.refunded_items + excluded.refunded_items,
    refunded = known.refunded + excluded.refunded
"""

DAYS = """
select day, orders, items, revenue, refunds, refunded_items, refunded from dashboard.day
where bucket = $1 and seller_id = $2 and day between $3 and $4
"""

TOP = """
select listing_id, sum(items - refunded_items)::bigint as items, sum(revenue - refunded)::bigint as revenue
from dashboard.listing_day
where bucket = $1 and seller_id = $2 and day between $3 and $4
group by listing_id
having sum(revenue - refunded) > 0
order by revenue desc, listing_id desc
limit $5
"""


class OtherCurrency(Exception):
    """The seller's sales are in another currency; whatever the transaction did is undone."""


class Line(NamedTuple):
    listing: int
    quantity: int
    price: int


class Added(msgspec.Struct, frozen=True):
    """What a sale or its end adds to a day; `back` when it is given back."""

    day: date
    lines: Sequence[Line]
    back: bool

    @property
    def items(self) -> int:
        return sum(line.quantity for line in self.lines)

    @property
    def amount(self) -> int:
        return sum(line.quantity * line.price for line in self.lines)


class SaleStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    def write(self, seller: int) -> Any:
        """A transaction on the shard of `seller`, for the methods that take `tx`."""
        return self._db.write(seller)

    async def lock(self, tx: WriteTransaction, seller: int, currency: str) -> None:
        """Nobody else records for the seller before the transaction ends. Raises OtherCurrency."""
        known = await tx.fetch_value(LOCK_SELLER, bucket_of(seller), seller, currency)
        self._stale_sales(tx, seller)
        if known != currency:
            raise OtherCurrency(known)

    async def lock_known(self, tx: WriteTransaction, seller: int) -> None:
        """The same for who may have sold nothing yet."""
        await tx.fetch_value(CURRENCY_LOCKED, bucket_of(seller), seller)

    async def put_sold(self, tx: WriteTransaction, sale: Sale) -> tuple[bool, datetime | None]:
        """Whether it is new, and when it was undone if that is known already."""
        bucket = bucket_of(sale.seller)
        row = await tx.fetch_one(PUT_SOLD, bucket, sale.seller, sale.order_id, sale.at)
        if row is None:
            return False, None
        columns = zip(
            *((line.listing_id, line.title, line.quantity, line.price.amount) for line in sale.lines),
            strict=True,
        )
        await tx.execute(INSERT_LINES, bucket, sale.seller, sale.order_id, *map(list, columns))
        return True, row[0]

    async def put_undone(self, tx: WriteTransaction, order: int, seller: int, at: datetime) -> bool:
        """Whether a sale is undone by this; False also when nothing is known to have been sold."""
        sold_at = await tx.fetch_value(PUT_UNDONE, bucket_of(seller), seller, order, at)
        return sold_at is not None

    async def lines(self, tx: WriteTransaction, order: int, seller: int) -> list[Line]:
        return [Line(*row) for row in await tx.fetch(LINES, bucket_of(seller), seller, order)]

    async def count(self, tx: WriteTransaction, seller: int, added: Added) -> None:
        bucket = bucket_of(seller)
        counts = (1, added.items, added.amount)
        nothing = (0, 0, 0)
        await tx.execute(
            COUNT_DAY, bucket, seller, added.day,
            *(nothing if added.back else counts), *(counts if added.back else nothing),
        )  # fmt: skip
        lines = sorted(added.lines)
        quantities = [line.quantity for line in lines]
        amounts = [line.quantity * line.price for line in lines]
        none = [0] * len(lines)
        await tx.execute(
            COUNT_LISTINGS, bucket, seller, added.day, [line.listing for line in lines],
            *((none, none, quantities, amounts) if added.back else (quantities, amounts, none, none)),
        )  # fmt: skip
        self._stale_sales(tx, seller)

    async def days(self, seller: int, first: date, last: date) -> tuple[str, dict[date, Day]] | None:
        """The seller's currency, and the days on which something was; None for who never sold anything."""
        bucket = bucket_of(seller)
        async with self._db.read(seller) as snapshot:
            currency = await snapshot.fetch_value(CURRENCY, bucket, seller)
            if currency is None:
                return None
            rows = await snapshot.fetch(DAYS, bucket, seller, first, last)
        return currency, {row["day"]: day_of_row(row, currency) for row in rows}

    async def top(self, seller: int, first: date, last: date, limit: int) -> list[Top]:
        bucket = bucket_of(seller)
        async with self._db.read(seller) as snapshot:
            currency = await snapshot.fetch_value(CURRENCY, bucket, seller)
            if currency is None:
                return []
            rows = await snapshot.fetch(TOP, bucket, seller, first, last, limit)
        return [
            Top(
                listing_id=row["listing_id"],
                items=row["items"],
                revenue=Money(row["revenue"], currency),
            )
            for row in rows
        ]

    # What a write makes stale; here nothing is kept, so there is nothing to tell (`cached.py`).

    def _stale_sales(self, tx: WriteTransaction, seller: int) -> None:
        """The seller's figures."""


def day_of_row(row: Any, currency: str) -> Day:
    return Day(
        day=row["day"],
        orders=row["orders"],
        items=row["items"],
        revenue=Money(row["revenue"], currency),
        refunds=row["refunds"],
        refunded_items=row["refunded_items"],
        refunded=Money(row["refunded"], currency),
    )
