"""What the dashboard module offers to the rest of the application: the only part of it that may be imported.

It is told of sales and of what became of them by the jobs of the orders module (at least once, in any
order), and counts each in the transaction that records it. Days are those of UTC. What is given back is
counted on the day it was given back and leaves the day of the sale as it was: a day that is over stays.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Literal, Protocol

import msgspec

from market.faults import Conflict, Invalid, NotFound
from market.money import Money
from springtide.db.idempotency import Once
from springtide.services import raises

__all__ = [
    "MAX_DAYS",
    "MAX_LIMIT",
    "MAX_LINES",
    "MAX_OPEN",
    "TITLE_LENGTH",
    "Dashboard",
    "Day",
    "Report",
    "ReportPage",
    "ReportState",
    "Sale",
    "SaleLine",
    "Top",
]

MAX_DAYS = 366
"""The longest window, in days; also of a report."""

MAX_LIMIT = 100
MAX_LINES = 500
MAX_OPEN = 5
"""Reports of one seller that are being made at once."""

TITLE_LENGTH = 300

ReportState = Literal["requested", "ready", "failed"]


class SaleLine(msgspec.Struct, frozen=True, kw_only=True):
    """`price` is for one piece, as the buyer paid it; `title` as it was then."""

    listing_id: int
    title: str
    quantity: int
    price: Money


class Sale(msgspec.Struct, frozen=True, kw_only=True):
    """One seller's part of a confirmed order; `at` is when it was confirmed (an aware time).

    Each listing is in one line at most, and all prices are in one currency: the shop's.
    """

    order_id: int
    seller: int
    at: datetime
    lines: list[SaleLine]


class Day(msgspec.Struct, frozen=True, kw_only=True):
    """What was sold on a day of UTC, and what was given back on it (of whichever day's sales)."""

    day: date
    orders: int
    items: int
    revenue: Money
    refunds: int
    refunded_items: int
    refunded: Money


class Top(msgspec.Struct, frozen=True, kw_only=True):
    """A listing in a window of days: what was sold less what was given back in it."""

    listing_id: int
    items: int
    revenue: Money


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A CSV file of all sales and refunds of the days `first` to `last`, both included.

    `note` says why it failed. `url` is there when it is ready and asked for alone; it is signed and good for
    minutes. From `expires_at` on there is no such report.
    """

    id: int
    first: date
    last: date
    state: ReportState
    note: str | None
    rows: int
    size_bytes: int
    requested_at: datetime
    finished_at: datetime | None
    expires_at: datetime
    url: str | None = None


class ReportPage(msgspec.Struct, frozen=True, kw_only=True):
    items: list[Report]
    next: str | None


class Dashboard(Protocol):
    """Errors are those of `market.faults`; each method names the ones it raises."""

    @raises(Invalid, Conflict)
    async def sold(self, sale: Sale) -> None:
        """Record a sale, once per order and seller: a repetition changes nothing, whatever it says.

        Raises Invalid; Conflict for another currency than the seller's sales have.
        """

    @raises(Invalid)
    async def undone(self, order_id: int, seller: int, at: datetime) -> None:
        """The seller's part of the order was given back at `at`: all of it, once. May come before `sold`."""

    @raises(Invalid)
    async def days(self, seller: int, days: int) -> list[Day]:
        """The last `days` days (1 to MAX_DAYS), today included, the oldest first, those without a sale too.

        Empty for who never sold anything.
        """

    @raises(Invalid)
    async def top(self, seller: int, days: int, limit: int) -> list[Top]:
        """The listings with most revenue in the last `days` days, at most `limit` (1 to MAX_LIMIT)."""

    @raises(Invalid, Conflict)
    async def order_report(self, seller: int, first: date, last: date, once: Once | None = None) -> Report:
        """Ask for a report; a job makes it. Once per `once`.

        `last` is today at most; today's sales are in it as far as they are known when it is made.
        Raises Invalid for what is no window or too long a one, Conflict while MAX_OPEN are being made.
        """

    @raises(Invalid)
    async def reports(self, seller: int, limit: int, after: str | None) -> ReportPage:
        """The seller's reports, the newest first, without addresses. Raises Invalid for a bad cursor."""

    @raises(NotFound, Invalid)
    async def report(self, seller: int, id: int) -> Report:
        """One report, with its address when it is ready. Raises NotFound, also for somebody else's."""
