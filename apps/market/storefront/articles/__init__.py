"""The magazine: reading, writing, talking about what was written; the people who do it."""

from market.storefront.articles import comments, people, reading, writing

__all__ = ["PAGES"]

PAGES = (*reading.PAGES, *writing.PAGES, *comments.PAGES, *people.PAGES)
