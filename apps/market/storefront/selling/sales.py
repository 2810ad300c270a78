"""What a seller has sold, and what is on its way."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from market.faults import Conflict, NotFound
from market.storefront.forms import submitted
from market.storefront.rendering import page, redirect
from market.storefront.rim import store_of
from market.storefront.selling.shop import seller
from market.storefront.table import Page, number

__all__ = ["PAGES"]

LIMIT = 20


async def sales(request: Request) -> Response:
    return await _page(request)


async def _page(
    request: Request, status: int = 200, *, errors: dict[str, list[str]] | None = None
) -> Response:
    shop = await seller(request)
    after = request.query_params.get("after") or None
    found = await store_of(request).orders.sales(shop.seller_id, LIMIT, after)
    return await page(
        request,
        "selling/sales.html",
        status,
        shop=shop,
        sales=found.items,
        next=found.next,
        first=after is None,
        errors=errors or {},
    )


async def ship(request: Request) -> Response:
    form, shop, id = await submitted(request), await seller(request), number(request)
    if id is None:
        raise NotFound("sale")
    try:
        await store_of(request).orders.ship(id, shop.seller_id, form.once(request, shop.seller_id))
    except Conflict as refused:
        return await _page(request, 409, errors=refused.errors)
    return redirect(request, "/selling/sales", done="shipped")


PAGES = (
    Page("GET", "/selling/sales", sales),
    Page("POST", "/selling/sales/{id}/ship", ship),
)
