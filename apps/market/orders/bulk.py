"""Bulk loading of the orders module: orders that ended long ago, and their sellers' lists of sales.

For seeds and imports, which write by COPY into empty tables; everything else goes through the service. What
such an order says of stock and money the caller loads into the catalog and the payments.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from market.money import Money, total
from market.orders import reasons
from market.orders.api import Address, OrderLine
from market.orders.record import Placed
from springtide.db import Database, bucket_of

if TYPE_CHECKING:
    from springtide.ops.load.seeding import BulkLoad

__all__ = ["BulkOrder", "copy_orders", "is_empty"]

BATCH = 2_000

VERSION = 3
"""Of an order that was placed, confirmed and shipped."""


class BulkOrder(NamedTuple):
    """Confirmed and shipped when each line was, or failed because its payment was declined."""

    id: int
    buyer: int
    lines: list[OrderLine]
    address: Address
    source: str
    decline_code: str | None
    at: datetime


async def is_empty(db: Database) -> bool:
    """Whether there is no order on any shard."""
    return not await db.scatter("select id from orders.placed", limit=1)


async def copy_orders(load: BulkLoad, db: Database, orders: Iterable[BulkOrder]) -> None:
    """`orders`, told to everybody already, with the sales that they are to their sellers, BATCH at a time."""
    columns = ["bucket", *Placed.__struct_fields__]
    waiting = iter(orders)
    while batch := [_placed(row) for row in islice(waiting, BATCH)]:
        rows = (
            (bucket_of(order.id), *(_column(getattr(order, name)) for name in Placed.__struct_fields__))
            for order in batch
        )
        await load.copy(db, "placed", columns, rows)
        sales = (order.sale(seller) for order in batch if order.confirmed_at for seller in order.sellers)
        sold = (
            (
                bucket_of(sale.seller_id), sale.seller_id, sale.order_id, sale.state,
                msgspec.to_builtins(sale.lines), sale.sold_at, sale.shipped_at, sale.version,
            )
            for sale in sales
        )  # fmt: skip
        names = ["bucket", "seller_id", "order_id", "state", "lines", "sold_at", "shipped_at", "version"]
        await load.copy(db, "sale", names, sold)


def _placed(row: BulkOrder) -> Placed:
    money: Money = total((line.price * line.quantity for line in row.lines), row.lines[0].price.currency)
    declined = row.decline_code is not None
    shipped = [line.shipped_at for line in row.lines if line.shipped_at is not None]
    return Placed(
        id=row.id,
        buyer_id=row.buyer,
        state="failed" if declined else "confirmed",
        reason=reasons.declined(row.decline_code) if declined else None,
        lines=row.lines,
        amount=money.amount,
        currency=money.currency,
        source=row.source,
        address=row.address,
        cart_version=None,
        version=VERSION,
        flow=None,
        pay_by=row.at + timedelta(minutes=15),
        confirmed_at=None if declined else row.at,
        created_at=row.at,
        updated_at=max([row.at, *shipped]),
    )


def _column(value: object) -> object:
    """As the driver wants it: what is JSON in the table is made of lists and objects."""
    plain = isinstance(value, list | msgspec.Struct)
    return msgspec.to_builtins(value) if plain else value
