"""Leases, shutdown, wake-up: who may run a job, for how long, and what becomes of it when something dies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import msgspec
import pytest
from tests._pooler import PoolerServer
from tests.jobs_support import (
    DO,
    DO_ONCE,
    Deed,
    Doer,
    Heard,
    add,
    deeds,
    listening,
    reach,
    rows,
    states,
    until,
    worker,
    working,
)
from tests.servers import PostgresServer

from springtide.db import Database
from springtide.db.pool import Pool
from springtide.errors import JobError
from springtide.jobs import Enqueuer, Handler, Run, job
from springtide.jobs._store import Store
from springtide.lifecycle import Group
from springtide.outbox import Bell, Listener
from springtide.signals import JobFinished
from springtide.testing import stress
from springtide.testing.faults import FaultProxy

Urls = tuple[str, str]


@pytest.fixture
async def database(database_urls: Urls, tmp_path: Path) -> AsyncIterator[Database]:
    async with deeds(database_urls, tmp_path / "migrations", size=8) as made:
        yield made


async def everywhere(database: Database, sql: str) -> None:
    for pool in database.pools.values():
        await pool.execute(sql)


# -- leases --------------------------------------------------------------------------------------------


async def test_a_job_longer_than_its_lease_is_started_once(database: Database, database_urls: Urls) -> None:
    """Its lease is renewed while it runs; a second worker that looks for expired leases leaves it alone."""

    async def take_long(deed: Deed, run: Run) -> None:
        await asyncio.sleep(4.5)

    one, two = Doer(take_long), Doer(take_long)
    async with (
        working(database, database_urls, [DO], one, lease=2.0, heartbeat=0.3, stall=1.5),
        working(database, database_urls, [DO], two, lease=2.0, heartbeat=0.3, stall=1.5),
    ):
        await add(database, "a")
        (row,) = await reach(database, "done")
    assert len(one.calls) + len(two.calls) == row["attempt"] == 1


async def test_what_waited_beyond_its_lease_is_not_begun(database: Database, database_urls: Urls) -> None:
    """The process stood still between a claim and its jobs: somebody else may have them."""
    doer, heard = Doer(), Heard()
    async with working(database, database_urls, [DO], doer, slots=1, sink=heard) as made:
        dispatcher = made._dispatcher
        dispatcher.carry(True)  # it claims nothing
        await add(database, "a")
        for line in dispatcher._lines:
            claimed = await line.store.claim(line.names, 1, dispatcher.worker, 30.0)
            dispatcher.room.take(line, claimed, asyncio.get_running_loop().time() - 60.0)
        await until(lambda: heard.of(JobFinished))
        dispatcher.carry(False)
        await reach(database, "done")
    assert [signal.outcome for signal in heard.of(JobFinished)] == ["returned", "done"]
    assert [run.attempt for _, run in doer.calls] == [1]


async def test_a_lost_lease_cancels_the_handler(database: Database, database_urls: Urls) -> None:
    """When somebody else has the job, the handler is told at the next heartbeat, and it cannot finish it."""
    ended: list[str] = []

    async def wait(deed: Deed, run: Run) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    doer, heard = Doer(wait), Heard()
    async with working(database, database_urls, [DO], doer, sink=heard):
        await add(database, "a")
        await until(lambda: doer.calls)
        await everywhere(database, "update deeds._job set worker = 'another'")
        await until(lambda: heard.of(JobFinished))
        assert ended == ["cancelled"]
        assert heard.of(JobFinished)[0].outcome == "lost"
        (row,) = await rows(database)
        assert (row["state"], row["worker"]) == ("running", "another")
        await everywhere(database, "update deeds._job set state = 'done'")


async def test_only_the_run_in_charge_finishes_a_job(database: Database, database_urls: Urls) -> None:
    """A run whose job was taken over meanwhile writes nothing, and its transactional effect is undone."""
    go = asyncio.Event()

    async def write(deed: Deed, run: Run) -> None:
        await run.tx.execute("insert into deeds.effect (bucket, what) values (0, 'mine')")
        await go.wait()

    doer, heard = Doer(write), Heard()
    async with working(database, database_urls, [DO_ONCE], doer, sink=heard, lease=60.0, heartbeat=20.0):
        await add(database, "a")
        await until(lambda: doer.calls)
        await everywhere(database, "update deeds._job set worker = 'another', attempt = 2")
        go.set()
        await until(lambda: heard.of(JobFinished))
        assert heard.of(JobFinished)[0].outcome == "lost"
        (row,) = await rows(database)
        assert (row["state"], row["worker"], row["attempt"]) == ("running", "another", 2)
        assert await database.scatter("select what from deeds.effect") == []
        await everywhere(database, "update deeds._job set state = 'done'")


async def test_a_hung_handler_is_not_renewed_for_ever(
    database: Database, database_urls: Urls, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that ignores its cancellation loses the job after max_run; another worker runs it again."""
    monkeypatch.setattr("springtide.jobs._hands.GRACE", 0.2)
    release = asyncio.Event()

    @job(kind="deed.hang", max_run=0.3)
    class Hang(msgspec.Struct, frozen=True):
        pass

    calls: list[str] = []

    async def hang(name: str, deed: Hang, run: Run) -> None:
        calls.append(f"{name} {run.attempt}")
        while run.attempt == 1 and not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    heard = Heard()
    async with working(database, database_urls, [Handler(Hang, hang)], "one", sink=heard):
        async with database.write("a") as tx:
            await tx.enqueue(Hang())
        await until(lambda: calls)
        try:
            async with working(database, database_urls, [Handler(Hang, hang)], "two"):
                (row,) = await reach(database, "done")
            assert row["attempt"] == 2 and len(calls) == 2
        finally:
            release.set()  # the hung run ends at last, and finishes nothing
        await until(lambda: any(signal.outcome == "lost" for signal in heard.of(JobFinished)))
        (row,) = await rows(database)
        assert (row["state"], row["attempt"]) == ("done", 2)


async def test_leases_are_renewed_without_the_pool(database_urls: Urls, tmp_path: Path) -> None:
    """With every connection of the pool taken by jobs, leases are still renewed."""
    async with deeds(database_urls[:1], tmp_path / "m", size=2, reserved=0, acquire_timeout=15.0) as database:

        async def hog(deed: Deed, run: Run) -> None:
            async with database.pools["main"].acquire():
                await asyncio.sleep(4.0)

        doer = Doer(hog)
        async with working(
            database, database_urls[:1], [DO], doer, slots=2, lease=2.0, heartbeat=0.3, stall=1.5
        ):
            await add(database, "a")
            await add(database, "b")
            await reach(database, "done", "done")
    assert [run.attempt for _, run in doer.calls] == [1, 1]


async def test_an_expired_lease_without_attempts_is_a_dead_letter(
    database: Database, database_urls: Urls
) -> None:
    """A job that killed its workers max_attempts times is not tried again."""
    await add(database, "a")
    await everywhere(
        database,
        "update deeds._job set state = 'running', worker = 'gone', attempt = max_attempts,"
        " leased_until = clock_timestamp() - interval '1 s'",
    )
    doer, heard = Doer(), Heard()
    async with working(database, database_urls, [DO], doer, sink=heard):
        (row,) = await reach(database, "dead")
    assert doer.calls == [] and "gone stopped renewing" in row["error"]
    assert [signal.outcome for signal in heard.of(JobFinished)] == ["dead"]


async def test_a_job_that_kills_its_workers_takes_no_others_along(database: Database) -> None:
    """Twenty jobs are claimed with it as long as they are due together: it alone ends as a dead letter.

    Its worker dies at once, whatever else it holds; one without it finishes what it has. There is another
    worker half a second after the next job has become due.
    """
    async with database.write("same") as tx:
        await tx.enqueue_many([Deed("kills"), *[Deed("good")] * 20])
    await everywhere(database, "update deeds._job set max_attempts = 15")
    (shard,) = [name for name, pool in database.pools.items() if await pool.fetch("select from deeds._job")]
    store, pool = Store(database, shard), database.pools[shard]
    while await pool.fetch("select 1 from deeds._job where state = 'ready'"):
        await pool.execute(
            "update deeds._job set run_at = run_at - interval '0.5 s'"
            " - greatest(next.due - clock_timestamp(), interval '0 s')"
            " from (select min(run_at) as due from deeds._job where state = 'ready') as next"
            " where state = 'ready'"
        )
        claimed = await store.claim(["deed.do/1"], 50, "gone", -1.0)
        if any(job.payload == b'{"what":"kills"}' for job in claimed):
            await store.rescue(whole=True)
        else:
            assert len(await store.finish([job.run for job in claimed], "gone")) == len(claimed) > 0
    dead = await pool.fetch("select payload from deeds._job where state = 'dead'")
    assert [bytes(row["payload"]) for row in dead] == [b'{"what":"kills"}']
    assert await pool.fetch_value("select count(*) from deeds._job_done") == 20
    assert await pool.fetch_value("select max(attempt) from deeds._job_done") < 15


async def test_many_that_were_lost_together_become_ready_far_apart(database: Database) -> None:
    """As sparsely as few do: the worker that meets the one that kills holds few others again."""
    async with database.write("same") as tx:
        await tx.enqueue_many([Deed("good")] * 400)
    (shard,) = [name for name, pool in database.pools.items() if await pool.fetch("select from deeds._job")]
    store, pool = Store(database, shard), database.pools[shard]
    for lost, most in ((1, 0.0), (2, 20.0)):
        assert len(await store.claim(["deed.do/1"], 400, "gone", -1.0)) == 400
        assert len(await store.rescue(whole=True)) == 400
        (row,) = await pool.fetch(
            "select max(attempt) as attempt, extract(epoch from max(run_at) - min(run_at))::float8 as apart"
            " from deeds._job"
        )
        assert row["attempt"] == lost and most * 0.8 <= row["apart"] <= most


async def test_a_finishing_transaction_does_not_hold_up_other_leases(
    database: Database, database_urls: Urls
) -> None:
    """While one job's row is locked (a COMMIT that waits), the leases of the others are renewed."""
    go = asyncio.Event()

    async def wait(deed: Deed, run: Run) -> None:
        await go.wait()

    doer = Doer(wait)
    async with working(database, database_urls, [DO], doer, lease=2.0, heartbeat=0.3, stall=1.5):
        async with database.write("same") as tx:
            ids = [await tx.enqueue(Deed(what)) for what in ("one", "two")]
        await until(lambda: len(doer.calls) == 2)
        pool = database.pools[database.shards.shard_of("same")]
        async with pool.transaction() as tx2:
            await tx2.execute("select from deeds._job where id = $1 for update", ids[0])
            begun = await tx2.fetch_value("select leased_until from deeds._job where id = $1", ids[1])

            async def renewed_often() -> bool:
                now = await pool.fetch_value("select leased_until from deeds._job where id = $1", ids[1])
                return bool((now - begun).total_seconds() > 0.7)

            await until(renewed_often)
        go.set()
        await reach(database, "done", "done")
    assert len(doer.calls) == 2


# -- shutdown ------------------------------------------------------------------------------------------


async def test_stop_lets_running_jobs_finish_and_takes_no_more(
    database: Database, database_urls: Urls
) -> None:
    """What runs is finished within the drain, what waits is left ready and untouched."""

    async def take_a_while(deed: Deed, run: Run) -> None:
        await asyncio.sleep(0.4)

    doer = Doer(take_a_while)
    async with database.write("same") as tx:
        for number in range(5):
            await tx.enqueue(Deed(str(number)))
    async with working(database, database_urls, [DO], doer, slots=2):
        await until(lambda: len(doer.calls) == 2)
    found = await rows(database)
    assert sorted(row["state"] for row in found) == ["done", "done", "ready", "ready", "ready"]
    assert all(row["attempt"] == (row["state"] == "done") for row in found)
    assert len(doer.calls) == 2


async def test_stop_hands_back_what_does_not_finish(database: Database, database_urls: Urls) -> None:
    """After the drain the handler is cancelled; the job is ready at once and the run is not counted."""

    async def wait(deed: Deed, run: Run) -> None:
        if len(doer.calls) == 1:
            await asyncio.Event().wait()

    doer, heard = Doer(wait), Heard()
    async with working(database, database_urls, [DO], doer, sink=heard, drain=0.2):
        await add(database, "a")
        await until(lambda: doer.calls)
    (row,) = await rows(database)
    assert (row["state"], row["attempt"], row["worker"]) == ("ready", 0, None)
    assert [signal.outcome for signal in heard.of(JobFinished)] == ["returned"]
    async with working(database, database_urls, [DO], doer):
        await reach(database, "done")
    assert [run.attempt for _, run in doer.calls] == [1, 1]


async def test_a_claim_under_way_at_the_stop_is_handed_back(
    database_urls: Urls, tmp_path: Path, postgres: PostgresServer
) -> None:
    """Jobs that a claim brings after the stop began are not started, and are ready for others."""
    async with FaultProxy(target=postgres.port) as proxy:
        url = database_urls[0].replace(f":{postgres.port}/", f":{proxy.port}/")
        async with deeds([url], tmp_path / "m", size=4) as slow:
            doer = Doer()
            made = worker(slow, [url], [DO], doer, lease=60.0, heartbeat=20.0)
            await made.start()
            answer = proxy.on(b"deed.do", "stall", side="server")  # the server has claimed, we do not know
            async with Pool(database_urls[0], size=1, reserved=0) as direct:
                await add(Database("deeds", slow.shards, {"main": direct}, enqueue=slow.enqueue), "a")
            await answer
            stopping = asyncio.create_task(made.stop())
            while made._dispatcher.state != "stopping":
                await asyncio.sleep(0)
            proxy.resume()
            await stopping
            (row,) = await rows(slow)
    assert (row["state"], row["attempt"], row["worker"]) == ("ready", 0, None)
    assert doer.calls == []


async def test_a_worker_survives_storms_of_start_stop_and_cancel(
    database: Database, database_urls: Urls
) -> None:
    """The last call decides, a stopped worker leaves no task and no job in its hands."""
    doer = Doer()
    for number in range(20):
        await add(database, str(number))

    def whole() -> Group:
        """As a platform composes it: the worker above pools of its own."""
        pools = {
            name: Pool(url, cluster=name, size=4, reserved=1)
            for name, url in zip(("main", "second"), database_urls, strict=True)
        }
        own = Database("deeds", database.shards, pools)
        return Group("all", [*pools.values(), worker(own, database_urls, [DO], doer, drain=1.0)])

    await stress(whole, storms=5, pause=0.05, timeout=60.0)
    assert set(await states(database)) <= {"ready", "done"}
    assert len(doer.calls) == len({what for what, _ in doer.calls})


async def test_bell_and_listener_survive_storms(database_urls: Urls) -> None:
    await stress(Bell, storms=4)
    await stress(
        lambda: Listener(lambda: database_urls[0], cluster="main", heard=lambda _: None, poll=1.0),
        storms=4,
        pause=0.05,
    )


# -- wake-up -------------------------------------------------------------------------------------------


async def test_a_commit_wakes_the_worker(database: Database, database_urls: Urls) -> None:
    """Without a poll within a minute, a job is run because of the bell alone."""
    doer = Doer()
    async with working(database, database_urls, [DO], doer, poll=60.0):
        await listening(database)
        for number in range(5):
            await add(database, str(number))
            await until(lambda: len(doer.calls) == number + 1)  # noqa: B023 - awaited at once


async def test_what_is_not_due_yet_rings_nothing(database: Database, database_urls: Urls) -> None:
    """Not by a time and not by a delay, of one job and of many; what is due at once does."""
    rung = list[str]()
    listener = await asyncpg.connect(database_urls[0])
    key = next(key for key in map(str, range(100)) if database.shards.shard_of(key) == "main")
    bell = Bell()
    database.enqueue = Enqueuer(bell=bell)
    await bell.start()
    try:
        await listener.add_listener("springtide_outbox", lambda *heard: rung.append("bell"))
        for later in ({"run_at": datetime.now(UTC) + timedelta(days=1)}, {"delay": 60.0}):
            async with database.write(key) as tx:
                await tx.enqueue(Deed(key), **later)
            async with database.write(key) as tx:
                await tx.enqueue_many([Deed(key)], **later)
            await until(lambda: not bell._sending)
            await listener.execute("NOTIFY springtide_outbox")
            await until(lambda: rung)
            assert rung == ["bell"]  # the test's own, and what had been rung would have come before
            rung.clear()
        async with database.write(key) as tx:
            await tx.enqueue_many([Deed(key)], run_at=datetime.now(UTC))
        await until(lambda: rung)
    finally:
        await bell.stop()
        await listener.close()


async def test_without_the_bell_workers_poll(database_urls: Urls, tmp_path: Path) -> None:
    """A job whose bell nobody heard is run all the same."""
    async with deeds(database_urls, tmp_path / "m", size=4) as database:
        database.enqueue = Enqueuer()
        doer = Doer()
        async with working(database, database_urls, [DO], doer, poll=0.2):
            await listening(database)
            await add(database, "a")
            await until(lambda: doer.calls)


async def test_a_listener_that_loses_its_connection_listens_again(
    database: Database, database_urls: Urls
) -> None:
    """Killed by the server, it connects again and reports everything as new."""
    heard: list[str | None] = []
    listener = Listener(lambda: database_urls[0], cluster="main", heard=heard.append, poll=1.0)
    await listener.start()
    try:
        await until(lambda: heard == [None])
        await database.pools["main"].execute(
            "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database()"
            " and application_name = 'springtide listener'"
        )
        await until(lambda: heard == [None, None])
        await database.pools["main"].execute("select pg_notify('springtide_outbox', 'deeds')")
        await until(lambda: heard == [None, None, "deeds"])
    finally:
        await listener.stop()


async def test_a_silent_connection_is_found_out(database_urls: Urls, postgres: PostgresServer) -> None:
    """A connection on which nothing arrives any more, without a sign, is replaced."""
    heard: list[str | None] = []
    async with FaultProxy(target=postgres.port) as proxy:
        url = database_urls[0].replace(f":{postgres.port}/", f":{proxy.port}/")
        listener = Listener(lambda: url, cluster="main", heard=heard.append, poll=1.0, probe=0.2)
        await listener.start()
        try:
            await until(lambda: heard == [None])
            proxy.stall()
            await until(lambda: proxy.accepted > 1, seconds=30.0)
            proxy.resume()
            await until(lambda: len(heard) > 1)
        finally:
            await listener.stop()


@pytest.mark.needs("pgbouncer")
@pytest.mark.parametrize("sessions", [1, 4])
async def test_behind_a_transaction_pooler_a_listener_says_that_it_hears_nothing(
    database_urls: Urls,
    own_pooler: Callable[..., PoolerServer],
    caplog: pytest.LogCaptureFixture,
    sessions: int,
) -> None:
    """Once, however often it connects, by shard and address, and without the password; also where the one
    session of the server listens and is the one that tells."""
    pooler = own_pooler({"main": database_urls[0]}, server_connections=sessions)
    url, heard = pooler.url("main"), list[str | None]()
    listener = Listener(lambda: url, cluster="main", heard=heard.append, poll=2.5, probe=0.2)
    await listener.start()
    try:
        await until(lambda: warnings(caplog))
        pooler.stop()
        pooler.start()
        await until(lambda: len(heard) > 1)
    finally:
        await listener.stop()
    (warning,) = warnings(caplog)
    assert "outbox listener main" in warning
    assert f"{urlsplit(url).hostname}:{urlsplit(url).port}" in warning
    assert "poll every 2.5 s" in warning
    assert str(urlsplit(url).password) not in warning


async def test_at_the_server_itself_a_listener_warns_of_nothing(
    database_urls: Urls, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even where it is asked whether it hears."""
    heard: list[str | None] = []
    listener = Listener(lambda: database_urls[0], cluster="main", heard=heard.append, poll=1.0)
    await listener.start()
    try:
        await until(lambda: heard)
        raw = await asyncpg.connect(database_urls[0])
        try:
            assert await listener._try(raw, database_urls[0])
        finally:
            await raw.close()
    finally:
        await listener.stop()
    assert not warnings(caplog)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]


async def test_many_commits_are_few_notifications(database: Database, database_urls: Urls) -> None:
    """Rings are coalesced, and none is sent within a producer's transaction."""
    heard: list[str | None] = []
    listener = Listener(lambda: database_urls[0], cluster="main", heard=heard.append, poll=1.0)
    bell = Bell(spacing=0.05)
    await bell.start()
    await listener.start()
    try:
        await until(lambda: heard == [None])
        for _ in range(500):
            bell.ring(database.pools["main"], "deeds")
            bell.ring(database.pools["main"], "other")
        await until(lambda: {"deeds", "other"} <= set(heard))
        await asyncio.sleep(0.15)
        assert len(heard) <= 5
    finally:
        await listener.stop()
        await bell.stop()
    bell.ring(database.pools["main"], "deeds")  # of a stopped bell: nothing
    assert not [task for task in asyncio.all_tasks() if "outbox bell" in task.get_name()]


# -- several databases ---------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [1, 4])
async def test_a_flooded_database_does_not_keep_the_others_waiting(
    database: Database, database_urls: Urls, slots: int
) -> None:
    """Lines take turns: a few jobs on one shard are done long before the flood on the other is."""
    flooded = next(key for key in map(str, range(100)) if database.shards.shard_of(key) == "main")
    quiet = next(key for key in map(str, range(100)) if database.shards.shard_of(key) == "second")
    async with database.write(flooded) as tx:
        for number in range(100):
            await tx.enqueue(Deed(f"flood {number}"))
    async with database.write(quiet) as tx:
        for number in range(5):
            await tx.enqueue(Deed(f"quiet {number}"))
    doer = Doer(lambda deed, run: asyncio.sleep(0.02))  # longer than the first connection takes
    async with working(database, database_urls, [DO], doer, slots=slots):
        await until(lambda: sum(what.startswith("quiet") for what, _ in doer.calls) == 5)
        assert len(doer.calls) < 60


async def test_slots_are_divided_among_those_who_have_work(database: Database, database_urls: Urls) -> None:
    """Jobs that take long on one shard do not get every slot when another shard has jobs too."""
    go = asyncio.Event()

    async def wait(deed: Deed, run: Run) -> None:
        await go.wait()

    for shard in database.shards.shards:
        key = next(key for key in map(str, range(100)) if database.shards.shard_of(key) == shard)
        async with database.write(key) as tx:
            for _ in range(10):
                await tx.enqueue(Deed(shard))
    doer = Doer(wait)
    async with working(database, database_urls, [DO], doer, slots=6):
        await until(lambda: len(doer.calls) == 6)
        assert sorted(what for what, _ in doer.calls) == ["main"] * 3 + ["second"] * 3
        go.set()


async def test_a_frozen_database_does_not_keep_the_others_waiting(
    database_urls: Urls, tmp_path: Path, postgres: PostgresServer
) -> None:
    """While claims on one shard hang, jobs of the other run; the worker stops in bounded time."""
    async with FaultProxy(target=postgres.port) as proxy:
        urls = (database_urls[0], database_urls[1].replace(f":{postgres.port}/", f":{proxy.port}/"))
        async with deeds(urls, tmp_path / "m", size=4) as database:
            quick = [key for key in map(str, range(100)) if database.shards.shard_of(key) == "main"][:20]
            doer = Doer()
            async with working(database, urls, [DO], doer, slots=4, drain=1.0):
                proxy.stall()
                for key in quick:
                    await add(database, key)
                await until(lambda: len(doer.calls) == 20)
                proxy.resume()


async def test_a_worker_stops_although_its_database_is_frozen(
    database_urls: Urls, tmp_path: Path, postgres: PostgresServer
) -> None:
    """With jobs in hand and no answer from the server, stop gives up in bounded time; leases run out."""
    async with FaultProxy(target=postgres.port) as proxy:
        url = database_urls[0].replace(f":{postgres.port}/", f":{proxy.port}/")
        async with deeds([url], tmp_path / "m", size=4) as database:

            async def wait(deed: Deed, run: Run) -> None:
                await asyncio.Event().wait()

            doer = Doer(wait)
            made = worker(database, [url], [DO], doer, drain=0.2, lease=30.0, heartbeat=0.2, stall=5.0)
            await made.start()
            await add(database, "a")
            await until(lambda: doer.calls)
            proxy.stall()
            async with asyncio.timeout(12.0):
                await made.stop()
            assert made.state == "stopped"
            proxy.resume()


# -- the database dies ---------------------------------------------------------------------------------


async def test_a_database_restart_loses_and_doubles_nothing(
    own_postgres: Callable[..., PostgresServer], tmp_path: Path
) -> None:
    """The server is killed while jobs run: every job ends as done, each effect is there once."""
    server = own_postgres()
    url = server.url(server.create_database())
    count = 60
    async with deeds([url], tmp_path / "m", size=6) as database:

        async def write(deed: Deed, run: Run) -> None:
            await run.tx.execute(
                "insert into deeds.effect (bucket, what) values ($1, $2)", run.tx.bucket, deed.what
            )
            await asyncio.sleep(0.02)

        async with database.write("same") as tx:
            for number in range(count):
                await tx.enqueue(Deed(f"{number}"))
        await everywhere(database, "update deeds._job set max_attempts = 50")
        doer = Doer(write)
        async with working(database, [url], [DO_ONCE], doer, slots=4):
            await until(lambda: len(doer.calls) > 10)
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.restart)
            await until(lambda: _done(database, count), seconds=60.0)
            await database.pools["main"].fetch("select 1")
        found = await database.scatter("select what, count(*) as n from deeds.effect group by what")
        assert {row["what"]: row["n"] for row in found} == {str(number): 1 for number in range(count)}


async def _done(database: Database, count: int) -> bool:
    from springtide.errors import SpringtideError

    try:
        return (await states(database)).count("done") == count
    except (SpringtideError, asyncpg.PostgresError):
        return False


# -- options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"slots": 0}, "slots must be >= 1, got 0"),
        ({"slots": 2.5}, "worker: slots must be a whole number, got 2.5"),
        ({"poll": "a"}, "worker: poll must be a finite number of seconds, got 'a'"),
        ({"drain": "a"}, "worker: drain must be >= 0 seconds, got 'a'"),
        ({"lease": "30"}, "worker: lease must be a finite number of seconds, got '30'"),
        ({"lease": 1.0, "heartbeat": 0.5}, "at most a third of lease, got 0.5 of 1.0"),
        ({"poll": 0.0}, "poll must be > 0 seconds, got 0.0"),
        ({"drain": -1.0}, "drain must be >= 0 seconds, got -1.0"),
    ],
)
async def test_faulty_options_are_refused(
    database: Database, database_urls: Urls, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(JobError, match=message):
        worker(database, database_urls, [DO], Doer(), **options)
    with pytest.raises(JobError, match="the address of each shard, none for second"):
        worker(database, database_urls[:1], [DO], Doer())
    with pytest.raises(JobError, match=r"two handlers for deed\.do/1"):
        worker(database, database_urls, [DO, DO_ONCE], Doer())
