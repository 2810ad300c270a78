"""Workflows against a real server: steps, compensation, events, times, cancelling, versions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import msgspec
import pytest
from tests.flowing import PAY, PLACE, RESERVE, SEND, Order, Shop, begin, cancel, effects, reach, running
from tests.jobs_support import Heard, deeds, until

from springtide.db import Database, bucket_of
from springtide.errors import JobError, JobFailed, StepRefused
from springtide.flows import Flows, FlowUpkeep, Pause, Step, StepRun, WaitFor, Workflow
from springtide.jobs import Run, operating
from springtide.jobs.operating import Wanted
from springtide.signals import FlowMoved, FlowsMeasured

Urls = tuple[str, str]


def packed(order: Order, parcel: Any) -> Order:
    return msgspec.structs.replace(order, parcel="lost" if parcel is None else parcel["number"])


def waiting(timeout: float | None = 3600.0, *, first: Step = RESERVE, **options: Any) -> Workflow[Order]:
    """Reserve, wait for the parcel, send."""
    wait = WaitFor(
        "packed", event="parcel.packed", key=lambda order: order.id, timeout=timeout, then=packed, **options
    )
    return Workflow("shop.place", Order, [first, wait, SEND])


@pytest.fixture
async def database(database_urls: Urls, tmp_path: Path) -> AsyncIterator[Database]:
    async with deeds(database_urls, tmp_path / "migrations", size=8) as made:
        yield made


async def parcel(flows: Flows, key: str, number: str = "p1") -> None:
    async with flows.database.write(key) as tx:
        await flows.send(tx, "parcel.packed", key, {"number": number})


async def test_all_steps_are_done_in_their_order(database: Database, database_urls: Urls) -> None:
    """On both shards; each sees the data that the one before returned, and all is in the history."""
    heard = Heard()
    flows, shop = Flows(database, [PLACE], sink=heard), Shop(database)
    ids = {key: await begin(flows, key) for key in ("a", "b", "c", "d")}
    async with running(flows, shop, database_urls):
        for key, id in ids.items():
            status = await reach(flows, key, id, "done")
            assert status.data == {"id": key, "paid": 7, "parcel": ""} and status.step is None
            assert [(one.step, one.outcome) for one in status.steps] == [
                ("reserve", "done"), ("pay", "done"), ("send", "done")
            ]  # fmt: skip
            assert await effects(database, key) == ["do reserve", "do pay", "do send"]
    keys = await database.scatter("select job from deeds.effect where what = 'a do pay'")
    assert [row["job"] for row in keys] == [f"deeds:{ids['a']}/pay"]
    assert len(heard.of(FlowMoved)) == 12
    assert await flows.list() == [] and len(await flows.list(state="done")) == 4


async def test_a_flow_exists_if_and_only_if_its_write_commits(database: Database) -> None:
    flows = Flows(database, [PLACE])
    with pytest.raises(ZeroDivisionError):
        async with database.write("a") as tx:
            await flows.start(tx, PLACE, Order("a"))
            raise ZeroDivisionError
    assert await flows.list() == [] and await database.scatter("select id from deeds._job") == []


async def test_a_flow_begins_where_it_is_said_to(database: Database, database_urls: Urls) -> None:
    """What is before counts as done: it is not done, but undone."""
    flow = waiting(None)
    flows, shop = Flows(database, [flow]), Shop(database)
    late, off = await begin(flows, "a", flow, at="packed"), await begin(flows, "b", flow, at="send")
    with pytest.raises(JobError, match=r"shop\.place/1 has no step 'wrap' \(it has: reserve, packed, send\)"):
        await begin(flows, "a", flow, at="wrap")
    assert await cancel(flows, bucket_of("b"), off)
    async with running(flows, shop, database_urls):
        await parcel(flows, "a")
        await reach(flows, "a", late, "done")
        await reach(flows, "b", off, "undone")
    assert await effects(database, "a") == ["do send"]
    assert await effects(database, "b") == ["undo reserve"]


async def test_a_key_is_one_flow(database: Database) -> None:
    flows = Flows(database, [PLACE])
    first = await begin(flows, "a", key="cart 1")
    assert await begin(flows, "a", key="cart 1") == first
    assert await begin(flows, "a", key="cart 2") != first
    assert len(await database.scatter("select id from deeds._job")) == 2


async def test_a_step_that_fails_for_good_is_undone_with_those_before_it(
    database: Database, database_urls: Urls
) -> None:
    """In reverse, after its last attempt: nobody knows how far it came. No dead letter is left."""

    async def act(what: str, order: Order, run: StepRun) -> None:
        if what == "do pay":
            raise ConnectionError("no answer")

    flows, shop = Flows(database, [PLACE]), Shop(database, act)
    id = await begin(flows, "a")
    async with running(flows, shop, database_urls):
        status = await reach(flows, "a", id, "undone")
    assert shop.calls == ["do reserve", *["do pay"] * 3, "undo pay", "undo reserve"]
    assert status.reason == "ConnectionError: no answer"
    assert [(one.step, one.outcome) for one in status.steps] == [
        ("reserve", "done"), ("pay", "failed"), ("pay", "undone"), ("reserve", "undone")
    ]  # fmt: skip
    assert await database.scatter("select id from deeds._job") == []


async def test_a_step_that_refuses_has_nothing_to_undo(database: Database, database_urls: Urls) -> None:
    """It turns at once, with the step before; what it wrote in its transaction is not there."""

    async def act(what: str, order: Order, run: StepRun) -> None:
        if what == "do reserve" and order.id == "b":
            await run.tx.execute(
                "insert into deeds.effect (bucket, what) values ($1, 'b half')", run.tx.bucket
            )
            raise StepRefused("sold out")

    flows, shop = Flows(database, [PLACE]), Shop(database, act)
    late, early = await begin(flows, "unsendable"), await begin(flows, "b")
    async with running(flows, shop, database_urls):
        status = await reach(flows, "unsendable", late, "undone")
        assert status.reason == "nobody lives there"
        assert await effects(database, "unsendable") == ["do reserve", "do pay", "undo pay", "undo reserve"]
        assert (await reach(flows, "b", early, "undone")).reason == "sold out"
        assert await effects(database, "b") == []


@pytest.mark.parametrize("by", ["flows resume", "jobs retry"])
async def test_what_cannot_be_undone_is_stuck_and_goes_on_when_resumed(
    database: Database, database_urls: Urls, by: str
) -> None:
    """Tried as often as declared; its dead letter stays until then, and the metrics say so. Then it is tried
    as often again, whoever resumes it, also by its dead letter."""
    broken, heard = True, Heard()

    async def act(what: str, order: Order, run: StepRun) -> None:
        if what == "undo pay" and broken:
            raise ConnectionError("no bank")

    flows, shop = Flows(database, [PLACE]), Shop(database, act)
    id = await begin(flows, "unsendable")
    async with running(flows, shop, database_urls):
        status = await reach(flows, "unsendable", id, "stuck")
        assert status.step == "pay" and status.steps[-1].error == "ConnectionError: no bank"
        assert shop.calls.count("undo pay") == 3
        await FlowUpkeep(flows, sink=heard).tend()
        assert sum(one.stuck for one in heard.of(FlowsMeasured)) == 1
        assert [row["state"] for row in await database.scatter("select state from deeds._job")] == ["dead"]

        async def resume() -> None:
            if by == "jobs retry":
                assert len(await operating.retry([database], Wanted(states=["dead"]))) == 1
                return
            async with database.write("unsendable") as tx:
                assert await flows.resume(tx, id)

        async def stuck_again() -> Any:
            found = await flows.look("unsendable", id)
            assert found is not None
            return found if [one.outcome for one in found.steps[-2:]] == ["resumed", "stuck"] else None

        await resume()
        assert (await until(stuck_again)).steps[-1].attempt == 3
        broken = False
        await resume()
        await reach(flows, "unsendable", id, "undone")
        async with database.write("unsendable") as tx:
            assert not await flows.resume(tx, id)
    assert await database.scatter("select id from deeds._job") == []


async def test_a_discarded_job_does_not_leave_its_flow_behind(
    database: Database, database_urls: Urls
) -> None:
    flows, shop = Flows(database, [PLACE]), Shop(database)
    id = await begin(flows, "a")
    for pool in database.pools.values():
        await pool.execute("delete from deeds._job")
        await pool.execute("update deeds._flow set updated_at = now() - interval '2 min'")
    async with running(flows, shop, database_urls):
        assert (await reach(flows, "a", id, "undone")).reason == "its job is gone"
    assert shop.calls == ["undo reserve"]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_an_event_that_comes_early_is_there(database: Database, database_urls: Urls, when: str) -> None:
    flow = waiting()
    flows, shop = Flows(database, [flow]), Shop(database)
    if when == "before":
        await parcel(flows, "a")
    id = await begin(flows, "a", flow)
    async with running(flows, shop, database_urls):
        if when == "after":
            status = await reach(flows, "a", id, "waiting")
            assert status.waits_for == "parcel.packed" and status.step == "packed"
            await asyncio.sleep(0)
            await parcel(flows, "a")
        assert (await reach(flows, "a", id, "done")).data["parcel"] == "p1"
    assert await database.scatter("select id from deeds._flow_event") == []


async def test_of_two_that_wait_each_takes_one(database: Database, database_urls: Urls) -> None:
    """Events are taken in their order, none twice; another key and another event wake nobody."""
    flow = waiting()
    flows, shop = Flows(database, [flow]), Shop(database)
    ids = [await begin(flows, "a", flow) for _ in range(2)]
    async with running(flows, shop, database_urls):
        for id in ids:
            await reach(flows, "a", id, "waiting")
        async with database.write("a") as tx:
            await flows.send(tx, "parcel.packed", "b")
            await flows.send(tx, "parcel.lost", "a")
        await parcel(flows, "a", "p1")
        await parcel(flows, "a", "p2")
        got = {(await reach(flows, "a", id, "done")).data["parcel"] for id in ids}
    assert got == {"p1", "p2"}


@pytest.mark.parametrize("first", [RESERVE, PAY], ids=["transactional", "any"])
@pytest.mark.parametrize("timeout", [3600.0, None], ids=["with a time", "for ever"])
async def test_no_event_is_missed_when_it_meets_the_wait(
    database: Database, database_urls: Urls, first: Step, timeout: float | None
) -> None:
    """Twenty are sent while their flows begin to wait: each is taken, long before the time-out."""
    flow = waiting(timeout, first=first)
    flows, shop = Flows(database, [flow]), Shop(database)
    keys = [f"k{number}" for number in range(20)]
    async with running(flows, shop, database_urls):

        async def both(key: str, turns: int) -> Any:
            id = await begin(flows, key, flow)
            for _ in range(turns):
                await flows.look(key, id)
            await parcel(flows, key)
            return id

        made = await asyncio.gather(*(both(key, turns) for turns, key in enumerate(keys)))
        for key, id in zip(keys, made, strict=True):
            await reach(flows, key, id, "done")


async def test_who_waits_for_ever_has_no_job_until_it_is_sent(
    database: Database, database_urls: Urls
) -> None:
    """Each of two flows takes one event of their key; upkeep leaves alone who waits, and a cancelled one is
    undone."""
    flow = waiting(None, first=PAY)
    flows, shop = Flows(database, [flow]), Shop(database)
    ids = [await begin(flows, "a", flow) for _ in range(3)]
    async with running(flows, shop, database_urls):
        for id in ids:
            await reach(flows, "a", id, "waiting")
        for pool in database.pools.values():
            await pool.execute("update deeds._flow set updated_at = now() - interval '1 hour'")
        await FlowUpkeep(flows).tend()

        async def none() -> bool:
            return await database.scatter("select id from deeds._job") == []

        await until(none)
        assert await cancel(flows, bucket_of("a"), ids[2])
        await parcel(flows, "a", "p1")
        await parcel(flows, "a", "p2")
        got = {(await reach(flows, "a", id, "done")).data["parcel"] for id in ids[:2]}
        await reach(flows, "a", ids[2], "undone")
        await until(none)
    assert got == {"p1", "p2"}


async def test_an_event_of_a_release_that_does_not_know_the_flow_is_taken(
    database: Database, database_urls: Urls
) -> None:
    """While releases run side by side: who sends does not fail, and a worker that knows the flow looks."""
    flow = waiting(None, first=PAY)
    flows, shop = Flows(database, [flow]), Shop(database)
    id = await begin(flows, "a", flow, hold=3600.0)
    await flows.drive("a", id, shop)
    await parcel(Flows(database, []), "a", "p1")
    assert (await reach(flows, "a", id, "waiting")).job_id is None
    async with running(flows, shop, database_urls):
        assert (await reach(flows, "a", id, "done")).data["parcel"] == "p1"


@pytest.mark.parametrize("late", ["fail", "go_on"])
async def test_an_event_that_does_not_come(database: Database, database_urls: Urls, late: Any) -> None:
    flow = waiting(0.2, late=late)
    flows, shop = Flows(database, [flow]), Shop(database)
    id = await begin(flows, "a", flow)
    async with running(flows, shop, database_urls):
        status = await reach(flows, "a", id, "done", "undone")
    if late == "go_on":
        assert (status.state, status.data["parcel"]) == ("done", "lost")
    else:
        assert (status.state, status.reason) == ("undone", "parcel.packed did not come within 0.2 s")
        assert shop.calls == ["do reserve", "undo reserve"]
    assert [one.outcome for one in status.steps][1] == "late"


async def test_a_pause_lasts_until_its_time(database: Database, database_urls: Urls) -> None:
    """By the database's clock; one that is over already is none."""
    day = timedelta(days=1)
    flow = Workflow(
        "shop.place", Order,
        [
            Pause("past", until=lambda order: datetime.now(UTC) - day), RESERVE,
            Pause("short", seconds=0.3), SEND,
            Pause("long", until=lambda order: datetime.now(UTC) + day), PAY,
        ],
    )  # fmt: skip
    flows, shop = Flows(database, [flow]), Shop(database)
    id = await begin(flows, "a", flow)
    async with running(flows, shop, database_urls):
        await until(lambda: "do send" in shop.calls)
        status = await reach(flows, "a", id, "waiting")
        assert (status.step, status.waits_for) == ("long", "a time")
    (reserved, _, sent) = [one for one in status.steps if one.step in ("reserve", "short", "send")]
    assert sent.at - reserved.at >= timedelta(seconds=0.3)
    assert shop.calls == ["do reserve", "do send"]


async def test_a_pause_whose_job_is_retried_waits_on_until_its_time(
    database: Database, database_urls: Urls
) -> None:
    """A job in the place of the one that ran early; it is over when its time has come."""
    flow = Workflow("shop.place", Order, [Pause("night", seconds=3600.0), SEND])
    flows, shop = Flows(database, [flow]), Shop(database)
    id = await begin(flows, "a", flow)
    begun = await reach(flows, "a", id, "waiting")
    assert begun.job_id is not None
    assert len(await operating.retry([database], Wanted(ids=[begun.job_id]))) == 1
    async with running(flows, shop, database_urls):

        async def moved() -> Any:
            status = await flows.look("a", id)
            return status if status is not None and status.job_id != begun.job_id else None

        status = await until(moved)
        assert (status.state, status.step, status.wait_until) == ("waiting", "night", begun.wait_until)
        (job,) = await database.scatter(f"select run_at from deeds._job where id = '{status.job_id}'")
        assert job["run_at"] == begun.wait_until
        for pool in database.pools.values():
            await pool.execute("update deeds._flow set wait_until = now()")
        await operating.retry([database], Wanted(ids=[status.job_id]))
        await reach(flows, "a", id, "done")


@pytest.mark.parametrize("at", ["begun", "waiting", "in a step", "done"])
async def test_a_flow_is_cancelled_wherever_it_is(database: Database, database_urls: Urls, at: str) -> None:
    """What a step does while it is cancelled is undone, and recorded nowhere."""
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def act(what: str, order: Order, run: StepRun) -> None:
        if what == "do pay" and at == "in a step":
            inside.set()
            await go_on.wait()

    flow = Workflow("shop.place", Order, [RESERVE, PAY, *(waiting().steps[1:] if at != "done" else [SEND])])
    flows, shop = Flows(database, [flow]), Shop(database, act)
    id, bucket = await begin(flows, "a", flow), bucket_of("a")
    if at == "begun":
        assert await cancel(flows, bucket, id, reason="changed my mind")
    async with running(flows, shop, database_urls):
        if at == "waiting":
            await reach(flows, "a", id, "waiting")
        elif at == "in a step":
            await inside.wait()
        elif at == "done":
            await reach(flows, "a", id, "done")
            assert not await cancel(flows, bucket, id)
        assert await cancel(flows, bucket, id, reason="changed my mind", done=True)
        go_on.set()
        status = await reach(flows, "a", id, "undone")
        assert await cancel(flows, bucket, id)
    assert status.reason == "changed my mind"
    undone = [what for what in shop.calls if what.startswith("undo")]
    assert undone == (["undo reserve"] if at == "begun" else ["undo pay", "undo reserve"])
    assert [one.outcome for one in status.steps].count("cancelled") == 1
    assert await database.scatter("select id from deeds._job") == []


async def test_a_step_that_two_run_at_once_is_recorded_once(database: Database, database_urls: Urls) -> None:
    """As when a frozen worker comes back: the transactional effect is there once, and one job follows."""
    flows, shop = Flows(database, [PLACE]), Shop(database)
    id = await begin(flows, "a")
    (handler,) = [one for one in flows.handlers if one.kind.kind == "shop.place.reserve"]
    go = handler.job(bucket_of("a"), id, 1)

    async def once(number: int) -> None:
        run = Run(id=id, key="k", attempt=1, max_attempts=3, enqueued_at=datetime.now(UTC))
        await handler.method(shop, go, run)

    await asyncio.gather(*(once(number) for number in range(8)))
    assert await effects(database, "a") == ["do reserve"]
    status = await flows.look("a", id)
    assert status is not None and status.step == "pay" and len(status.steps) == 1


async def test_a_flow_keeps_the_version_that_it_began_with(database: Database, database_urls: Urls) -> None:
    """What the new release does not know is parked and visible; with both listed, each goes its own way."""
    old = Flows(database, [PLACE])
    id = await begin(old, "a")
    new = Workflow("shop.place", Order, [RESERVE, SEND], version=2)
    alone = Flows(database, [new])
    shop = Shop(database)
    async with running(alone, shop, database_urls):
        other = await begin(alone, "a", new)
        await reach(alone, "a", other, "done")

        async def parked() -> Any:
            return await database.scatter("select kind, version from deeds._job where state = 'parked'")

        (found,) = await until(parked)
        assert (found["kind"], found["version"]) == ("shop.place.reserve", 1)
        assert (await reach(alone, "a", id, "running")).step is None
        with pytest.raises(JobError, match=r"no workflow shop\.place/1"):
            await cancel(alone, bucket_of("a"), id)
    async with running(Flows(database, [PLACE, new]), shop, database_urls):
        await reach(old, "a", id, "done")
    assert shop.calls == ["do reserve", "do send", "do reserve", "do pay", "do send"]


async def test_what_has_ended_is_forgotten_after_its_time(database: Database, database_urls: Urls) -> None:
    """And events that nobody took; what has not ended is kept."""
    brief = Workflow("shop.place", Order, [RESERVE], keep=60.0)
    flows, shop = Flows(database, [brief]), Shop(database)
    gone, fresh = await begin(flows, "a", brief), await begin(flows, "a", brief)
    await parcel(flows, "nobody")
    async with running(flows, shop, database_urls):
        for id in (gone, fresh):
            await reach(flows, "a", id, "done")
    open_ = await begin(flows, "a", brief)
    for pool in database.pools.values():
        await pool.execute("update deeds._flow set ended_at = now() - interval '61 s' where id = $1", gone)
    await FlowUpkeep(flows, keep_events=0.0).tend()
    assert await flows.find(gone) is None
    assert await flows.find(fresh) is not None and await flows.find(open_) is not None
    assert len(await database.scatter("select seq from deeds._flow_step")) == 1
    assert await database.scatter("select id from deeds._flow_event") == []


async def test_a_step_that_returns_something_else_fails(database: Database, database_urls: Urls) -> None:
    async def act(what: str, order: Order, run: StepRun) -> Any:
        return "paid" if what == "do pay" else None

    flows, shop = Flows(database, [PLACE]), Shop(database, act)
    id = await begin(flows, "a")
    async with running(flows, shop, database_urls):
        status = await reach(flows, "a", id, "undone")
    assert status.reason is not None and "must return Order or None, got str" in status.reason


async def _nothing(shop: Shop, order: Order, run: StepRun) -> None:
    raise JobFailed("never run")


def _plain(shop: Shop, order: Order, run: StepRun) -> None:
    raise AssertionError("never run")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Workflow("Shop", Order, [PAY]), "kind is one or two words .* got 'Shop'"),
        (lambda: Workflow("a.b.c", Order, [PAY]), r"kind is one or two words .* got 'a\.b\.c'"),
        (lambda: Workflow("a", Order, []), "must have 1 to 100 steps, got 0"),
        (lambda: Workflow("a", dict, [PAY]), "data must be a frozen msgspec.Struct"),
        (lambda: Workflow("a", Order, [PAY, PAY]), "step 'pay' is declared twice"),
        (lambda: Workflow("a", Order, [PAY], version=0), "version must be >= 1, got 0"),
        (lambda: Workflow("a", Order, [PAY], keep=-1), "keep must be >= 0 seconds, got -1"),
        (lambda: Workflow("a", Order, [Step("p", _nothing, max_run=0)]), "workflow a: .* max_run must"),
        (lambda: Step("Pay", _nothing), "step's name must be lower-case .* got 'Pay'"),
        (lambda: Step("pay", "do"), "do must be a function of the implementation, got 'do'"),
        (lambda: Step("pay", _plain), "do must be async .*, got _plain"),
        (lambda: Step("pay", _nothing, undo=_plain), "undo must be async .*, got _plain"),
        (lambda: Step("pay", _nothing, effect="twice"), "effect must be .* got 'twice'"),
        (lambda: Step("pay", _nothing, undo_attempts=0), "undo_attempts must be >= 1, got 0"),
        (lambda: WaitFor("w", event="", key=str, timeout=1.0), "event must not be empty"),
        (lambda: WaitFor("w", event="e", key=str, timeout=0), "timeout must be > 0 seconds .* got 0"),
        (lambda: WaitFor("w", event="e", key=str, timeout=1, late="x"), "late must be .* got 'x'"),
        (lambda: Step("pay", _nothing, undo_attempts=3), "undo_attempts is for undo, which is None, got 3"),
        (
            lambda: WaitFor("w", event="e", key=str, timeout=None, late="go_on"),
            "'w': late is for when timeout has passed, which is None, got 'go_on'",
        ),
        (
            lambda: WaitFor("w", event="e", key=str, timeout=None, payload=str),
            "'w': payload is for then, which is None, got <class 'str'>",
        ),
        (
            lambda: Workflow("a", Order, [PAY], follows=("done",)),
            "workflow a: follows is for follow, which is None, got done",
        ),
        (lambda: Pause("p"), "either seconds or until"),
        (lambda: Pause("p", seconds=-1), "seconds must be >= 0 .* got -1"),
    ],
)  # fmt: skip
async def test_a_workflow_that_cannot_be_is_refused_where_it_is_declared(make: Any, message: str) -> None:
    with pytest.raises(JobError, match=message):
        make()


async def test_what_cannot_be_started_or_sent_is_refused(database: Database) -> None:
    flows = Flows(database, [PLACE])
    with pytest.raises(JobError, match="two workflows of one kind and version"):
        Flows(database, [PLACE, PLACE])
    longer = Workflow("shop.place", Order, [PAY], version=2, keep=60.0)
    with pytest.raises(
        JobError, match=r"shop\.place: keep must be the same in all versions, got 2592000\.0 and 60\.0"
    ):
        Flows(database, [PLACE, longer])
    async with database.write("a") as tx:
        with pytest.raises(JobError, match="carries Order, got str"):
            await flows.start(tx, PLACE, "order")  # type: ignore[type-var]
        with pytest.raises(JobError, match=r"no workflow shop\.other/1"):
            await flows.start(tx, Workflow("shop.other", Order, [PAY]), Order("a"))
        with pytest.raises(JobError, match="65536: store it"):
            await flows.start(tx, PLACE, Order("a" * 70_000))
        with pytest.raises(JobError, match="key must be a string of 1 to 500"):
            await flows.send(tx, "e", "")
        with pytest.raises(JobError, match="key must be a string of 1 to 500 characters without NUL, got 7"):
            await flows.start(tx, PLACE, Order("a"), key=7)  # type: ignore[arg-type]
        with pytest.raises(JobError, match="hold must be >= 0 seconds and at most ten years, got -1"):
            await flows.start(tx, PLACE, Order("a"), hold=-1)
        with pytest.raises(JobError, match="hold must be >= 0 seconds and at most ten years, got nan"):
            await flows.cancel(tx, uuid4(), hold=float("nan"))
    with pytest.raises(JobError, match="limit must be >= 1, got -1"):
        await flows.list(limit=-1)
    async with database.write("a", isolation="repeatable read") as tx:
        with pytest.raises(JobError, match="read committed write, got 'repeatable read'"):
            await flows.send(tx, "e", "k")
