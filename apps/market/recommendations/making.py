"""Making the lists: purchases become counts, counts become lists, follows become suggestions. Run by jobs.

    bought, undone -> Tally(order)    counts each listing of it, in the listing's own transaction
                   -> MakeList(listing), a moment later, so that many orders make one list
    followed       -> CopyFollow(pair), MakeAuthors(follower), a moment later

Each step may be repeated and may meet its own repetition: a purchase is counted when its row appears, and a
list that was made from older counts never replaces one from newer. What nobody buys any more decays, is made
anew once a day, and is forgotten after a year.

What is made stays for up to a day, so it is made of what the primaries have: a job's position covers its own
shard alone, and half of what it asks is on others.
"""

from __future__ import annotations

from datetime import datetime, timedelta

import msgspec

from market.moments import moment
from market.recommendations import scoring
from market.recommendations.follows import FollowStore
from market.recommendations.scoring import Purchase
from market.recommendations.store import Basket, Old, PurchaseStore
from springtide.clock import Clock
from springtide.context import Consistency, reading
from springtide.jobs import job

__all__ = ["DEBOUNCE", "KEPT", "REFRESH_EVERY", "CopyFollow", "MakeAuthors", "MakeList", "Making", "Tally"]

DEBOUNCE = 5.0
"""Seconds that a list waits for more to happen before it is made."""

REFRESH_EVERY = 60.0
"""Seconds between two looks for what is old."""

REFRESHED = 1000
"""How much of each kind one look deals with at most."""

FRESH = timedelta(days=1)
REMEMBERED = timedelta(days=365)
"""How long a list is good without news, and how long a purchase counts."""

KEPT = 60
"""The length of a list: more than is asked for, because some of it is sold out or in the cart."""

BETWEEN = 200
"""Of those whom somebody follows, and of those whom these follow, the newest so many are looked at."""


@job(kind="recommendations.tally")
class Tally(msgspec.Struct, frozen=True):
    order_id: int


@job(kind="recommendations.make_list")
class MakeList(msgspec.Struct, frozen=True):
    listing_id: int


@job(kind="recommendations.copy_follow")
class CopyFollow(msgspec.Struct, frozen=True):
    follower: int
    followee: int


@job(kind="recommendations.make_authors")
class MakeAuthors(msgspec.Struct, frozen=True):
    person: int


class Making:
    def __init__(self, purchases: PurchaseStore, follows: FollowStore, *, clock: Clock) -> None:
        self._purchases = purchases
        self._follows = follows
        self._clock = clock

    async def tally(self, order: int) -> None:
        """Bring the counts of each listing of the order in line with what the order is now."""
        basket = await self._purchases.basket(order)
        if basket is not None and basket.buyer is not None:
            for listing in basket.listings:
                await self._count(order, listing, basket.buyer, basket)

    async def _count(self, order: int, listing: int, buyer: int, basket: Basket) -> None:
        others = [other for other in basket.listings if other != listing]
        one = Purchase(order, scoring.weigh(basket.bought_at), others)
        async with self._purchases.write(listing) as tx:
            await self._purchases.lock(tx, listing)
            undone = await self._purchases.known(tx, listing, buyer, order)
            if undone is True or undone == basket.undone:
                return  # what is undone stays so, whatever an older look at the order says
            before = await self._purchases.purchases(tx, listing, buyer)
            await self._purchases.put_purchase(
                tx, listing, buyer, one, basket.bought_at, undone=basket.undone
            )
            after = [known for known in before if known.order_id != order]
            if not basket.undone:
                after.append(one)
            await self._purchases.count(tx, listing, scoring.change(before, after))
            await tx.enqueue(MakeList(listing), delay=DEBOUNCE, unique_key=str(listing))

    async def make_list(self, listing: int) -> None:
        with reading(Consistency.STRONG):
            listed = await self._purchases.listed(listing)
            if listed is None:
                return
            weights = await self._purchases.weights([pair.other for pair in listed.pairs])
        scores = [
            (pair.other, scoring.near(pair.counted, listed.weight, weights.get(pair.other, 0.0)))
            for pair in listed.pairs
        ]
        best = scoring.best(scores, KEPT)
        await self._purchases.put_list(listing, best, listed.version, moment(self._clock))

    async def copy_follow(self, follower: int, followee: int) -> None:
        follow = await self._follows.follow(follower, followee)
        if follow is not None:
            await self._follows.copy(follower, followee, follow)

    async def make_authors(self, person: int) -> None:
        with reading(Consistency.STRONG):
            version = await self._follows.changes(person)
            followed = (await self._follows.following([person], BETWEEN)).get(person, [])
            between = await self._follows.following(followed, BETWEEN) if followed else {}
        best = scoring.rank(between, without={person, *followed}, limit=KEPT)
        await self._follows.put_authors(person, best, version, moment(self._clock))

    async def refresh(self) -> None:
        now = moment(self._clock)
        await self._follows.put_chart(await self._follows.popular(KEPT), now)
        for person in await self._follows.old_authors(now - FRESH, REFRESHED):
            await self.make_authors(person)
        await self._forget(now - REMEMBERED)
        for listing in await self._purchases.old_lists(now - FRESH, REFRESHED):
            await self.make_list(listing)

    async def _forget(self, before: datetime) -> None:
        for old in await self._purchases.old_purchases(before, REFRESHED):
            await self._forget_purchase(old)
        await self._purchases.forget_baskets(before, REFRESHED)

    async def _forget_purchase(self, old: Old) -> None:
        async with self._purchases.write(old.listing) as tx:
            await self._purchases.lock(tx, old.listing)
            known = await self._purchases.purchases(tx, old.listing, old.buyer)
            await self._purchases.forget_purchase(tx, old)
            left = [one for one in known if one.order_id != old.order]
            await self._purchases.count(tx, old.listing, scoring.change(known, left))
