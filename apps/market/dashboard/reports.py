"""Reports: asked for, made by a job page by page, kept as a private document for 30 days.

    requested -> ready | failed          after 30 days: gone

The file is collected in memory up to MAX_BYTES and given to `media` under a key of its own: a job that runs
again hands over a file again, and media keeps the first. One that would be larger fails and says so.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime, time, timedelta

import msgspec

from market.dashboard import rules, sheet
from market.dashboard.api import MAX_OPEN, Report, ReportPage
from market.dashboard.lists import ReportStore
from market.dashboard.sheet import Row
from market.faults import Conflict, Invalid, NotFound
from market.media.api import Media
from market.moments import moment
from springtide.clock import Clock
from springtide.db import WriteTransaction
from springtide.db.idempotency import Answer, Idempotency, Once
from springtide.errors import InvalidCursor
from springtide.jobs import Run, job

__all__ = ["FORGET_EVERY", "MAX_BYTES", "MakeReport", "Reports"]

KEPT = timedelta(days=30)
MAX_BYTES = 16 * 1024 * 1024
"""About 150,000 lines."""

FORGET_EVERY = 3600.0
FORGOTTEN = 500
"""Reports that one look deletes at most."""


@job(kind="dashboard.report", max_run=300.0)
class MakeReport(msgspec.Struct, frozen=True):
    seller: int
    id: int


class Reports:
    def __init__(self, store: ReportStore, *, media: Media, keys: Idempotency, clock: Clock) -> None:
        self._store = store
        self._media = media
        self._keys = keys
        self._clock = clock

    async def order(self, seller: int, first: date, last: date, once: Once | None) -> Report:
        at = moment(self._clock)
        rules.check_report(seller, first, last, rules.day_of(at))
        id = await self._store.new_id(seller)

        async def effect() -> Report:
            async with self._store.write(seller) as tx:
                if await self._store.open(tx, seller) >= MAX_OPEN:
                    raise Conflict("reports", f"{MAX_OPEN} are being made already")
                row = await self._store.insert(tx, seller, id, first, last, at=at, expires_at=at + KEPT)
                await tx.enqueue(MakeReport(seller, id))
            return row.shown()

        if once is None:
            return await effect()

        async def kept(tx: WriteTransaction) -> Answer:
            return Answer(201, body=msgspec.json.encode(await effect()))

        outcome = await self._keys.run(once, kept, home=seller)
        return msgspec.json.decode(outcome.answer.body, type=Report)

    async def page(self, seller: int, limit: int, after: str | None) -> ReportPage:
        rules.check_limit(limit)
        if not rules.is_id(seller):
            return ReportPage(items=[], next=None)
        try:
            return await self._store.reports(seller, moment(self._clock), limit, after)
        except InvalidCursor as error:
            raise Invalid({"after": ["is no cursor of this list"]}) from error

    async def report(self, seller: int, id: int) -> Report:
        row = await self._store.report(seller, id) if rules.is_id(seller) and rules.is_id(id) else None
        if row is None or row.expires_at <= moment(self._clock):
            raise NotFound("report")
        if row.document_id is None:
            return row.shown()
        return row.shown(await self._media.url(row.document_id, "document", seller))

    async def make(self, job: MakeReport, run: Run) -> None:
        """May run again after a crash; the last failure leaves the report as failed, not as being made."""
        try:
            await self._make(job.seller, job.id)
        except Exception:
            if run.attempt >= run.max_attempts:
                note = "could not be made; ask for it again"
                await self._store.finish(job.seller, job.id, at=moment(self._clock), note=note)
            raise

    async def _make(self, seller: int, id: int) -> None:
        report = await self._store.report(seller, id)
        if report is None or report.state != "requested":
            return
        content, count = bytearray(sheet.BEGINNING), 0
        currency = await self._store.currency(seller)
        if currency is not None:
            async for rows in self._rows(seller, report.first, report.last):
                content += sheet.lines(rows, currency)
                count += len(rows)
                if len(content) > MAX_BYTES:
                    note = f"has more than {MAX_BYTES >> 20} MiB; ask for fewer days"
                    await self._store.finish(seller, id, at=moment(self._clock), note=note)
                    return
        name = f"sales-{report.first}-to-{report.last}.csv"
        document = await self._media.keep_document(
            seller, name, bytes(content), sheet.CONTENT_TYPE, f"dashboard-report-{id}"
        )
        await self._store.finish(
            seller, id, at=moment(self._clock), document=document.id, rows=count, size=document.size
        )

    async def _rows(self, seller: int, first: date, last: date) -> AsyncIterator[list[Row]]:
        """What was sold and what was given back in the days, by time, in pages."""
        begin, end = _midnight(first), _midnight(last + timedelta(days=1))
        sold = _each(self._store.rows(seller, "sale", begin, end))
        back = _each(self._store.rows(seller, "refund", begin, end))
        page: list[Row] = []
        one, other = await anext(sold, None), await anext(back, None)
        while one is not None or other is not None:
            if other is None or (one is not None and one.at <= other.at):
                assert one is not None
                page.append(one)
                one = await anext(sold, None)
            else:
                page.append(other)
                other = await anext(back, None)
            if len(page) >= 500:
                yield page
                page = []
        yield page

    async def forget(self) -> None:
        """For the workers, periodically."""
        await self._store.forget(moment(self._clock), FORGOTTEN)


async def _each(pages: AsyncIterator[list[Row]]) -> AsyncIterator[Row]:
    async for page in pages:
        for row in page:
            yield row


def _midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)
