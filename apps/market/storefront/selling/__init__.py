"""For those who sell: the shop, what is in it, how much of it there is."""

from market.storefront.selling import listings, overview, photos, sales, shop, stock

__all__ = ["PAGES"]

PAGES = (
    *overview.PAGES,
    *sales.PAGES,
    *shop.PAGES,
    *listings.PAGES,
    *photos.PAGES,
    *stock.PAGES,
)
