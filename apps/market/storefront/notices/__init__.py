"""What people are told: their inbox, and what is sent beside it."""

from market.storefront.notices import inbox, preferences, push

__all__ = ["PAGES"]

PAGES = (*inbox.PAGES, *preferences.PAGES, *push.PAGES)
