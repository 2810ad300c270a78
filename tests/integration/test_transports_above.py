"""What stands on jobs holds over every broker: workflows, schedules, backpressure, operators, a change."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.flowing import PLACE, RESERVE, SEND, Order, Shop, begin, effects, reach, running
from tests.jobs_support import (
    DO,
    Doer,
    Heard,
    add,
    deeds,
    rows,
    until,
    working,
)
from tests.jobs_support import reach as reach_states
from tests.scheduling import EACH_SECOND
from tests.transports import Broker, connect, fresh_name, params

from springtide.db import Database
from springtide.errors import QueueOverloaded
from springtide.flows import Flows, WaitFor, Workflow
from springtide.jobs import Enqueuer, Handler, Run, Scheduler, _sent, _upkeep, job, kind_of, operating
from springtide.jobs.operating import Wanted
from springtide.jobs.pressure import Pressure
from springtide.signals import JobsMeasured, JobsReceived

pytestmark = pytest.mark.parametrize("broker", params(), indirect=True)

Urls = tuple[str, str]

STEADY = {"lease": 20.0, "heartbeat": 2.0, "stall": 10.0}
"""Whose worker lives keeps its leases, also on a machine that is busy with other things."""


@pytest.fixture
async def database(database_urls: Urls, tmp_path: Path) -> AsyncIterator[Database]:
    async with deeds(database_urls, tmp_path / "migrations", size=20, acquire_timeout=60.0) as made:
        yield made


@pytest.fixture
async def lone(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    async with deeds([database_url], tmp_path / "migrations", size=20, acquire_timeout=60.0) as made:
        yield made


def over(broker: Broker, name: str | None = None, **options: Any) -> dict[str, Any]:
    """Options of a worker to which the broker carries its jobs; of workers that share them: one name."""
    return {"transport": connect(broker, name or fresh_name()), **STEADY, **options}


def carried(heard: Heard) -> int:
    """How many jobs were claimed because a broker said so."""
    return sum(one.claimed for one in heard.of(JobsReceived))


@job(kind="deed.gate", max_run=600.0)
class Gate(msgspec.Struct, frozen=True):
    """Keeps a worker with one slot busy."""


@job(kind="deed.refused", max_age=60.0, overload="refuse")
class Refused(msgspec.Struct, frozen=True):
    what: str


class Gated(Doer):
    """A job `Gate` goes on until `open` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.open = asyncio.Event()
        self.held = asyncio.Event()

    async def gate(self, gate: Gate, run: Run) -> None:
        self.held.set()
        await self.open.wait()

    async def refused(self, deed: Refused, run: Run) -> None:
        self.calls.append((deed.what, run))

    @property
    def done(self) -> list[str]:
        return [what for what, _ in self.calls]


GATED: list[Handler[Any]] = [DO, Handler(Gate, Gated.gate), Handler(Refused, Gated.refused)]


@contextlib.asynccontextmanager
async def busy(database: Database, url: str, broker: Broker, **options: Any) -> AsyncIterator[Gated]:
    """A worker with one slot, which a gate holds: what is enqueued is sent and not claimed."""
    made = Gated()
    async with working(database, [url], GATED, made, **over(broker, slots=1, **options)):
        async with database.write("a") as tx:
            await tx.enqueue(Gate())
        async with asyncio.timeout(60):
            await made.held.wait()
        yield made


async def sent(database: Database, count: int) -> None:
    """Wait until so many jobs are with the broker."""

    async def there() -> bool:
        return len(await rows(database, "state = 'sent'")) == count

    await until(there)


# -- workflows and schedules --------------------------------------------------------------------------------


async def test_workflows_end_done_or_undone(broker: Broker, database: Database, database_urls: Urls) -> None:
    """Steps, compensation and the wait for an event, on both shards: each step is brought by the broker, in
    its order, and its effect is there once."""

    def packed(order: Order, parcel: Any) -> Order:
        return msgspec.structs.replace(order, parcel=parcel["number"])

    wait = WaitFor("packed", event="parcel.packed", key=lambda order: order.id, timeout=3600.0, then=packed)
    waits = Workflow("shop.wait", Order, [RESERVE, wait, SEND])
    heard, shop = Heard(), Shop(database)
    flows = Flows(database, [PLACE, waits])
    kept = {key: await begin(flows, key) for key in ("a", "b", "c", "d")}
    turned = await begin(flows, "unsendable")
    late = await begin(flows, "e", waits)
    async with running(flows, shop, database_urls, **over(broker, sink=heard)):
        for key, id in kept.items():
            assert (await reach(flows, key, id, "done")).data == {"id": key, "paid": 7, "parcel": ""}
            assert await effects(database, key) == ["do reserve", "do pay", "do send"]
        assert (await reach(flows, "unsendable", turned, "undone")).reason == "nobody lives there"
        assert await effects(database, "unsendable") == ["do reserve", "do pay", "undo pay", "undo reserve"]
        await reach(flows, "e", late, "waiting")
        async with flows.database.write("e") as tx:
            await flows.send(tx, "parcel.packed", "e", {"number": "p1"})
        assert (await reach(flows, "e", late, "done")).data["parcel"] == "p1"
    assert carried(heard) > 0
    assert await database.scatter("select id from deeds._job") == []


async def test_each_slot_of_a_schedule_is_done_once(
    broker: Broker, database: Database, database_urls: Urls
) -> None:
    """Slots that passed while nobody was there, and two schedulers and two workers that come at once."""
    first, second = (Scheduler(database, [EACH_SECOND]) for _ in range(2))
    await first.look()
    await database.pools["main"].execute(
        "update deeds._schedule set next_at = next_at - $1::interval", timedelta(seconds=20)
    )
    heard, doer, name = Heard(), Doer(), fresh_name()

    def another() -> dict[str, Any]:
        return over(broker, name, sink=heard)

    async with (
        working(database, database_urls, [DO], doer, **another()),
        working(database, database_urls, [DO], doer, **another()),
    ):
        await asyncio.gather(first.look(), second.look())
        slots = [row["id"] for row in await rows(database)]

        async def all_done() -> bool:
            return len(await rows(database, "state = 'done'")) == len(slots)

        await until(all_done)
    whats = [what for what, _ in doer.calls]
    assert len(whats) == len(set(whats)) == len(slots) >= 20
    assert carried(heard) > 0


# -- backpressure -------------------------------------------------------------------------------------------


async def test_what_is_sent_ages_and_keeps_producers_back(
    broker: Broker, lone: Database, database_url: str
) -> None:
    """A queue is as old as its oldest job that nobody has begun, also when the broker has it."""
    pressure = Pressure()
    pressure.watch(lone, [kind_of(Refused)])
    lone.enqueue = Enqueuer(pressure=pressure)
    ((shard, pool),) = lone.pools.items()

    async def old() -> bool:
        await pressure._read()
        return pressure.age("deeds", shard, "deed.refused") > 60.0

    async def young() -> bool:
        return not await old()

    async def enqueue(what: str) -> None:
        async with lone.write("a") as tx:
            await tx.enqueue(Refused(what))

    async with busy(lone, database_url, broker) as made:
        await enqueue("waits")
        await sent(lone, 1)
        await pool.execute("update deeds._job set due_at = due_at - interval '100 s' where state = 'sent'")
        await until(old)
        assert [row["state"] for row in await rows(lone, "kind = 'deed.refused'")] == ["sent"]
        with pytest.raises(QueueOverloaded):
            await enqueue("refused")
        made.open.set()
        await until(young)
        await enqueue("taken")
        await reach_states(lone, "done", "done", "done")
    assert made.done == ["waits", "taken"]


# -- operators ----------------------------------------------------------------------------------------------


async def test_operators_step_in_where_the_broker_has_the_job(
    broker: Broker, lone: Database, database_url: str
) -> None:
    """Discarded, it is not run, whatever the broker brings; retried, it is run once; paused, it waits until
    it is resumed."""
    heard = Heard()
    async with busy(lone, database_url, broker, sink=heard) as made:
        ids = {what: await add(lone, what) for what in ("discarded", "retried", "left alone")}
        await sent(lone, 3)
        for act, what in ((operating.discard, "discarded"), (operating.retry, "retried")):
            (changed,) = await act([lone], Wanted(ids=[ids[what]], states=["sent"]))
            assert changed.id == ids[what]
        await operating.pause([lone], kind="deed.do")
        await until(lambda: any(one.stopped for one in heard.of(JobsMeasured)))  # the worker knows
        made.open.set()

        async def aside() -> bool:
            return [row["state"] for row in await rows(lone, "state <> 'done'")] == ["paused"] * 2

        await until(aside)
        assert made.done == []
        await operating.resume([lone], kind="deed.do")
        await reach_states(lone, *["done"] * 4)
    assert sorted(made.done) == ["left alone", "retried"]


async def test_a_retry_does_not_wait_for_a_broker_that_has_lost_the_job(
    broker: Broker, lone: Database, database_url: str
) -> None:
    """A job that was sent again and again without being claimed is trusted to the broker for long; an
    operator sends it now, with the trust of one that is new."""
    id = await add(lone, "lost")
    (pool,) = lone.pools.values()
    await pool.execute(
        "update deeds._job set state = 'sent', turn = 9, unclaimed = 8,"
        " leased_until = clock_timestamp() + interval '40 min'"
    )
    (changed,) = await operating.retry([lone], Wanted(ids=[id]))
    assert changed.id == id
    assert await pool.fetch_value("select unclaimed from deeds._job") == 0
    doer = Doer()
    async with working(lone, [database_url], [DO], doer, **over(broker)):
        await reach_states(lone, "done")
    assert len(doer.calls) == 1


# -- another broker -----------------------------------------------------------------------------------------


@job(kind="deed.moved", max_run=600.0)
class Moved(msgspec.Struct, frozen=True):
    what: str


class Mover:
    """Writes what it did in the transaction that ends the job, while it may go on."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.begun = 0

    async def move(self, moved: Moved, run: Run) -> None:
        self.begun += 1
        await self.go.wait()
        await run.tx.execute(
            "insert into deeds.effect (bucket, what, job) values ($1, $2, $3)",
            run.tx.bucket, moved.what, run.key,
        )  # fmt: skip


MOVE = Handler(Moved, Mover.move, effect="transactional")


async def test_the_transport_is_changed_while_jobs_flow(
    broker: Broker, lone: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From PostgreSQL to the broker and back, twice: each time the workers leave while they run jobs, and
    the old carrier has others that nobody has claimed. Each job has its effect once, and none is lost."""
    monkeypatch.setattr(_sent, "TRUST", 1.0)
    monkeypatch.setattr(_upkeep, "FREE", 0.2)
    name, heard, made = fresh_name(), Heard(), Mover()
    whats: list[str] = []

    async def enqueue(when: str) -> None:
        new = [f"{when} {number}" for number in range(10)]
        async with lone.write(when) as tx:
            await tx.enqueue_many([Moved(what) for what in new])
        whats.extend(new)

    async def full(carrier: Broker | None) -> bool:
        found = [row["state"] for row in await rows(lone, "state <> 'done'")]
        sent = found.count("sent")
        return found.count("running") == 4 and sent == (len(found) - 4 if carrier else 0)

    for number, carrier in enumerate((None, broker, None, broker)):
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(2):
                options = over(carrier, name) if carrier else STEADY
                await stack.enter_async_context(
                    working(lone, [database_url], [MOVE], made, **options, slots=2, drain=0.2, sink=heard)
                )
            made.go.set()
            await enqueue(f"first {number}")
            await until(lambda had=made.begun: made.begun >= had + 5)
            made.go.clear()
            await enqueue(f"then {number}")
            await until(lambda carrier=carrier: full(carrier))
    made.go.set()
    async with working(lone, [database_url], [MOVE], made, **STEADY, sink=heard):
        await reach_states(lone, *["done"] * len(whats))
    assert sorted(row["what"] for row in await lone.scatter("select what from deeds.effect")) == sorted(whats)
    assert carried(heard) > 0
