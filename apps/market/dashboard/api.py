"""What the dashboard module offers to the rest of the application: the only part of it that may be imported.

It is told of sales and of what became of them by the jobs of the orders module (at least once, in any
order), and counts each in the transaction that records it. Days are those of UTC. What is given back is
counted on the day it was given back and leaves the day of the sale as it was: a day that is over stays.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Protocol

import msgspec

from market.faults import Conflict, Invalid
from market.money import Money
from springtide.services import raises

__all__ = [
    "MAX_DAYS",
    "MAX_LIMIT",
    "MAX_LINES",
    "TITLE_LENGTH",
    "Dashboard",
    "Day",
    "Sale",
    "SaleLine",
    "Top",
]

MAX_DAYS = 366
"""The longest window, in days."""

MAX_LIMIT = 100
MAX_LINES = 500
TITLE_LENGTH = 300


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
