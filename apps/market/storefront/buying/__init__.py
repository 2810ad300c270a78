"""Cart, checkout, orders."""

from market.storefront.buying import cart, checkout, orders

__all__ = ["PAGES"]

PAGES = (*cart.PAGES, *checkout.PAGES, *orders.PAGES)
