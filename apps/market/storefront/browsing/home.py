"""The front page: what is new, by department; the newest articles; whom to read."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from market.catalog.api import ListingQuery, ListingSummary
from market.content.api import ArticleQuery
from market.storefront.photos import photos_of
from market.storefront.rendering import page
from market.storefront.rim import store_of
from market.storefront.table import Page
from market.storefront.visits import people, viewer_of

__all__ = ["PAGES"]

NEWEST = 60
PER_DEPARTMENT = 4
ARTICLES = 6
AUTHORS = 5


async def home(request: Request) -> Response:
    store, viewer = store_of(request), viewer_of(request)
    categories = await store.catalog.categories()
    store.learn(categories)
    newest = await store.catalog.newest(ListingQuery(limit=NEWEST))
    written = await store.content.articles(ArticleQuery(limit=ARTICLES), viewer)
    recommended: list[int] = []
    if viewer is not None:
        asked = store.recommendations.authors(viewer, AUTHORS)
        recommended = await store.extras.fetch("authors", asked)
    known = await people(request, [*recommended, *(article.author_id for article in written.articles)])
    parents = {one.slug: one.parent or one.slug for one in categories}
    shelves: dict[str, list[ListingSummary]] = {}
    for listing in newest.items:
        shelf = shelves.setdefault(parents.get(listing.category, listing.category), [])
        if len(shelf) < PER_DEPARTMENT:
            shelf.append(listing)
    shown = [listing for shelf in shelves.values() for listing in shelf]
    return await page(
        request,
        "browsing/home.html",
        departments=[one for one in categories if one.parent is None],
        shelves=shelves,
        articles=written.articles,
        people=known,
        authors=[known[id] for id in recommended if id in known and not known[id].following],
        photos=await photos_of(request, shown),
    )


PAGES = (Page("GET", "/", home),)
