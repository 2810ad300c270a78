"""What happens in market, by day, under /market/statistics: for everybody, so it names nobody and no sum."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from market.analytics.api import MAX_DAYS, OrderDay
from market.rest.answers import read
from market.rest.bodies import number_of
from market.rest.operations import Operation
from market.rest.rim import rest_of

__all__ = ["OPERATIONS", "Statistics"]

DEFAULT_DAYS = 30


class Statistics(msgspec.Struct, frozen=True):
    """The last days, today included, the oldest first. Days begin at midnight of `zone`."""

    zone: str
    days: list[OrderDay]


async def get_statistics(request: Request) -> Response:
    days = number_of(request, "days", DEFAULT_DAYS)
    return read(request, Statistics("UTC", await rest_of(request).analytics.order_days(days)))


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        id="GetStatistics", method="GET", path="/statistics", endpoint=get_statistics, tag="Statistics",
        summary="How many orders were placed and what became of them, by day", answer=Statistics,
        conditional=True, query=(("days", f"how many days, 1 to {MAX_DAYS}; {DEFAULT_DAYS} when left out"),),
        says="It trails the orders by a moment.",
    ),
)  # fmt: skip
