"""A seller's figures: sales of the last days as a chart and a table, the best listings, reports as files.

Figures trail sales by moments. The page says that they are being updated when it knows so: when more sales of
today are listed than are counted.
"""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from market.catalog.api import Shop
from market.dashboard.api import Day
from market.faults import Conflict, Invalid, NotFound
from market.money import Money, total
from market.orders.api import Sale
from market.storefront.forms import Form, submitted
from market.storefront.rendering import page, redirect
from market.storefront.rim import store_of
from market.storefront.selling.chart import chart
from market.storefront.selling.shop import seller
from market.storefront.table import Page, number

__all__ = ["PAGES"]

DAYS = 30
BEST = 5
REPORTS = 10
LATEST = 100


async def overview(request: Request) -> Response:
    return await _page(request, await seller(request))


async def _page(request: Request, shop: Shop, status: int = 200, **values: Any) -> Response:
    store, owner = store_of(request), shop.seller_id
    days = await store.dashboard.days(owner, DAYS)
    top = await store.dashboard.top(owner, DAYS, BEST)
    listings = await store.catalog.listings([one.listing_id for one in top])
    reports = await store.dashboard.reports(owner, REPORTS, None)
    sales = await store.orders.sales(owner, LATEST, None)
    today = datetime.now(UTC).date()
    shown = {"form": Form.of({"first": today - timedelta(days=DAYS - 1), "last": today})}
    return await page(
        request,
        "selling/overview.html",
        status,
        shop=shop,
        days=days,
        chart=chart(days) if days else None,
        revenue=total((day.revenue - day.refunded for day in days), shop.currency) if days else None,
        orders=sum(day.orders - day.refunds for day in days),
        items=sum(day.items - day.refunded_items for day in days),
        top=top,
        listings={listing.id: listing for listing in listings},
        reports=reports.items,
        making=any(report.state == "requested" for report in reports.items),
        updating=_trails(days, sales.items, today),
        nothing=Money(0, shop.currency),
        **shown | values,
    )


def _trails(days: list[Day], sales: list[Sale], today: date) -> bool:
    """Whether sales of today are listed that are not counted yet."""
    listed = sum(sale.sold_at.astimezone(UTC).date() == today for sale in sales)
    counted = days[-1].orders if days and days[-1].day == today else 0
    return listed > counted


async def order_report(request: Request) -> Response:
    form, shop = await submitted(request), await seller(request)
    try:
        first, last = _date(form, "first"), _date(form, "last")
        await store_of(request).dashboard.order_report(
            shop.seller_id, first, last, form.once(request, shop.seller_id)
        )
    except Invalid as refused:
        return await _page(request, shop, 422, form=form, errors=refused.errors)
    return redirect(request, "/selling", done="report")


async def report(request: Request) -> Response:
    """To the file: its address is signed, for its owner, and good for minutes."""
    shop, id = await seller(request), number(request)
    if id is None:
        raise NotFound("report")
    found = await store_of(request).dashboard.report(shop.seller_id, id)
    if found.url is None:
        raise Conflict("report", "is not ready")
    return redirect(request, found.url)


def _date(form: Form, name: str) -> date:
    """Raises Invalid."""
    try:
        return date.fromisoformat(form.text(name).strip())
    except ValueError:
        raise Invalid({name: ["must be a date, such as 2026-11-30"]}) from None


PAGES = (
    Page("GET", "/selling", overview),
    Page("POST", "/selling/reports", order_report),
    Page("GET", "/selling/reports/{id}", report),
)
