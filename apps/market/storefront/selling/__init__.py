"""For those who sell: the shop, what is in it, how much of it there is."""

from market.storefront.selling import listings, shop, stock

__all__ = ["PAGES"]

PAGES = (*shop.PAGES, *listings.PAGES, *stock.PAGES)
