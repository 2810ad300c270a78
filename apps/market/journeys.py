"""What visitors of market do, as load: of 100 requests about 80 browse, 12 search, 3 buy and 5 post.

browse   front     the front page, a category             look      a product, its shop
         compare   a category, a listing, also bought     read      list, an article, its comments
         browse    list and tags                          person    a profile and that person's articles
         topic     the articles of a tag                  feed      what a reader follows and was told
         figures   a seller's sales and dashboard
search   find      suggestions, results, a listing
buy      buy       a product, the cart, an order that is charged, the order
post     react     an article, then favour or comment     follow    a profile, then follow
         write     an article                             offer     a listing        join    register
"""

from __future__ import annotations

from market.visiting import looking, posting, shopping
from market.visiting.site import prepare
from springtide.ops.load.journeys import Journey

__all__ = ["journeys"]


def journeys() -> list[Journey]:
    """Weight times steps is each one's share of the requests, out of about 100."""
    return [
        Journey("front", 7, looking.front, steps=2, prepare=prepare),
        Journey("look", 7, looking.look, steps=2, prepare=prepare),
        Journey("compare", 5, looking.compare, steps=3, prepare=prepare),
        Journey("read", 5, looking.read, steps=3, prepare=prepare),
        Journey("browse", 3, looking.browse, steps=2, prepare=prepare),
        Journey("person", 2, looking.person, steps=2, prepare=prepare),
        Journey("topic", 4, looking.topic, steps=1, prepare=prepare),
        Journey("feed", 2, looking.feed, steps=3, prepare=prepare),
        Journey("figures", 1, looking.figures, steps=2, prepare=prepare),
        Journey("find", 4, shopping.find, steps=3, prepare=prepare),
        Journey("buy", 0.75, shopping.buy, steps=4, prepare=prepare),
        Journey("react", 1.1, posting.react, steps=2, prepare=prepare),
        Journey("follow", 0.4, posting.follow, steps=2, prepare=prepare),
        Journey("write", 0.8, posting.write, steps=1, prepare=prepare),
        Journey("offer", 0.7, posting.offer, steps=1, prepare=prepare),
        Journey("join", 0.5, posting.join, steps=1, prepare=prepare),
    ]
