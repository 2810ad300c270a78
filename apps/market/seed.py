"""Plausible data for market, in every module: who joins, writes, follows, sells, buys.

Deterministic: the same number of users and the same seed give the same content on the same day (and in fresh
databases the same ids). A few people are followed by many and sell much, a few articles, tags and wares are
liked and bought by many: popularity follows Zipf's law throughout.

    articles 1, listings 1, orders about 1.5, follows about 8, favourites about 5, comments about 2 per user;
    a shop for every tenth; 200 tags

Everybody can be logged in as: see `market.seeding.people`. Money is booked, stock is what its log adds up to,
and what modules tell each other has been told: the search finds everything, dashboards have their days.

Memory: rows are made while they are copied; what is kept is about 80 bytes per user.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime
from itertools import chain, islice
from typing import TYPE_CHECKING

from market.analytics import bulk as analytics
from market.catalog import bulk as catalog
from market.content import bulk as content
from market.dashboard import bulk as dashboard
from market.media import bulk as media
from market.notifications import bulk as notifications
from market.orders import bulk as orders
from market.payments import bulk as payments
from market.recommendations import bulk as recommendations
from market.search import bulk as search
from market.seeding.buying import Buying, Purchase
from market.seeding.chance import STRIDE, Plan
from market.seeding.people import PASSWORD, People, address
from market.seeding.selling import Selling
from market.seeding.writing import Writing
from market.users import bulk as accounts
from springtide.errors import AlreadySeeded
from springtide.ops.load.progress import Progress, ProgressBar
from springtide.ops.load.seeding import BulkLoad, SeedReport

if TYPE_CHECKING:
    from springtide.platform import Platform

__all__ = ["seed"]

MODULES = {
    "users": accounts,
    "content": content,
    "notifications": notifications,
    "catalog": catalog,
    "orders": orders,
    "payments": payments,
    "dashboard": dashboard,
    "recommendations": recommendations,
    "analytics": analytics,
}
"""Those that must be empty. What search and media have follows from theirs."""

FILLED = (*MODULES, "search", "media")

BATCH = 1_000
"""Orders that are made at once: each makes rows in six modules."""


async def seed(
    platform: Platform, *, users: int, seed: int, progress: Progress, today: date | None = None
) -> SeedReport:
    """Fill the modules' databases with what happened before `today` (None: the day that it is in UTC).

    Raises AlreadySeeded when one of them is not empty, ValueError below 2 users.
    """
    if not 2 <= users < STRIDE:
        raise ValueError(f"users must be in 2..{STRIDE - 1}, got {users}")
    today = today or datetime.fromtimestamp(platform.clock.now(), UTC).date()
    made = _Made(platform, Plan(users, seed, today), progress)
    async with BulkLoad([platform.database(name) for name in FILLED], progress=progress) as load:
        await made.fill(load)
    return SeedReport(users=users, seed=seed, rows=load.rows, notes=made.notes())


class _Made:
    """One seeding: what is planned, then copied module by module."""

    def __init__(self, platform: Platform, plan: Plan, progress: Progress) -> None:
        self._platform = platform
        self._databases = {name: platform.database(name) for name in FILLED}
        self._plan = plan
        self._progress = progress
        if isinstance(progress, ProgressBar):
            progress.expect(plan.users * 90)

    async def fill(self, load: BulkLoad) -> None:
        for name, bulk in MODULES.items():
            if not await bulk.is_empty(self._databases[name]):
                raise AlreadySeeded(
                    "there is data already, and a seed is for an empty platform:"
                    " `springtide down`, remove the folder .springtide, `springtide up` gives a fresh one"
                )
        self._progress.advance("planning", 0)
        self.people = await People.drawn(self._plan, self._databases["users"])
        writing = await Writing.drawn(self.people, self._databases["content"])
        wares, pictures = self._databases["catalog"], self._databases["media"]
        self.selling = await Selling.drawn(self.people, wares, pictures)
        buying = await Buying.drawn(self.selling, self._databases["orders"])
        if isinstance(self._progress, ProgressBar):
            parts = (self.people, writing, self.selling, buying)
            self._progress.expect(sum(part.rows for part in parts))
        await self._people(load)
        await self._writing(load, writing)
        await self._trade(load, buying)
        found = chain(self.people.documents(), writing.documents(), self.selling.documents())
        await search.copy_documents(load, self._databases["search"], found)
        await recommendations.copy_lists(load, self._databases["recommendations"], self._plan.now)

    def notes(self) -> list[str]:
        """How to log in: as somebody with much to see."""
        name = self.people.name(self.selling.largest())
        return [
            f"log in as a seller: e-mail {address(name)}, password {PASSWORD}",
            "everybody else has the same password: username@example.com",
        ]

    async def _people(self, load: BulkLoad) -> None:
        db = self._databases
        await accounts.copy_accounts(load, db["users"], self.people.accounts())
        await notifications.copy_recipients(load, db["notifications"], self.people.recipients())
        await accounts.copy_follows(load, db["users"], self.people.follows())
        follows = (recommendations.BulkFollow(*follow) for follow in self.people.follows())
        await recommendations.copy_follows(load, db["recommendations"], follows)

    async def _writing(self, load: BulkLoad, writing: Writing) -> None:
        db = self._databases["content"]
        await content.copy_articles(load, db, writing.articles())
        await content.copy_favorites(load, db, writing.favorites())
        await content.copy_comments(load, db, writing.comments())
        await content.copy_counts(load, db)

    async def _trade(self, load: BulkLoad, buying: Buying) -> None:
        """Orders before the listings: these have the stock that orders have left."""
        db = self._databases
        await catalog.copy_shops(load, db["catalog"], self.selling.opened())
        await catalog.copy_movements(load, db["catalog"], self.selling.first_stock())
        waiting: Iterator[Purchase] = buying.purchases()
        sellers: dict[int, str] = {}
        counted = analytics.Counted()
        while batch := list(islice(waiting, BATCH)):
            sold = [purchase for purchase in batch if purchase.confirmed]
            await orders.copy_orders(load, db["orders"], (one.order for one in batch))
            for one in batch:
                counted.add(one.order.at, declined=not one.confirmed)
            await payments.copy_charges(load, db["payments"], (one.charge() for one in batch))
            await catalog.copy_reservations(load, db["catalog"], (one.reservation() for one in batch))
            moved = chain.from_iterable(one.movements for one in batch)
            await catalog.copy_movements(load, db["catalog"], moved)
            sales = [sale for one in sold for sale in one.sales()]
            sellers |= {sale.seller: sale.lines[0].price.currency for sale, _ in sales}
            await dashboard.copy_sales(load, db["dashboard"], sales)
            baskets = (one.basket() for one in sold)
            await recommendations.copy_orders(load, db["recommendations"], baskets)
        blobs, motifs = await media.blobs_of(self._platform), await media.draw(self._plan.seed)
        await media.copy_pictures(load, db["media"], blobs, list(self.selling.pictures(motifs)))
        await catalog.copy_listings(load, db["catalog"], self.selling.listings())
        await catalog.copy_counts(load, db["catalog"])
        await dashboard.copy_sellers(load, db["dashboard"], sellers.items())
        await dashboard.copy_counts(load, db["dashboard"])
        await analytics.copy_days(load, db["analytics"], counted)
