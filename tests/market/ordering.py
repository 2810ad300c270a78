"""Orders over a real catalog and a real provider: people who buy and sell, and what must always be true."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.market.catalog import ANNA, BERT, WRONG
from tests.market.harness import Inside, settled
from tests.market.paying import CARD, Inbox, World, euros, world

from market.catalog.api import Catalog, Listing, NewListing, NewShop
from market.dashboard.api import Dashboard
from market.notifications.api import Notifications
from market.orders.api import Address, Disagreements, NewOrder, Order, Orders, WantedLine
from market.orders.service import OrderService
from market.orders.settings import OrderSettings
from springtide.db.idempotency import Once

HOME = Address(name="Ada Adler", street="1 Harbour Lane", city="Hamburg", postal_code="20457", country="DE")

DUE = "update orders.placed set due_at = now() - interval '1 s' where due_at is not null or $1"
EXPIRED = "update orders.placed set pay_by = now() - interval '1 s'"
"""A second ago: the store looks at whole milliseconds, which now() is ahead of."""

_people = itertools.count(1)


def buyer() -> int:
    """Somebody new; every other one is on the second of two shards."""
    number = next(_people)
    return (number + 1_000) << 10 | ((900 if number % 2 else 100) + number % 7)


def once(name: str | None = None) -> Once:
    return Once.of((name or secrets.token_hex(8),), (b"",))


def wanted(*listings: Listing, quantity: int = 1) -> list[WantedLine]:
    return [WantedLine(listing_id=one.id, quantity=quantity, price=one.price) for one in listings]


class Shop:
    def __init__(self, world: World, inbox: Inbox) -> None:
        self.world = world
        self.inbox = inbox
        self.provider = world.provider
        self.platform = world.platform
        self.payments = world.payments
        inside = Inside(world.platform)
        self.catalog = inside.service(Catalog)
        self.orders = inside.service(Orders)
        self.notifications = inside.service(Notifications)
        self.dashboard = inside.service(Dashboard)
        self.db = world.platform.database("orders")
        implementation: Any = world.platform._registry.implementation("orders")
        self.service: OrderService = implementation

    async def open(self) -> None:
        """Two sellers, one on each shard where there are two; a provider that is well."""
        await self.provider.forget()
        await self.provider.behave()
        for owner, name in ((ANNA, "Anna's"), (BERT, "Bert's")):
            await self.catalog.open_shop(owner, NewShop(name=name, currency="EUR"))

    async def listing(self, owner: int = ANNA, stock: int = 5, **fields: Any) -> Listing:
        new = {"title": "A lamp", "price": euros(1250), "category": "lighting", "status": "active"}
        return await self.catalog.create(owner, NewListing(stock=stock, **(new | fields)))

    async def place(
        self,
        who: int,
        *listings: Listing,
        quantity: int = 1,
        source: str = CARD,
        by: Once | None = None,
        **fields: Any,
    ) -> Order:
        """Of these listings, or of the cart where `cart_version` is given."""
        lines = wanted(*listings, quantity=quantity) if listings else None
        new = NewOrder(source=source, address=HOME, lines=lines, **fields)
        return await self.orders.place(who, new, by or once())

    async def left(self, listing: Listing) -> tuple[int, int]:
        """on hand, reserved"""
        stock = await self.catalog.stock(listing.id, listing.seller_id)
        return stock.on_hand, stock.reserved

    async def expire(self) -> None:
        """The time to pay is up, for every order."""
        for pool in self.db.pools.values():
            await pool.execute(EXPIRED)

    async def due(self, *, all: bool = False) -> None:
        """Workers look at what is left to do now and not later; `all`: also at what has nothing left."""
        for pool in self.db.pools.values():
            await pool.execute(DUE, all)

    async def work(self) -> None:
        """What workers do in time: look at everything that is due, whenever that would be."""
        for _ in range(10):
            await self.world.reconcile()
            await self.due()
            await self.service.advance_due()
            if not await self.db.scatter_sum("select count(*) from orders.placed where due_at is not null"):
                await settled(self.platform)  # what workers have written is no client's own
                return
        raise AssertionError("an order does not come to its end")

    async def disagreements(self) -> Disagreements:
        return await self.orders.reconcile()

    async def check(self, *, open: int = 0) -> bool:
        """Whether the provider, the ledger, the orders and the stock say the same."""
        assert await self.world.agree()
        catalog = self.platform.database("catalog")
        found = [name for name, sql in WRONG.items() if await catalog.scatter_sum(sql)]
        assert not found, found
        said = await self.disagreements()
        placed = await self.db.scatter_sum("select count(*) from orders.placed")
        assert said == Disagreements(
            checked=placed, open=open, confirmed_not_paid=0, confirmed_not_sold=0, ended_still_paid=0,
            ended_still_held=0,
        )  # fmt: skip
        return True


@asynccontextmanager
async def shop(
    urls: Sequence[str], home: Path, folder: Path, ordering: OrderSettings | None = None, **settings: Any
) -> AsyncIterator[Shop]:
    options = {"pending_after": 0.0, "call_timeout": 5.0, **settings}
    async with world(urls, home, folder, ordering, **options) as (made, inbox):
        yield Shop(made, inbox)
