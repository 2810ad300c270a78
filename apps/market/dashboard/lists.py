"""The table of reports and the pages of what goes into them: with `store.py`, the only place with SQL."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import date, datetime
from typing import Any, Literal

import msgspec

from market.dashboard.api import MAX_LINES, Report, ReportPage, ReportState
from market.dashboard.sheet import Row
from springtide.db import Database, Keyset, WriteTransaction, bucket_of, desc
from springtide.db.scatter import ASC

__all__ = ["ReportRow", "ReportStore"]

PAGE = 200
"""Sales that are read at once, with their lines."""

NEWEST = Keyset(desc("id"))

_REPORT = """id, first, last, state, note, rows, size_bytes, document_id, requested_at, finished_at,
    expires_at"""

OPEN = """
select count(*) from dashboard.report where bucket = $1 and seller_id = $2 and state = 'requested'
"""

INSERT = f"""
insert into dashboard.report
    (bucket, seller_id, id, first, last, state, requested_at, expires_at)
values ($1, $2, $3, $4, $5, 'requested', $6, $7)
returning {_REPORT}
"""  # noqa: S608 - constants only

REPORT = f"""
select {_REPORT} from dashboard.report where bucket = $1 and seller_id = $2 and id = $3
"""  # noqa: S608 - constants only

REPORTS = f"""
select {_REPORT} from dashboard.report
where bucket = $1 and seller_id = $2 and expires_at > $3 and {{condition}}
"""  # noqa: S608 - constants only

FINISH = """
update dashboard.report
set state = $4, note = $5, rows = $6, size_bytes = $7, document_id = $8, finished_at = $9
where bucket = $1 and seller_id = $2 and id = $3 and state = 'requested'
"""

EXPIRED = "select seller_id, id, expires_at from dashboard.report where expires_at <= $1"

DELETE = "delete from dashboard.report where bucket = $1 and seller_id = $2 and id = $3 and expires_at <= $4"

CURRENCY = "select currency from dashboard.seller where bucket = $1 and seller_id = $2"

# The limit is more than an order has. Without it the planner, which takes bucket and seller for independent,
# would read all lines of the seller for each order.
SOLD = f"""
select sale.at, sale.order_id, line.listing_id, line.title, line.quantity, line.price
from (
    select order_id, sold_at as at from dashboard.sale
    where bucket = $1 and seller_id = $2 and sold_at is not null
        and sold_at < $4 and (sold_at, order_id) > ($3, $5)
    order by sold_at, order_id
    limit $6
) as sale
cross join lateral (
    select listing_id, title, quantity, price from dashboard.sale_line
    where bucket = $1 and seller_id = $2 and order_id = sale.order_id
    limit {MAX_LINES}
) as line
order by sale.at, sale.order_id, line.listing_id
"""  # noqa: S608 - constants only

GIVEN_BACK = f"""
select sale.at, sale.order_id, line.listing_id, line.title, line.quantity, line.price
from (
    select order_id, undone_at as at from dashboard.sale
    where bucket = $1 and seller_id = $2 and sold_at is not null and undone_at is not null
        and undone_at < $4 and (undone_at, order_id) > ($3, $5)
    order by undone_at, order_id
    limit $6
) as sale
cross join lateral (
    select listing_id, title, quantity, price from dashboard.sale_line
    where bucket = $1 and seller_id = $2 and order_id = sale.order_id
    limit {MAX_LINES}
) as line
order by sale.at, sale.order_id, line.listing_id
"""  # noqa: S608 - constants only


class ReportRow(msgspec.Struct, frozen=True):
    id: int
    first: date
    last: date
    state: ReportState
    note: str | None
    rows: int
    size_bytes: int
    document_id: int | None
    requested_at: datetime
    finished_at: datetime | None
    expires_at: datetime

    def shown(self, url: str | None = None) -> Report:
        fields = {name: getattr(self, name) for name in self.__struct_fields__ if name != "document_id"}
        return Report(**fields, url=url)


class ReportStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    def write(self, seller: int) -> Any:
        return self._db.write(seller)

    async def new_id(self, seller: int) -> int:
        return await self._db.ids.take(seller)

    async def open(self, tx: WriteTransaction, seller: int) -> int:
        """How many of the seller's are being made."""
        count: int = await tx.fetch_value(OPEN, bucket_of(seller), seller)
        return count

    async def insert(
        self,
        tx: WriteTransaction,
        seller: int,
        id: int,
        first: date,
        last: date,
        *,
        at: datetime,
        expires_at: datetime,
    ) -> ReportRow:
        row = await tx.fetch_one(INSERT, bucket_of(seller), seller, id, first, last, at, expires_at)
        assert row is not None
        return ReportRow(*row)

    async def report(self, seller: int, id: int) -> ReportRow | None:
        row = await self._db.read(seller).fetch_one(REPORT, bucket_of(seller), seller, id)
        return None if row is None else ReportRow(*row)

    async def reports(self, seller: int, now: datetime, limit: int, after: str | None) -> ReportPage:
        """Raises InvalidCursor."""
        step = NEWEST.step(after, limit=limit, first=4)
        sql = REPORTS.format(condition=step.where)
        text = f"{sql} order by {step.order_by} limit ${4 + len(step.args)}"
        rows = await self._db.read(seller).fetch(text, bucket_of(seller), seller, now, *step.args, step.fetch)
        page = step.page(rows)
        return ReportPage(items=[ReportRow(*row).shown() for row in page.items], next=page.next_cursor)

    async def finish(
        self,
        seller: int,
        id: int,
        *,
        at: datetime,
        document: int | None = None,
        rows: int = 0,
        size: int = 0,
        note: str | None = None,
    ) -> None:
        """Ready with its document, failed without; once."""
        state = "failed" if document is None else "ready"
        async with self._db.write(seller) as tx:
            await tx.execute(FINISH, bucket_of(seller), seller, id, state, note, rows, size, document, at)

    async def forget(self, now: datetime, limit: int) -> int:
        """Delete what has expired, at most `limit`; how many."""
        rows = await self._db.scatter(EXPIRED, now, order=[("expires_at", ASC)], limit=limit)
        for row in rows:
            seller = row["seller_id"]
            async with self._db.write(seller) as tx:
                await tx.execute(DELETE, bucket_of(seller), seller, row["id"], now)
        return len(rows)

    async def currency(self, seller: int) -> str | None:
        """None for who never sold anything."""
        found: str | None = await self._db.read(seller).fetch_value(CURRENCY, bucket_of(seller), seller)
        return found

    async def rows(
        self, seller: int, kind: Literal["sale", "refund"], begin: datetime, end: datetime
    ) -> AsyncIterator[list[Row]]:
        """The lines of what was sold, or given back, from `begin` until before `end`, in pages by time."""
        sql = SOLD if kind == "sale" else GIVEN_BACK
        # Orders have ids above 0, so (begin, 0) is before all that happened at `begin`.
        at, order = begin, 0
        while True:
            found = await self._db.read(seller).fetch(sql, bucket_of(seller), seller, at, end, order, PAGE)
            if not found:
                return
            yield [Row(row["at"], kind, *tuple(row)[1:]) for row in found]
            at, order = found[-1]["at"], found[-1]["order_id"]
