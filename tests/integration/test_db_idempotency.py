"""Idempotency records: one effect per request, whatever is repeated, killed, cut off or late."""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from tests.idempotency_crash import ANSWER, ONCE, STEPS, make_note
from tests.jobs_support import Heard
from tests.servers import PostgresServer
from tests.sharded import notes

from springtide.context import RequestContext, activate
from springtide.db import Bucket, Database, ShardMap, WriteTransaction, bucket_of
from springtide.db.idempotency import Answer, Idempotency, Once, purge
from springtide.db.pool import Pool
from springtide.errors import (
    CommitUnknown,
    DatabaseUnavailable,
    IdempotencyInFlight,
    IdempotencyKeyReused,
    IdempotencyLost,
    WrongShard,
)
from springtide.signals import IdempotencyChecked
from springtide.testing import StatementGuard
from springtide.testing.faults import FaultProxy

COUNT = "select count(*) from notes.note"
RECORDS = "select count(*) from notes._idempotency"


@pytest.fixture
async def db(database_urls: tuple[str, str], tmp_path: Path) -> AsyncIterator[Database]:
    async with notes(database_urls, tmp_path, size=8) as database:
        yield database


@pytest.fixture
async def one(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    async with notes([database_url], tmp_path, size=8) as database:
        yield database


def once(key: str = "a-key", body: str = "body", who: str = "subject 1") -> Once:
    return Once.of((who, "POST", "/notes", key), (body,))


def note(home: int, status: int = 201) -> Callable[[WriteTransaction], Any]:
    async def effect(tx: WriteTransaction) -> Answer:
        id = await tx.fetch_value(
            "insert into notes.note (bucket, id) values ($1, $2) returning id",
            home & 1023,
            (secrets.randbits(40) << 10) + (home & 1023),
        )
        return Answer(status, (("x-id", str(id)),), b"made \xff")

    return effect


@pytest.mark.parametrize("home", [3, 1020])
async def test_a_repetition_gets_the_first_answer_and_does_nothing(db: Database, home: int) -> None:
    """On either shard: status, headers and bytes are the same, the effect is there once."""
    heard = Heard()
    keys = Idempotency(db, sink=heard)
    first = await keys.run(once(), note(home), home=home)
    again = await keys.run(once(), note(home), home=home)
    assert (first.replayed, again.replayed) == (False, True)
    assert again.answer == first.answer
    assert (again.answer.status, again.answer.headers[0][0], again.answer.body) == (201, "x-id", b"made \xff")
    assert await db.scatter_sum(COUNT) == await db.read(home).fetch_value(COUNT) == 1
    assert await db.read(home).fetch_value("select bucket from notes._idempotency") == home
    assert [signal.outcome for signal in heard.of(IdempotencyChecked)] == ["begun", "replayed"]


@pytest.mark.parametrize("home", [3, 1020])
async def test_of_fifty_at_once_one_does_it(db: Database, home: int) -> None:
    """The others hear that it is at work, or its answer; nobody hears anything else."""
    keys = Idempotency(db)

    async def ask() -> str:
        try:
            outcome = await keys.run(once(), note(home), home=home)
        except IdempotencyInFlight as error:
            assert error.retry_after > 0
            return "in flight"
        return "replayed" if outcome.replayed else "done"

    counts = Counter(await asyncio.gather(*(ask() for _ in range(50))))
    assert counts["done"] == 1
    assert counts["in flight"] + counts["replayed"] == 49
    assert await db.scatter_sum(COUNT) == 1


async def test_a_duplicate_of_one_at_work_is_refused_at_once(db: Database) -> None:
    """It waits for nothing, and the first one goes on undisturbed; also while that one's row is locked."""
    keys = Idempotency(db)
    async with keys.claim(once(), home=1) as claim, db.write(1) as tx:
        with pytest.raises(IdempotencyInFlight):
            await asyncio.create_task(_detached(keys.run(once(), note(1), home=1)))
        await claim.finish(tx, ANSWER)
        async with asyncio.timeout(5):
            with pytest.raises(IdempotencyInFlight):
                await asyncio.create_task(_detached(keys.run(once(), note(1), home=1)))
    assert (await keys.run(once(), note(1), home=1)).answer == ANSWER


async def test_nobody_waits_for_a_late_one_that_is_finishing(db: Database) -> None:
    """Its lease is over, and its COMMIT is on the way: a duplicate neither waits nor takes over."""
    keys = Idempotency(db, lease=0.01)
    async with keys.claim(once(), home=1) as claim, db.write(1) as tx:
        await note(1)(tx)
        await claim.finish(tx, ANSWER)
        await asyncio.create_task(_detached(_lease_over(db)))
        async with asyncio.timeout(5):
            with pytest.raises(IdempotencyInFlight):
                await asyncio.create_task(_detached(keys.run(once(), note(1), home=1)))
    assert (await keys.run(once(), note(1), home=1)).answer == ANSWER
    assert await db.scatter_sum(COUNT) == 1


async def test_no_statement_reads_the_whole_table(db: Database) -> None:
    """The record through its primary key, what is old through its index."""
    sql = Idempotency(db)._sql
    async with db.pools["main"].transaction() as tx:
        await tx.execute("set local enable_seqscan = off")
        for statement, args, index in (
            (sql.see, (1, bytes(32)), "_idempotency_pkey"),
            (sql.release, (1, bytes(32), ONCE.id), "_idempotency_pkey"),
            (sql.purge, (10,), "_idempotency_expiry"),
        ):
            plan = "\n".join(row[0] for row in await tx.fetch(f"explain {statement}", *args))
            assert index in plan and "Seq Scan" not in plan, plan


async def _detached(work: Any) -> Any:
    """In a context without the caller's open write."""
    from springtide.db import _writing

    _writing._writes.set(())
    return await work


async def test_another_body_is_refused_and_another_scope_is_another_request(db: Database) -> None:
    """The same key of another user, or on another path, has nothing to do with this one."""
    keys = Idempotency(db)
    await keys.run(once(), note(1), home=1)
    with pytest.raises(IdempotencyKeyReused):
        await keys.run(once(body="other"), note(1), home=1)
    for other in (once(who="subject 2"), Once.of(("subject 1", "PUT", "/notes", "a-key"), ("body",))):
        assert not (await keys.run(other, note(1), home=1)).replayed
    assert await db.scatter_sum(COUNT) == 3
    async with keys.claim(once("slow-key"), home=1):
        with pytest.raises(IdempotencyKeyReused):
            await keys.run(once("slow-key", body="other"), note(1), home=1)


def test_the_parts_of_a_request_cannot_be_shifted() -> None:
    """`ab`+`c` is not `a`+`bc`: where a part ends is hashed too."""
    assert Once.of(("ab", "c"), ()) != Once.of(("a", "bc"), ())
    assert Once.of(("a",), ("b",)).id != Once.of(("a",), ("c",)).id
    assert Once.of(("a",), ("b",)).id == Once.of(("a",), ("b",)).id
    with pytest.raises(ValueError, match="got 1 and 32"):
        Once(b"x", bytes(32))


async def test_a_failure_undoes_everything_and_frees_the_key(db: Database) -> None:
    """An exception, a cancelled caller and a 5xx answer leave neither effect nor record."""
    keys = Idempotency(db)

    async def broken(tx: WriteTransaction) -> Answer:
        await note(1)(tx)
        raise KeyError("no")

    with pytest.raises(KeyError):
        await keys.run(once(), broken, home=1)
    assert (await keys.run(once(), note(1, status=503), home=1)).answer.status == 503
    started = asyncio.Event()

    async def slow(tx: WriteTransaction) -> Answer:
        await note(1)(tx)
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    task = asyncio.create_task(keys.run(once(), slow, home=1))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await db.scatter_sum(COUNT) == await db.scatter_sum(RECORDS) == 0
    assert not (await keys.run(once(), note(1), home=1)).replayed


async def test_a_deliberate_refusal_is_kept(db: Database) -> None:
    """An answer of 4xx that the effect returns is an answer: what it wrote stays."""
    keys = Idempotency(db)
    await keys.run(once(), note(1, status=409), home=1)
    assert (await keys.run(once(), note(1), home=1)).answer.status == 409
    assert await db.scatter_sum(COUNT) == 1


async def test_who_outlived_the_lease_cannot_commit(db: Database) -> None:
    """A duplicate takes over after the lease; the first one's writes are rolled back, it does not free the
    key of the other, and there is one effect."""
    heard = Heard()
    keys = Idempotency(db, lease=0.2, sink=heard)
    written, go = asyncio.Event(), asyncio.Event()

    async def slow(tx: WriteTransaction) -> Answer:
        answer: Answer = await note(1)(tx)
        written.set()
        await go.wait()
        return answer

    first = asyncio.create_task(keys.run(once(), slow, home=1))
    await written.wait()
    await _lease_over(db)
    second = await keys.run(once(), note(1), home=1)
    go.set()
    with pytest.raises(IdempotencyLost):
        await first
    assert not second.replayed
    assert await db.scatter_sum(COUNT) == await db.scatter_sum(RECORDS) == 1
    outcomes = [signal.outcome for signal in heard.of(IdempotencyChecked)]
    assert outcomes == ["begun", "taken_over", "lost"]


async def _lease_over(db: Database) -> None:
    """Wait until the one lease has ended by the database's clock."""
    async with asyncio.timeout(20):
        while await db.scatter_sum("select count(*) from notes._idempotency where leased_until > now()"):
            await asyncio.sleep(0.02)


async def test_one_of_many_takes_over(db: Database) -> None:
    """Fifty duplicates after a crash: one effect."""
    crashed = Idempotency(db, lease=0.01)
    await crashed._begin(once(), 1, ONCE.id)
    await _lease_over(db)
    keys = Idempotency(db)
    results = await asyncio.gather(
        *(keys.run(once(), note(1), home=1) for _ in range(50)), return_exceptions=True
    )
    done = [r for r in results if not isinstance(r, BaseException) and not r.replayed]
    assert len(done) == 1
    assert {type(r) for r in results if isinstance(r, BaseException)} <= {IdempotencyInFlight}
    assert await db.scatter_sum(COUNT) == 1


@pytest.mark.parametrize("step", STEPS)
async def test_a_process_killed_at_any_step_strands_nothing(
    one: Database, database_url: str, step: str
) -> None:
    """kill -9: before COMMIT there is no effect, and the key is free when the lease ends; after it the
    repetition is answered at once."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.idempotency_crash", database_url, step, "1.0",
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert await process.wait() == -signal.SIGKILL
    keys = Idempotency(one)
    if step == "committed":
        outcome = await keys.run(ONCE, make_note, home=1)
        assert outcome.replayed and outcome.answer == ANSWER
    else:
        async with asyncio.timeout(30):
            while True:
                try:
                    outcome = await keys.run(ONCE, make_note, home=1)
                    break
                except IdempotencyInFlight:
                    await asyncio.sleep(0.05)
        assert not outcome.replayed
    assert await one.read(1).fetch_value(COUNT) == 1


@pytest.mark.parametrize("committed", [True, False])
async def test_an_unknown_commit_is_resolved_by_the_record(
    one: Database, database_url: str, committed: bool
) -> None:
    """The connection breaks at COMMIT. Reached or not, the caller hears what is true."""
    parts = urlsplit(database_url)
    heard = Heard()
    async with FaultProxy(target=parts.port or 5432) as proxy:
        netloc = f"{parts.netloc.rpartition(':')[0]}:{proxy.port}"
        async with Pool(urlunsplit(parts._replace(netloc=netloc)), cluster="main", size=3) as pool:
            cut_off = Database("notes", ShardMap.even(["main"]), {"main": pool})
            keys = Idempotency(cut_off, sink=heard)
            fault = proxy.on(b"COMMIT\0", "drop", side="server" if committed else "client")
            if committed:
                outcome = await keys.run(once(), note(1), home=1)
                assert (outcome.replayed, outcome.answer.status) == (False, 201)
            else:
                with pytest.raises(DatabaseUnavailable, match="nothing was changed"):
                    await keys.run(once(), note(1), home=1)
            await fault
            again = await keys.run(once(), note(1), home=1)
            assert again.replayed is committed
    assert await one.read(1).fetch_value(COUNT) == 1
    assert ("resolved" in {signal.outcome for signal in heard.of(IdempotencyChecked)}) is committed


async def test_resolve_waits_for_the_commit_under_way_and_its_no_is_final(db: Database) -> None:
    """None means that the transaction which is still open cannot commit any more."""
    keys = Idempotency(db)
    with pytest.raises(IdempotencyLost):
        async with keys.claim(once(), home=1) as claim, db.write(1) as tx:
            await note(1)(tx)
            resolved = await asyncio.create_task(_detached(keys.resolve(once(), home=1)))
            assert resolved is None
            await claim.finish(tx, ANSWER)
    assert await db.scatter_sum(COUNT) == 0
    async with keys.claim(once(), home=1) as claim, db.write(1) as tx:
        await note(1)(tx)
        await claim.finish(tx, ANSWER)
        waiting = asyncio.create_task(_detached(keys.resolve(once(), home=1)))
        await _blocked(db)
        assert not waiting.done()
    assert await waiting == ANSWER
    assert await keys.resolve(once("unknown"), home=1) is None


async def _blocked(db: Database) -> None:
    sql = "select count(*) from pg_catalog.pg_stat_activity where wait_event_type = 'Lock'"
    async with asyncio.timeout(20):
        while not await asyncio.create_task(_detached(db.read(1).fetch_value(sql))):
            await asyncio.sleep(0.02)


async def test_a_database_that_is_away_leaves_the_commit_unknown(
    own_postgres: Callable[..., PostgresServer], tmp_path: Path
) -> None:
    """Nothing is claimed that is not known; once the server is back, the record tells."""
    server = own_postgres(max_connections=20)
    async with notes([server.url()], tmp_path, size=3) as db:
        keys = Idempotency(db, lease=0.1)

        async def killed(tx: WriteTransaction) -> Answer:
            answer: Answer = await note(1)(tx)
            await asyncio.to_thread(server.kill)
            return answer

        with pytest.raises((CommitUnknown, DatabaseUnavailable)):
            await keys.run(once(), killed, home=1)
        with pytest.raises(CommitUnknown):
            await keys.resolve(once(), home=1)
        await asyncio.to_thread(server.restart)
        async with asyncio.timeout(60):
            while True:
                try:
                    assert await keys.resolve(once(), home=1) is None
                    break
                except CommitUnknown:
                    await asyncio.sleep(0.1)
        assert not (await keys.run(once(), note(1), home=1)).replayed
        assert await db.read(1).fetch_value(COUNT) == 1


async def test_the_lease_outlasts_the_deadline_of_its_request(db: Database) -> None:
    keys = Idempotency(db)
    left = "select extract(epoch from leased_until - now())::float8 from notes._idempotency"
    with activate(RequestContext(deadline=db.clock.monotonic() + 10)):
        async with keys.claim(once(), home=1):
            assert 13 < await db.read(1).fetch_value(left) <= 15
    async with keys.claim(once(), home=1):
        assert 58 < await db.read(1).fetch_value(left) <= 60


async def test_reserving_keeps_its_answer_too(db: Database) -> None:
    """A registration, in a bucket of the request's own: user, unique name and record commit together."""
    keys = Idempotency(db)

    async def register() -> Answer:
        async with keys.claim(once(), home=once().bucket) as claim:
            if claim.answer is not None:
                return claim.answer
            id = await db.ids.take(once().bucket)
            answer = Answer(201, (), str(id).encode())
            async with db.reserving(id, claim={"username": "ann"}) as tx:
                await tx.execute("insert into notes.note (bucket, id) values ($1, $2)", id & 1023, id)
                await claim.finish(tx, answer)
            return answer

    first = await register()
    assert await register() == first
    assert await db.lookup("username", "ann") == int(first.body)
    assert await db.scatter_sum(COUNT) == 1


async def test_wrong_use_is_refused(db: Database) -> None:
    """Another shard's write, a savepoint, a claim inside a write, an answer too large or of 5xx."""
    keys = Idempotency(db, max_answer_bytes=10)
    with pytest.raises(WrongShard, match="'second'"):
        async with keys.claim(once(), home=1) as claim, db.write(1020) as tx:
            await claim.finish(tx, ANSWER)
    with pytest.raises(ValueError, match="outermost"):
        async with keys.claim(once(), home=1) as claim, db.write(1) as tx, tx.savepoint() as inner:
            await claim.finish(inner, ANSWER)
    with pytest.raises(RuntimeError, match="before the write"):
        async with db.write(1), keys.claim(once(), home=1):
            pass
    with pytest.raises(ValueError, match="at most 10 bytes, got 11"):
        await keys.run(once(), lambda tx: _answer(Answer(200, (), b"x" * 11)), home=1)
    with pytest.raises(ValueError, match="got 500"):
        async with keys.claim(once(), home=1) as claim, db.write(1) as tx:
            await claim.finish(tx, Answer(500))
    assert await db.scatter_sum(RECORDS) == 0
    for options in ({"lease": 0}, {"retention": 0}, {"max_answer_bytes": 0}):
        with pytest.raises(ValueError, match="got 0"):
            Idempotency(db, **options)  # type: ignore[arg-type]


async def _answer(answer: Answer) -> Answer:
    return answer


async def test_records_go_in_batches_after_their_retention(db: Database) -> None:
    """On every shard; what is fresh, and what is still at work, stays."""
    old, fresh = Idempotency(db, retention=0.001), Idempotency(db)
    for number in range(7):
        await old.run(once(f"old-{number}"), note(number * 170), home=number * 170)
    await fresh.run(once("fresh"), note(1), home=1)
    async with old.claim(once("at-work"), home=2):
        for shard in db.pools.values():
            await shard.execute("update notes._idempotency set leased_until = now() where status is not null")
        assert await purge(db, batch=2, max_batches=1) == 4
        assert await purge(db, batch=2) == 3
        assert await purge(db) == 0
        assert await db.scatter_sum(RECORDS) == 2
    with pytest.raises(ValueError, match="got 0"):
        await purge(db, batch=0)


async def test_every_statement_keeps_to_the_schema_of_its_module(db: Database) -> None:
    with StatementGuard() as guard:
        keys = Idempotency(db)
        await keys.run(once(), note(1), home=1)
        await keys.run(once(), note(1), home=1)
        await keys.resolve(once(), home=1)
        await purge(db)
    assert guard.faults() == []


async def test_a_claim_waits_for_no_disk_and_leaves_no_setting_behind(db: Database) -> None:
    """synchronous_commit is off for the claim alone: the effect's COMMIT is as durable as any."""
    keys = Idempotency(db)

    async def effect(tx: WriteTransaction) -> Answer:
        return Answer(200, (), str(await tx.fetch_value("show synchronous_commit")).encode())

    before = str(await db.read(1).fetch_value("show synchronous_commit")).encode()
    assert (await keys.run(once(), effect, home=1)).answer.body == before


def test_a_bucket_of_the_requests_own_is_stable() -> None:
    assert once().bucket == Bucket(bucket_of(once().digest)) == once().bucket
    assert timedelta(seconds=Idempotency.__init__.__kwdefaults__["retention"]) == timedelta(hours=24)
