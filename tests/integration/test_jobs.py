"""Jobs on real PostgreSQL: enqueued with the transaction, run, retried, finished once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from tests.jobs_support import (
    DO,
    DO_ONCE,
    Deed,
    Doer,
    Heard,
    add,
    deeds,
    reach,
    rows,
    states,
    until,
    worker,
    working,
)

from springtide.context import CausalityToken, Position, Priority, RequestContext, Trace, activate, current
from springtide.db import Bucket, Database, bucket_of
from springtide.errors import ConfigurationError, DeadlineExceeded, JobError, JobFailed, Unavailable
from springtide.jobs import Enqueuer, Handler, Run, enqueue, job
from springtide.outbox.days import Days
from springtide.signals import JobFinished, JobsMeasured

Urls = tuple[str, str]


@pytest.fixture
async def database(database_urls: Urls, tmp_path: Path) -> AsyncIterator[Database]:
    async with deeds(database_urls, tmp_path / "migrations", size=8) as made:
        yield made


READ = """
    SELECT pg_stat_get_xact_tuples_returned('deeds._job'::regclass) AS scanned,
        pg_stat_get_xact_tuples_returned('deeds._job_ready'::regclass) AS ready,
        pg_stat_get_xact_tuples_returned('deeds._job_pkey'::regclass) AS named
"""
"""Of this transaction: rows of `_job` that were read by scans of the table, and entries of two indexes."""


async def effects(database: Database) -> list[str]:
    return sorted(row["what"] for row in await database.scatter("select what from deeds.effect"))


# -- enqueueing ----------------------------------------------------------------------------------------


async def test_a_job_runs_once_on_whichever_shard(database: Database, database_urls: Urls) -> None:
    """Jobs of both shards are run, each once, and their rows end as done in their key's bucket."""
    doer = Doer()
    wanted = [f"deed {number}" for number in range(30)]
    async with working(database, database_urls, [DO], doer):
        for what in wanted:
            await add(database, what)
        found = await reach(database, *["done"] * 30)
    assert sorted(what for what, _ in doer.calls) == sorted(wanted)
    assert {row["bucket"] for row in found} == {bucket_of(what) for what in wanted}
    assert len({database.shards.shard_of(Bucket(row["bucket"])) for row in found}) == 2


async def test_a_transaction_that_is_rolled_back_leaves_no_job(database: Database) -> None:
    """Neither an exception nor a savepoint undone leaves a job."""
    with pytest.raises(RuntimeError, match="undone"):
        async with database.write("a") as tx:
            await tx.enqueue(Deed("a"))
            raise RuntimeError("undone")
    async with database.write("b") as tx:
        with pytest.raises(RuntimeError, match="undone"):
            async with tx.savepoint() as inner:
                await inner.enqueue(Deed("b"))
                raise RuntimeError("undone")
        kept = await tx.enqueue(Deed("kept"))
    assert [row["id"] for row in await rows(database)] == [kept]


async def test_late_commits_are_not_skipped(database: Database, database_urls: Urls) -> None:
    """Eight writers whose transactions commit in another order than they began: every job is run."""
    doer = Doer()
    dice = random.Random(7)

    async def write(writer: int) -> None:
        for number in range(10):
            async with database.write(f"{writer}/{number}") as tx:
                await tx.enqueue(Deed(f"{writer}/{number}"))
                await tx.fetch("select pg_sleep($1)", dice.uniform(0, 0.03))

    async with working(database, database_urls, [DO], doer):
        await asyncio.gather(*(write(writer) for writer in range(8)))
        await reach(database, *["done"] * 80)
    assert len(doer.calls) == len({what for what, _ in doer.calls}) == 80


async def test_what_cannot_run_is_refused_where_it_is_enqueued(database: Database) -> None:
    class Plain(msgspec.Struct, frozen=True):
        pass

    database.enqueue = Enqueuer(names=["deed.do/1"])

    @job(kind="deed.do", version=2)
    class Deed2(msgspec.Struct, frozen=True):
        pass

    async with database.write("a") as tx:
        for faulty, options, message in (
            (Plain(), {}, "Plain is not declared as a job"),
            (Deed2(), {}, r"no handler for deed.do/2 \(it has: deed.do/1\)"),
            (Deed("a"), {"delay": -1}, "delay must be >= 0"),
            (Deed("a"), {"delay": 1, "run_at": datetime.now(UTC)}, "either delay or run_at"),
            (Deed("a"), {"run_at": datetime.now(UTC).replace(tzinfo=None)}, "run_at must have a time zone"),
            (Deed("a"), {"unique_key": ""}, "unique_key must be a string of 1 to"),
            (Deed("a"), {"unique_key": "\0"}, "without NUL"),
            (Deed("a" * 70_000), {}, "store what it is about"),
        ):
            with pytest.raises(JobError, match=message):
                await tx.enqueue(faulty, **options)
    assert await rows(database) == []
    database.enqueue = None
    async with database.write("a") as tx:
        with pytest.raises(ConfigurationError, match="without jobs"):
            await tx.enqueue(Deed("a"))
        await enqueue(tx, Deed("a"))  # needs no composition root
    assert await states(database) == ["ready"]


async def test_hostile_text_survives(database: Database, database_urls: Urls) -> None:
    """Every character, NUL included, reaches the handler; one in an error is kept readable."""
    text = "\0 \u2028 \U0001f30a ' \\ \" \x7f"

    async def fail(deed: Deed, run: Run) -> None:
        raise JobFailed(deed.what)

    doer = Doer(fail)
    async with working(database, database_urls, [DO], doer):
        await add(database, text)
        (row,) = await reach(database, "dead")
    assert [what for what, _ in doer.calls] == [text]
    assert row["error"] == "JobFailed: " + text.replace("\0", "\ufffd")


async def test_a_unique_job_waits_once(database: Database, database_urls: Urls) -> None:
    """Of jobs with one key only one waits, at the earlier time; what begins frees the key."""
    first = await add(database, "a", unique_key="k", delay=3600)
    assert await add(database, "a", unique_key="k", delay=7200) == first
    (row,) = await rows(database)
    assert timedelta(minutes=50) < row["run_at"] - row["enqueued_at"] < timedelta(minutes=61)
    other = await add(database, "a", unique_key="other", delay=3600)
    assert other != first
    release = asyncio.Event()

    async def wait(deed: Deed, run: Run) -> None:
        await release.wait()

    doer = Doer(wait)
    async with working(database, database_urls, [DO], doer):
        assert await add(database, "a", unique_key="k") == first  # now it is due
        await until(lambda: doer.calls)
        second = await add(database, "a", unique_key="k")
        assert second != first  # the first may have read what was there before
        await until(lambda: len(doer.calls) == 2)
        release.set()
        await reach(database, "done", "ready", "done")


async def test_a_unique_job_cannot_begin_before_the_last_who_asked_for_it_commits(
    database: Database, database_urls: Urls
) -> None:
    """Whoever enqueues a key that is taken keeps that job from starting until its own data is visible."""
    seen: list[int] = []

    async def count(deed: Deed, run: Run) -> None:
        seen.append(await database.scatter_sum("select count(*) from deeds.effect"))

    await add(database, "a", unique_key="k", delay=0.3)
    async with working(database, database_urls, [DO], Doer(count)):
        async with database.write("a") as tx:
            await tx.enqueue(Deed("a"), unique_key="k")
            await tx.fetch("select pg_sleep(1)")  # it is due meanwhile
            await tx.execute("insert into deeds.effect (bucket, what) values ($1, 'written')", bucket_of("a"))
        await reach(database, "done")
    assert seen == [1]


async def test_a_job_that_has_waited_for_long_knows_what_its_last_caller_has_seen(
    database: Database, database_urls: Urls
) -> None:
    """Also of other clusters, where no claim says how far the log is."""
    seen: list[str] = []

    async def look(deed: Deed, run: Run) -> None:
        context = current()
        assert context is not None
        seen.append(context.causality.encode())

    await add(database, "a", unique_key="k", delay=3600)
    for pool in database.pools.values():
        await pool.execute("update deeds._job set enqueued_at = enqueued_at - interval '1 hour'")
    with activate(RequestContext(causality=CausalityToken({"elsewhere": Position(1, 255)}))):
        await add(database, "a", unique_key="k")
    async with working(database, database_urls, [DO], Doer(look)):
        await reach(database, "done")
    assert seen == ["elsewhere:1:FF"]


# -- order and time ------------------------------------------------------------------------------------


async def test_priority_comes_before_age(database: Database, database_urls: Urls) -> None:
    """One slot: critical first, then normal, then bulk; the older first within a class."""
    order = [Priority.BULK, Priority.NORMAL, Priority.CRITICAL, Priority.NORMAL, Priority.CRITICAL]
    async with database.write("same") as tx:
        for number, priority in enumerate(order):
            await tx.enqueue(Deed(f"{priority.name} {number}"), priority=priority)
    doer = Doer()
    async with working(database, database_urls, [DO], doer, slots=1):
        await reach(database, *["done"] * 5)
    assert [what for what, _ in doer.calls] == [
        "CRITICAL 2", "CRITICAL 4", "NORMAL 1", "NORMAL 3", "BULK 0",
    ]  # fmt: skip


async def test_a_delayed_job_does_not_run_early(database: Database, database_urls: Urls) -> None:
    """By the database's clock; delayed critical jobs hold up nobody."""
    doer = Doer()
    async with database.write("same") as tx:
        for number in range(20):
            await tx.enqueue(Deed(f"later {number}"), delay=3600, priority=Priority.CRITICAL)
        await tx.enqueue(Deed("soon"), run_at=datetime.now(UTC) + timedelta(seconds=0.5))
        await tx.enqueue(Deed("now"), priority=Priority.BULK)
    async with working(database, database_urls, [DO], doer):
        await until(lambda: len(doer.calls) == 2)
        await reach(database, *["ready"] * 20, "done", "done")
    assert sorted(what for what, _ in doer.calls) == ["now", "soon"]
    assert all(row["started_at"] >= row["run_at"] for row in await rows(database, "state = 'done'"))


async def test_claims_read_the_index(database: Database) -> None:
    """Behind ten thousand delayed and done jobs, a claim reads a few pages."""
    pool = database.pools["main"]
    await pool.execute(
        "insert into deeds._job (bucket, id, kind, version, payload, context, priority, state, max_attempts,"
        " run_at, enqueued_at) select 1, gen_random_uuid(), 'deed.do', 1, '{}', '{}', n % 3,"
        " (array['ready', 'done'])[n % 2 + 1], 3, now() + '1 hour', now() from generate_series(1, 20000) as n"
    )
    await pool.execute("analyze deeds._job")
    store = worker(database, ("", ""), [DO], Doer())._dispatcher._lines[0].store
    async with pool.transaction() as tx:
        for _ in range(7):  # past asyncpg's and PostgreSQL's custom plans
            plan = await tx.fetch_value(
                f"explain (analyze, buffers, format json) {store.statements.claim}",
                *(["deed.do/1"], 10, "w", 30.0, store.cursor.floors),
            )
    assert plan[0]["Plan"]["Shared Hit Blocks"] + plan[0]["Plan"]["Shared Read Blocks"] < 60, plan


async def test_plans_of_an_idle_queue_serve_a_burst(database: Database) -> None:
    """Plans that were made while little was there are kept; claims and ends still go to single rows."""
    pool = database.pools["main"]
    store = worker(database, ("", ""), [DO], Doer())._dispatcher._lines[0].store
    ids, ones = ",".join(str(UUID(int=number)) for number in range(1, 51)), f"{{{','.join(['1'] * 50)}}}"
    claim = (["deed.do/1"], 50, "w", 30.0, store.cursor.floors)
    asked: list[tuple[str, tuple[Any, ...]]] = [
        (store.statements.claim, claim),
        (store.statements.turn, (*claim, ones, f"{{{ids}}}", ones, None)),
        (store.statements.finish, (ones, f"{{{ids}}}", ones, "w", None)),
        (store.statements.read, (store.cursor.floors,)),
    ]
    add = """
        insert into deeds._job (bucket, id, kind, version, payload, context, priority, state, worker,
            attempt, max_attempts, run_at, enqueued_at)
        select 1, lpad(to_hex(n), 32, '0')::uuid, 'deed.do', 1, '{}', '{}', n % 3,
            case when n > 50 then 'ready' else 'running' end, case when n <= 50 then 'w' end, 1, 3,
            now() + make_interval(secs => $3), now()
        from generate_series($1::int, $2::int) as n
    """
    for emptied in ("few", "truncate", "vacuum full analyze", "grown"):
        if emptied in ("few", "grown"):
            await pool.execute(add, 20_001, 20_300 if emptied == "few" else 40_000, 3600.0)
            if emptied == "grown":
                await pool.execute("delete from deeds._job")
        else:
            await pool.execute(f"{emptied} deeds._job")
        await store.keep_room()
        await pool.execute("vacuum analyze deeds._job")
        async with pool.transaction() as tx:
            for sql, arguments in asked * 7:  # past asyncpg's and PostgreSQL's custom plans
                await tx.fetch(sql, *arguments)
            await pool.execute(add, 1, 10_000, -1.0)
            before = await tx.fetch_one(READ)
            for sql, arguments in asked:
                await tx.fetch(sql, *arguments)
            after = await tx.fetch_one(READ)
        rows = {name: after[name] - before[name] for name in ("scanned", "ready", "named")}
        assert rows["scanned"] == 0 and 100 <= rows["ready"] < 1000 > rows["named"], (emptied, rows)
        assert await pool.fetch_value("select count(*) from deeds._job where state = 'running'") == 100
        await pool.execute("delete from deeds._job")


# -- failing -------------------------------------------------------------------------------------------


async def test_a_failure_is_tried_again(database: Database, database_urls: Urls) -> None:
    """Runs are counted, the key of the job stays the same, and the last error stays visible meanwhile."""

    async def fail_twice(deed: Deed, run: Run) -> None:
        if run.attempt < 3:
            raise OSError(f"no luck in run {run.attempt}")

    doer, heard = Doer(fail_twice), Heard()
    async with working(database, database_urls, [DO], doer, sink=heard):
        await add(database, "a")
        (row,) = await reach(database, "done")
    assert row["attempt"] == 3
    assert [run.attempt for _, run in doer.calls] == [1, 2, 3]
    assert len({run.key for _, run in doer.calls}) == 1 and str(row["id"]) in doer.calls[0][1].key
    assert [signal.outcome for signal in heard.of(JobFinished)] == ["retry", "retry", "done"]
    assert heard.of(JobFinished)[0].error == "OSError: no luck in run 1"


async def test_poison_reaches_the_dead_letters(database: Database, database_urls: Urls) -> None:
    """After max_attempts runs the job is dead: kept, with its error, and not run again."""

    async def fail(deed: Deed, run: Run) -> None:
        raise ValueError("poison")

    doer, heard = Doer(fail), Heard()
    async with working(database, database_urls, [DO], doer, sink=heard, keep_done=0.0):
        await add(database, "a")
        (row,) = await reach(database, "dead")
        await until(lambda: any(signal.dead == 1 for signal in heard.of(JobsMeasured)))
    assert len(doer.calls) == row["attempt"] == 3
    assert row["error"] == "ValueError: poison" and row["finished_at"] is not None
    assert [signal.outcome for signal in heard.of(JobFinished)] == ["retry", "retry", "dead"]


async def test_a_handler_can_say_that_trying_again_cannot_help(
    database: Database, database_urls: Urls
) -> None:
    async def refuse(deed: Deed, run: Run) -> None:
        raise JobFailed("no such user")

    doer = Doer(refuse)
    async with working(database, database_urls, [DO], doer):
        await add(database, "a")
        (row,) = await reach(database, "dead")
    assert len(doer.calls) == 1 and row["error"] == "JobFailed: no such user"


async def test_retry_after_is_respected(database: Database, database_urls: Urls) -> None:
    @job(kind="deed.patient", backoff=0.01, max_backoff=100.0)
    class Patient(msgspec.Struct, frozen=True):
        pass

    async def refuse(doer: Doer, deed: Patient, run: Run) -> None:
        raise Unavailable("come back later", retry_after=50.0)

    async with working(database, database_urls, [Handler(Patient, refuse)], Doer()):
        async with database.write("a") as tx:
            await tx.enqueue(Patient())
        await until(lambda: _error(database))
    (row,) = await rows(database)
    assert row["state"] == "ready"
    assert row["run_at"] - row["started_at"] >= timedelta(seconds=49)


async def _error(database: Database) -> str | None:
    error: str | None = (await rows(database))[0]["error"]
    return error


async def test_a_run_ends_at_max_run(database: Database, database_urls: Urls) -> None:
    """A handler that waits for ever is cancelled; its statements have the same deadline."""

    @job(kind="deed.slow", max_run=0.3, max_attempts=1)
    class Slow(msgspec.Struct, frozen=True):
        sql: bool

    seen: list[BaseException] = []

    async def slow(doer: Doer, deed: Slow, run: Run) -> None:
        try:
            if deed.sql:
                await database.read("a").fetch("select pg_sleep(30)")
            await asyncio.Event().wait()
        except BaseException as error:
            seen.append(error)
            raise

    async with working(database, database_urls, [Handler(Slow, slow)], Doer()):
        for sql in (False, True):
            async with database.write("a") as tx:
                await tx.enqueue(Slow(sql))
        found = await reach(database, "dead", "dead")
    assert all(row["error"].startswith("DeadlineExceeded: ") for row in found)
    assert {type(error) for error in seen} <= {asyncio.CancelledError, DeadlineExceeded}


async def test_a_handler_that_cancels_itself_has_failed(database: Database, database_urls: Urls) -> None:
    """A CancelledError that nobody sent is an error like any other."""

    async def cancel(deed: Deed, run: Run) -> None:
        raise asyncio.CancelledError

    doer = Doer(cancel)
    async with working(database, database_urls, [DO], doer):
        await add(database, "a")
        await reach(database, "dead")
    assert len(doer.calls) == 3


async def test_what_cannot_be_read_is_a_dead_letter(database: Database, database_urls: Urls) -> None:
    """A payload that is not of its kind is kept with the reason; jobs behind it run."""
    doer = Doer()
    await add(database, "a")
    await database.pools[database.shards.shard_of("a")].execute(
        "update deeds._job set payload = '{\"what\": 1}'"
    )
    await add(database, "b")
    async with working(database, database_urls, [DO], doer):
        found = await reach(database, "dead", "done")
    assert "cannot be read as deed.do/1" in found[0]["error"] and "`str`" in found[0]["error"]


# -- unknown kinds, rolling deploys --------------------------------------------------------------------


async def test_unknown_kinds_are_parked_and_run_when_somebody_knows_them(
    database: Database, database_urls: Urls
) -> None:
    """In a rolling deploy the old worker neither drops nor counts a new version; the new one runs it."""

    @job(kind="deed.do", version=2)
    class Deed2(msgspec.Struct, frozen=True):
        what: str
        how: str

    done: list[Deed2] = []

    async def do2(doer: Doer, deed: Deed2, run: Run) -> None:
        done.append(deed)

    old, new = Doer(), Doer()
    async with working(database, database_urls, [DO], old):
        async with database.write("a") as tx:
            await tx.enqueue(Deed2("a", "quickly"))
        await add(database, "b")
        parked, _ = await reach(database, "parked", "done")
        assert parked["attempt"] == 0 and "no worker knows" in parked["error"]
        async with working(database, database_urls, [DO, Handler(Deed2, do2)], new):
            found = await reach(database, "done", "done")
    assert done == [Deed2("a", "quickly")] and found[0]["attempt"] == 1 and found[0]["error"] is None


# -- what a handler gets -------------------------------------------------------------------------------


async def test_a_job_continues_the_request_that_enqueued_it(database: Database, database_urls: Urls) -> None:
    """Trace and request id go on, in a span of its own; priority, attempt and deadline are the job's."""
    contexts: list[RequestContext | None] = []

    async def look(deed: Deed, run: Run) -> None:
        contexts.append(current())

    trace = Trace.new()
    heard = Heard()
    with activate(RequestContext(request_id="r-1", trace=trace, deadline=None)):
        await add(database, "a", priority=Priority.BULK)
    async with working(database, database_urls, [DO], Doer(look), sink=heard):
        await reach(database, "done")
    (context,) = contexts
    assert context is not None and context.trace is not None
    assert (context.request_id, context.priority, context.attempt) == ("r-1", Priority.BULK, 1)
    assert context.trace.trace_id == trace.trace_id and context.trace.parent_id == trace.span_id
    assert context.deadline is not None
    assert heard.of(JobFinished)[0].request_id == "r-1"


async def test_transactional_effects_happen_with_the_end_of_the_job(
    database: Database, database_urls: Urls
) -> None:
    """A failed run leaves nothing; the successful one leaves its effect and a finished job, in one commit."""
    writers: list[int] = []

    async def write(deed: Deed, run: Run) -> None:
        async with database.write(deed.what) as tx:  # the module's own store joins
            await tx.execute(
                "insert into deeds.effect (bucket, what) values ($1, $2)", bucket_of(deed.what), deed.what
            )
        writers.append(await run.tx.fetch_value("select pg_current_xact_id()::text::bigint"))
        if run.attempt == 1:
            raise OSError("after the effect")

    for pool in database.pools.values():  # else what is done moves into its day's partition when that is made
        await Days(pool, "deeds", "_job_done", "finished_at").tend(86_400.0)
    async with working(database, database_urls, [DO_ONCE], Doer(write)):
        await add(database, "a")
        (row,) = await reach(database, "done")
    assert await effects(database) == ["a"]
    pool = database.pools[database.shards.shard_of(Bucket(row["bucket"]))]
    xids = await pool.fetch_one(
        "select (select xmin::text::bigint from deeds.effect) as effect, (select xmin::text::bigint"
        " from deeds._job_done) as job"
    )
    assert xids is not None
    assert len(writers) == 2 and xids["job"] == writers[-1]


async def test_only_transactional_handlers_have_the_transaction(
    database: Database, database_urls: Urls
) -> None:
    async def ask(deed: Deed, run: Run) -> None:
        _ = run.tx

    async with working(database, database_urls, [DO], Doer(ask)):
        await add(database, "a")
        (row,) = await reach(database, "dead")
    assert 'effect="transactional"' in row["error"]


# -- upkeep --------------------------------------------------------------------------------------------


async def test_depth_and_age_are_measured(database: Database, database_urls: Urls) -> None:
    """Every state of every kind is counted, kinds without a job as 0."""
    heard = Heard()
    release = asyncio.Event()

    async def wait(deed: Deed, run: Run) -> None:
        await release.wait()

    for number in range(3):
        await add(database, "same", unique_key=str(number))
    async with working(database, database_urls, [DO], Doer(wait), slots=1, sink=heard):
        shard = database.shards.shard_of("same")

        def measured() -> bool:
            return any(
                (signal.ready, signal.running) == (2, 1) and signal.age > 0 and signal.shard == shard
                for signal in heard.of(JobsMeasured)
            )

        await until(measured)
        await until(lambda: any(s.shard != shard for s in heard.of(JobsMeasured)))
        assert {(s.kind, s.ready) for s in heard.of(JobsMeasured) if s.shard != shard} == {("deed.do", 0)}
        release.set()
        await reach(database, "done", "done", "done")
