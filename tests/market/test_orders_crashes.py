"""kill -9 at every step of placing and cancelling an order: what was begun ends once, and nothing is lost."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import tests
from tests.market.ordering import Shop, buyer, once, shop
from tests.market.ordering_child import POINTS, buyer_at, order_at
from tests.market.paying import APPS

from market.orders.api import Order
from market.orders.service import OrderService
from market.orders.store import OrderStore
from springtide.lifecycle import Group

ROOT = Path(tests.__path__[0]).parent
STOCK = 100

NEVER_PLACED = "place OrderStore.insert 1"
"""It dies inside the transaction: there is no order, and its key is free when the lease has ended."""


@pytest.fixture
async def there(urls: list[str], home: Path, tmp_path: Path) -> AsyncIterator[Shop]:
    async with shop(urls, home, tmp_path) as made:
        await made.open()
        yield made


@pytest.mark.parametrize("shards", [2], ids=["two-shards"], indirect=True)
async def test_our_process_is_killed_at_every_step(there: Shop, urls: list[str], tmp_path: Path) -> None:
    """Repeated by its client or finished by the workers: one order, one charge, the stock that it says."""
    await there.provider.behave(webhooks_held=True)
    lamp = await there.listing(stock=STOCK)
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{APPS}"}
    arguments = [str(tmp_path), there.provider.url, str(lamp.id), str(lamp.price.amount), *urls]
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.market.ordering_child", *arguments, env=environment, cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, _ = await child.communicate()
    assert json.loads(said.splitlines()[-1]) == []

    async def repeat(point: str) -> Order | None:
        if point == NEVER_PLACED:
            return None
        new = order_at(point, lamp.id, lamp.price.amount)
        return await there.orders.place(buyer_at(point), new, once(point))

    half = list(POINTS)[::2]
    repeated = {point: await repeat(point) for point in half}  # the others are the workers' alone
    await there.work()
    ended = {point: (await there.orders.history(buyer_at(point), 10, None)).items for point in POINTS}
    assert ended.pop(NEVER_PLACED) == []
    wanted = {"place": "confirmed", "decline": "failed", "cancel": "cancelled"}
    for point, orders in ended.items():
        assert [order.state for order in orders] == [wanted[point.split()[0]]], point
        known = repeated.get(point)
        assert known is None or known.id == orders[0].id, point
    confirmed = sum(order.state == "confirmed" for orders in ended.values() for order in orders)
    assert await there.left(lamp) == (STOCK - confirmed, 0)
    journal = await there.provider.journal()
    paid = [charge["key"] for charge in journal["charges"] if charge["status"] == "succeeded"]
    assert len(set(paid)) == len(paid) == confirmed + len(journal["refunds"])
    assert await there.check()


async def test_a_worker_finishes_what_a_dead_request_left(there: Shop, monkeypatch: Any) -> None:
    """The job that was committed with the order, without anybody who asks."""
    lamp, ada = await there.listing(), buyer()

    async def dead(self: OrderService, order: Any) -> Any:
        return order

    with monkeypatch.context() as patch:
        patch.setattr(OrderService, "_go_on", dead)
        order = await there.place(ada, lamp)
    assert order.state == "placing"
    for pool in there.db.pools.values():
        await pool.execute("update orders._job set run_at = now()")
    told = asyncio.Event()
    mark = OrderStore.told

    async def marked(self: OrderStore, placed: Any) -> None:
        await mark(self, placed)
        told.set()

    monkeypatch.setattr(OrderStore, "told", marked)
    workers = Group("workers", tuple(there.platform.background()))
    await workers.start()
    try:
        async with asyncio.timeout(60):
            await told.wait()
    finally:
        await workers.stop()
    assert (await there.orders.order(order.id, ada)).state == "confirmed"
    assert [sale.order_id for sale in (await there.orders.sales(lamp.seller_id, 5, None)).items] == [order.id]
    assert await there.check()
