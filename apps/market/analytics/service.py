"""Count the events of orders by day, each once, and show the days."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from datetime import UTC, date, datetime, timedelta

from market.analytics.api import MAX_DAYS, OrderDay
from market.analytics.store import DayStore
from market.faults import Invalid
from market.moments import moment
from market.orders.api import OrderEnded, OrderPlaced
from springtide.clock import Clock
from springtide.events import Delivery
from springtide.services import ModuleContext

__all__ = ["BATCH", "AnalyticsService", "build"]

BATCH = 100
"""Events that one transaction counts."""

PLACED, FAILED = "placed", "failed:"


def build(context: ModuleContext) -> AnalyticsService:
    return AnalyticsService(DayStore(context.db), clock=context.clock)


class AnalyticsService:
    """Implements `market.analytics.api.Analytics`."""

    def __init__(self, store: DayStore, *, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    async def order_days(self, days: int) -> list[OrderDay]:
        if not 1 <= days <= MAX_DAYS:
            raise Invalid({"days": [f"must be between 1 and {MAX_DAYS}"]})
        today = _day(moment(self._clock))
        window = [today - timedelta(days=back) for back in range(days - 1, -1, -1)]
        counted = await self._store.days(window[0], today)
        return [_shown(day, counted.get(day, {})) for day in window]

    async def placed(self, events: list[OrderPlaced], deliveries: list[Delivery]) -> None:
        """A handler of events, in the transaction that moves the group on."""
        await self._count(((event.at, PLACED) for event in events), deliveries)

    async def ended(self, events: list[OrderEnded], deliveries: list[Delivery]) -> None:
        """The same. An order may end twice: confirmed, and then cancelled."""
        what = ((event.at, _what(event)) for event in events)
        await self._count(what, deliveries)

    async def _count(self, what: Iterable[tuple[datetime, str]], deliveries: list[Delivery]) -> None:
        counted = Counter((_day(at), name) for at, name in what)
        await self._store.add(deliveries[0].tx, counted)


def _day(at: datetime) -> date:
    return at.astimezone(UTC).date()


def _what(event: OrderEnded) -> str:
    return f"{FAILED}{event.reason or 'unknown'}" if event.state == "failed" else event.state


def _shown(day: date, counted: dict[str, int]) -> OrderDay:
    return OrderDay(
        day=day,
        placed=counted.get(PLACED, 0),
        confirmed=counted.get("confirmed", 0),
        cancelled=counted.get("cancelled", 0),
        failed={
            what.removeprefix(FAILED): n for what, n in sorted(counted.items()) if what.startswith(FAILED)
        },
    )
