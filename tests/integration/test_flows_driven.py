"""Flows whose steps run in the process that started them, and what workers do when that one stops or dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.flowing import PAY, PLACE, RESERVE, SEND, Order, Shop, begin, effects, reach, running
from tests.jobs_support import deeds, until

from springtide.db import Database, bucket_of
from springtide.flows import Flows, FlowStatus, StepRun, WaitFor, Workflow
from springtide.jobs import Run

Urls = tuple[str, str]

HOLD = 3600.0
"""Longer than any test: what goes on did not wait for it."""


@pytest.fixture
async def database(database_urls: Urls, tmp_path: Path) -> AsyncIterator[Database]:
    async with deeds(database_urls, tmp_path / "migrations", size=8) as made:
        yield made


async def jobs(database: Database) -> list[str]:
    return [row["kind"] for row in await database.scatter("select id, kind from deeds._job")]


async def found(flows: Flows, key: str, id: Any) -> FlowStatus:
    status = await flows.look(key, id)
    assert status is not None
    return status


def outcomes(status: FlowStatus) -> list[tuple[str, str]]:
    return [(one.step, one.outcome) for one in status.steps]


FORWARD = [("reserve", "done"), ("pay", "done"), ("send", "done")]


async def test_a_flow_is_driven_to_its_end_without_a_worker(database: Database) -> None:
    """Forward and backward; every step is in the history, and no job is left."""
    flows, shop = Flows(database, [PLACE]), Shop(database)
    ids = {key: await begin(flows, key, hold=HOLD) for key in ("a", "unsendable")}
    for key, id in ids.items():
        await flows.drive(key, id, shop)
    done, undone = [await found(flows, key, id) for key, id in ids.items()]
    assert (done.state, done.data["paid"], outcomes(done)) == ("done", 7, FORWARD)
    assert (undone.state, undone.reason) == ("undone", "nobody lives there")
    assert outcomes(undone)[2:] == [("send", "refused"), ("pay", "undone"), ("reserve", "undone")]
    assert await effects(database, "a") == ["do reserve", "do pay", "do send"]
    assert await jobs(database) == []
    await flows.drive("a", ids["a"], shop)
    assert len(shop.calls) == 7


async def test_a_cancelled_flow_is_undone_by_who_drives_it(database: Database) -> None:
    flow = Workflow("shop.place", Order, [RESERVE, PAY, _packed()])
    flows, shop = Flows(database, [flow]), Shop(database)
    id = await begin(flows, "a", flow, hold=HOLD)
    await flows.drive("a", id, shop)
    status = await found(flows, "a", id)
    assert (status.state, status.step) == ("waiting", "packed")
    assert await jobs(database) == ["shop.place.packed"]
    async with database.write("a") as tx:
        assert await flows.cancel(tx, id, hold=HOLD)
    await flows.drive("a", id, shop)
    assert (await found(flows, "a", id)).state == "undone"
    assert shop.calls == ["do reserve", "do pay", "undo pay", "undo reserve"] and await jobs(database) == []


@pytest.mark.parametrize("why", ["it raises", "no time is left"])
async def test_workers_go_on_where_who_drives_stops(
    database: Database, database_urls: Urls, why: str
) -> None:
    """At once, not after the hold, and from the checkpoint: what was recorded is not run again."""
    calls = 0

    async def act(what: str, order: Order, run: StepRun) -> None:
        nonlocal calls
        calls += what == "do pay"
        if what == "do pay" and calls == 1 and why == "it raises":
            raise ConnectionError("no answer")

    flows, shop = Flows(database, [PLACE]), Shop(database, act)
    id = await begin(flows, "a", hold=HOLD)
    if why == "it raises":
        with pytest.raises(ConnectionError):
            await flows.drive("a", id, shop)
    else:
        await flows.drive("a", id, shop, more=lambda: not shop.calls)
    assert await jobs(database) == ["shop.place.pay"]
    async with running(flows, shop, database_urls):
        status = await reach(flows, "a", id, "done")
    assert outcomes(status) == FORWARD and shop.calls.count("do reserve") == 1
    assert await jobs(database) == []


async def test_workers_go_on_when_who_drives_is_gone(database: Database, database_urls: Urls) -> None:
    """After the hold: the job of the first step finds the flow further on, and has the right one follow."""
    inside = asyncio.Event()

    async def act(what: str, order: Order, run: StepRun) -> None:
        if what == "do pay" and not inside.is_set():
            inside.set()
            await asyncio.Event().wait()

    flows, shop = Flows(database, [PLACE]), Shop(database, act)
    id = await begin(flows, "a", hold=0.5)
    driving = asyncio.create_task(flows.drive("a", id, shop))
    await inside.wait()
    driving.cancel()
    await asyncio.gather(driving, return_exceptions=True)
    assert await jobs(database) == ["shop.place.reserve"]
    async with running(flows, shop, database_urls):
        status = await reach(flows, "a", id, "done")
    assert outcomes(status) == FORWARD and shop.calls.count("do reserve") == 1
    assert await jobs(database) == []


async def test_who_drives_too_slowly_is_overtaken(database: Database, database_urls: Urls) -> None:
    """Workers begin the step again after the hold; what the first one did meanwhile is recorded nowhere."""
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def act(what: str, order: Order, run: StepRun) -> None:
        if what == "do pay" and not inside.is_set():
            inside.set()
            await go_on.wait()

    flows, shop = Flows(database, [PLACE]), Shop(database, act)
    id = await begin(flows, "a", hold=0.5)
    driving = asyncio.create_task(flows.drive("a", id, shop))
    await inside.wait()
    async with running(flows, shop, database_urls):
        await reach(flows, "a", id, "done")
        go_on.set()
        await driving
    status = await found(flows, "a", id)
    assert outcomes(status) == FORWARD
    assert shop.calls.count("do pay") == 2 and shop.calls.count("do send") == 1
    assert await jobs(database) == []


async def test_who_drives_stops_when_workers_have_taken_over(database: Database) -> None:
    """Also when none of them has begun yet: the flow has another job than the one that is held."""
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def act(what: str, order: Order, run: StepRun) -> None:
        if what == "do pay":
            inside.set()
            await go_on.wait()

    flows, shop = Flows(database, [PLACE]), Shop(database, act)
    id = await begin(flows, "a", hold=HOLD)
    held = (await found(flows, "a", id)).job_id
    driving = asyncio.create_task(flows.drive("a", id, shop))
    await inside.wait()
    (handler,) = [one for one in flows.handlers if one.kind.kind == "shop.place.reserve"]
    assert held is not None
    run = Run(id=held, key="k", attempt=1, max_attempts=3, enqueued_at=datetime.now(UTC))
    await handler.method(shop, handler.job(bucket_of("a"), id, 1), run)
    go_on.set()
    await driving
    status = await found(flows, "a", id)
    assert (status.state, status.step, outcomes(status)) == ("running", "pay", FORWARD[:1])
    assert await jobs(database) == ["shop.place.pay"]


async def test_a_worker_that_loses_against_who_drives_leaves_no_flow_behind(
    database: Database, database_urls: Urls
) -> None:
    """The flow's only job runs; somebody else drives the flow past it and dies: that job's end is not the
    flow's."""
    begun, go_on, dead = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def act(what: str, order: Order, run: StepRun) -> None:
        if what == "do pay" and not begun.is_set():  # the worker's
            begun.set()
            await go_on.wait()
        elif what == "do send" and not dead.is_set():  # of who drives
            dead.set()
            await asyncio.Event().wait()

    flow = Workflow("shop.place", Order, [PAY, SEND])
    flows, shop = Flows(database, [flow]), Shop(database, act)
    async with running(flows, shop, database_urls):
        id = await begin(flows, "a", flow)
        await begun.wait()
        driving = asyncio.create_task(flows.drive("a", id, shop))
        await dead.wait()
        driving.cancel()
        await asyncio.gather(driving, return_exceptions=True)
        go_on.set()
        status = await reach(flows, "a", id, "done")
    assert outcomes(status) == [("pay", "done"), ("send", "done")]
    assert await jobs(database) == []


async def test_driving_beside_workers_records_each_move_once(database: Database, database_urls: Urls) -> None:
    """Nothing is held back, and two drive each flow at once."""
    flows, shop = Flows(database, [PLACE]), Shop(database)
    keys = [f"{'unsendable' if number % 3 == 0 else 'k'}{number}" for number in range(12)]
    async with running(flows, shop, database_urls):

        async def both(key: str) -> Any:
            id = await begin(flows, key)
            await asyncio.gather(flows.drive(key, id, shop), flows.drive(key, id, shop))
            return await reach(flows, key, id, "done", "undone")

        for key, status in zip(keys, await asyncio.gather(*map(both, keys)), strict=True):
            assert status.state == ("undone" if key.startswith("unsendable") else "done")
            recorded = outcomes(status)
            assert len(set(recorded)) == len(recorded)
            happened = await effects(database, key)
            assert all(happened.count(what) <= 1 for what in ("do reserve", "do send", "undo reserve"))

        async def nothing() -> bool:
            return await jobs(database) == []

        await until(nothing)


def _packed() -> WaitFor:
    return WaitFor("packed", event="parcel.packed", key=lambda order: order.id, timeout=3600.0)
