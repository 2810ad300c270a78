"""What the module is told, and what it answers; the lists in between are made by `making.py`."""

from __future__ import annotations

from market.moments import moment
from market.recommendations import rules, scoring
from market.recommendations.follows import Follow, FollowStore
from market.recommendations.making import (
    DEBOUNCE,
    CopyFollow,
    MakeAuthors,
    MakeList,
    Making,
    Tally,
)
from market.recommendations.store import PurchaseStore
from springtide.clock import Clock
from springtide.jobs import Run
from springtide.services import ModuleContext

__all__ = ["RecommendationService", "build"]


def build(context: ModuleContext) -> RecommendationService:
    purchases, follows = _stores(context)
    making = Making(purchases, follows, clock=context.clock)
    return RecommendationService(purchases, follows, making, clock=context.clock)


def _stores(context: ModuleContext) -> tuple[PurchaseStore, FollowStore]:
    if not context.cached:
        return PurchaseStore(context.db), FollowStore(context.db)
    from market.recommendations.cached import CachedFollows, CachedPurchases

    return CachedPurchases(context.db, context.cache), CachedFollows(context.db, context.cache)


class RecommendationService:
    """Implements `market.recommendations.api.Recommendations`."""

    def __init__(
        self, purchases: PurchaseStore, follows: FollowStore, making: Making, *, clock: Clock
    ) -> None:
        self._purchases = purchases
        self._follows = follows
        self._making = making
        self._clock = clock

    async def bought(self, order_id: int, buyer: int, listings: list[int]) -> None:
        listings = rules.check_bought(order_id, buyer, listings)
        async with self._purchases.write(order_id) as tx:
            at = moment(self._clock)
            if await self._purchases.insert_basket(tx, order_id, buyer, listings, at):
                await tx.enqueue(Tally(order_id))

    async def undone(self, order_id: int) -> None:
        rules.check_order(order_id)
        async with self._purchases.write(order_id) as tx:
            if await self._purchases.undo_basket(tx, order_id, moment(self._clock)):
                await tx.enqueue(Tally(order_id))

    async def followed(self, follower: int, followee: int, following: bool, version: int) -> None:
        rules.check_followed(follower, followee, version)
        async with self._purchases.write(follower) as tx:
            follow = Follow(following, version)
            if await self._follows.put(tx, follower, followee, follow, moment(self._clock)):
                await tx.enqueue(CopyFollow(follower, followee), unique_key=f"{follower}-{followee}")
                await tx.enqueue(MakeAuthors(follower), delay=DEBOUNCE, unique_key=str(follower))

    async def also_bought(self, listings: list[int], limit: int) -> list[int]:
        rules.check_question(limit, listings)
        wanted = {id for id in listings if rules.is_id(id)}
        if not wanted:
            return []
        return scoring.merge(await self._purchases.lists(sorted(wanted)), without=wanted, limit=limit)

    async def authors(self, person: int, limit: int) -> list[int]:
        rules.check_question(limit)
        if not rules.is_id(person):
            return []
        near = await self._follows.authors(person)
        found = await self._new_to(person, near)
        if len(found) < limit:
            popular = [id for id in await self._follows.chart() if id not in near]
            found += await self._new_to(person, popular)
        return found[:limit]

    async def _new_to(self, person: int, people: list[int]) -> list[int]:
        """Without the person and whom they follow by now."""
        followed = await self._follows.followed(person, people) if people else set()
        return [id for id in people if id != person and id not in followed]

    async def tally(self, job: Tally, run: Run) -> None:
        await self._making.tally(job.order_id)

    async def make_list(self, job: MakeList, run: Run) -> None:
        await self._making.make_list(job.listing_id)

    async def copy_follow(self, job: CopyFollow, run: Run) -> None:
        await self._making.copy_follow(job.follower, job.followee)

    async def make_authors(self, job: MakeAuthors, run: Run) -> None:
        await self._making.make_authors(job.person)

    async def refresh(self) -> None:
        """For the workers, periodically: what is old is made anew, what is too old is forgotten."""
        await self._making.refresh()
