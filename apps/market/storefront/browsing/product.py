"""One product: what it is, what it costs, how many there are, and the way into the cart."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from market.faults import NotFound
from market.storefront.rendering import page
from market.storefront.rim import store_of
from market.storefront.table import Page, number
from market.storefront.visits import people, viewer_of

__all__ = ["PAGES", "MOST_AT_ONCE"]

MOST_AT_ONCE = 100
"""What the field for the quantity offers at most."""


async def product(request: Request) -> Response:
    store, viewer = store_of(request), viewer_of(request)
    id = number(request)
    if id is None:
        raise NotFound("listing")
    listing = await store.catalog.listing(id, viewer)
    places = await store.places()
    await people(request, ())
    return await page(
        request,
        "browsing/product.html",
        listing=listing,
        place=places.get(listing.category),
        places=places,
        most=min(listing.available, MOST_AT_ONCE),
        own=viewer == listing.seller_id,
    )


PAGES = (Page("GET", "/listings/{id}", product),)
