"""How many jobs of a key run at once, and how many begin in a time, over all workers of a shard."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.jobs_support import DO, Deed, Doer, add, deeds, reach, rows, states, until, working

from springtide.db import Database
from springtide.errors import JobError
from springtide.jobs import Handler, Run, job, kind_of
from springtide.jobs._limited import limits_of
from springtide.jobs._store import Ending, Store

Urls = tuple[str, str]


@job(kind="deed.two", concurrency=2, max_attempts=3, backoff=0.01, max_backoff=0.05)
class Two(msgspec.Struct, frozen=True):
    key: str


@job(kind="deed.paced", rate=3, per=3600.0)
class Paced(msgspec.Struct, frozen=True):
    key: str


KINDS = ["deed.do/1", "deed.paced/1", "deed.two/1"]
LIMITS = limits_of([kind_of(Two), kind_of(Paced), kind_of(Deed)])


@pytest.fixture
async def database(database_urls: Urls, tmp_path: Path) -> AsyncIterator[Database]:
    async with deeds(database_urls[:1], tmp_path / "migrations", size=12) as made:
        yield made


async def enqueue(database: Database, kind: Any, count: int, key: str | None = None) -> list[Any]:
    async with database.write("a") as tx:
        return await tx.enqueue_many([kind(str(key)) for _ in range(count)], limit_key=key)


async def claim(store: Store, limit: int = 10) -> list[Any]:
    return await store.claim(KINDS, limit, "w", 30.0, LIMITS)


def test_only_limited_kinds_have_limits() -> None:
    assert limits_of([kind_of(Deed)]) is None
    assert limits_of([kind_of(Two), kind_of(Deed), kind_of(Paced)]) == (
        ["deed.two", "deed.paced"], [2, 0], [0, 3], [1.0, 3600.0],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"concurrency": 0}, "concurrency must be >= 1, got 0"),
        ({"rate": 0}, "rate must be >= 1, got 0"),
        ({"rate": 1.5}, r"rate must be a whole number, got 1\.5"),
        ({"rate": 1, "per": 0.0}, r"per must be > 0 seconds and at most 86400, got 0\.0"),
    ],
)
def test_a_faulty_limit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message):
        job(kind="deed.faulty", **options)


async def test_a_limit_key_is_for_limited_kinds(database: Database) -> None:
    async with database.write("a") as tx:
        with pytest.raises(JobError, match=r"jobs of kind deed\.do have no limit, got limit_key 'k'"):
            await tx.enqueue(Deed("a"), limit_key="k")
        with pytest.raises(JobError, match="limit_key must be a string of 1 to 500"):
            await tx.enqueue(Two("a"), limit_key="")
    assert await rows(database) == []


# -- at once -------------------------------------------------------------------------------------------


async def test_never_more_of_a_key_run_at_once_than_its_kind_allows(
    database: Database, database_urls: Urls
) -> None:
    """Over two workers with more slots, with failures; both are used, and every job is done."""
    now: Counter[str] = Counter()
    most: Counter[str] = Counter()
    failed: set[str] = set()

    async def do(doer: Doer, two: Two, run: Run) -> None:
        now[two.key] += 1
        most[two.key] = max(most[two.key], now[two.key])
        try:
            await asyncio.sleep(0.01)
            if two.key not in failed:
                failed.add(two.key)
                raise OSError("once")
        finally:
            now[two.key] -= 1

    for key in ("x", "y", "z"):
        await enqueue(database, Two, 12, key)
    async with (
        working(database, database_urls[:1], [Handler(Two, do)], Doer(), slots=5),
        working(database, database_urls[:1], [Handler(Two, do)], Doer(), slots=5),
    ):

        async def over() -> bool:
            return await states(database) == ["done"] * 36

        await until(over)
    assert most == {"x": 2, "y": 2, "z": 2}


async def test_claims_at_the_same_time_never_take_the_same_room(database: Database) -> None:
    """Eight claims at once, again and again: two of the key run, whoever has them."""
    stores = [Store(database, "main") for _ in range(8)]
    await enqueue(database, Two, 40, "k")
    for _ in range(10):
        found = await asyncio.gather(*(store.claim(KINDS, 3, "w", 30.0, LIMITS) for store in stores))
        running = [run for claimed in found for run in claimed]
        count = await stores[0].pool.fetch_value("select count(*) from deeds._job where state = 'running'")
        assert len(running) == count <= 2
        await stores[0].finish([run.run for run in running], "w")
        await stores[0].let({("deed.two", "k"): 2})


async def test_what_has_no_room_keeps_nobody_waiting_and_goes_when_there_is_some(database: Database) -> None:
    """Jobs behind fifty of a full key are claimed at once; each that ends lets one go."""
    store = Store(database, "main")
    ids = [id for count in (1, 1, 1, 1, 46) for id in await enqueue(database, Two, count, "k")]
    other = await enqueue(database, Two, 1, "other")
    free = await enqueue(database, Two, 1)
    async with database.write("a") as tx:
        plain = await tx.enqueue(Deed("plain"))
    claimed = await claim(store, 5)
    assert {run.run.id for run in claimed} == {ids[0], ids[1], *other, *free, plain}
    assert await claim(store) == []
    assert Counter(await states(database)) == {"running": 5, "limited": 48}
    (first,) = [run for run in claimed if run.run.id == ids[0]]
    assert await store.finish([first.run], "w") == {ids[0]}
    assert await store.let({("deed.two", "k"): 2}) == 1
    (third,) = await claim(store)
    assert third.run.id == ids[2] and third.limit_key == "k"
    assert await store.end(third.run, "w", Ending("ready", error="x", delay=3600.0))
    assert await store.let({("deed.two", "k"): 2}) == 1
    assert [run.run.id for run in await claim(store)] == [ids[3]]


async def test_an_end_waits_for_a_claim_that_is_about_to_set_jobs_aside(database: Database) -> None:
    """Else they would be set aside with nobody left to let them go."""
    store = Store(database, "main")
    await enqueue(database, Two, 3, "k")
    first, second = await claim(store, 2)
    async with store.pool.transaction() as tx:
        arguments = (KINDS, 5, "other", 30.0, store.cursor.floors, *(LIMITS or ()))
        assert [row["waits"] for row in await tx.fetch(store.statements.claim_limited, *arguments)] == [True]
        await store.finish([first.run, second.run], "w")
        letting = asyncio.create_task(store.let({("deed.two", "k"): 2}))

        async def waits() -> bool:
            waiting = "select count(*) from pg_locks where not granted and locktype = 'advisory'"
            return bool(await tx.fetch_value(waiting))

        await until(waits)
    assert await letting == 1
    assert len(await claim(store)) == 1


async def test_a_limit_that_is_raised_or_dropped_lets_all_go_that_may(database: Database) -> None:
    """By upkeep, with what the newest handlers say."""
    store = Store(database, "main")
    await enqueue(database, Two, 10, "k")
    assert len(await claim(store)) == 2 and await claim(store) == []
    assert await store.free(["deed.other"], None) == 0
    assert await store.free(["deed.two"], (["deed.two"], [2], [0], [1.0])) == 0
    assert await store.free(["deed.two"], (["deed.two"], [5], [0], [1.0])) == 3
    assert await store.free(["deed.two"], None) == 5


async def test_a_killed_worker_gives_its_room_back(database: Database, database_urls: Urls) -> None:
    """Its jobs are rescued, and what waited for them goes on."""
    store = Store(database, "main")
    await enqueue(database, Two, 6, "k")
    assert len(await claim(store)) == 2 and await claim(store) == []
    await store.pool.execute("update deeds._job set leased_until = now() where state = 'running'")

    async def do(doer: Doer, two: Two, run: Run) -> None:
        doer.calls.append((two.key, run))

    doer = Doer()
    async with working(database, database_urls[:1], [Handler(Two, do), DO], doer):
        await reach(database, *["done"] * 6)
    assert len(doer.calls) == 6


# -- in a time -----------------------------------------------------------------------------------------


async def test_jobs_of_a_paced_kind_take_turns(database: Database) -> None:
    """Three in an hour: three at once, the others 20 minutes apart, each moved once; keys do not count
    together; who comes later comes after those."""
    store = Store(database, "main")
    ids = await enqueue(database, Paced, 8, "k")
    assert len(await enqueue(database, Paced, 1, "other")) == 1
    claimed = await claim(store, 4)
    claimed += await claim(store, 20)
    assert Counter(run.limit_key for run in claimed) == {"k": 3, "other": 1}
    assert await claim(store, 20) == []
    found = {row["id"]: row for row in await rows(database, "state = 'ready'")}
    turns = sorted(found[id]["run_at"] for id in ids if id in found)
    gaps = [later - sooner for sooner, later in itertools.pairwise(turns)]
    assert len(turns) == 5 and all(abs(gap - timedelta(minutes=20)) < timedelta(seconds=1) for gap in gaps)
    (late,) = await enqueue(database, Paced, 1, "k")
    assert await claim(store, 20) == []
    (row,) = await rows(database, f"id = '{late}'")
    assert timedelta(minutes=19) < row["run_at"] - turns[-1] < timedelta(minutes=21)
    before = {row["id"]: row["run_at"] for row in await rows(database, "state = 'ready'")}
    assert await claim(store, 20) == []
    assert {row["id"]: row["run_at"] for row in await rows(database, "state = 'ready'")} == before


async def test_a_turn_that_was_given_is_not_taken_again(database: Database) -> None:
    """A job that comes to its turn, or was handed back, runs; a retry takes another turn."""
    store = Store(database, "main")
    await enqueue(database, Paced, 4, "k")
    claimed = await claim(store)
    assert len(claimed) == 3
    await store.pool.execute("update deeds._job set run_at = now() where state = 'ready'")
    (fourth,) = await claim(store)  # its turn has come
    assert await store.end(fourth.run, "w", Ending("ready", uncounted=True))
    (fourth,) = await claim(store)
    assert await store.end(fourth.run, "w", Ending("ready", error="x"))
    assert await claim(store) == []
    (row,) = await rows(database, "state = 'ready'")
    assert row["run_at"] - row["started_at"] > timedelta(minutes=10)


# -- in order ------------------------------------------------------------------------------------------


async def test_a_claim_does_not_hold_what_was_let_go_meanwhile(database: Database) -> None:
    """It finds a job that became ready after it had begun, whose predecessor it still sees."""
    pool, store = database.pools["main"], Store(database, "main")
    ids = [await add(database, "a", ordering_key="k") for _ in range(2)]
    (first,) = await claim(store)
    assert first.run.id == ids[0] and await states(database) == ["running", "held"]
    await pool.execute("alter function deeds._job_due rename to _job_due_then")
    await pool.execute("""
        create function deeds._job_due(names text[], floors timestamptz[], rooms integer[], most integer)
        returns table (
            place tid, bucket smallint, id uuid, ordering_key text, enqueued_at timestamptz, kind text,
            limit_key text, paced boolean, priority smallint, run_at timestamptz
        ) language plpgsql as $$
        begin
            perform pg_advisory_xact_lock(1);
            return query select * from deeds._job_due_then(names, floors, rooms, most);
        end $$
    """)
    async with pool.transaction() as tx:
        await tx.fetch("select pg_advisory_xact_lock(1)")
        assert await store.end(first.run, "w", Ending("done"), tx, ordering_key="k")
        claiming = asyncio.create_task(claim(store))
        await until(lambda: _waits(database))
    assert await claiming == []
    await claim(store)
    assert await states(database) == ["done", "running"]


async def _waits(database: Database) -> bool:
    locks = "select 1 from pg_locks where locktype = 'advisory' and not granted"
    return bool(await database.pools["main"].fetch(locks))
