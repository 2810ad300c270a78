"""One product: what it is, what it costs, how many there are, and the way into the cart."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from market.catalog.api import ListingSummary
from market.faults import NotFound
from market.media.api import Medium, media_ids
from market.storefront.photos import photos_of
from market.storefront.rendering import page
from market.storefront.rim import store_of
from market.storefront.table import Page, number
from market.storefront.visits import viewer_of

__all__ = ["PAGES", "MOST_AT_ONCE"]

ALSO = 4
ALSO_ASKED = 12
"""Recommended listings that are shown, and asked for: some may be sold by now."""

MOST_AT_ONCE = 100
"""What the field for the quantity offers at most."""


async def product(request: Request) -> Response:
    store, viewer = store_of(request), viewer_of(request)
    id = number(request)
    if id is None:
        raise NotFound("listing")
    listing = await store.catalog.listing(id, viewer)
    places = await store.places()
    ids = media_ids(listing.media)
    media = [one for one in await store.media.media(ids) if one.state == "ready"] if ids else []
    also = await _also_bought(request, listing.id)
    return await page(
        request,
        "browsing/product.html",
        listing=listing,
        place=places.get(listing.category),
        places=places,
        most=min(listing.available, MOST_AT_ONCE),
        own=viewer == listing.seller_id,
        media=media,
        large=await store.media.urls([one.id for one in media], "large") if media else {},
        previews=await _previews(request, media),
        also=also,
        photos=await photos_of(request, also),
    )


async def _also_bought(request: Request, id: int) -> list[ListingSummary]:
    """What is on sale of it; nothing when nobody knows in time."""
    store = store_of(request)
    ids = await store.extras.fetch("also-bought", store.recommendations.also_bought([id], ALSO_ASKED))
    found = await store.catalog.listings(ids) if ids else []
    return [one for one in found if one.status == "active"][:ALSO]


async def _previews(request: Request, media: list[Medium]) -> dict[int, str]:
    videos = [one.id for one in media if one.kind == "video"]
    return await store_of(request).media.urls(videos, "preview") if videos else {}


PAGES = (Page("GET", "/listings/{id}", product),)
