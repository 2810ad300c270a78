"""The pool in fair weather: who gets a connection, in what state, and what is told about it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from springtide.context import Part, Priority, RequestContext, activate
from springtide.db._link import bucket
from springtide.db.connection import Connection
from springtide.db.pool import Pool
from springtide.errors import DeadlineExceeded, PoolClosed, PoolSaturated, PoolTimeout
from springtide.signals import ConnectionClosed, ConnectionOpened, PoolWaited, Signal, StatementFinished
from springtide.testing import ManualClock
from springtide.testing.lifecycle import stress

OpenPool = Callable[..., Any]


class Heard:
    """A sink that remembers."""

    def __init__(self) -> None:
        self.signals: list[Signal] = []

    def emit(self, signal: Signal) -> None:
        self.signals.append(signal)

    def of(self, kind: type) -> list[Any]:
        return [signal for signal in self.signals if isinstance(signal, kind)]


@pytest.fixture
def opened(database_url: str) -> OpenPool:
    """`async with opened(size=3) as pool`; afterwards nothing of the pool may be left."""

    @asynccontextmanager
    async def enter(**options: Any) -> AsyncIterator[Pool]:
        before = asyncio.all_tasks()
        options.setdefault("reserved", 0)
        pool = Pool(database_url, server_settings={"application_name": "under-test"}, **options)
        async with pool:
            yield pool
        assert pool.stats().size == 0
        assert asyncio.all_tasks() <= before
        await no_backend_left(database_url)

    return enter


async def no_backend_left(url: str) -> None:
    watcher = await asyncpg.connect(url)
    try:
        async with asyncio.timeout(5):
            while await watcher.fetchval(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE application_name = 'under-test' AND datname = current_database()"
            ):
                await asyncio.sleep(0.01)
    finally:
        await watcher.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def within(seconds: float, **options: Any) -> Any:
    return activate(RequestContext(deadline=time.monotonic() + seconds, **options))


async def test_each_kind_of_statement_returns_its_shape(opened: OpenPool) -> None:
    """fetch, fetch_one, fetch_value, execute, execute_many and copy_in; absent rows are None."""
    async with opened() as pool:
        assert await pool.execute("CREATE TABLE thing (id int PRIMARY KEY, name text)") == "CREATE TABLE"
        assert await pool.execute("INSERT INTO thing VALUES ($1, $2)", 1, "a") == "INSERT 0 1"
        async with pool.acquire() as connection:
            await connection.execute_many("INSERT INTO thing VALUES ($1, $2)", [(2, "b"), (3, "c")])
            assert await connection.copy_in("thing", ["id", "name"], [(4, "d"), (5, "e")]) == 2
            with pytest.raises(ValueError, match="either records or source"):
                await connection.copy_in("thing", ["id"])
        assert [row["id"] for row in await pool.fetch("SELECT id FROM thing ORDER BY id")] == [1, 2, 3, 4, 5]
        assert (await pool.fetch_one("SELECT name FROM thing WHERE id = $1", 4))["name"] == "d"
        assert await pool.fetch_one("SELECT name FROM thing WHERE id = 99") is None
        assert await pool.fetch_value("SELECT name FROM thing WHERE id = 99") is None


async def test_errors_of_a_statement_stay_asyncpg_s(opened: OpenPool) -> None:
    """Users match UniqueViolationError, and the connection serves the next one."""
    async with opened(size=1) as pool:
        await pool.execute("CREATE TABLE thing (id int PRIMARY KEY)")
        await pool.execute("INSERT INTO thing VALUES (1)")
        with pytest.raises(asyncpg.UniqueViolationError):
            await pool.execute("INSERT INTO thing VALUES (1)")
        with pytest.raises(asyncpg.DataError):
            await pool.fetch("SELECT $1::int", "no number")
        assert await pool.fetch_value("SELECT count(*) FROM thing") == 1
        assert pool.stats().opened == 1


async def test_values_are_json_and_aware_times(opened: OpenPool) -> None:
    """jsonb and json arrive as Python values; a timestamp is aware and in UTC."""
    async with opened() as pool:
        value = {"a": [1, None, "ü"], "when": "2026-01-01"}
        assert await pool.fetch_value("SELECT $1::jsonb", value) == value
        assert await pool.fetch_value("SELECT $1::json", value) == value
        assert await pool.fetch_value("SELECT $1::jsonb ->> 'at'", {"at": datetime(2026, 1, 1, tzinfo=UTC)})
        moment = await pool.fetch_value("SELECT now()")
        assert moment.utcoffset().total_seconds() == 0


async def test_waiters_are_served_by_priority_then_first_come(opened: OpenPool) -> None:
    """Critical before normal before bulk; inside a class in the order of arrival."""
    async with opened(size=1) as pool:
        served: list[str] = []

        async def ask(name: str, priority: Priority) -> None:
            async with pool.acquire(priority=priority):
                served.append(name)

        async with asyncio.TaskGroup() as group, pool.acquire():
            for name, priority in [
                ("bulk 1", Priority.BULK),
                ("normal 1", Priority.NORMAL),
                ("bulk 2", Priority.BULK),
                ("critical 1", Priority.CRITICAL),
                ("normal 2", Priority.NORMAL),
                ("critical 2", Priority.CRITICAL),
            ]:
                group.create_task(ask(name, priority))
            await until(lambda: pool.stats().waiting == 6)
        assert served == ["critical 1", "critical 2", "normal 1", "normal 2", "bulk 1", "bulk 2"]


async def test_reserved_connections_serve_critical_work_alone(opened: OpenPool) -> None:
    """Browsing may take all but the reserved ones, and checkout still gets one at once."""
    async with opened(size=3, reserved=1, acquire_timeout=0.4) as pool:
        async with pool.acquire(), pool.acquire():
            with pytest.raises(PoolTimeout):
                await pool.fetch_value("SELECT 1")
            with activate(RequestContext(priority=Priority.CRITICAL)):
                assert await pool.fetch_value("SELECT 1") == 1
            # the third connection is idle now, and still not for everybody
            with pytest.raises(PoolTimeout):
                await pool.fetch_value("SELECT 1")
        assert await pool.fetch_value("SELECT 1") == 1


async def test_the_queue_is_bounded(opened: OpenPool) -> None:
    """The caller past `max_waiting` is turned away at once, with a hint when to come back."""
    heard = Heard()
    async with opened(size=1, max_waiting=2, sink=heard) as pool:
        async with pool.acquire():
            waiting = [asyncio.create_task(pool.fetch_value("SELECT 1")) for _ in range(2)]
            await until(lambda: pool.stats().waiting == 2)
            with pytest.raises(PoolSaturated) as caught:
                await pool.fetch_value("SELECT 1")
            assert caught.value.retry_after
        assert await asyncio.gather(*waiting) == [1, 1]
    assert {signal.outcome for signal in heard.of(PoolWaited)} == {"acquired", "saturated"}


async def test_waiting_ends_at_the_shorter_of_time_out_and_deadline(opened: OpenPool) -> None:
    """acquire_timeout gives PoolTimeout, the request's deadline DeadlineExceeded; the ledger has both."""
    async with opened(size=1, acquire_timeout=0.4) as pool, pool.acquire():
        with pytest.raises(PoolTimeout, match=r"0\.4 s"):
            await pool.fetch_value("SELECT 1")
        with pytest.raises(PoolTimeout, match=r"0\.02 s"):
            async with pool.acquire(timeout=0.02):
                pass
        with within(0.03) as context, pytest.raises(DeadlineExceeded, match="waiting for a connection"):
            await pool.fetch_value("SELECT 1")
        assert context.ledger.seconds(Part.POOL) > 0.02
        assert pool.stats().waiting == 0


async def test_a_connection_handed_to_a_cancelled_waiter_goes_to_the_next(opened: OpenPool) -> None:
    """Hand-over and cancellation in one tick: nothing is lost, whichever comes first."""
    async with opened(size=1, acquire_timeout=5.0) as pool:
        for cancel_first in (False, True):
            lease = pool.acquire()
            await lease.__aenter__()
            waiter = asyncio.create_task(pool.fetch_value("SELECT 1"))
            await until(lambda: pool.stats().waiting == 1)
            if cancel_first:
                waiter.cancel()
            await lease.__aexit__(None, None, None)
            if not cancel_first:
                waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
            assert await pool.fetch_value("SELECT 2") == 2
            assert pool.stats().busy == 0
        assert pool.stats().opened == 1


async def test_a_waiter_takes_a_returned_connection_before_a_new_one_is_open(opened: OpenPool) -> None:
    """Opening happens beside the queue: who waits gets whichever comes first."""
    async with opened(size=2) as pool:
        heard_before = pool.stats().opened
        async with pool.acquire():
            waiter = asyncio.create_task(pool.fetch_value("SELECT 1"))
            await asyncio.sleep(0)  # the opener has begun, and cannot have finished
            assert pool.stats().waiting == 1
        assert await waiter == 1
        await until(lambda: pool.stats().idle == 2)
        assert pool.stats().opened == heard_before + 1


@pytest.mark.parametrize(
    ("leave", "look"),
    [
        ("SET search_path = pg_catalog", "SELECT current_setting('search_path') = 'pg_catalog'"),
        ("SELECT set_config('app.user', '7', false)", "SELECT current_setting('app.user', true) = '7'"),
        ("SELECT pg_advisory_lock(7)", "SELECT count(*) > 0 FROM pg_locks WHERE locktype = 'advisory'"),
        ("CREATE TEMP TABLE leftover (id int)", "SELECT to_regclass('pg_temp.leftover') IS NOT NULL"),
        ("LISTEN news", "SELECT count(*) > 0 FROM pg_listening_channels()"),
        ("PREPARE leftover AS SELECT 1", "SELECT count(*) > 0 FROM pg_prepared_statements WHERE from_sql"),
        ("SET ROLE pg_monitor", "SELECT current_user = 'pg_monitor'"),
        ("BEGIN; SET LOCAL app.mark = '8'", "SELECT current_setting('app.mark', true) = '8'"),
    ],
)
async def test_what_a_session_leaves_is_undone_before_its_next_user(
    opened: OpenPool, leave: str, look: str
) -> None:
    """Settings, locks, temporary tables, listeners, roles, open transactions do not leak."""
    async with opened(size=1) as pool:
        async with pool.acquire() as connection:
            await connection.execute(leave)
        assert await pool.fetch_value(look) is not True
        assert pool.stats().size == 1


async def test_a_clean_session_is_not_reset(opened: OpenPool) -> None:
    """Reset costs a round trip, so it is paid by those who left something: here, nobody's setting is lost."""
    async with opened(size=1) as pool:
        pid = await pool.fetch_value("SELECT pg_backend_pid()")
        async with pool.acquire() as connection:
            # invisible to the pool on purpose: the setting shows whether a reset took place
            await connection.execute("SELECT 1")
            await connection._link().raw.execute("SET application_name = 'kept'")
        assert await pool.fetch_value("SELECT current_setting('application_name')") == "kept"
        async with pool.acquire() as connection:
            connection.mark_dirty()
        assert await pool.fetch_value("SELECT current_setting('application_name')") == "under-test"
        assert await pool.fetch_value("SELECT pg_backend_pid()") == pid


async def test_a_connection_used_raw_is_replaced(opened: OpenPool) -> None:
    """Codecs and listeners set on asyncpg's connection never meet another caller."""
    async with opened(size=1) as pool:
        async with pool.acquire() as connection:
            pid = connection.raw.get_server_pid()
            await connection.raw.set_type_codec("text", schema="pg_catalog", encoder=str, decoder=len)
            assert await connection.fetch_value("SELECT 'abc'::text") == 3
        assert await pool.fetch_value("SELECT 'abc'::text") == "abc"
        assert await pool.fetch_value("SELECT pg_backend_pid()") != pid


async def test_a_kept_reference_is_dead(opened: OpenPool) -> None:
    """After its block a connection or transaction raises, instead of using somebody else's session."""
    async with opened(size=1) as pool:
        async with pool.acquire() as connection:
            pass
        async with pool.transaction() as transaction:
            pass
        kept: Connection = connection
        for use in (kept.fetch("SELECT 1"), transaction.fetch("SELECT 1")):
            with pytest.raises(PoolClosed, match="has ended"):
                await use
        with pytest.raises(PoolClosed):
            _ = kept.raw


def test_time_limits_come_in_buckets() -> None:
    """A bucket is never shorter than the time left, and at most a quarter longer."""
    for millis in range(10, 60_000, 7):
        seconds = millis / 1000
        assert seconds <= bucket(seconds) * 1.000001
        assert bucket(seconds) <= seconds * 1.2500001
    assert len({bucket(millis / 1000) for millis in range(1000, 30_000)}) < 20


async def test_the_deadline_reaches_the_server_and_stays_out_of_the_next_request(opened: OpenPool) -> None:
    """statement_timeout follows the time left, is set only when its bucket changes, and is unset later."""
    async with opened(size=1) as pool:
        show = "SELECT setting::int FROM pg_settings WHERE name = 'statement_timeout'"
        with within(10):
            first = await pool.fetch_value(show)
            assert 10_000 * 0.9 <= first <= 12_500
        with within(9):
            assert await pool.fetch_value(show) == first
        with within(2):
            assert 1_800 <= await pool.fetch_value(show) <= 2_500
        assert await pool.fetch_value(show) == 0
        with within(1):
            await pool.fetch_value(show)
        async with pool.acquire() as connection:
            assert await connection.raw.fetchval(show) == 0  # not even where the pool does not look on
        with within(3):
            async with pool.transaction() as tx:
                assert 2_700 <= await tx.fetch_value(show) <= 3_750
        assert await pool.fetch_value(show) == 0


async def test_a_statement_ends_at_the_deadline_here_and_on_the_server(opened: OpenPool) -> None:
    """DeadlineExceeded names the statement, and pg_stat_activity is empty soon after."""
    async with opened(size=2) as pool:
        with within(0.1), pytest.raises(DeadlineExceeded, match="pg_sleep"):
            await pool.fetch_value("SELECT pg_sleep(60)")
        with within(0.0), pytest.raises(DeadlineExceeded):
            await pool.fetch_value("SELECT 1")
        async with asyncio.timeout(1):
            while await pool.fetch_value(
                "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)' AND state = 'active'"
                " AND pid <> pg_backend_pid()"
            ):
                await asyncio.sleep(0.005)


async def test_a_cancelled_caller_leaves_no_statement_on_the_server(opened: OpenPool) -> None:
    """The client is gone: its SQL is cancelled, and the connection is used again."""
    async with opened(size=1) as pool:
        pid = await pool.fetch_value("SELECT pg_backend_pid()")
        caller = asyncio.create_task(pool.fetch_value("SELECT pg_sleep(60)"))
        await until(lambda: pool.stats().busy == 1)
        await asyncio.sleep(0.05)  # the statement is on its way; no event tells that it runs
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert await pool.fetch_value("SELECT pg_backend_pid()") == pid
        assert (
            len(
                await pool.fetch("SELECT 1 FROM pg_stat_activity WHERE query LIKE $1", "SELECT pg_sleep(60)%")
            )
            == 0
        )


async def test_retire_replaces_every_connection_lazily(opened: OpenPool) -> None:
    """Idle ones at once, lent ones when they return; nobody is interrupted."""
    heard = Heard()
    async with opened(size=2, sink=heard) as pool:
        async with pool.acquire() as first:
            old = await first.fetch_value("SELECT pg_backend_pid()")
            pool.retire("a test")
            assert await first.fetch_value("SELECT pg_backend_pid()") == old
            assert pool.stats().generation == 1
        assert await pool.fetch_value("SELECT pg_backend_pid()") != old
    assert "generation" in {signal.reason for signal in heard.of(ConnectionClosed)}


async def test_old_and_unused_connections_are_closed(opened: OpenPool) -> None:
    """Unused for `idle`: closed but for one. Older than `max_age` (less up to 20 %): replaced."""
    clock, heard = ManualClock(), Heard()
    async with opened(size=4, idle=10.0, max_age=100.0, clock=clock, sink=heard) as pool:
        async with pool.acquire(), pool.acquire(), pool.acquire():
            assert pool.stats().size == 3
        await clock.advance(12.0)
        await until(lambda: pool.stats().size == 1)
        await clock.advance(100.0)
        await until(lambda: pool.stats().size == 0)
        assert await pool.fetch_value("SELECT 1") == 1
    reasons = [signal.reason for signal in heard.of(ConnectionClosed)]
    assert reasons == ["idle", "idle", "aged", "shutdown"]
    assert len(heard.of(ConnectionOpened)) == 4


async def test_every_statement_is_accounted_for(opened: OpenPool) -> None:
    """The ledger and the signal carry the fingerprint, rows and SQLSTATE, never a literal."""
    heard = Heard()
    async with opened(sink=heard) as pool:
        with activate(RequestContext()) as context:
            await pool.fetch("SELECT 'secret', g FROM generate_series(1, $1) g", 3)
            with pytest.raises(asyncpg.UndefinedTableError):
                await pool.execute("DELETE FROM nowhere WHERE id = 42")
        label = "SELECT ?, g FROM generate_series(?, ?) g"
        assert context.ledger.labels(Part.SQL)[label].rows == 3
        statements = {signal.statement: signal for signal in heard.of(StatementFinished)}
        assert statements[label].rows == 3 and statements[label].error is None
        assert statements["DELETE FROM nowhere WHERE id = ?"].error == "42P01"


async def test_a_schema_change_does_not_fail_prepared_reads(opened: OpenPool) -> None:
    """A column added under a cached statement: prepared again, not an error."""
    async with opened(size=1) as pool:
        await pool.execute("CREATE TABLE thing (id int)")
        await pool.execute("INSERT INTO thing VALUES (1)")
        assert len(await pool.fetch_one("SELECT * FROM thing")) == 1
        await pool.execute("ALTER TABLE thing ADD name text")
        assert len(await pool.fetch_one("SELECT * FROM thing")) == 2


async def test_a_pool_that_is_not_running_says_so(database_url: str) -> None:
    """Before start and after stop: PoolClosed, also for those who wait when it stops."""
    pool = Pool(database_url, size=1, reserved=0)
    with pytest.raises(PoolClosed):
        await pool.fetch_value("SELECT 1")
    await pool.start()
    lease = pool.acquire()
    connection = await lease.__aenter__()
    waiter = asyncio.create_task(pool.fetch_value("SELECT 1"))
    await until(lambda: pool.stats().waiting == 1)
    stopping = asyncio.create_task(pool.stop())
    with pytest.raises(PoolClosed):
        await waiter
    with pytest.raises(PoolClosed):
        await pool.fetch_value("SELECT 1")
    assert await connection.fetch_value("SELECT 1") == 1  # who has one may finish
    assert not stopping.done()
    await lease.__aexit__(None, None, None)
    await stopping
    await pool.start()
    assert await pool.fetch_value("SELECT 1") == 1
    await pool.stop()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 0}, "size must be >= 1, got 0"),
        ({"size": 2, "reserved": 2}, "reserved must be >= 0 and < size, got 2 of 2"),
        ({"max_waiting": -1}, "max_waiting must be >= 0, got -1"),
        ({"acquire_timeout": 0}, "acquire_timeout must be > 0 seconds, got 0"),
        ({"max_age": float("nan")}, "max_age must be > 0 seconds, got nan"),
    ],
)
def test_options_are_checked_with_their_values(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Pool("postgresql://localhost/x", **options)


async def test_start_and_stop_at_any_moment(database_url: str) -> None:
    """The lifecycle contract holds under storms of start, stop and cancel; no backend is left."""
    await stress(
        lambda: Pool(database_url, size=3, reserved=0, server_settings={"application_name": "under-test"}),
        storms=6,
        pause=0.004,
    )
    await no_backend_left(database_url)
