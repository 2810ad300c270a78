"""Orders of a buyer: all of them, one of them as it is at this moment, the end of one.

While an order is not at its end the page looks again by itself: with a script when something is told, without
one by `refresh`.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from market.faults import Conflict, NotFound
from market.orders.api import Order
from market.storefront.forms import submitted
from market.storefront.photos import photos_of
from market.storefront.rendering import page, redirect
from market.storefront.rim import store_of
from market.storefront.table import Page, number
from market.storefront.visits import member

__all__ = ["MOVING", "PAGES"]

LIMIT = 20
MOVING = frozenset({"placing", "awaiting_payment", "cancelling"})
"""States that are on their way to another one."""


async def orders(request: Request) -> Response:
    after = request.query_params.get("after") or None
    found = await store_of(request).orders.history(await member(request), LIMIT, after)
    return await page(request, "buying/orders.html", orders=found.items, next=found.next, first=after is None)


async def order(request: Request) -> Response:
    viewer = await member(request)
    return await _page(request, await store_of(request).orders.order(_id(request), viewer), viewer)


async def cancel(request: Request) -> Response:
    form, viewer = await submitted(request), await member(request)
    id, service = _id(request), store_of(request).orders
    try:
        await service.cancel(id, viewer, form.once(request, viewer))
    except Conflict as refused:
        found = await service.order(id, viewer)
        return await _page(request, found, viewer, 409, errors=refused.errors)
    return redirect(request, f"/orders/{id}")


async def _page(
    request: Request,
    order: Order,
    viewer: int,
    status: int = 200,
    *,
    errors: dict[str, list[str]] | None = None,
) -> Response:
    listings = await store_of(request).catalog.listings([line.listing_id for line in order.lines])
    return await page(
        request,
        "buying/order.html",
        status,
        order=order,
        own=order.buyer_id == viewer,
        moving=order.state in MOVING,
        listings={listing.id: listing for listing in listings},
        photos=await photos_of(request, listings),
        errors=errors or {},
    )


def _id(request: Request) -> int:
    id = number(request)
    if id is None:
        raise NotFound("order")
    return id


PAGES = (
    Page("GET", "/orders", orders),
    Page("GET", "/orders/{id}", order),
    Page("POST", "/orders/{id}/cancel", cancel),
)
