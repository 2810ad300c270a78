"""Processes of market's that place or cancel an order and are killed (SIGKILL), each at a point of its own.

Run as `python -m tests.market.ordering_child HOME PROVIDER LISTING PRICE URL...`; one process is forked for
each point, some at a time. Prints, as JSON, the points at which none died.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from tests.market.harness import topology
from tests.market.ordering import HOME, once
from tests.market.paying import CARD, KEY, SECRET, euros

from market.catalog.service import CatalogService
from market.orders.api import NewOrder, Orders, WantedLine
from market.orders.service import OrderService
from market.orders.store import OrderStore
from market.orders.telling import Teller
from market.payments.client import ProviderClient
from market.payments.service import PaymentService
from market.payments.settings import PaymentSettings
from market.payments.store import PaymentStore
from market.platform import modules
from springtide.platform import Platform

AT_ONCE = 4
"""Most of a child's time is waiting, for the database and the provider."""

Point = tuple[type, str, int]
"""The function after whose n-th call, and before anything else, the process dies."""

PLACING: list[Point] = [
    (OrderStore, "insert", 1),
    (OrderService, "_once", 1),
    (CatalogService, "reserve", 1),
    (OrderStore, "move", 1),
    (PaymentStore, "insert_charge", 1),
    (ProviderClient, "charge", 1),
    (PaymentService, "charge", 1),
    (OrderStore, "move", 2),
    (CatalogService, "commit", 1),
    (OrderStore, "move", 3),
    (OrderStore, "put_sale", 1),
    (Teller, "_tell_confirmed", 1),
    (Teller, "_tell_bought", 1),
    (Teller, "tell", 1),
]
DECLINING: list[Point] = [(OrderStore, "move", 2), (CatalogService, "release", 1), (OrderStore, "move", 3)]
CANCELLING: list[Point] = [
    (OrderService, "_once", 1),
    (CatalogService, "restock", 1),
    (OrderStore, "move", 1),
    (PaymentStore, "abandon_charge", 1),
    (ProviderClient, "refund", 1),
    (PaymentService, "cancel", 1),
    (OrderStore, "move", 2),
    (CatalogService, "release", 1),
    (OrderStore, "move", 3),
]

POINTS = {
    f"{what} {owner.__name__}.{name} {call}": (what, (owner, name, call))
    for what, points in (("place", PLACING), ("decline", DECLINING), ("cancel", CANCELLING))
    for owner, name, call in points
}


def buyer_at(point: str) -> int:
    """Every other one is on the second of two shards."""
    number = list(POINTS).index(point)
    return (5_000 + number) << 10 | (900 if number % 2 else 100)


def order_at(point: str, listing: int, price: int) -> NewOrder:
    source = "card_declined" if point.startswith("decline") else CARD
    lines = [WantedLine(listing_id=listing, quantity=1, price=euros(price))]
    return NewOrder(source=source, address=HOME, lines=lines)


def arm(owner: Any, name: str, call: int) -> None:
    original, calls = getattr(owner, name), 0

    async def counted(*args: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        try:
            return await original(*args, **options)
        finally:
            if calls == call:
                die()

    setattr(owner, name, counted)


def die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


async def main(point: str, home: str, provider: str, listing: int, price: int, urls: list[str]) -> None:
    what, armed = POINTS[point]
    settings = PaymentSettings(url=provider, key=KEY, secret=SECRET)
    platform = Platform(topology(urls), modules=modules(provider=settings), home=Path(home))
    await platform.start()
    orders, buyer = platform.service(Orders), buyer_at(point)
    if what != "cancel":
        arm(*armed)
    order = await orders.place(buyer, order_at(point, listing, price), once(point))
    if what == "cancel":
        arm(*armed)
        await orders.cancel(order.id, buyer, once(f"cancel at {point}"))
    service: Any = platform._registry.implementation("orders")
    await service._finish(await service._must_find(order.id))  # as the job does


if __name__ == "__main__":
    home, provider, listing, price, *urls = sys.argv[1:]
    survived, points, running = [], list(POINTS), dict[int, str]()
    while points or running:
        while points and len(running) < AT_ONCE:
            point = points.pop(0)
            pid = os.fork()
            if pid == 0:
                try:
                    asyncio.run(main(point, home, provider, int(listing), int(price), urls))
                finally:
                    os._exit(1)
            running[pid] = point
        pid, status = os.wait()
        point = running.pop(pid)
        if os.waitstatus_to_exitcode(status) != -signal.SIGKILL:
            survived.append(point)
    print(json.dumps(survived))
