"""How many there are of a listing: pieces that arrive, pieces that are taken away."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from market.faults import Conflict, Invalid
from market.storefront.forms import submitted
from market.storefront.rendering import redirect
from market.storefront.rim import store_of
from market.storefront.selling.listings import editor, own_listing, shown
from market.storefront.selling.shop import seller
from market.storefront.table import Page

__all__ = ["PAGES"]


async def adjust(request: Request) -> Response:
    form, shop = await submitted(request), await seller(request)
    listing, change = await own_listing(request, shop), form.whole("change")
    try:
        if not change:
            raise Invalid({"change": ["must be a whole number, above or below 0"]})
        await store_of(request).catalog.adjust(
            listing.id, shop.seller_id, change, form.text("note"), form.once(request, shop.seller_id)
        )
    except (Invalid, Conflict) as refused:
        errors = {name if name == "note" else "change": said for name, said in refused.errors.items()}
        status = 422 if isinstance(refused, Invalid) else 409
        return await editor(request, shop, listing, shown(listing), status, errors=errors, typed=form)
    return redirect(request, f"/selling/listings/{listing.id}", done="stock")


PAGES = (Page("POST", "/selling/listings/{id}/stock", adjust),)
