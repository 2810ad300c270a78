"""Cart, checkout, orders."""

from market.storefront.table import Page

__all__ = ["PAGES"]

PAGES: tuple[Page, ...] = ()
