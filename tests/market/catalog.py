"""The catalog without the rim: sellers on both shards, a clock to move, and what must always be true."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.market.harness import topology

from market.catalog.api import Line, Listing, NewListing, NewShop, Stock
from market.catalog.reservations import Reservations
from market.catalog.service import CatalogService
from market.catalog.stock import StockStore
from market.catalog.store import CatalogStore
from market.media.api import Media
from market.money import Money
from market.platform import modules
from market.search.api import Search
from market.webhooks.api import Webhooks
from springtide.db.idempotency import Idempotency
from springtide.platform import Platform
from springtide.testing import ManualClock
from springtide.topology import PoolSpec

ANNA, BERT = (7 << 10) | 5, (7 << 10) | 1000
"""Two sellers in the first and the last buckets: on two shards where there are two."""

WRONG = {
    "the log does not add up to the stock": """
        select count(*) from catalog.stock s where on_hand <> (
            select coalesce(sum(change), 0) from catalog.movement m
            where m.bucket = s.bucket and m.listing_id = s.listing_id)
    """,
    "the log has gaps": """
        select count(*) from catalog.stock s where movements <> (
            select coalesce(max(number), 0) from catalog.movement m
            where m.bucket = s.bucket and m.listing_id = s.listing_id)
        or movements <> (
            select count(*) from catalog.movement m
            where m.bucket = s.bucket and m.listing_id = s.listing_id)
    """,
    "what is reserved is not what is held": """
        select count(*) from catalog.stock s where reserved <> (
            select coalesce(sum(quantity), 0) from catalog.held h
            where h.bucket = s.bucket and h.listing_id = s.listing_id and h.state = 'held')
    """,
    "a status is not what the stock says": """
        select count(*) from catalog.listing l join catalog.stock s
            on s.bucket = l.bucket and s.listing_id = l.id
        where (l.status = 'active' and s.on_hand = s.reserved)
            or (l.status = 'sold_out' and s.on_hand > s.reserved)
    """,
    "a category is counted wrong": """
        select count(*) from (
            select bucket, category, sum(listings) as counted from (
                select bucket, category, listings from catalog.category_count
                union all
                select bucket, category, -1 from catalog.listing where status = 'active') as both_sides
            group by bucket, category) as summed
        where counted <> 0
    """,
}


class Market:
    """The service over a clock of the test's own."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.db = platform.database("catalog")
        self.clock = ManualClock(now=1_790_000_000.0)
        self.stock = StockStore(self.db)
        self.service = self.serve(self.stock)
        self._numbers = itertools.count(1)

    def serve(self, stock: Any) -> CatalogService:
        """The service over another store of stock."""
        reservations, keys = Reservations(stock, clock=self.clock), Idempotency(self.db)
        return CatalogService(
            CatalogStore(self.db),
            reservations,
            keys=keys,
            clock=self.clock,
            search=self.platform.service(Search),
            media=self.platform.service(Media),
            webhooks=self.platform.service(Webhooks),
        )

    async def shops(self) -> None:
        for owner, name in ((ANNA, "Anna's"), (BERT, "Bert's")):
            await self.service.open_shop(owner, NewShop(name=name, currency="EUR"))

    async def listing(self, owner: int = ANNA, stock: int = 5, **fields: Any) -> Listing:
        new = {"title": "A lamp", "price": Money(1250, "EUR"), "category": "lighting", "status": "active"}
        return await self.service.create(owner, NewListing(stock=stock, **(new | fields)))

    def order(self, bucket: int = 900) -> int:
        return (next(self._numbers) << 10) | bucket

    async def left(self, listing: Listing) -> tuple[int, int, int]:
        """on hand, reserved, available"""
        stock: Stock = await self.service.stock(listing.id, listing.seller_id)
        return stock.on_hand, stock.reserved, stock.available

    async def check(self) -> bool:
        """Whether all is true that must always be true."""
        found = [name for name, sql in WRONG.items() if await self.db.scatter_sum(sql)]
        assert not found, found
        return True


def lines(*listings: Listing, quantity: int = 1) -> list[Line]:
    return [Line(listing_id=one.id, quantity=quantity, price=one.price) for one in listings]


@asynccontextmanager
async def opened(urls: Sequence[str], home: Path, pool: PoolSpec | None = None) -> AsyncIterator[Market]:
    platform = Platform(topology(urls, pool=pool), modules=modules(), home=home)
    async with platform:
        market = Market(platform)
        await market.shops()
        yield market
