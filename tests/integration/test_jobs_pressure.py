"""Producers are kept back by the age of the queue: refused or slowed, without a query of their own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.jobs_support import Deed, deeds, until, working

from springtide.context import RequestContext, activate
from springtide.db import Database
from springtide.errors import JobError, QueueOverloaded
from springtide.jobs import Enqueuer, Handler, JobKind, Run, job, kind_of
from springtide.jobs._ages import Ages
from springtide.jobs.pressure import KEPT, MAX_PAUSE, Pressure, judge
from springtide.testing import ManualClock
from springtide.web._replies import reply_for

Urls = tuple[str, str]


@job(kind="deed.refused", max_age=60.0, overload="refuse")
class Refused(msgspec.Struct, frozen=True):
    what: str


@job(kind="deed.slowed", max_age=60.0, overload="slow")
class Slowed(msgspec.Struct, frozen=True):
    what: str


KINDS: list[JobKind] = [kind_of(Refused), kind_of(Slowed)]


class Keeper:
    """Handlers that are never called: a limit keeps every job waiting, or nobody runs."""

    async def refused(self, job: Refused, run: Run) -> None: ...

    async def slowed(self, job: Slowed, run: Run) -> None: ...


HANDLERS: list[Handler[Any]] = [Handler(Refused, Keeper.refused), Handler(Slowed, Keeper.slowed)]


@pytest.fixture
async def database(database_urls: Urls, tmp_path: Path) -> AsyncIterator[Database]:
    async with deeds(database_urls[:1], tmp_path / "migrations", size=8) as made:
        yield made


async def old(database: Database, kind: str, seconds: float) -> None:
    """As a worker writes it when the oldest job of the kind waits for so long."""
    await database.pools["main"].execute(
        "insert into deeds._job_age"
        " values ($1, clock_timestamp() - make_interval(secs => $2), clock_timestamp())",
        kind,
        seconds,
    )


def later() -> ManualClock:
    """Deadlines by this clock are none to the pool, which has the real one."""
    return ManualClock(monotonic=time.monotonic() + 3600.0)


@asynccontextmanager
async def pressed(database: Database, clock: ManualClock | None = None) -> AsyncIterator[Pressure]:
    """The database enqueues under a pressure that has read the ages."""
    pressure = Pressure(clock=clock)
    pressure.watch(database, KINDS)
    database.enqueue = Enqueuer(pressure=pressure)
    await pressure._read()
    yield pressure


async def add(database: Database, made: Any) -> None:
    async with database.write("a") as tx:
        await tx.enqueue(made)


async def count(database: Database) -> int:
    found: int = await database.pools["main"].fetch_value("select count(*) from deeds._job")
    return found


async def test_an_old_queue_refuses_and_the_transaction_may_go_on(database: Database) -> None:
    """Nothing of the refused job is written; what else the transaction did is, and other kinds are taken."""
    await old(database, "deed.refused", 100.0)
    async with pressed(database):
        async with database.write("a") as tx:
            with pytest.raises(QueueOverloaded, match=r"deed\.refused wait for 1\d\d s, more") as caught:
                await tx.enqueue(Refused("a"))
            with pytest.raises(QueueOverloaded):
                await tx.enqueue_many([Deed("a"), Refused("a")])
            await tx.enqueue(Deed("a"))
        error = caught.value
        assert (error.kind, error.limit) == ("deed.refused", 60.0)
        assert 100.0 <= error.age < 160.0
        assert error.retry_after is not None
        assert 40.0 <= error.retry_after <= 60.0
        assert await count(database) == 1
        reply = reply_for(error, request_id="r")
        assert (reply.status, reply.retry_after) == (503, error.retry_after)


async def test_an_enqueue_asks_nobody(database: Database) -> None:
    """Ages that change are heard of with the next reading, not with the enqueue."""
    async with pressed(database) as pressure:
        await old(database, "deed.refused", 100.0)
        await add(database, Refused("a"))
        await pressure._read()
        with pytest.raises(QueueOverloaded):
            await add(database, Refused("a"))


async def test_an_age_grows_with_the_clock_and_is_forgotten(database: Database) -> None:
    """While nobody answers: at first the queue is taken to stand still, after a minute for unknown."""
    clock = later()
    await old(database, "deed.refused", 50.0)
    async with pressed(database, clock) as pressure:
        await add(database, Refused("a"))
        await clock.advance(20.0)
        with pytest.raises(QueueOverloaded):
            await add(database, Refused("a"))
        await clock.advance(KEPT)
        assert pressure.age("deeds", "main", "deed.refused") == 0.0
        await add(database, Refused("a"))


async def test_a_slowed_producer_waits_after_its_commit(database: Database) -> None:
    """Others see the job while it waits, and it has no connection; a request's end is left alone."""
    clock = later()
    await old(database, "deed.slowed", 1000.0)
    async with pressed(database, clock):
        producing = asyncio.ensure_future(add(database, Slowed("a")))
        await until(lambda: clock.sleepers == 1)
        assert await count(database) == 1
        assert database.pools["main"].stats().busy == 0
        assert not producing.done()
        await clock.advance(MAX_PAUSE)
        await producing
        with activate(RequestContext(deadline=clock.monotonic() + 0.4)):
            await add(database, Slowed("b"))


async def test_a_clock_that_was_set_back_ends_no_measuring(database: Database) -> None:
    """It is a worker's turn when the last measurement was at a time that is to come."""
    ages, pool = Ages("deeds"), database.pools["main"]
    assert await ages.turn(pool)
    await pool.execute("update deeds._job_age set measured_at = now() + interval '1 h' where kind = ''")
    assert await ages.turn(pool)


async def test_workers_tell_how_old_the_queue_is(database: Database, database_urls: Urls) -> None:
    """What waits too long is refused once a worker has seen it, and no more once it is done."""
    async with pressed(database) as pressure:
        await add(database, Refused("a"))
        await database.pools["main"].execute(
            "update deeds._job set due_at = due_at - interval '100 s', run_at = run_at + interval '1 hour'"
        )

        async def refused() -> bool:
            await pressure._read()
            return pressure.age("deeds", "main", "deed.refused") > 60.0

        async def free() -> bool:
            return not await refused()

        async with working(database, database_urls[:1], HANDLERS, Keeper()):
            await until(refused)
            with pytest.raises(QueueOverloaded):
                await add(database, Refused("b"))
            await database.pools["main"].execute("update deeds._job set run_at = clock_timestamp()")
            await until(free)
            await add(database, Refused("c"))


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.sampled_from(KINDS))
def test_an_older_queue_is_never_easier_on_producers(one: float, other: float, spec: JobKind) -> None:
    """And within `max_age` nobody is kept back at all; every pause and refusal has its bound."""
    young, old = (judge(spec, age) for age in sorted((one, other)))
    assert (young.retry_after or 0.0) <= (old.retry_after or 0.0) <= 60.0
    assert young.pause <= old.pause <= MAX_PAUSE
    if min(one, other) <= 60.0:
        assert (young.retry_after, young.pause) == (None, 0.0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_age": 0.0, "overload": "slow"}, "max_age must be > 0 seconds, got 0.0"),
        ({"max_age": 5.0}, "max_age and overload go together, got 5.0 and None"),
        ({"max_age": 5.0, "overload": "ignore"}, 'overload must be "refuse" or "slow", got \'ignore\''),
    ],
)
def test_a_declaration_that_cannot_hold_is_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(JobError, match=sentence):
        job(kind="deed.wrong", **options)
