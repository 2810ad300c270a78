"""kill -9 at every step of an order's workflow: what was begun ends complete or undone, nothing is lost."""

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
from tests.jobs_support import until
from tests.market import ordering_child
from tests.market.ordering import Shop, once, shop
from tests.market.ordering_child import (
    IN_REQUESTS,
    POINTS,
    before_the_wait,
    buyer_at,
    expire,
    order_of,
    wanted,
)
from tests.market.paying import APPS

from market.catalog.api import Listing
from market.orders.api import Order
from market.orders.steps import PLACE, Placing, release, reserve
from springtide.flows import Flows, Step, Workflow
from springtide.lifecycle import Group

ROOT = Path(tests.__path__[0]).parent
STOCK = 100

BETWEEN = [point for point in POINTS if point.endswith("effect") or not before_the_wait(point)]
"""Of workers these are enough every day: an effect that is not recorded, and all of what only they do."""

LEFT = "select count(*) from orders._job where kind <> 'orders.place.shipped' or state <> 'ready'"
"""Jobs but those that wait for a seller."""


@pytest.fixture
async def there(urls: list[str], home: Path, tmp_path: Path) -> AsyncIterator[Shop]:
    async with shop(urls, home, tmp_path) as made:
        await made.open()
        yield made


async def die(*arguments: str) -> list[str]:
    """Run `ordering_child`; the points at which nobody died."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{APPS}"}
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.market.ordering_child", *arguments, env=environment, cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, _ = await child.communicate()
    survived: list[str] = json.loads(said.splitlines()[-1])
    return survived


async def finish(there: Shop, urls: list[str]) -> None:
    """Workers of another process, until there is nothing left but to wait for sellers."""
    await expire(urls)
    workers = Group("workers", tuple(there.platform.background()))
    await workers.start()
    try:

        async def rests() -> bool:
            return not await there.db.scatter_sum(LEFT)

        await until(rests, seconds=120)
    finally:
        await workers.stop()
    await there.world.reconcile()


async def judge(there: Shop, lamp: Listing, ended: dict[str, Order]) -> None:
    """Each order is what it was to become: paid, sold and told to its seller, or nothing of all this."""
    for point, order in ended.items():
        assert order.state == wanted(point), point
        flow = await there.flow(order.id)
        shipped = any(line.shipped_at is not None for line in order.lines)
        assert flow.state == (("done" if shipped else "waiting") if order.state == "confirmed" else "undone")
        recorded = [(step.step, step.outcome) for step in flow.steps]
        assert len(set(recorded)) == len(recorded), (point, recorded)
    confirmed = {order.id for order in ended.values() if order.state == "confirmed"}
    assert await there.left(lamp) == (STOCK - len(confirmed), 0)
    journal = await there.provider.journal()
    paid = [charge for charge in journal["charges"] if charge["status"] == "succeeded"]
    of = {charge["id"]: int(charge["key"].split("-")[1]) for charge in paid}
    assert len(set(of.values())) == len(paid)  # nobody twice
    assert set(of.values()) - {of[refund["charge"]] for refund in journal["refunds"]} == confirmed
    sales = (await there.orders.sales(lamp.seller_id, 100, None)).items
    assert {sale.order_id for sale in sales if sale.state != "cancelled"} == confirmed
    told = [notice.kind for notice in (await there.notifications.inbox(lamp.seller_id, 100)).items]
    assert told.count("sale") >= len(confirmed)
    assert await there.check()


def test_the_points_are_those_of_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step that is added to the workflow is killed, too, without anybody who thinks of it."""
    assert {point.split()[1] for point in POINTS} == {step.name for step in PLACE.steps}
    added = Step("gift", reserve, undo=release)
    monkeypatch.setattr(ordering_child, "PLACE", Workflow("orders.place", Placing, [*PLACE.steps, added]))
    new = set(ordering_child.points()) - set(POINTS)
    assert {f"do gift {at}" for at in ("before", "effect", "recorded", "refused", "unsure")} <= new
    assert {f"undo gift {at}" for at in ("before", "effect", "recorded")} <= new


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    "shards",
    [pytest.param(1, id="one-shard", marks=pytest.mark.stress), pytest.param(2, id="two-shards")],
    indirect=True,
)
async def test_requests_are_killed_at_every_step(there: Shop, urls: list[str], tmp_path: Path) -> None:
    """Repeated by its client or not, workers go on from what was recorded: complete, or undone."""
    await there.provider.behave(webhooks_held=True)
    lamp = await there.listing(stock=STOCK)
    price = str(lamp.price.amount)
    assert await die("request", str(tmp_path), there.provider.url, str(lamp.id), price, *urls) == []
    repeated = {
        point: await there.orders.place(buyer_at(point), order_of(lamp.id, lamp.price.amount), once(point))
        for point in IN_REQUESTS[::2]
    }
    await finish(there, urls)
    ended = {}
    for point in IN_REQUESTS:
        (ended[point],) = (await there.orders.history(buyer_at(point), 10, None)).items
        assert point not in repeated or repeated[point].id == ended[point].id
    await judge(there, lamp, ended)


@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("shards", "at"),
    [
        pytest.param(1, BETWEEN, id="one-shard"),
        pytest.param(2, POINTS, id="two-shards-every-point", marks=pytest.mark.stress),
    ],
    indirect=["shards"],
)
async def test_workers_are_killed_at_every_step(
    there: Shop, urls: list[str], tmp_path: Path, at: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of orders whose requests died at once, that are shipped, or that their buyers do not want any more."""
    lamp = await there.listing(stock=STOCK)

    async def dead(*arguments: Any, **options: Any) -> None:
        return None

    placed: dict[str, Order] = {}
    for point in at:
        ada, late = buyer_at(point, worker=True), point.startswith("undo") or not before_the_wait(point)
        with monkeypatch.context() as patch:
            if not late:
                patch.setattr(Flows, "drive", dead)
            placed[point] = order = await there.place(ada, lamp)
            patch.setattr(Flows, "drive", dead)
            if point.startswith("undo"):
                await there.orders.cancel(order.id, ada)
            elif late:
                await there.orders.ship(order.id, lamp.seller_id)
    graves = tmp_path / "graves"
    graves.mkdir()
    doomed = {str((await there.flow(order.id)).id): point for point, order in placed.items()}
    (graves / "doomed.json").write_text(json.dumps(doomed))
    assert await die("worker", str(tmp_path), there.provider.url, str(graves / "doomed.json"), *urls) == []
    await finish(there, urls)
    ended = {point: await there.orders.order(order.id, order.buyer_id) for point, order in placed.items()}
    await judge(there, lamp, ended)
