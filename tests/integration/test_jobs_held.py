"""Claims while transactions are held open: nothing is passed over, and what has ended is not read again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tests.jobs_support import DO, Deed, Doer, add, deeds, listening, reach, until, working

from springtide.db import Database, bucket_of
from springtide.jobs import _readings
from springtide.jobs._cursor import EVERYTHING
from springtide.jobs._store import Store

Urls = tuple[str, str]
KINDS = ["deed.do/1"]


@pytest.fixture
async def database(database_urls: Urls, tmp_path: Path) -> AsyncIterator[Database]:
    async with deeds(database_urls[:1], tmp_path / "migrations", size=8) as made:
        yield made


@asynccontextmanager
async def held(database: Database, how: str) -> AsyncIterator[None]:
    """A transaction that keeps what others delete: it has a number, or an old snapshot."""
    isolation = "repeatable read" if how == "snapshot" else "read committed"
    async with database.pools["main"].transaction(isolation=isolation) as tx:
        await tx.fetch(
            "select count(*) from deeds._job" if how == "snapshot" else "select pg_current_xact_id()"
        )
        yield


async def churn(database: Database, store: Store, count: int) -> None:
    """So many jobs are enqueued, claimed and done."""
    for start in range(0, count, 250):
        async with database.write("a") as tx:
            for number in range(start, start + 250):
                await tx.enqueue(Deed(str(number)))
        claimed = await store.claim(KINDS, 250, "w", 30.0)
        assert len(await store.finish([job.run for job in claimed], "w")) == len(claimed) == 250
    await caught_up(database, store)


async def caught_up(database: Database, store: Store) -> None:
    """The cursor has passed all that has become ready until now."""
    now: datetime = await database.pools["main"].fetch_value("select clock_timestamp()")

    async def passed() -> bool:
        await store.read()
        return store.cursor.floors[1] >= now

    await until(passed)


async def pages(database: Database, store: Store, floors: list[datetime]) -> int:
    """How many pages a claim touches that begins at `floors`; it is undone."""
    explain = f"explain (analyze, buffers, format json) {store.statements.claim}"
    with pytest.raises(ZeroDivisionError):
        async with database.pools["main"].transaction() as tx:
            plan = await tx.fetch_value(explain, KINDS, 5, "w", 30.0, floors)
            raise ZeroDivisionError
    top = plan[0]["Plan"]
    assert top["Actual Rows"] == 5, plan
    return int(top["Shared Hit Blocks"] + top["Shared Read Blocks"])


@pytest.mark.parametrize("how", ["number", "snapshot"])
async def test_a_held_transaction_does_not_make_claims_longer(database: Database, how: str) -> None:
    """By the pages a claim touches: with the cursor as many after 2,500 jobs as after 500; without it more
    and more, because the entries of all that has ended lie before the first that is ready."""
    store = Store(database, "main")
    found: dict[str, list[int]] = {"cursor": [], "whole": []}
    async with held(database, how):
        for count in (500, 2000):
            await churn(database, store, count)
            async with database.write("a") as tx:
                for number in range(5):
                    await tx.enqueue(Deed(f"waiting {number}"))
            found["cursor"].append(await pages(database, store, store.cursor.floors))
            found["whole"].append(await pages(database, store, [EVERYTHING] * 3))
            for job in await store.claim(KINDS, 5, "w", 30.0):
                assert await store.finish([job.run], "w")
    assert found["cursor"][1] <= found["cursor"][0] + 10, found
    assert found["whole"][1] >= found["whole"][0] + 40, found


async def test_the_end_of_a_run_looks_for_its_row_alone(database: Database) -> None:
    """Finishing, ending, renewing: by the key, not among the leases of all that has ended."""
    store, pool = Store(database, "main"), database.pools["main"]
    texts = store.statements
    async with held(database, "snapshot"):
        await churn(database, store, 1000)
        await pool.execute("analyze deeds._job")
        await add(database, "a")
        (job,) = await store.claim(KINDS, 1, "w", 30.0)
        one = (job.run.bucket, job.run.id, job.run.attempt)
        many = tuple(f"{{{part}}}" for part in one)
        for sql, arguments in (
            (texts.finish, (*many, "w", [None])),
            (texts.turn, (KINDS, 0, "w", 30.0, store.cursor.floors, *many, [None])),
            (texts.finish_one, (*one, "w", None)),
            (texts.end, (*one, "w", "ready", None, 0.0)),
            (texts.hand_back, (*many, "w")),
            (texts.progress, (*one, "w", "1")),
            (texts.renew, (*many, "w", 30.0)),
        ):
            with pytest.raises(ZeroDivisionError):
                async with pool.transaction() as tx:
                    plan = await tx.fetch_value(f"explain (analyze, buffers, format json) {sql}", *arguments)
                    raise ZeroDivisionError
            assert "_job_leased" not in str(plan) and "_job_pkey" in str(plan), plan
            assert plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"] < 60, plan


async def test_rescues_do_not_read_what_has_ended(database: Database) -> None:
    """A rescue begins at the leases that passed since the last one, also while nothing can be vacuumed."""
    store = Store(database, "main")

    async def touched(since: Any) -> int:
        plan = await database.pools["main"].fetch_value(
            f"explain (analyze, buffers, format json) {store.statements.rescue}", since
        )
        assert "_job_leased" in str(plan)
        return int(plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"])

    async with held(database, "snapshot"):
        for start in range(0, 2000, 250):
            async with database.write("a") as tx:
                for number in range(start, start + 250):
                    await tx.enqueue(Deed(str(number)))
            claimed = await store.claim(KINDS, 250, "w", -3600.0)  # leases that passed an hour ago
            await store.finish([job.run for job in claimed], "w")
        assert await store.rescue() == []
        assert store._rescued is not None
        assert await touched(store._rescued - timedelta(minutes=2)) < 30 < await touched(None)


class Late:
    """A transaction of its own that has enqueued a job and commits when it is told to."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._go = asyncio.Event()
        self.enqueued: asyncio.Future[tuple[UUID, datetime]] = asyncio.get_running_loop().create_future()
        self._task = asyncio.create_task(self._hold())

    async def _hold(self) -> None:
        async with self._database.write("late") as tx:
            job = await tx.enqueue(Deed("late"))
            at = await tx.fetch_value("select run_at from deeds._job where id = $1", job)
            self.enqueued.set_result((job, at))
            await self._go.wait()

    async def commit(self) -> None:
        self._go.set()
        await self._task


async def test_a_late_commit_is_claimed_although_the_cursor_is_past_it(database: Database) -> None:
    """Its rows lie below the floor when it commits at last: the next reading goes back for them, and then up
    again."""
    store = Store(database, "main")
    await caught_up(database, store)
    transaction = Late(database)
    late, at = await transaction.enqueued
    await churn(database, store, 250)
    assert store.cursor.floors[1] > at
    assert await store.claim(KINDS, 10, "w", 30.0) == []
    await transaction.commit()
    assert await store.read()
    (job,) = await store.claim(KINDS, 10, "w", 30.0)
    assert job.run.id == late
    await caught_up(database, store)
    assert store.cursor.pending == {}


async def test_a_late_commit_rings_and_is_run_without_polling(
    database: Database, database_urls: Urls
) -> None:
    """A worker that would poll after a minute runs it when it commits."""
    doer = Doer()
    async with working(database, database_urls[:1], [DO], doer, poll=60.0) as worker:
        await listening(database)
        store = worker._dispatcher._lines[0].store
        transaction = Late(database)
        _, at = await transaction.enqueued
        await add(database, "other")
        await until(lambda: len(doer.calls) == 1)
        await until(lambda: store.cursor.floors[1] > at and store.cursor.pending)
        await transaction.commit()
        await until(lambda: len(doer.calls) == 2)
        await reach(database, "done", "done")


async def test_what_is_made_ready_by_hand_is_found(database: Database) -> None:
    """A row with an old time, which no transaction of ours would write, is found by the look below."""
    store = Store(database, "main")
    job = await add(database, "a", delay=3600)
    await caught_up(database, store)
    await database.pools["main"].execute("update deeds._job set run_at = now() - interval '1 hour'")
    assert not await store.check() or store.cursor.floors[1] == EVERYTHING
    (claimed,) = await store.claim(KINDS, 10, "w", 30.0)
    assert claimed.run.id == job


async def test_a_failed_claim_forgets_the_cursor(database: Database) -> None:
    """The next server may not have had the claims of the last one: it is looked at whole."""
    store = Store(database, "main")
    await caught_up(database, store)
    with pytest.raises(Exception, match="invalid"):
        await store.claim([object()], 1, "w", 30.0)  # type: ignore[list-item]
    assert store.cursor.floors == [EVERYTHING] * 3


async def test_the_retry_of_a_job_is_never_below_the_floor(database: Database) -> None:
    """Every way back to ready, of a job that waited below the floor: retry, hand-back, rescue, release."""
    from springtide.jobs._store import Ending

    store = Store(database, "main")
    pool = database.pools["main"]
    for number in range(3):
        await add(database, str(number))
    claimed = await store.claim(KINDS, 3, "w", 30.0)
    await caught_up(database, store)
    before = store.cursor.floors[1]
    assert await store.end(claimed[0].run, "w", Ending("ready", error="x"))
    assert await store.end(claimed[1].run, "w", Ending("ready", uncounted=True))
    await pool.execute("update deeds._job set leased_until = now() where state = 'running'")
    assert len(await store.rescue()) == 1
    ready = await pool.fetch("select id, run_at, due_at from deeds._job where state = 'ready'")
    assert len(ready) == 3 and all(row["run_at"] > before for row in ready)
    await pool.execute("update deeds._job set state = 'parked', run_at = now() - interval '1 hour'")
    assert await store.release(KINDS) == 3
    assert len(await store.claim(KINDS, 10, "w", 30.0)) == 3
    assert bucket_of("0") != bucket_of("1")


async def test_a_worker_has_a_floor_soon_after_its_start(
    database: Database, database_urls: Urls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first claims pass all that was ever claimed: the second reading follows the first one at once."""
    for pause in ("READ_LEAST", "READ_BUSY", "READ_IDLE"):
        monkeypatch.setattr(_readings, pause, 60.0)
    async with working(database, database_urls[:1], [DO], Doer()) as made:
        (line,) = made._dispatcher._lines
        await until(lambda: min(line.store.cursor.floors) > EVERYTHING and not line.reading)
        assert line.read_at > asyncio.get_running_loop().time() + 30.0  # and no third one
