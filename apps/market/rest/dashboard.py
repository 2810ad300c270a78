"""A seller's figures under /market: days and best listings, their titles from the catalog."""

from __future__ import annotations

from datetime import date

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from market.dashboard.api import MAX_DAYS, MAX_OPEN, Day, Report, ReportPage
from market.money import Money
from market.rest.answers import created, read
from market.rest.bodies import DEFAULT_LIMIT, MAX_LIMIT, id_of, number_of, once, read_body, window
from market.rest.operations import PREFIX, Operation
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


class Window(msgspec.Struct, frozen=True):
    """Days of UTC, both included."""

    first: date
    last: date


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


async def order_report(request: Request) -> Response:
    seller = somebody(request)
    days = await read_body(request, Window)
    report = await rest_of(request).dashboard.order_report(seller, days.first, days.last, await once(request))
    return created(report, f"{PREFIX}/dashboard/reports/{report.id}")


async def get_reports(request: Request) -> Response:
    seller = somebody(request)
    limit, after = window(request)
    return read(request, await rest_of(request).dashboard.reports(seller, limit, after), private=True)


async def get_report(request: Request) -> Response:
    seller = somebody(request)
    report = await rest_of(request).dashboard.report(seller, id_of(request, "report"))
    return read(request, report, private=True)


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
    Operation(
        id="OrderReport", method="POST", path="/dashboard/reports", endpoint=order_report, tag=DASHBOARD,
        summary="Have a CSV file made of your sales", auth="required", body=Window, answer=Report,
        status=201, errors=(401, 409), idempotent=True,
        says=f"It is made afterwards: look at it until it is `ready`. Up to {MAX_DAYS} days;"
        f" {MAX_OPEN} at once (409). Kept for 30 days.",
    ),
    Operation(
        id="GetReports", method="GET", path="/dashboard/reports", endpoint=get_reports, tag=DASHBOARD,
        summary="Your reports, newest first", auth="required", answer=ReportPage, errors=(401,),
        conditional=True, listed=True,
    ),
    Operation(
        id="GetReport", method="GET", path="/dashboard/reports/{id}", endpoint=get_report, tag=DASHBOARD,
        summary="A report, with the address of its file", auth="required", answer=Report,
        errors=(401, 404), conditional=True,
        says="The address is signed and good for 15 minutes; ask again for another.",
    ),
)  # fmt: skip
