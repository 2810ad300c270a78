"""What is done leaves the queue: the history, its retention, and an installation that is older than it."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.jobs_support import DO, DO_ONCE, EFFECT, Deed, Doer, add, deeds, reach, rows, until, working
from tests.sharded import pools

from springtide.db import Database, Migrator, ShardMap, migrate
from springtide.errors import DatabaseUnavailable, JobFailed
from springtide.jobs import Enqueuer, Run
from springtide.jobs._store import Store
from springtide.outbox.days import Days

Urls = tuple[str, str]
KINDS = ["deed.do/1"]


@pytest.fixture
async def database(database_urls: Urls, tmp_path: Path) -> AsyncIterator[Database]:
    async with deeds(database_urls[:1], tmp_path / "migrations", size=8) as made:
        yield made


async def claim_one(database: Database, store: Store) -> Any:
    await add(database, "a")
    (claimed,) = await store.claim(KINDS, 1, "w", 30.0)
    return claimed


async def test_what_is_done_is_in_the_history_and_not_in_the_queue(
    database: Database, database_urls: Urls
) -> None:
    """With all that is known of it; dead letters stay in the queue."""

    async def act(deed: Deed, run: Run) -> None:
        if deed.what == "bad":
            raise JobFailed("bad")

    good, bad = await add(database, "good"), await add(database, "bad")
    async with working(database, database_urls[:1], [DO], Doer(act)):
        await reach(database, "done", "dead")
    pool = database.pools["main"]
    assert [row["id"] for row in await pool.fetch("select id from deeds._job")] == [bad]
    (row,) = await pool.fetch("select * from deeds._job_done")
    assert (row["id"], row["kind"], row["attempt"], row["priority"]) == (good, "deed.do", 1, 1)
    assert row["payload"] == b'{"what":"good"}' and row["worker"].startswith("worker@")
    assert row["enqueued_at"] <= row["due_at"] <= row["started_at"] <= row["finished_at"]


async def test_a_finish_whose_answer_was_lost_may_be_repeated(database: Database) -> None:
    """The run finds its job in the history; another run of the same job does not."""
    from springtide.jobs._store import Ending, RunName

    store = Store(database, "main")
    claimed = await claim_one(database, store)
    assert await store.finish([claimed.run], "w") == {claimed.run.id}
    assert await store.finish([claimed.run], "w") == set()
    assert await store.end(claimed.run, "w", Ending("done"))
    assert not await store.end(claimed.run, "another", Ending("done"))
    again = RunName(claimed.run.bucket, claimed.run.id, claimed.run.attempt + 1)
    assert not await store.end(again, "w", Ending("done"))
    assert await store.renew([claimed.run], "w", 30.0, store.pool) == set()
    assert await store.renew([again], "w", 30.0, store.pool) == {claimed.run.id}


async def test_runs_end_and_others_begin_by_one_statement(database: Database) -> None:
    """All that ended is in the history, what was not this worker's is told, and the claim is as always."""
    store = Store(database, "main")
    done, lost = await claim_one(database, store), await claim_one(database, store)
    await database.pools["main"].execute("update deeds._job set worker = 'x' where id = $1", lost.run.id)
    ids = [await add(database, "a") for _ in range(3)]
    wanted = KINDS, 2, "w", 30.0
    ended, met = await store.turn([done.run, lost.run], None, *wanted)
    claimed = await store.complete(met, *wanted)
    assert ended == {done.run.id} and [job.run.id for job in claimed] == ids[:2]
    assert [job.payload for job in claimed] == [b'{"what":"a"}'] * 2
    results = ['{"n": 1}', None]
    ended, met = await store.turn([job.run for job in claimed], results, *wanted)
    claimed = await store.complete(met, *wanted)
    assert ended == set(ids[:2]) and [job.run.id for job in claimed] == ids[2:]
    assert await store.turn([claimed[0].run], None, *wanted) == ({ids[2]}, [])
    found = await database.pools["main"].fetch("select id, result::text from deeds._job_done order by id")
    assert [tuple(row) for row in found] == [
        (done.run.id, None), (ids[0], '{"n": 1}'), (ids[1], None), (ids[2], None)
    ]  # fmt: skip
    (left,) = await database.pools["main"].fetch("select id, state, worker from deeds._job")
    assert tuple(left) == (lost.run.id, "running", "x")


async def test_a_locked_job_does_not_hold_up_the_end_of_the_others(
    database: Database, database_urls: Urls
) -> None:
    """Of jobs that end together, the one whose row somebody has locked is finished later, alone; others begin
    meanwhile, though their claim was to write those ends."""
    go = asyncio.Event()

    async def wait(deed: Deed, run: Run) -> None:
        await go.wait()

    doer, pool = Doer(wait), database.pools["main"]
    async with working(database, database_urls[:1], [DO], doer, lease=60.0, heartbeat=20.0, slots=5):
        async with database.write("a") as tx:
            ids = await tx.enqueue_many([Deed(str(number)) for number in range(10)])
        await until(lambda: len(doer.calls) == 5)
        async with pool.transaction() as tx2:
            await tx2.execute("select from deeds._job where id = $1 for update", ids[2])
            go.set()

            async def others() -> bool:
                left = await pool.fetch("select id from deeds._job")
                return [row["id"] for row in left] == [ids[2]]

            await until(others)
        await reach(database, *["done"] * 10)


async def test_jobs_that_end_together_are_one_statement(database: Database, database_urls: Urls) -> None:
    """200 jobs in 50 slots: their rows are written by few transactions."""
    async with database.write("a") as tx:
        for number in range(200):
            await tx.enqueue(Deed(str(number)))
    async with working(database, database_urls[:1], [DO], Doer(), slots=50):
        await reach(database, *["done"] * 200)
    xids = await database.pools["main"].fetch_value("select count(distinct xmin::text) from deeds._job_done")
    assert xids <= 40


# -- retention -----------------------------------------------------------------------------------------


async def partitions(database: Database) -> list[str]:
    found = await database.pools["main"].fetch(
        "select inhrelid::regclass::text as name from pg_inherits"
        " where inhparent = 'deeds._job_done'::regclass order by 1"
    )
    return [row["name"].removeprefix("deeds._job_done_") for row in found]


async def test_retention_drops_days_and_leaves_the_queue_alone(database: Database) -> None:
    """Days are made ahead, what lay outside of any moves in, and a day that is old enough goes as a whole."""
    store, pool = Store(database, "main"), database.pools["main"]
    history = Days(pool, "deeds", "_job_done", "finished_at")
    await store.finish([(await claim_one(database, store)).run], "w")  # before there is any partition
    assert await partitions(database) == ["rest"]
    assert await pool.fetch_value("select count(*) from deeds._job_done_rest") == 1
    await history.tend(86_400.0)
    today = datetime.now(UTC).date()
    days = [f"{today + timedelta(days=ahead):%Y%m%d}" for ahead in range(3)]
    assert await partitions(database) == [*days, "rest"]
    assert await pool.fetch_value("select count(*) from deeds._job_done_rest") == 0
    assert await pool.fetch_value("select count(*) from deeds._job_done") == 1
    old = today - timedelta(days=3)
    name = f"deeds._job_done_{old:%Y%m%d}"
    await pool.execute(
        f"create table {name} partition of deeds._job_done"
        f" for values from ('{old}T00:00:00Z') to ('{old + timedelta(days=1)}T00:00:00Z')"
    )
    await pool.execute(f"update deeds._job_done set finished_at = '{old}T12:00:00Z'")
    await history.tend(10 * 86_400.0)
    assert await pool.fetch_value(f"select count(*) from {name}") == 1
    await history.tend(86_400.0)
    assert await partitions(database) == [*days, "rest"]
    assert await pool.fetch_value("select count(*) from deeds._job_done") == 0


async def test_a_worker_makes_the_days_when_it_begins(database: Database, database_urls: Urls) -> None:
    """Not when its upkeep comes for the first time: what is done until then would move under a lock."""
    async with working(database, database_urls[:1], [DO], Doer(), upkeep=3600.0):

        async def made() -> bool:
            return len(await partitions(database)) > 1

        await until(made)


async def test_a_worker_that_freezes_while_it_makes_a_day_stops_nobody(database: Database) -> None:
    """Whoever uses the history waits for its lock: the server takes that from a worker that says no more."""
    store, pool = Store(database, "main"), database.pools["main"]
    history, run = Days(pool, "deeds", "_job_done", "finished_at"), (await claim_one(database, store)).run
    holds, thawed = asyncio.Event(), asyncio.Event()

    async def freeze(tx: Any) -> bool:
        await history._make(datetime.now(UTC).date(), tx)
        holds.set()
        return await thawed.wait()

    frozen = asyncio.create_task(history._alone(freeze))
    try:
        await holds.wait()
        async with asyncio.timeout(60.0):
            await store.finish([run], "w")
    finally:
        thawed.set()
        (error,) = await asyncio.gather(frozen, return_exceptions=True)
    assert isinstance(error, DatabaseUnavailable)
    assert await partitions(database) == ["rest"]
    assert await pool.fetch_value("select count(*) from deeds._job_done") == 1
    await history.tend(86_400.0)
    assert len(await partitions(database)) == 4


async def test_retention_does_not_wait_for_readers(database: Database) -> None:
    """While somebody reads the history in a long transaction, nothing queues behind the drop of a day."""
    history, pool = Days(database.pools["main"], "deeds", "_job_done", "finished_at"), database.pools["main"]
    await history.tend(86_400.0)
    old = datetime.now(UTC).date() - timedelta(days=9)
    await pool.execute(
        f"create table deeds._job_done_{old:%Y%m%d} partition of deeds._job_done"
        f" for values from ('{old}T00:00:00Z') to ('{old + timedelta(days=1)}T00:00:00Z')"
    )
    async with pool.transaction() as tx:
        await tx.fetch("select count(*) from deeds._job_done")
        await history.tend(0.0)  # ends, and leaves the day
        assert f"{old:%Y%m%d}" in await partitions(database)
    await history.tend(0.0)
    assert f"{old:%Y%m%d}" not in await partitions(database)


# -- upgrades ------------------------------------------------------------------------------------------

OLD_JOB = """
insert into deeds._job (bucket, id, kind, version, payload, context, priority, state, attempt, max_attempts,
    run_at, enqueued_at, finished_at, worker, leased_until)
select 7, gen_random_uuid(), 'deed.do', 1, '{"what":"old"}', '{}', 1, state,
    case when state = 'ready' then 0 else 1 end, 3,
    now() - interval '1 min', now() - interval '1 min',
    case when state in ('done', 'dead') then now() end, case when state <> 'ready' then 'old worker' end,
    case when state = 'running' then now() + interval '1 s' end
from unnest(array['ready', 'ready', 'running', 'done', 'done', 'dead']) as state
"""

OLD_END = "update deeds._job set state = 'done', finished_at = clock_timestamp() where state = 'running'"


async def test_an_installation_from_before_the_history_is_upgraded_with_its_jobs(
    database_urls: Urls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`db migrate` keeps jobs of every state; workers of both versions may run until the roll-out is over:
    what the old one finishes in place is moved, what it has claimed is run again."""
    newest, before, module = migrate._OWN, tmp_path / "before", tmp_path / "module"
    before.mkdir()
    for path in newest.glob("000[1-5]_*.sql"):
        shutil.copy(path, before)
    module.mkdir()
    (module / "0001_effect.sql").write_text(EFFECT)
    async with pools(database_urls[:1], size=8) as started:
        pool = started["main"]
        monkeypatch.setattr(migrate, "_OWN", before)
        await Migrator("deeds", module, started).apply()
        await pool.execute(OLD_JOB)
        monkeypatch.setattr(migrate, "_OWN", newest)
        assert await Migrator("deeds", module, started).apply()
        database = Database("deeds", ShardMap.even(["main"]), started, enqueue=Enqueuer())
        assert sorted(row["state"] for row in await rows(database)) == [
            "dead", "done", "done", "ready", "ready", "running",
        ]  # fmt: skip
        await pool.execute(OLD_JOB)
        await pool.execute(OLD_END + " and ctid = (select min(ctid) from deeds._job where state = 'running')")
        doer = Doer()
        async with working(database, database_urls[:1], [DO_ONCE], doer):

            async def over() -> bool:
                left = await pool.fetch("select state from deeds._job")
                return [row["state"] for row in left] == ["dead", "dead"]

            await until(over)
        assert len(doer.calls) == 5  # four that were ready, one whose old worker renewed nothing any more
        assert len(await rows(database, "state = 'done'")) == 10
