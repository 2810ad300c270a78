"""Bulk loading of the dashboard module, for seeds and imports: as if each sale and its end had been told.

The caller brings each sale once, in as many parts as it likes, and each seller with the currency of all of
its sales, into empty tables, and calls `copy_counts` after the last.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from market.dashboard.api import Sale
from market.dashboard.rules import check_sale
from springtide.db import Database, bucket_of

if TYPE_CHECKING:
    from springtide.ops.load.seeding import BulkLoad

__all__ = ["BulkSale", "copy_counts", "copy_sales", "copy_sellers", "is_empty"]

BATCH = 5_000

COUNTS = {
    "day": """
insert into dashboard.day
    (bucket, seller_id, day, orders, items, revenue, refunds, refunded_items, refunded)
select bucket, seller_id, day, sum(orders), sum(items), sum(revenue), sum(refunds), sum(refunded_items),
    sum(refunded)
from (
    select bucket, seller_id, (sold_at at time zone 'UTC')::date as day, count(distinct order_id) as orders,
        sum(quantity) as items, sum(quantity * price) as revenue,
        0 as refunds, 0 as refunded_items, 0 as refunded
    from dashboard.sale join dashboard.sale_line using (bucket, seller_id, order_id)
    group by 1, 2, 3
    union all
    select bucket, seller_id, (undone_at at time zone 'UTC')::date, 0, 0, 0,
        count(distinct order_id), sum(quantity), sum(quantity * price)
    from dashboard.sale join dashboard.sale_line using (bucket, seller_id, order_id)
    where undone_at is not null
    group by 1, 2, 3
) as counted
group by bucket, seller_id, day
""",
    "listing_day": """
insert into dashboard.listing_day
    (bucket, seller_id, day, listing_id, items, revenue, refunded_items, refunded)
select bucket, seller_id, day, listing_id, sum(items), sum(revenue), sum(refunded_items), sum(refunded)
from (
    select bucket, seller_id, (sold_at at time zone 'UTC')::date as day, listing_id,
        quantity as items, quantity * price as revenue, 0 as refunded_items, 0 as refunded
    from dashboard.sale join dashboard.sale_line using (bucket, seller_id, order_id)
    union all
    select bucket, seller_id, (undone_at at time zone 'UTC')::date, listing_id, 0, 0,
        quantity, quantity * price
    from dashboard.sale join dashboard.sale_line using (bucket, seller_id, order_id)
    where undone_at is not null
) as counted
group by bucket, seller_id, day, listing_id
""",
}


class BulkSale(NamedTuple):
    sale: Sale
    undone_at: datetime | None = None


async def is_empty(db: Database) -> bool:
    """Whether there is no sale on any shard."""
    return not await db.scatter("select order_id from dashboard.sale", limit=1)


async def copy_sales(load: BulkLoad, db: Database, sales: Iterable[BulkSale]) -> None:
    """Sales with their lines, BATCH at a time. Raises Invalid as `sold` does."""
    waiting = iter(sales)
    while batch := list(islice(waiting, BATCH)):
        for one in batch:
            check_sale(one.sale)
        rows = (
            (bucket_of(sale.seller), sale.seller, sale.order_id, sale.at, undone_at)
            for sale, undone_at in batch
        )
        await load.copy(db, "sale", ["bucket", "seller_id", "order_id", "sold_at", "undone_at"], rows)
        lines = (
            (
                bucket_of(sale.seller), sale.seller, sale.order_id, line.listing_id, line.title,
                line.quantity, line.price.amount,
            )
            for sale, _ in batch
            for line in sale.lines
        )  # fmt: skip
        columns = ["bucket", "seller_id", "order_id", "listing_id", "title", "quantity", "price"]
        await load.copy(db, "sale_line", columns, lines)


async def copy_sellers(load: BulkLoad, db: Database, sellers: Iterable[tuple[int, str]]) -> None:
    """Each that has sold, once, with its currency."""
    rows = ((bucket_of(seller), seller, currency) for seller, currency in sellers)
    await load.copy(db, "seller", ["bucket", "seller_id", "currency"], rows)


async def copy_counts(load: BulkLoad, db: Database) -> None:
    """Days and listings, from the sales that the load has copied into empty tables."""
    for table, sql in COUNTS.items():
        await load.execute(db, table, sql)
