"""Finding things by their words."""

from market.storefront.finding import search

__all__ = ["PAGES"]

PAGES = search.PAGES
