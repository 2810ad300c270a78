"""What workers write down about their load is what it was, without a statement per job; they end by drain."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.jobs_support import Heard, deeds, until, working

from springtide.db import Database
from springtide.errors import JobFailed
from springtide.jobs import Handler, Run, job
from springtide.jobs._loads import AHEAD, AVERAGED, Loads, Spent
from springtide.jobs._store import Store
from springtide.jobs.scaling import KEPT, Bounds, Load, Scaling, loads
from springtide.signals import LoadMeasured, WorkersWanted
from springtide.testing import ManualClock

Urls = tuple[str, str]


@job(kind="deed.quick", max_attempts=2)
class Quick(msgspec.Struct, frozen=True):
    number: int


@job(kind="deed.long")
class Long(msgspec.Struct, frozen=True):
    number: int


@job(kind="deed.alone", concurrency=1)
class Alone(msgspec.Struct, frozen=True):
    number: int


class Doer:
    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.begun: list[int] = []

    async def quick(self, job: Quick, run: Run) -> None:
        self.begun.append(job.number)
        if job.number < 0:
            raise JobFailed("no")

    async def long(self, job: Long, run: Run) -> None:
        self.begun.append(job.number)
        await self.go.wait()

    async def alone(self, job: Alone, run: Run) -> None: ...


HANDLERS: list[Handler[Any]] = [
    Handler(Quick, Doer.quick), Handler(Long, Doer.long), Handler(Alone, Doer.alone)
]  # fmt: skip


@pytest.fixture
async def database(database_urls: Urls, tmp_path: Path) -> AsyncIterator[Database]:
    async with deeds(database_urls[:1], tmp_path / "migrations", size=8) as made:
        yield made


async def enqueue(database: Database, *jobs: Any, **options: Any) -> None:
    async with database.write("a") as tx:
        await tx.enqueue_many(jobs, **options)


async def row(database: Database, kind: str) -> Any:
    found = await database.pools["main"].fetch(
        "select waiting, running, arrival, service, weight, runs, counted from deeds._job_load"
        " where kind = $1",
        kind,
    )
    return found[0] if found else None


async def load(database: Database, kind: str) -> Load | None:
    return next((one for one in await loads([database]) if one.kind == kind), None)


async def test_every_run_is_counted_once_and_no_job_costs_a_statement(
    database: Database, database_urls: Urls
) -> None:
    """A thousand runs, ten of them dead letters: so many are written down, in much fewer statements."""
    told = 0
    inner = database.pools["main"].fetch

    async def fetch(sql: str, *args: Any) -> Any:
        nonlocal told
        told += "INSERT INTO deeds._job_load" in sql
        return await inner(sql, *args)

    database.pools["main"].fetch = fetch  # type: ignore[method-assign]
    await enqueue(database, *map(Quick, range(-10, 990)))
    async with working(database, database_urls[:1], HANDLERS, Doer(), upkeep=0.5):
        await until(lambda: _all_counted(database))
    found = await row(database, "deed.quick")
    assert (found["runs"], found["weight"] > 0) == (1000, True)
    assert found["service"] > 0
    assert 1 <= told < 100


async def _all_counted(database: Database) -> bool:
    found = await row(database, "deed.quick")
    return found is not None and found["runs"] >= 1000


async def test_long_jobs_are_known_to_be_long_before_one_ends(
    database: Database, database_urls: Urls
) -> None:
    """While none has ended, the average grows with those that run."""
    doer = Doer()
    await enqueue(database, Long(1))
    async with working(database, database_urls[:1], HANDLERS, doer):
        first = (await until(lambda: _served(database)))["service"]
        later = await until(lambda: _served(database, above=first))
        assert later["weight"] == 0
        doer.go.set()
        await until(lambda: _served(database, weight=1))
        found = await row(database, "deed.long")
        assert (found["runs"], found["weight"]) == (1, 1)
        assert found["service"] >= later["service"]


async def _served(database: Database, *, above: float = 0.0, weight: int = 0) -> Any:
    found = await row(database, "deed.long")
    well = found is not None and (found["service"] or 0.0) > above and found["weight"] >= weight
    return found if well else None


async def test_where_no_worker_lives_a_reader_measures(database: Database) -> None:
    """What is due or will be soon counts; what is for later does not."""
    await enqueue(database, Quick(1), Quick(2))
    await enqueue(database, Quick(3), delay=AHEAD / 3)
    await enqueue(database, Quick(4), delay=AHEAD * 100)
    assert await load(database, "deed.quick") == Load("deeds", "main", "deed.quick", 3, 0, 0.0, None)


async def test_a_clock_that_was_set_back_ends_no_measuring(database: Database) -> None:
    """What was measured at a time that is to come is measured anew."""
    await enqueue(database, Quick(1))
    assert (await load(database, "deed.quick")).waiting == 1  # type: ignore[union-attr]
    await database.pools["main"].execute("update deeds._job_load set measured_at = now() + interval '1 h'")
    await enqueue(database, Quick(2))
    assert (await load(database, "deed.quick")).waiting == 2  # type: ignore[union-attr]


async def test_what_a_dead_worker_had_does_not_run(database: Database) -> None:
    """Its lease has passed: it asks for no room beside those that live."""
    await enqueue(database, Quick(1), Quick(2))
    store = Store(database, "main")
    await store.claim(["deed.quick/1"], 1, "gone", -1.0)
    await store.claim(["deed.quick/1"], 1, "lives", 60.0)
    assert (await load(database, "deed.quick")).running == 1  # type: ignore[union-attr]


async def test_what_more_workers_would_not_run_does_not_count(
    database: Database, database_urls: Urls
) -> None:
    """Jobs that wait for others of their limit."""
    doer, pool = Doer(), database.pools["main"]
    await enqueue(database, *map(Alone, range(5)), limit_key="one")
    await enqueue(database, Long(1))
    await pool.execute("update deeds._job set state = 'limited' where kind = 'deed.alone'")
    await Loads("deeds").measure(pool)
    assert await load(database, "deed.alone") is None
    assert await load(database, "deed.long") == Load("deeds", "main", "deed.long", 1, 0, 0.0, None)
    async with working(database, database_urls[:1], HANDLERS, doer):
        await until(lambda: doer.begun)
        await Loads("deeds").measure(pool)
        found = await load(database, "deed.long")
        assert found is not None
        assert (found.waiting, found.running) == (0, 1)
        doer.go.set()


async def test_what_comes_is_what_ended_and_what_there_is_more_of(database: Database) -> None:
    """60 came in the 10 seconds since the last measurement: 30 have ended, 30 more wait. That rows go before
    their runs are counted is made good by the next measurement."""
    pool, statements = database.pools["main"], Loads("deeds")

    async def measured_ago(seconds: float) -> None:
        await pool.execute(
            "update deeds._job_load set measured_at = clock_timestamp() - make_interval(secs => $1)", seconds
        )

    await enqueue(database, *map(Quick, range(40)))
    await statements.measure(pool)
    assert (await row(database, "deed.quick"))["arrival"] == 0.0
    await enqueue(database, *map(Quick, range(30)))
    await statements.spend(pool, [("deed.quick", Spent(30, 3.0, None))])
    await measured_ago(10.0)
    await statements.measure(pool)
    found = await row(database, "deed.quick")
    assert (found["waiting"], found["counted"], found["service"]) == (70, 30, 0.1)
    share = 1 - math.exp(-10.0 / AVERAGED)
    assert found["arrival"] == pytest.approx(6.0 * share, rel=0.2)

    await pool.execute("update deeds._job_load set arrival = 0")
    await pool.execute("delete from deeds._job")  # 70 have ended, which nobody has said yet
    await measured_ago(1.0)
    await statements.measure(pool)
    negative = (await row(database, "deed.quick"))["arrival"]
    assert negative < 0
    (seen,) = await loads([database])
    assert seen.arrival == 0.0
    await statements.spend(pool, [("deed.quick", Spent(70, 7.0, None))])
    await measured_ago(1.0)
    await statements.measure(pool)
    assert abs((await row(database, "deed.quick"))["arrival"]) < abs(negative) / 4
    await measured_ago(1e6)  # no matter how long nobody measured
    await statements.measure(pool)


async def test_a_worker_retires_when_its_jobs_have_ended(database: Database, database_urls: Urls) -> None:
    """Longer than its drain: it claims no more, its job is neither cut nor handed back, and others are run by
    the next worker."""
    first, second = Doer(), Doer()
    async with working(database, database_urls[:1], HANDLERS, first, drain=0.0, name="first") as retiring:
        await enqueue(database, Long(1))
        await until(lambda: first.begun == [1])
        going = asyncio.ensure_future(retiring.retire())
        await asyncio.sleep(0)
        async with working(database, database_urls[:1], HANDLERS, second, name="second"):
            await enqueue(database, *map(Quick, range(2, 30)))
            await until(lambda: len(second.begun) == 28)
        assert not going.done()
        first.go.set()
        await going
        assert retiring.running == 0
    assert first.begun == [1]
    done = await database.pools["main"].fetch(
        "select attempt, worker from deeds._job_done where kind = 'deed.long'"
    )
    assert [one["attempt"] for one in done] == [1]
    assert done[0]["worker"].startswith("first@")


async def test_the_service_knows_says_and_forgets(database: Database) -> None:
    """The page and the signals have what was read; what has not been read for a while is not known."""
    clock, heard = ManualClock(monotonic=time.monotonic() + 3600.0), Heard()
    scaling = Scaling([database], Bounds(2, most=4, time_to_drain=1.0), clock=clock, sink=heard)
    assert scaling.page() is None
    await enqueue(database, *map(Quick, range(5)))
    await scaling._read()
    page = scaling.page()
    assert page is not None
    assert (page["workers"], page["slots"], page["max"]) == (3, 5.0, 4)
    assert heard.of(WorkersWanted) == [WorkersWanted(3, 5.0)]
    assert heard.of(LoadMeasured) == [LoadMeasured("deeds", "main", "deed.quick", 5, 0.0, None)]
    await clock.advance(KEPT + 1.0)
    assert scaling.page() is None
