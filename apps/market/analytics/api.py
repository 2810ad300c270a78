"""What the analytics module offers to the rest of the application: the only part of it that may be imported.

It reads the events of the orders module and counts each once, in the transaction that moves its group past
them. Who places an order waits for none of it, and knows nothing of who reads.
"""

from __future__ import annotations

from datetime import date
from typing import Protocol

import msgspec

from market.faults import Invalid
from springtide.services import raises

__all__ = ["MAX_DAYS", "Analytics", "OrderDay"]

MAX_DAYS = 366
"""The longest window, in days."""


class OrderDay(msgspec.Struct, frozen=True, kw_only=True):
    """What happened on a day of UTC, whenever the order was placed: one that was placed yesterday and failed
    today counts on both. `failed` has the reasons, as orders show them."""

    day: date
    placed: int
    confirmed: int
    cancelled: int
    failed: dict[str, int]


class Analytics(Protocol):
    """Errors are those of `market.faults`; each method names the ones it raises."""

    @raises(Invalid)
    async def order_days(self, days: int) -> list[OrderDay]:
        """The last `days` days (1 to MAX_DAYS), today included, the oldest first; also those without any."""
