"""Orders over a real catalog and a real provider: people who buy and sell, and what must always be true."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from tests.market.catalog import ANNA, BERT, WRONG
from tests.market.harness import Inside
from tests.market.paying import CARD, Inbox, World, euros, world
from tests.market.working import work

from market.catalog.api import Catalog, Listing, NewListing, NewShop
from market.dashboard.api import Dashboard
from market.notifications.api import Notifications
from market.orders.api import Address, Disagreements, NewOrder, Order, Orders, WantedLine
from market.orders.jobs import Tell
from market.orders.service import OrderService
from market.orders.settings import OrderSettings
from market.orders.steps import Placing
from springtide.db.idempotency import Once
from springtide.flows import FlowStatus

HOME = Address(name="Ada Adler", street="1 Harbour Lane", city="Hamburg", postal_code="20457", country="DE")

EXPIRED = """
update orders._flow set data = convert_to(
    (convert_from(data, 'UTF8')::jsonb || '{"pay_by": "2020-01-01T00:00:00Z"}')::text, 'UTF8')
"""

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

    async def flow(self, order: int) -> FlowStatus:
        flows = self.platform.flows("orders")
        (row,) = await self.db.read(order).fetch(
            "select flow from orders.placed where bucket = $1 and id = $2", order & 1023, order
        )
        found = await flows.look(order, row["flow"]) if flows is not None else None
        assert found is not None
        return found

    async def placing(self, order: int) -> Placing:
        """What the steps of the order know now."""
        return msgspec.convert((await self.flow(order)).data, Placing)

    async def tell(self) -> None:
        """Everybody is told once more of every order."""
        for row in await self.db.scatter("select id from orders.placed"):
            async with self.db.write(row["id"]) as tx:
                await tx.enqueue(Tell(row["id"]), unique_key=str(row["id"]))

    async def work(self) -> None:
        """What workers do in time: everything that is due, whenever that would be."""
        await self.world.reconcile()
        await work(self.platform, ["orders"])
        await self.world.reconcile()

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
    options: dict[str, Any] = {"pending_after": 0.0, "call_timeout": 5.0, **settings}
    async with world(urls, home, folder, ordering, **options) as (made, inbox):
        yield Shop(made, inbox)
