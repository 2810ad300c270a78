"""Listings on sale, page by page: all, of a department or category, of a shop."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from market.catalog.api import ListingQuery
from market.checks import storable
from market.faults import NotFound
from market.storefront.photos import photos_of
from market.storefront.rendering import page
from market.storefront.rim import store_of
from market.storefront.table import Page
from market.storefront.visits import people

__all__ = ["PAGES"]

LIMIT = 24


async def browse(request: Request) -> Response:
    return await _category(request, None)


async def category(request: Request) -> Response:
    return await _category(request, request.path_params["slug"])


async def _category(request: Request, slug: str | None) -> Response:
    store, after = store_of(request), request.query_params.get("after") or None
    categories = await store.catalog.categories()
    store.learn(categories)
    by_slug = {one.slug: one for one in categories}
    if slug is not None and slug not in by_slug:
        raise NotFound("category")
    found = await store.catalog.newest(ListingQuery(category=slug, limit=LIMIT, after=after))
    chosen = by_slug[slug] if slug is not None else None
    department = chosen if chosen is None or chosen.parent is None else by_slug[chosen.parent]
    return await page(
        request,
        "browsing/browse.html",
        chosen=chosen,
        department=department,
        departments=[one for one in categories if one.parent is None],
        under=[one for one in categories if department is not None and one.parent == department.slug],
        listings=found.items,
        photos=await photos_of(request, found.items),
        next=found.next,
        first=after is None,
    )


async def shop(request: Request) -> Response:
    store, after = store_of(request), request.query_params.get("after") or None
    slug: str = request.path_params["slug"]
    found = await store.catalog.shop(slug) if storable(slug) else None
    if found is None:
        raise NotFound("shop")
    listings = await store.catalog.newest(ListingQuery(seller_id=found.seller_id, limit=LIMIT, after=after))
    known = await people(request, [found.seller_id])
    return await page(
        request,
        "browsing/shop.html",
        shop=found,
        seller=known.get(found.seller_id),
        listings=listings.items,
        photos=await photos_of(request, listings.items),
        next=listings.next,
        first=after is None,
    )


PAGES = (
    Page("GET", "/browse", browse),
    Page("GET", "/browse/{slug}", category),
    Page("GET", "/shops/{slug}", shop),
)
