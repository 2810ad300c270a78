"""What a seller has sold, recorded and counted in one transaction; reports are made by `reports.py`."""

from __future__ import annotations

from datetime import date, datetime, timedelta

from market.dashboard import rules
from market.dashboard.api import Day, Report, ReportPage, Sale, Top
from market.dashboard.lists import ReportStore
from market.dashboard.reports import MakeReport, Reports
from market.dashboard.store import Added, Line, OtherCurrency, SaleStore
from market.faults import Conflict
from market.media.api import Media
from market.moments import moment
from market.money import Money
from springtide.clock import Clock
from springtide.db.idempotency import Idempotency, Once
from springtide.jobs import Run
from springtide.services import ModuleContext

__all__ = ["DashboardService", "build"]


def build(context: ModuleContext) -> DashboardService:
    reports = Reports(
        ReportStore(context.db),
        media=context.service(Media),
        keys=Idempotency(context.db, sink=context.sink),
        clock=context.clock,
    )
    return DashboardService(_sales(context), reports, clock=context.clock)


def _sales(context: ModuleContext) -> SaleStore:
    if not context.cached:
        return SaleStore(context.db)
    from market.dashboard.cached import CachedSales

    return CachedSales(context.db, context.cache)


class DashboardService:
    """Implements `market.dashboard.api.Dashboard`."""

    def __init__(self, sales: SaleStore, reports: Reports, *, clock: Clock) -> None:
        self._sales = sales
        self._reports = reports
        self._clock = clock

    async def sold(self, sale: Sale) -> None:
        rules.check_sale(sale)
        lines = [Line(line.listing_id, line.quantity, line.price.amount) for line in sale.lines]
        try:
            async with self._sales.write(sale.seller) as tx:
                await self._sales.lock(tx, sale.seller, sale.lines[0].price.currency)
                new, undone_at = await self._sales.put_sold(tx, sale)
                if new:
                    await self._sales.count(tx, sale.seller, Added(rules.day_of(sale.at), lines, back=False))
                if undone_at is not None:
                    added = Added(rules.day_of(undone_at), lines, back=True)
                    await self._sales.count(tx, sale.seller, added)
        except OtherCurrency as error:
            raise Conflict("currency", f"is {error} in all of the seller's sales") from None

    async def undone(self, order_id: int, seller: int, at: datetime) -> None:
        rules.check_undone(order_id, seller, at)
        async with self._sales.write(seller) as tx:
            await self._sales.lock_known(tx, seller)
            if await self._sales.put_undone(tx, order_id, seller, at):
                lines = await self._sales.lines(tx, order_id, seller)
                await self._sales.count(tx, seller, Added(rules.day_of(at), lines, back=True))

    async def days(self, seller: int, days: int) -> list[Day]:
        today = rules.day_of(moment(self._clock))
        first = rules.check_window(days, today)
        found = await self._sales.days(seller, first, today) if rules.is_id(seller) else None
        if found is None:
            return []
        currency, known = found
        window = [first + timedelta(days=number) for number in range(days)]
        return [known.get(day) or _empty(day, currency) for day in window]

    async def top(self, seller: int, days: int, limit: int) -> list[Top]:
        today = rules.day_of(moment(self._clock))
        first = rules.check_window(days, today)
        rules.check_limit(limit)
        return await self._sales.top(seller, first, today, limit) if rules.is_id(seller) else []

    async def order_report(self, seller: int, first: date, last: date, once: Once | None = None) -> Report:
        return await self._reports.order(seller, first, last, once)

    async def reports(self, seller: int, limit: int, after: str | None) -> ReportPage:
        return await self._reports.page(seller, limit, after)

    async def report(self, seller: int, id: int) -> Report:
        return await self._reports.report(seller, id)

    async def make_report(self, job: MakeReport, run: Run) -> None:
        await self._reports.make(job, run)

    async def forget(self) -> None:
        """For the workers, periodically: reports that have expired."""
        await self._reports.forget()


def _empty(day: date, currency: str) -> Day:
    nothing = Money(0, currency)
    return Day(day=day, orders=0, items=0, revenue=nothing, refunds=0, refunded_items=0, refunded=nothing)
