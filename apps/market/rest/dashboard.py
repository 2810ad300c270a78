"""A seller's figures under /market: days and best listings, their titles from the catalog."""

from __future__ import annotations

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from market.dashboard.api import MAX_DAYS, Day
from market.money import Money
from market.rest.answers import read
from market.rest.bodies import DEFAULT_LIMIT, MAX_LIMIT, number_of
from market.rest.operations import Operation
from market.rest.rim import rest_of, somebody

__all__ = ["OPERATIONS", "Best", "Figures"]

DASHBOARD = "Dashboard"
DEFAULT_DAYS = 30


class Best(msgspec.Struct, frozen=True):
    """A listing in the window, less what was given back in it; `title` as it is now."""

    listing_id: int
    title: str | None
    items: int
    revenue: Money


class Figures(msgspec.Struct, frozen=True):
    """The last days, today included, the oldest first, and the listings with most revenue in them.

    Days begin at midnight of `zone`. What is given back counts on the day on which it was. Both lists are
    empty for who never sold anything.
    """

    zone: str
    days: list[Day]
    top: list[Best]


async def get_dashboard(request: Request) -> Response:
    rest, seller = rest_of(request), somebody(request)
    days = number_of(request, "days", DEFAULT_DAYS)
    limit = min(number_of(request, "limit", DEFAULT_LIMIT), MAX_LIMIT)
    window_of_days = await rest.dashboard.days(seller, days)
    top = await rest.dashboard.top(seller, days, limit)
    listings = await rest.catalog.listings([one.listing_id for one in top])
    titles = {listing.id: listing.title for listing in listings}
    best = [Best(one.listing_id, titles.get(one.listing_id), one.items, one.revenue) for one in top]
    return read(request, Figures("UTC", window_of_days, best), private=True)


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        id="GetDashboard", method="GET", path="/dashboard", endpoint=get_dashboard, tag=DASHBOARD,
        summary="What you have sold, by day and by listing", auth="required", answer=Figures, errors=(401,),
        conditional=True,
        query=(
            ("days", f"how many days, 1 to {MAX_DAYS}; {DEFAULT_DAYS} when left out"),
            ("limit", "how many listings; more than 100 is taken as 100"),
        ),
        says="It trails the orders by seconds.",
    ),
)  # fmt: skip
