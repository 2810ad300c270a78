"""What a job may ask for besides its time: an order, a deadline, company, a place for its result."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.jobs_support import (
    DO,
    Deed,
    Doer,
    add,
    deeds,
    reach,
    rows,
    states,
    until,
    working,
)

from springtide.context import Priority, RequestContext, activate, current
from springtide.db import Database, bucket_of
from springtide.errors import DeadlineExceeded, JobError, JobFailed, JobLost
from springtide.jobs import Enqueuer, Handler, Run, Upcast, enqueue_many, job, look, result
from springtide.jobs._store import Store

Urls = tuple[str, str]
KINDS = ["deed.do/1"]


@pytest.fixture
async def database(database_urls: Urls, tmp_path: Path) -> AsyncIterator[Database]:
    async with deeds(database_urls, tmp_path / "migrations", size=8) as made:
        yield made


# -- many at once --------------------------------------------------------------------------------------


async def test_many_jobs_are_one_statement_and_run(database: Database, database_urls: Urls) -> None:
    """Of several kinds, with the context of the request, in ids of their order; none if it is rolled back."""

    @job(kind="deed.other", priority=Priority.BULK)
    class Other(msgspec.Struct, frozen=True):
        number: int

    async def other(doer: Doer, what: Other, run: Run) -> None:
        doer.calls.append((f"other {what.number}", run))

    doer = Doer()
    jobs = [*(Deed(f"deed {number}") for number in range(50)), *(Other(number) for number in range(50))]
    with pytest.raises(RuntimeError, match="undone"):
        async with database.write("a") as tx:
            await tx.enqueue_many(jobs)
            raise RuntimeError("undone")
    with activate(RequestContext(request_id="r-1")):
        async with database.write("a") as tx:
            ids = await tx.enqueue_many(jobs)
            assert await tx.enqueue_many([]) == []
    assert ids == sorted(ids) and len(set(ids)) == 100
    found = {row["id"]: row for row in await rows(database)}
    assert [found[id]["kind"] for id in ids] == ["deed.do"] * 50 + ["deed.other"] * 50
    assert {(row["bucket"], row["context"]["request_id"]) for row in found.values()} == {
        (bucket_of("a"), "r-1")
    }
    assert {(row["kind"], row["priority"], row["max_attempts"]) for row in found.values()} == {
        ("deed.do", 1, 3), ("deed.other", 2, 15),
    }  # fmt: skip
    async with working(database, database_urls, [DO, Handler(Other, other)], doer, slots=20):
        await reach(database, *["done"] * 100)
    wanted = {f"deed {number}" for number in range(50)} | {f"other {number}" for number in range(50)}
    assert {what for what, _ in doer.calls} == wanted and len(doer.calls) == 100


async def test_a_time_that_has_passed_is_now(database: Database) -> None:
    """A job waits from when it could run for the first time, so its age tells how far behind the queue is."""
    long_ago = datetime(2001, 1, 1, tzinfo=UTC)
    async with database.write("a") as tx:
        await tx.enqueue(Deed("a"), run_at=long_ago)
        await enqueue_many(tx, [Deed("b")], run_at=long_ago)
    found = await database.scatter("select run_at, due_at, enqueued_at from deeds._job")
    assert [row["due_at"] == row["run_at"] >= row["enqueued_at"] for row in found] == [True, True]


async def test_many_wake_the_worker_and_keep_their_options(database: Database) -> None:
    async with database.write("a") as tx:
        await enqueue_many(tx, [Deed("a")], delay=3600, priority=Priority.CRITICAL, deadline=7200.0)
    (row,) = await rows(database)
    assert timedelta(minutes=59) < row["run_at"] - row["enqueued_at"] < timedelta(minutes=61)
    assert row["priority"] == Priority.CRITICAL
    shard = database.pools[database.shards.shard_of("a")]
    left = await shard.fetch_value("select deadline - enqueued_at from deeds._job")
    assert left == timedelta(seconds=7200)


async def test_what_cannot_run_is_refused_with_all_that_came_along(database: Database) -> None:
    database.enqueue = Enqueuer(names=KINDS)

    @job(kind="deed.unknown")
    class Unknown(msgspec.Struct, frozen=True):
        pass

    async with database.write("a") as tx:
        with pytest.raises(JobError, match=r"no handler for deed\.unknown/1"):
            await tx.enqueue_many([Deed("a"), Unknown()])
        with pytest.raises(JobError, match=r"must be a value, such as Deed\(...\), got the class"):
            await tx.enqueue(Deed)
        with pytest.raises(JobError, match="store what it is about"):
            await tx.enqueue_many([Deed("a"), Deed("a" * 70_000)])
        with pytest.raises(JobError, match=r"a job of kind deed\.do cannot be stored as JSON"):
            await tx.enqueue(Deed(object()))  # type: ignore[arg-type]
        for options, message in (
            ({"ordering_key": ""}, "ordering_key must be a string of 1 to 500"),
            ({"ordering_key": 7}, "ordering_key must be a string of 1 to 500 characters without NUL, got 7"),
            ({"run_at": 7.5}, "run_at must have a time zone, got 7.5"),
            ({"deadline": 0}, "deadline must be > 0 seconds"),
            ({"deadline": "x"}, "deadline must be > 0 seconds and at most ten years, got 'x'"),
            ({"delay": "5"}, "delay must be >= 0 seconds and at most ten years, got '5'"),
            ({"priority": 99}, "priority must be one of Priority's CRITICAL, NORMAL, BULK, got 99"),
            ({"deadline": datetime.now(UTC).replace(tzinfo=None)}, "deadline must have a time zone"),
            ({"delay": 1, "run_at": datetime.now(UTC)}, "either delay or run_at"),
        ):
            with pytest.raises(JobError, match=message):
                await tx.enqueue_many([Deed("a")], **options)
            with pytest.raises(JobError, match=message):
                await tx.enqueue(Deed("a"), **options)
    assert await rows(database) == []


# -- order ---------------------------------------------------------------------------------------------


async def test_jobs_of_a_key_run_one_after_the_other_in_their_order(
    database: Database, database_urls: Urls
) -> None:
    """Over two workers with free slots, with failures in between; other keys and jobs do not wait."""
    order: dict[str, list[int]] = {"x": [], "y": []}
    at_once: dict[str, int] = {"x": 0, "y": 0}
    most: dict[str, int] = {"x": 0, "y": 0}
    failed: set[str] = set()

    async def act(deed: Deed, run: Run) -> None:
        key, _, number = deed.what.partition(" ")
        if key not in order:
            return
        at_once[key] += 1
        most[key] = max(most[key], at_once[key])
        try:
            await asyncio.sleep(0.005)
            if number == "5" and key not in failed:
                failed.add(key)
                raise OSError("once")
            order[key].append(int(number))
        finally:
            at_once[key] -= 1

    async with database.write("a") as tx:
        for key in ("x", "y"):
            await tx.enqueue_many([Deed(f"{key} {number}") for number in range(15)], ordering_key=key)
        for number in range(15, 20):
            for key in ("x", "y"):
                await tx.enqueue(Deed(f"{key} {number}"), ordering_key=key)
        await tx.enqueue_many([Deed("free") for _ in range(10)])
    one, two = Doer(act), Doer(act)
    async with (
        working(database, database_urls, [DO], one, slots=4),
        working(database, database_urls, [DO], two, slots=4),
    ):

        async def over() -> bool:
            return await states(database) == ["done"] * 50

        await until(over)
    assert order == {"x": list(range(20)), "y": list(range(20))}
    assert most == {"x": 1, "y": 1} and failed == {"x", "y"}


async def test_a_claim_takes_one_job_of_a_key_and_holds_the_others(database: Database) -> None:
    """However many wait for one key, those behind them are claimed at once; who waits is visible."""
    store = Store(database, database.shards.shard_of("a"))
    async with database.write("a") as tx:
        ids = await tx.enqueue_many([Deed(str(number)) for number in range(30)], ordering_key="k")
        behind = await tx.enqueue(Deed("behind"))
    claimed = await store.claim(KINDS, 4, "w", 30.0)
    assert {job.run.id for job in claimed} == {ids[0], behind}
    counts = {
        row["state"] for row in await rows(database, "id <> all (array(select id from deeds._job_done))")
    }
    assert counts == {"running", "held"}
    assert await store.claim(KINDS, 4, "w", 30.0) == []
    (first,) = [job for job in claimed if job.run.id == ids[0]]
    assert await store.finish([first.run], "w", ordered=True) == {ids[0]}
    (second,) = await store.claim(KINDS, 4, "w", 30.0)
    assert second.run.id == ids[1] and second.ordering_key == "k"


async def test_a_job_that_waits_for_its_retry_holds_its_key_and_a_dead_one_does_not(
    database: Database, database_urls: Urls
) -> None:
    from springtide.jobs._store import Ending

    store = Store(database, database.shards.shard_of("a"))
    async with database.write("a") as tx:
        ids = await tx.enqueue_many([Deed("1"), Deed("2"), Deed("3")], ordering_key="k")
    (first,) = await store.claim(KINDS, 4, "w", 30.0)
    assert await store.end(first.run, "w", Ending("ready", error="x", delay=3600), ordering_key="k")
    assert await store.claim(KINDS, 4, "w", 30.0) == []
    await store.pool.execute("update deeds._job set run_at = now() where id = $1", ids[0])
    (first,) = await store.claim(KINDS, 4, "w", 30.0)
    assert first.run.id == ids[0]
    assert await store.end(first.run, "w", Ending("dead", error="x"), ordering_key="k")
    (second,) = await store.claim(KINDS, 4, "w", 30.0)
    assert second.run.id == ids[1]
    await store.pool.execute(
        "delete from deeds._job where id = $1", ids[1]
    )  # by hand: nobody lets the third go
    assert await store.claim(KINDS, 4, "w", 30.0) == []
    assert await store.free() == 1 and await store.free() == 0
    (third,) = await store.claim(KINDS, 4, "w", 30.0)
    assert third.run.id == ids[2]


async def test_the_end_of_a_job_waits_for_a_claim_that_is_about_to_hold_the_next(database: Database) -> None:
    """Else the next would be held with nobody left to let it go."""
    store = Store(database, database.shards.shard_of("a"))
    async with database.write("a") as tx:
        ids = await tx.enqueue_many([Deed("1"), Deed("2")], ordering_key="k")
    (first,) = await store.claim(KINDS, 1, "w", 30.0)
    ending: asyncio.Task[set[Any]] | None = None
    async with store.pool.transaction() as tx2:
        met = await tx2.fetch(store.statements.claim, KINDS, 5, "other", 30.0, store.cursor.floors)
        assert [row["waits"] for row in met] == [True]
        ending = asyncio.create_task(store.finish([first.run], "w", ordered=True))

        async def waits() -> bool:
            return bool(
                await tx2.fetch_value(
                    "select count(*) from pg_locks where not granted and pid <> pg_backend_pid()"
                )
            )

        await until(waits)
    assert await ending == {ids[0]}
    (second,) = await store.claim(KINDS, 5, "w", 30.0)
    assert second.run.id == ids[1]


# -- deadlines -----------------------------------------------------------------------------------------


async def test_a_job_whose_deadline_has_passed_is_not_run(database: Database, database_urls: Urls) -> None:
    """It is a dead letter that says so; one with time left has that deadline in its context."""
    seen: list[float] = []

    async def act(deed: Deed, run: Run) -> None:
        context = current()
        assert context is not None and context.deadline is not None
        seen.append(context.remaining(database.clock.monotonic()) or 0.0)

    await add(database, "late", deadline=datetime.now(UTC) - timedelta(seconds=1))
    await add(database, "in time", deadline=3.0)
    await add(database, "any time", deadline=3600.0)
    doer = Doer(act)
    async with working(database, database_urls, [DO], doer):
        late, *_ = await reach(database, "dead", "done", "done")
    assert late["error"] == "DeadlineExceeded: its deadline had passed before it was run"
    assert sorted(what for what, _ in doer.calls) == ["any time", "in time"]
    assert 0 < min(seen) <= 3.0 < max(seen) <= 5.0  # max_run


async def test_what_is_too_late_is_no_run_that_failed(database: Database, database_urls: Urls) -> None:
    """Claimed beside others that wait, jobs whose deadline has passed are dead letters at once."""

    async def wait(deed: Deed, run: Run) -> None:
        await asyncio.sleep(0)

    async with database.write("a") as tx:
        await tx.enqueue_many([Deed("waits"), Deed("waits")])
        await tx.enqueue_many([Deed("late")] * 3, deadline=datetime.now(UTC) - timedelta(seconds=1))
    async with working(database, database_urls, [DO], Doer(wait)):
        found = await reach(database, "done", "done", "dead", "dead", "dead")
    assert [row["attempt"] for row in found if row["state"] == "dead"] == [1, 1, 1]


async def test_a_run_ends_at_the_deadline_of_its_job(database: Database, database_urls: Urls) -> None:
    """Though it may take longer by max_run; and it is not tried after it."""

    async def wait(deed: Deed, run: Run) -> None:
        await asyncio.Event().wait()

    doer = Doer(wait)
    async with working(database, database_urls, [DO], doer):
        await add(database, "a", deadline=0.5)
        (row,) = await reach(database, "dead")
    assert row["error"].startswith("DeadlineExceeded") and len(doer.calls) <= 2


# -- versions ------------------------------------------------------------------------------------------


@job(kind="deed.grown", version=3)
class Grown(msgspec.Struct, frozen=True):
    what: str
    how: str
    often: int


def _how(fields: dict[str, Any]) -> dict[str, Any]:
    return {**fields, "how": "well"}


def _often(fields: dict[str, Any]) -> dict[str, Any]:
    if fields["what"] == "bad":
        raise KeyError("often")
    return {**fields, "often": 1}


UPCASTS = (Upcast(1, _how), Upcast(2, _often))


async def test_older_versions_are_read_by_the_newest_handler(database: Database, database_urls: Urls) -> None:
    """Each step makes the next version of it. What a step cannot read is a dead letter with the reason."""

    @job(kind="deed.grown", version=1)
    class First(msgspec.Struct, frozen=True):
        what: str

    @job(kind="deed.grown", version=2)
    class Second(msgspec.Struct, frozen=True):
        what: str
        how: str

    done: list[Grown] = []

    async def grown(doer: Doer, what: Grown, run: Run) -> None:
        done.append(what)

    async with database.write("a") as tx:
        for one in (First("a"), Second("b", "slowly"), Grown("c", "well", 3), First("bad")):
            await tx.enqueue(one)
    async with working(database, database_urls, [Handler(Grown, grown, upcasts=UPCASTS)], Doer()):
        found = await reach(database, "done", "done", "done", "dead")
    assert sorted(done, key=lambda one: one.what) == [
        Grown("a", "well", 1), Grown("b", "slowly", 1), Grown("c", "well", 3),
    ]  # fmt: skip
    assert found[3]["error"] == "cannot be made of deed.grown/1: KeyError: 'often'"


# -- results and progress ------------------------------------------------------------------------------


@job(kind="deed.sum", result=True, max_attempts=1)
class Sum(msgspec.Struct, frozen=True):
    numbers: list[int]


async def test_a_result_is_kept_and_waited_for(database: Database, database_urls: Urls) -> None:
    """Of both effects; progress is seen meanwhile; a dead letter raises, and so does what takes too long."""
    go = asyncio.Event()

    async def add_up(doer: Doer, what: Sum, run: Run) -> dict[str, int]:
        await run.progress({"done": 0.5})
        await go.wait()
        if not what.numbers:
            raise ValueError("nothing to add")
        return {"sum": sum(what.numbers)}

    async with working(database, database_urls, [Handler(Sum, add_up)], Doer()):
        async with database.write("a") as tx:
            good, bad = await tx.enqueue(Sum([1, 2])), await tx.enqueue(Sum([]))

        async def half() -> bool:
            found = await look(database, "a", good)
            return found is not None and found.progress == {"done": 0.5}

        await until(half)
        with pytest.raises(DeadlineExceeded, match=r"waiting for the job .* \(running\)"):
            await result(database, "a", good, 0.05)
        with pytest.raises(JobError, match="id must be a UUID, got 'xx'"):
            await result(database, "a", "xx", 0.05)  # type: ignore[arg-type]
        with pytest.raises(JobError, match="timeout must be >= 0 seconds, got '5'"):
            await result(database, "a", good, "5")  # type: ignore[arg-type]
        hurry = RequestContext(deadline=database.clock.monotonic() + 0.05)
        with activate(hurry), pytest.raises(DeadlineExceeded):
            await result(database, "a", good, 3600.0)
        go.set()
        assert await result(database, "a", good, 60.0) == {"sum": 3}
        with pytest.raises(JobFailed, match="ValueError: nothing to add"):
            await result(database, "a", bad, 60.0)
        with pytest.raises(JobError, match="no job"):
            await result(database, "elsewhere", good, 60.0)
        found = await look(database, "a", good)
        assert found is not None and (found.state, found.attempt) == ("done", 1)

    async def at_once(doer: Doer, what: Sum, run: Run) -> int:
        return sum(what.numbers)

    async with working(database, database_urls, [Handler(Sum, at_once, effect="transactional")], Doer()):
        async with database.write("a") as tx:
            third = await tx.enqueue(Sum([4, 5]))
        assert await result(database, "a", third, 60.0) == 9


@job(kind="deed.said", result=True)
class Said(msgspec.Struct, frozen=True):
    what: str


@pytest.mark.parametrize("effect", ["any", "transactional"])
async def test_what_cannot_be_kept_is_a_dead_letter_at_once(
    database: Database, database_urls: Urls, effect: Any
) -> None:
    """PostgreSQL's JSON has no NUL: a run that returned one would be written down again and again, and run
    again. What only looks like one is kept; so it is with progress."""
    refused: list[str] = []

    async def say(doer: Doer, said: Said, run: Run) -> str:
        try:
            await run.progress(said.what)
        except JobError as error:
            refused.append(str(error))
        return said.what

    async with working(database, database_urls, [Handler(Said, say, effect=effect)], Doer()):
        async with database.write("a") as tx:
            ids = [await tx.enqueue(Said(what)) for what in ("a\0b", "\\\0", "a\\u0000b")]
        for id in ids[:2]:
            with pytest.raises(JobFailed, match=r"its result must be without NUL, got \""):
                await result(database, "a", id, 60.0)
            found = await look(database, "a", id)
            assert found is not None and (found.state, found.attempt) == ("dead", 1)
        assert await result(database, "a", ids[2], 60.0) == "a\\u0000b"
    assert len(refused) == 2 and all("progress must be without NUL" in one for one in refused)


async def test_a_run_that_lost_its_job_reports_nothing(database: Database, database_urls: Urls) -> None:
    lost: list[BaseException] = []

    async def report(deed: Deed, run: Run) -> None:
        for pool in database.pools.values():
            await pool.execute("update deeds._job set worker = 'another'")
        try:
            await run.progress("mine")
        except JobLost as error:
            lost.append(error)
            raise

    async with working(database, database_urls, [DO], Doer(report), lease=60.0, heartbeat=20.0):
        id = await add(database, "a")
        await until(lambda: lost)
        found = await look(database, "a", id)
        assert found is not None and found.progress is None


# -- batches -------------------------------------------------------------------------------------------


class Batches:
    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.fail: set[str] = set()

    async def do(self, jobs: list[Deed], runs: list[Run]) -> list[BaseException | None]:
        self.calls.append([one.what for one in jobs])
        assert [run.key.rpartition(":")[2] for run in runs] == [str(run.id) for run in runs]
        return [OSError(one.what) if one.what in self.fail else None for one in jobs]

    async def write(self, jobs: list[Deed], runs: list[Run]) -> None:
        self.calls.append([one.what for one in jobs])
        for one in jobs:
            await runs[0].tx.execute(
                "insert into deeds.effect (bucket, what) values ($1, $2)", bucket_of(one.what), one.what
            )
        if one.what in self.fail:
            self.fail.clear()
            raise OSError("all of it")


async def test_a_batched_handler_gets_many_jobs_at_once(database: Database, database_urls: Urls) -> None:
    """As many as are there, up to its batch; each ends by itself."""
    batches = Batches()
    batches.fail = {"7"}
    async with database.write("a") as tx:
        await tx.enqueue_many([Deed(str(number)) for number in range(30)])
    handler = Handler(Deed, Batches.do, batch=10)
    async with working(database, database_urls, [handler], batches, slots=20):

        async def over() -> bool:
            return sorted(await states(database)) == ["dead"] + ["done"] * 29

        await until(over)
    assert max(map(len, batches.calls)) == 10
    flat = [what for call in batches.calls for what in call]
    assert sorted(flat, key=int) == sorted([*map(str, range(30)), "7", "7"], key=int)
    (dead,) = await rows(database, "state = 'dead'")
    assert dead["error"] == "OSError: 7" and dead["attempt"] == 3


async def test_a_batch_waits_to_fill_and_not_for_ever(database: Database, database_urls: Urls) -> None:
    """Jobs that come one by one within `wait` are one batch; fewer than a batch run after it."""
    batches = Batches()
    handler = Handler(Deed, Batches.do, batch=3, wait=5.0)
    async with working(database, database_urls, [handler], batches, drain=30.0):
        for number in range(3):
            await add(database, "same", unique_key=str(number))
        await until(lambda: batches.calls)
        assert batches.calls == [["same"] * 3]
        await add(database, "alone")
        await until(lambda: len(batches.calls) == 2)
        await reach(database, *["done"] * 4)


async def test_a_batch_that_gathers_at_the_stop_is_run(database: Database, database_urls: Urls) -> None:
    batches = Batches()
    handler = Handler(Deed, Batches.do, batch=100, wait=5.0)
    async with working(database, database_urls, [handler], batches, drain=30.0) as worker:
        await add(database, "a")
        await until(lambda: worker.running)
        assert batches.calls == []
    assert await states(database) == ["done"] and batches.calls == [["a"]]


async def test_a_transactional_batch_is_one_transaction(database: Database, database_urls: Urls) -> None:
    """Its effects and the ends of all its jobs are one commit: first a failure leaves nothing."""
    batches = Batches()
    batches.fail = {"4"}
    async with database.write("a") as tx:
        await tx.enqueue_many([Deed(str(number)) for number in range(5)])
    handler = Handler(Deed, Batches.write, effect="transactional", batch=10)
    async with working(database, database_urls, [handler], batches):
        await reach(database, *["done"] * 5)
    assert len(batches.calls) >= 2
    effects = await database.scatter("select what from deeds.effect")
    assert sorted(row["what"] for row in effects) == [str(number) for number in range(5)]


async def test_a_job_that_was_lost_undoes_its_batch_and_the_others_run_again(
    database: Database, database_urls: Urls
) -> None:
    """The shared transaction could not end it: it is undone, and what is still ours runs again."""
    batches = Batches()
    first = asyncio.Event()
    real = batches.write

    async def write(doer: Any, jobs: list[Deed], runs: list[Run]) -> None:
        await real(jobs, runs)
        if not first.is_set():
            first.set()
            stolen = "update deeds._job set worker = 'another' where convert_from(payload, 'UTF8') ~ 'stolen'"
            for pool in database.pools.values():
                await pool.execute(stolen)

    async with database.write("a") as tx:
        await tx.enqueue_many([Deed("a"), Deed("stolen"), Deed("b")])
    handler = Handler(Deed, write, effect="transactional", batch=10)
    async with working(database, database_urls, [handler], batches, lease=60.0, heartbeat=20.0):

        async def over() -> bool:
            return sorted(await states(database)) == ["done", "done", "running"]

        await until(over)
    found = await rows(database, "state = 'done'")
    assert [row["attempt"] for row in found] == [1, 1]
    effects = await database.scatter("select what from deeds.effect")
    assert sorted(row["what"] for row in effects) == ["a", "b"]


async def test_what_fails_again_and_again_is_alone_in_its_batch(
    database: Database, database_urls: Urls
) -> None:
    """A job that kills its worker costs the others of its batch two attempts, not all of them."""
    batches = Batches()
    async with database.write("a") as tx:
        await tx.enqueue_many([Deed(str(number)) for number in range(4)])
        await tx.execute("update deeds._job set attempt = 2 where convert_from(payload, 'UTF8') like '%3%'")
    async with working(database, database_urls, [Handler(Deed, Batches.do, batch=10)], batches):
        await reach(database, *["done"] * 4)
    assert sorted(batches.calls, key=len) == [["3"], ["0", "1", "2"]]


async def test_a_batch_that_takes_too_long_is_cancelled(database: Database, database_urls: Urls) -> None:
    @job(kind="deed.slow", max_run=0.3, max_attempts=1)
    class Slow(msgspec.Struct, frozen=True):
        number: int

    async def wait(doer: Any, jobs: list[Slow], runs: list[Run]) -> None:
        await asyncio.Event().wait()

    async with database.write("a") as tx:
        await tx.enqueue_many([Slow(number) for number in range(3)])
    async with working(database, database_urls, [Handler(Slow, wait, batch=5)], None):
        found = await reach(database, "dead", "dead", "dead")
    assert all(row["error"].startswith("DeadlineExceeded: ") for row in found)


async def test_a_batched_handler_must_answer_for_each_job(database: Database, database_urls: Urls) -> None:
    async def wrong(doer: Any, jobs: list[Deed], runs: list[Run]) -> list[None]:
        return [None] * 3

    async with database.write("a") as tx:
        await tx.enqueue_many([Deed("a"), Deed("b")])
    async with working(database, database_urls, [Handler(Deed, wrong, batch=5)], None):
        found = await reach(database, "dead", "dead")
    assert all("must return None, or None or an exception for each" in row["error"] for row in found)
