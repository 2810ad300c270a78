"""market behind a real server, with something on its shelves: for tests in a browser."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import uvicorn
from tests.market.harness import PASSWORD, topology
from tests.market.paying import KEY, SECRET, ProviderProcess

from market.application import served
from market.catalog.api import Catalog, Listing, NewListing, NewShop
from market.content.api import Article, Content, NewArticle
from market.money import Money
from market.orders.api import Orders
from market.payments.settings import PaymentSettings
from market.platform import modules
from market.settings import Settings
from market.users.api import Account, NewAccount, Users
from springtide.lifecycle import Group
from springtide.platform import Platform

__all__ = ["Window", "opened"]

THINGS = (
    ("Reading lamp in brushed brass", "lighting", 8900, 4),
    ("Hand-thrown bowl, sea green", "ceramics", 3450, 12),
    ("A field guide to quiet gardens", "non-fiction", 2200, 30),
    ("Linen tea towels, set of three", "kitchen", 1850, 1),
    ("Oak side table", "furniture", 24_000, 2),
    ("Wool scarf, undyed", "accessories", 5400, 7),
    ("Winter tomato seeds", "seeds", 390, 200),
    ("Small bright radio", "audio", 6900, 0),
    ("Print of the harbour at night", "prints", 4100, 9),
    ("Letters from an island", "fiction", 1490, 18),
)
"""Title, category, price in cents, pieces."""

TEXT = """It began with *one* lamp and a **question**.

## What we found

- People keep what they can repair.
- A good box is half of a good [delivery](https://example.com/boxes).

> The weather changed, and with it every assumption about the roof.

| part | hours |
|---|---|
| shade | 2 |
| foot | 5 |

    lamp.on()
"""


class Window:
    """The services to prepare things with, and where the pages are."""

    def __init__(self, platform: Platform, url: str, provider: ProviderProcess) -> None:
        self.platform = platform
        self.url = url
        self.provider = provider
        self.orders = platform.service(Orders)
        self.users = platform.service(Users)
        self.content = platform.service(Content)
        self.catalog = platform.service(Catalog)

    async def person(self, name: str) -> Account:
        email = f"{name.lower().replace(' ', '.')}@example.com"
        return await self.users.register(NewAccount(username=name, email=email, password=PASSWORD))

    async def shop(self, owner: Account, name: str) -> list[Listing]:
        """A shop with THINGS in it."""
        await self.catalog.open_shop(
            owner.id, NewShop(name=name, currency="EUR", description="We make a few things, slowly.")
        )
        made = []
        for title, category, cents, stock in reversed(THINGS):
            new = NewListing(
                title=title, category=category, price=Money(cents, "EUR"), stock=stock, status="active",
                description="Made in a small workshop.\nRepairs are free for ten years.",
            )  # fmt: skip
            made.append(await self.catalog.create(owner.id, new))
        return made

    async def article(self, author: Account, title: str, **fields: Any) -> Article:
        new = {"description": "What a year in a workshop teaches.", "body": TEXT, "tags": ["craft", "slow"]}
        return await self.content.create(author.id, NewArticle(title=title, **(new | fields)))


@asynccontextmanager
async def opened(urls: Sequence[str], home: Path, folder: Path, *, sink: Any = None) -> AsyncIterator[Window]:
    """Migrated databases behind uvicorn on a free port, a provider, and a worker's jobs in this process."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    provider = ProviderProcess(folder / "provider.journal", f"{url}/market/payments/webhook")
    await provider.start()
    paying = PaymentSettings(url=provider.url, key=KEY, secret=SECRET, call_timeout=5.0, pending_after=1.0)
    platform = Platform(
        topology(urls), modules=modules(provider=paying), home=home, sink=sink, check_calls=True
    )
    app = served(platform, Settings(development=True))
    config = uvicorn.Config(
        app, log_level="error", lifespan="on", proxy_headers=False, timeout_graceful_shutdown=20
    )
    server = uvicorn.Server(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup(sockets=[listener])
    work = Group("work", platform.background(drain=1.0))
    try:
        await work.start()
        yield Window(platform, url, provider)
    finally:
        await work.stop()
        platform.health.drain()
        await server.shutdown(sockets=[listener])
        listener.close()
        await provider.kill()
        await provider.http.aclose()
