"""Pictures of listings and people, all of a page in one call; what is not ready, or not in time, has none."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.requests import Request

from market.catalog.api import ListingSummary
from market.media.api import MAX_IDS, media_ids
from market.storefront.rim import store_of

__all__ = ["photos_of"]

FIRST_FEW = 3
"""The picture of a listing is the first of so many media that is ready; its page asks for all."""


async def photos_of(request: Request, listings: Iterable[ListingSummary]) -> dict[int, str]:
    """Listing -> the address of its small picture; those without one have a drawing."""
    wanted = {listing.id: media_ids(listing.media)[:FIRST_FEW] for listing in listings}
    ids = list(dict.fromkeys(id for few in wanted.values() for id in few))[:MAX_IDS]
    if not ids:
        return {}
    store = store_of(request)
    found = await store.extras.fetch("photos", _pairs(request, ids))
    addresses = dict(found)
    shown = (
        (id, next((addresses[one] for one in few if one in addresses), None)) for id, few in wanted.items()
    )
    return {id: address for id, address in shown if address is not None}


async def _pairs(request: Request, ids: list[int]) -> list[tuple[int, str]]:
    return list((await store_of(request).media.urls(ids, "thumb")).items())
