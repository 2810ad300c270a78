"""Listings and their pictures: what both modules would have to know of each other is put together here.

A listing holds the ids of its media as text, and the catalog does not look into them. Whoever saves one tells
the media module afterwards what is attached to it, with its version, so it may be told twice and in
any order; between the two there is a day before a picture would be deleted. A client that heard nothing
sends its request again under the same key, which attaches what a crash left out; so does the next change.

Whoever shows listings asks for the addresses of all of a page at once. Ids of nothing, of what is not ready
and of what is private have none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from market.catalog.api import Listing
from market.media.api import MAX_IDS, Media, Variant, media_ids

__all__ = ["HasMedia", "attach_pictures", "picture_urls"]


class HasMedia(Protocol):
    @property
    def id(self) -> int: ...
    @property
    def media(self) -> list[str]: ...


async def attach_pictures(media: Media, listing: Listing) -> None:
    """After every save of `listing` that may have changed its media."""
    ids = media_ids(listing.media)
    await media.attach(listing.seller_id, f"listing:{listing.id}", ids, listing.version)


async def picture_urls(media: Media, listings: Sequence[HasMedia], variant: Variant) -> dict[int, list[str]]:
    """The addresses of each listing's pictures, in their order, by its id: one call per 200 pictures."""
    wanted = {listing.id: media_ids(listing.media) for listing in listings}
    ids = list(dict.fromkeys(id for some in wanted.values() for id in some))
    urls: dict[int, str] = {}
    for first in range(0, len(ids), MAX_IDS):
        urls |= await media.urls(ids[first : first + MAX_IDS], variant)
    return {listing: [urls[id] for id in some if id in urls] for listing, some in wanted.items()}
