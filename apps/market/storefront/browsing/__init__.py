"""Looking around: the front page, categories, shops, one product."""

from market.storefront.browsing import home, lists, product

__all__ = ["PAGES"]

PAGES = (*home.PAGES, *lists.PAGES, *product.PAGES)
