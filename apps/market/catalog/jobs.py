"""What the catalog has to tell others, as jobs in the transaction of the change."""

from __future__ import annotations

import msgspec

from springtide.jobs import job

__all__ = ["ListingChanged"]


@job(kind="catalog.changed")
class ListingChanged(msgspec.Struct, frozen=True):
    """A listing that is or was on sale was changed; the handler reads what is there now."""

    listing_id: int
