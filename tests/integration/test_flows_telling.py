"""What a step may say of itself, beside that it is done, and who follows a flow in its commits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.flowing import PAY, RESERVE, SEND, UNDONE, Order, Shop, begin, cancel, effects, reach, running
from tests.jobs_support import deeds, until

from springtide.db import Database, bucket_of
from springtide.errors import JobError, JobFailed, StepLater, StepRefused
from springtide.flows import Flows, FlowUpkeep, Moved, Pause, Step, StepRun, Workflow

Urls = tuple[str, str]

ASKED = Step("pay", Shop.pay, undo=Shop.give_back, **{**UNDONE, "max_attempts": 1})


@pytest.fixture
async def database(database_urls: Urls, tmp_path: Path) -> AsyncIterator[Database]:
    async with deeds(database_urls, tmp_path / "migrations", size=8) as made:
        yield made


@pytest.mark.parametrize("driven", [False, True], ids=["by workers", "driven"])
async def test_a_step_that_does_not_know_yet_is_asked_again(
    database: Database, database_urls: Urls, driven: bool
) -> None:
    """As often as it says so, with the same key; that counts as no attempt and is in no history."""
    asked: list[tuple[str, int]] = []

    async def act(what: str, order: Order, run: StepRun) -> None:
        if what == "do pay":
            asked.append((run.key, run.attempt))
            if len(asked) < 4:
                raise StepLater(0.05)

    flow = Workflow("shop.place", Order, [RESERVE, ASKED, SEND])
    flows, shop = Flows(database, [flow]), Shop(database, act)
    id = await begin(flows, "a", flow, hold=3600.0 if driven else 0.0)
    if driven:
        await flows.drive("a", id, shop)
        status = await reach(flows, "a", id, "waiting")
        assert (status.step, status.waits_for) == ("pay", "a time")
    async with running(flows, shop, database_urls):
        status = await reach(flows, "a", id, "done")
    assert asked == [(f"deeds:{id}/pay", 1)] * 4
    assert [one.outcome for one in status.steps] == ["done"] * 3
    assert await effects(database, "a") == ["do reserve", "do pay", "do send"]


async def test_who_waits_to_be_asked_is_woken_or_cancelled(database: Database, database_urls: Urls) -> None:
    """Long before its time; a pause, and what is at its end, is not woken."""
    known = asyncio.Event()

    async def act(what: str, order: Order, run: StepRun) -> None:
        if what == "do pay" and not known.is_set():
            raise StepLater(3600.0)

    flow = Workflow("shop.place", Order, [ASKED, Pause("rest", seconds=3600.0), SEND])
    flows, shop = Flows(database, [flow]), Shop(database, act)
    ids = {key: await begin(flows, key, flow) for key in ("a", "b")}

    async def wake(key: str) -> bool:
        async with database.write(key) as tx:
            return await flows.wake(tx, ids[key])

    assert await wake("a")  # whoever asks it has not begun: it is asked once
    async with running(flows, shop, database_urls):
        for key, id in ids.items():
            await reach(flows, key, id, "waiting")
        assert await cancel(flows, bucket_of("b"), ids["b"])
        await reach(flows, "b", ids["b"], "undone")
        known.set()
        assert await wake("a") and not await wake("b")

        async def resting() -> bool:
            status = await flows.look("a", ids["a"])
            return status is not None and status.step == "rest"

        await until(resting)
        assert not await wake("a")
    assert shop.calls == ["do pay"] * 2 + ["undo pay", "do pay"]


@pytest.mark.parametrize("asked", [1, 3], ids=["for the first time", "again"])
async def test_who_is_woken_while_it_is_asked_is_asked_again_at_once(
    database: Database, database_urls: Urls, asked: int
) -> None:
    """What it looked for came behind its look and before it says that it does not know."""
    looks = 0

    async def act(what: str, order: Order, run: StepRun) -> None:
        nonlocal looks
        if what == "do pay":
            looks += 1
            if looks == asked:
                async with database.write("a") as tx:
                    assert await flows.wake(tx, run.flow)
                raise StepLater(3600.0)
            if looks < asked:
                raise StepLater(0.01)

    flow = Workflow("shop.place", Order, [ASKED, SEND])
    flows, shop = Flows(database, [flow]), Shop(database, act)
    id = await begin(flows, "a", flow)
    async with running(flows, shop, database_urls):
        await reach(flows, "a", id, "done")
    assert looks == asked + 1


async def test_a_step_that_does_not_know_how_far_it_came_is_undone(
    database: Database, database_urls: Urls
) -> None:
    """At once, and what undoes it gets the data that it gave."""
    seen: list[Order] = []

    async def act(what: str, order: Order, run: StepRun) -> None:
        if what == "do pay":
            raise StepRefused("too late", undo=True, data=msgspec.structs.replace(order, parcel="late"))
        if what.startswith("undo"):
            seen.append(order)

    flow = Workflow("shop.place", Order, [RESERVE, PAY, SEND])
    flows, shop = Flows(database, [flow]), Shop(database, act)
    id = await begin(flows, "a", flow)
    async with running(flows, shop, database_urls):
        status = await reach(flows, "a", id, "undone")
    assert shop.calls == ["do reserve", "do pay", "undo pay", "undo reserve"]
    assert {one.parcel for one in seen} == {"late"} and status.reason == "too late"


async def write_down(tx: Any, move: Moved) -> None:
    what = f"{move.data.id} {move.before} {move.state} {move.step} {move.outcome} {move.data.paid}"
    await tx.execute(
        "insert into deeds.effect (bucket, what, job) values ($1, $2, $3)",
        tx.bucket, what, move.reason or "",
    )  # fmt: skip


async def told(database: Database, key: str) -> list[str]:
    return [what for what in await effects(database, key) if not what.startswith(("do ", "undo "))]


async def test_who_follows_writes_in_the_commit_of_every_move(
    database: Database, database_urls: Urls
) -> None:
    """Each is told where from and where to, with the data as they are then."""

    flow = Workflow("shop.place", Order, [RESERVE, PAY, SEND], follow=write_down)
    flows, shop = Flows(database, [flow]), Shop(database)
    driven, worked = await begin(flows, "a", flow, hold=3600.0), await begin(flows, "unsendable", flow)
    await flows.drive("a", driven, shop)
    async with running(flows, shop, database_urls):
        await reach(flows, "unsendable", worked, "undone")

    assert await told(database, "a") == [
        "running running pay done 0", "running running send done 7", "running done None done 7"
    ]  # fmt: skip
    assert (await told(database, "unsendable"))[2:] == [
        "running undoing pay refused 7", "undoing undoing reserve undone 7", "undoing undone None undone 7"
    ]  # fmt: skip
    reasons = await database.scatter("select job from deeds.effect where what like 'unsendable undoing%'")
    assert {row["job"] for row in reasons} == {"nobody lives there"}


async def test_who_follows_some_states_hears_of_no_other(database: Database, database_urls: Urls) -> None:
    flow = Workflow(
        "shop.place", Order, [PAY, SEND], follow=write_down, follows=("undoing", "undone", "done")
    )
    flows, shop = Flows(database, [flow]), Shop(database)
    driven, worked = await begin(flows, "a", flow, hold=3600.0), await begin(flows, "unsendable", flow)
    await flows.drive("a", driven, shop)
    async with running(flows, shop, database_urls):
        await reach(flows, "unsendable", worked, "undone")
    assert await told(database, "a") == ["running done None done 7"]
    assert await told(database, "unsendable") == [
        "running undoing pay refused 7", "undoing undone None undone 7"
    ]  # fmt: skip
    with pytest.raises(JobError, match=r"follows must be of running, .*, got ended"):
        Workflow("shop.place", Order, [PAY], follow=write_down, follows=("ended",))  # type: ignore[arg-type]


async def test_what_follows_and_fails_undoes_the_move(database: Database, database_urls: Urls) -> None:
    """The step is run again, as if it had crashed before its commit."""
    failed = False

    async def follow(tx: Any, move: Moved) -> None:
        nonlocal failed
        await tx.execute("insert into deeds.effect (bucket, what) values ($1, 'a follow')", tx.bucket)
        if not failed:
            failed = True
            raise ConnectionError("no disk")

    flow = Workflow("shop.place", Order, [RESERVE], follow=follow)
    flows, shop = Flows(database, [flow]), Shop(database)
    id = await begin(flows, "a", flow)
    async with running(flows, shop, database_urls):
        status = await reach(flows, "a", id, "done")
    assert [one.attempt for one in status.steps] == [2] and shop.calls == ["do reserve"] * 2
    assert await effects(database, "a") == ["do reserve", "follow"]


@pytest.mark.parametrize("why", ["its data cannot be read", "who follows it raises"])
async def test_one_flow_that_nobody_can_follow_keeps_no_other_from_its_end(
    database: Database, why: str
) -> None:
    """Its dead letter stays, the others that failed are undone, and what has ended is forgotten."""

    async def follow(tx: Any, move: Moved) -> None:
        if move.data.id == "broken" and why == "who follows it raises":
            raise RuntimeError("a mistake of the application")

    flow = Workflow("shop.place", Order, [PAY], follow=follow, keep=0.0)
    flows, shop = Flows(database, [flow]), Shop(database)
    ended = await begin(flows, "ended", flow)
    await flows.drive("ended", ended, shop)
    names = ("before", "broken", "after")
    ids = {name: await begin(flows, name, flow) for name in names}
    for pool in database.pools.values():
        await pool.execute("update deeds._job set state = 'dead', error = 'no bank'")
        if why == "its data cannot be read":
            await pool.execute("update deeds._flow set data = '{}' where id = $1", ids["broken"])
    await FlowUpkeep(flows).tend()
    found = {name: await flows.look(name, id) for name, id in ids.items()}
    assert {name: status.state for name, status in found.items() if status is not None} == {
        "before": "undoing", "broken": "running", "after": "undoing"
    }  # fmt: skip
    assert await flows.find(ended) is None


async def test_what_a_step_may_not_say_is_refused(database: Database, database_urls: Urls) -> None:
    with pytest.raises(ValueError, match="seconds must be >= 0, got -1"):
        StepLater(-1)

    async def act(what: str, order: Order, run: StepRun) -> None:
        if what == "do pay":
            raise StepRefused("no", data="order")

    flow = Workflow("shop.place", Order, [PAY])
    flows, shop = Flows(database, [flow]), Shop(database, act)
    id = await begin(flows, "a", flow, hold=3600.0)
    with pytest.raises(JobFailed, match="must return Order or None, got str"):
        await flows.drive("a", id, shop)
