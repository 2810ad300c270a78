"""What the catalog has to tell others, as jobs in the transaction of the change."""

from __future__ import annotations

import msgspec

from springtide.jobs import job

__all__ = ["ListingChanged", "MediaChanged", "StockTurned"]


@job(kind="catalog.changed")
class ListingChanged(msgspec.Struct, frozen=True):
    """A listing that is or was on sale was changed; the handler reads what is there now."""

    listing_id: int


@job(kind="catalog.media", max_attempts=40)
class MediaChanged(msgspec.Struct, frozen=True):
    """Somebody chose the media of a listing; the handler reads what is there now.

    A kind of its own, so that nobody waits for the index. Tried for more than a day: media that it has not
    told of are deleted after one.
    """

    listing_id: int


@job(kind="catalog.turned")
class StockTurned(msgspec.Struct, frozen=True):
    """The stock made a listing sold out or brought it back; the handler reads which it is by now."""

    listing_id: int
