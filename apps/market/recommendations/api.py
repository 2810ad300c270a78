"""What the recommendations module offers to the rest of the application: the only part that may be imported.

It is told what happened (by the jobs of the modules that own it: at least once, in any order) and answers
from lists that its own jobs have made beforehand. Lists trail what happened by seconds, and nothing depends
on them: a caller shows nothing when the module does not answer.
"""

from __future__ import annotations

from typing import Protocol

from market.faults import Invalid
from springtide.services import raises

__all__ = ["MAX_BASKET", "MAX_LISTINGS", "MAX_LIMIT", "Recommendations"]

MAX_BASKET = 20
"""Of an order with more listings the first so many count: a wholesale order says little about taste."""

MAX_LISTINGS = 100
"""The most listings that one question may name."""

MAX_LIMIT = 50
"""The longest list that is answered."""


class Recommendations(Protocol):
    """Errors are those of `market.faults`; each method names the ones it raises."""

    @raises(Invalid)
    async def bought(self, order_id: int, buyer: int, listings: list[int]) -> None:
        """The order is confirmed. Counts once per order; a buyer counts once per pair of listings.

        For an order that is undone already it does nothing. Repeated listings count once.
        Raises Invalid for what is no id, and for no listing at all.
        """

    @raises(Invalid)
    async def undone(self, order_id: int) -> None:
        """The order was cancelled or given back: it counts no more, whether or not `bought` came before."""

    @raises(Invalid)
    async def followed(self, follower: int, followee: int, following: bool, version: int) -> None:
        """Whether `follower` follows `followee`, as of `version` of that pair, which only ever grows.

        Calls may come in any order and more than once: the highest version wins.
        """

    @raises(Invalid)
    async def also_bought(self, listings: list[int], limit: int) -> list[int]:
        """Listings that buyers of `listings` bought as well, the best first, none of `listings` among them.

        At most `limit` (1 to MAX_LIMIT); one indexed read per shard. Whether they are on sale is the
        catalog's to say. Ids that nobody bought add nothing. Raises Invalid for more than MAX_LISTINGS.
        """

    @raises(Invalid)
    async def authors(self, person: int, limit: int) -> list[int]:
        """People whom `person` may want to follow, the best first: never themselves, nobody they follow.

        First those who are followed by people whom they follow, then the most followed of all.
        At most `limit` (1 to MAX_LIMIT).
        """
