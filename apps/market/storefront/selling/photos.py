"""Photos and short videos of a listing: sent, put in front, taken off.

The file is kept at once and made ready by a job; until then the page says so. The listing holds the ids in
their order, and what is on no listing goes after a day.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from market.catalog.api import MAX_MEDIA, Listing, ListingChanges, Shop
from market.faults import Invalid
from market.storefront.forms import submitted
from market.storefront.rendering import redirect
from market.storefront.rim import store_of
from market.storefront.selling.listings import editor, own_listing, shown
from market.storefront.selling.shop import seller
from market.storefront.table import Page
from market.storefront.uploads import from_a_page, uploaded
from springtide.errors import BodyTooLarge

__all__ = ["PAGES"]


async def add(request: Request) -> Response:
    await from_a_page(request)
    shop = await seller(request)
    listing = await own_listing(request, shop)
    try:
        async with uploaded(request) as (owner, upload):
            if len(listing.media) >= MAX_MEDIA:
                raise Invalid({"file": [f"is one too many (maximum is {MAX_MEDIA})"]})
            store = store_of(request)
            medium = await store.media.store(owner, upload.name, upload.content, "public", upload.once)
    except Invalid as refused:
        return await editor(request, shop, listing, shown(listing), 422, errors=refused.errors)
    except BodyTooLarge as error:
        errors = {"file": [f"is too large: {error.limit // (1024 * 1024)} MiB at most"]}
        return await editor(request, shop, listing, shown(listing), 413, errors=errors)
    wanted = [*listing.media, *([] if str(medium.id) in listing.media else [str(medium.id)])]
    return await _keep(request, shop, listing, wanted, done="photo")


async def arrange(request: Request) -> Response:
    """`first` puts a medium in front, `remove` takes it off."""
    form, shop = await submitted(request), await seller(request)
    listing = await own_listing(request, shop)
    first, gone = form.text("first"), form.text("remove")
    rest = [one for one in listing.media if one not in (first, gone)]
    wanted = [first, *rest] if first in listing.media else rest
    return await _keep(request, shop, listing, wanted, done="photo-removed" if gone else "listing-saved")


async def _keep(request: Request, shop: Shop, listing: Listing, wanted: list[str], *, done: str) -> Response:
    """Raises Stale (409) when the listing has changed meanwhile: nothing is taken off unseen."""
    store = store_of(request)
    changes = ListingChanges(media=wanted)
    await store.catalog.update(listing.id, shop.seller_id, changes, listing.version)
    return redirect(request, f"/selling/listings/{listing.id}", done=done)


PAGES = (
    Page("POST", "/selling/photos/{id}", add),
    Page("POST", "/selling/arrangement/{id}", arrange),
)
