"""Search: what the index finds, shown as its owners have it now.

The index trails. What is gone, withdrawn or a draft by now is left out; what has changed since it was indexed
is marked as being updated, by its version. All of one kind are asked for in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from market.checks import storable
from market.search.api import KINDS, Hit, Kind, SearchQuery
from market.storefront.photos import photos_of
from market.storefront.rendering import page
from market.storefront.rim import store_of
from market.storefront.table import Page
from market.storefront.visits import people, viewer_of

__all__ = ["PAGES"]

LIMIT = 20
SUGGESTIONS = 8
LONGEST = 200

PUBLIC = frozenset({"active", "sold_out"})
NAMES = {"listing": "Listings", "article": "Articles", "person": "People"}


async def search(request: Request) -> Response:
    text, kind = _text(request), _kind(request)
    after = request.query_params.get("after") or None
    hits: Sequence[Hit] = []
    following = None
    if text:
        found = await store_of(request).search.find(
            SearchQuery(text=text, kind=kind, limit=LIMIT, after=after)
        )
        hits, following = found.items, found.next
    shown, photos = await _shown(request, hits)
    known = await people(request, ())
    return await page(
        request,
        "finding/search.html",
        text=text,
        kind=kind,
        kinds=NAMES,
        hits=shown,
        people_of=known,
        photos=photos,
        next=following,
        first=after is None,
    )


async def suggest(request: Request) -> Response:
    """For the page's script: names and titles that begin so; nothing when they do not come in time."""
    store, text = store_of(request), _text(request)
    found = await store.extras.fetch("suggestions", store.search.suggest(text, SUGGESTIONS)) if text else []
    return JSONResponse(found, headers={"Cache-Control": "private, max-age=30"})


async def _shown(request: Request, hits: Sequence[Hit]) -> tuple[list[tuple[Hit, Any, bool]], dict[int, str]]:
    """Each hit with what it is now and whether it has changed since it was indexed; photos of listings."""
    store, viewer = store_of(request), viewer_of(request)
    ids: dict[Kind, list[int]] = {kind: [hit.id for hit in hits if hit.kind == kind] for kind in KINDS}
    articles = await store.content.summaries(ids["article"], viewer) if ids["article"] else []
    listings = await store.catalog.listings(ids["listing"]) if ids["listing"] else []
    known = await people(request, [*ids["person"], *(article.author_id for article in articles)])
    now: dict[Kind, dict[int, Any]] = {
        "article": {article.id: article for article in articles},
        "listing": {listing.id: listing for listing in listings if listing.status in PUBLIC},
        "person": {id: known[id] for id in ids["person"] if id in known},
    }
    shown = [(hit, now[hit.kind][hit.id]) for hit in hits if hit.id in now[hit.kind]]
    marked = [(hit, thing, thing.version > hit.version) for hit, thing in shown]
    return marked, await photos_of(request, now["listing"].values())


def _text(request: Request) -> str:
    text = request.query_params.get("q", "").strip()[:LONGEST]
    return text if storable(text) else ""


def _kind(request: Request) -> Kind | None:
    """What is no kind is all of them."""
    asked = request.query_params.get("kind", "")
    return next((kind for kind in KINDS if kind == asked), None)


PAGES = (
    Page("GET", "/search", search),
    Page("GET", "/search/suggest", suggest),
)
