"""Transactions: what is known about COMMIT, and what happens when it is not."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress

import asyncpg
import pytest
from tests.integration.test_pool import Heard, no_backend_left, until, within
from tests.integration.test_pool_faults import NAME, proxied
from tests.servers import PostgresServer

from springtide.db.pool import Pool
from springtide.errors import CommitUnknown, DatabaseUnavailable, DeadlineExceeded
from springtide.signals import TaskFailed

PATIENCE = 10.0
"""Seconds in which something ends that would otherwise never end; no promise of speed."""

INSERT = "INSERT INTO tally VALUES ($1)"
COUNT = "SELECT count(*) FROM tally"


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    async with Pool(database_url, size=3, reserved=0, server_settings=NAME) as pool:
        await pool.execute("CREATE TABLE tally (n int PRIMARY KEY DEFERRABLE INITIALLY DEFERRED)")
        yield pool
    await no_backend_left(database_url)


@pytest.fixture
def server(own_postgres: Callable[..., PostgresServer]) -> Iterator[PostgresServer]:
    server = own_postgres(max_connections=30)
    yield server
    server.thaw()


async def test_a_block_commits_and_an_exception_rolls_back(pool: Pool) -> None:
    """COMMIT at the end, ROLLBACK when it raises, on_commit only after the former and in order."""
    called: list[str] = []

    async def second() -> None:
        called.append(f"second sees {await pool.fetch_value(COUNT)}")

    async with pool.transaction() as tx:
        tx.on_commit(lambda: called.append("first"))
        tx.on_commit(second)
        await tx.execute(INSERT, 1)
        assert called == []
    assert called == ["first", "second sees 1"]
    with pytest.raises(KeyError):
        async with pool.transaction() as tx:
            tx.on_commit(lambda: called.append("never"))
            await tx.execute(INSERT, 2)
            raise KeyError
    assert await pool.fetch_value(COUNT) == 1
    assert called == ["first", "second sees 1"]


async def test_isolation_and_read_only_hold(pool: Pool) -> None:
    """The server is asked what it was told; unknown levels are refused with the value."""
    for level in ("read committed", "repeatable read", "serializable"):
        for read_only in (False, True):
            async with pool.transaction(isolation=level, read_only=read_only) as tx:
                assert await tx.fetch_value("SHOW transaction_isolation") == level
                assert await tx.fetch_value("SHOW transaction_read_only") == ("on" if read_only else "off")
    with pytest.raises(ValueError, match="got 'dirty'"):
        pool.transaction(isolation="dirty")


async def test_savepoints_undo_their_block_alone(pool: Pool) -> None:
    """A failed statement in a savepoint leaves the transaction usable; savepoints nest."""
    async with pool.transaction() as tx:
        await tx.execute(INSERT, 1)
        with pytest.raises(asyncpg.UndefinedTableError):
            async with tx.savepoint():
                await tx.execute(INSERT, 2)
                await tx.execute("SELECT FROM nowhere")
        async with tx.savepoint():
            await tx.execute(INSERT, 3)
            with pytest.raises(KeyError):
                async with tx.savepoint():
                    await tx.execute(INSERT, 4)
                    raise KeyError
    assert [row["n"] for row in await pool.fetch("SELECT n FROM tally ORDER BY n")] == [1, 3]


async def test_a_verdict_at_commit_is_the_server_s_own(pool: Pool) -> None:
    """A deferred constraint fails at COMMIT: the caller sees asyncpg's error, not CommitUnknown. And a
    COMMIT that the server turns into ROLLBACK, after a swallowed error, is an error too."""
    await pool.execute(INSERT, 1)
    with pytest.raises(asyncpg.UniqueViolationError):
        async with pool.transaction() as tx:
            await tx.execute(INSERT, 1)
    with pytest.raises(asyncpg.InFailedSQLTransactionError, match="swallowed"):
        async with pool.transaction() as tx:
            await tx.execute(INSERT, 2)
            with suppress(asyncpg.UndefinedTableError):
                await tx.execute("SELECT FROM nowhere")
    assert await pool.fetch_value(COUNT) == 1
    assert pool.stats().opened == 1


async def test_a_failing_callback_does_not_make_a_commit_look_failed(database_url: str) -> None:
    """It is reported and the others run: the transaction is committed, and the caller sees success."""
    heard, called = Heard(), []
    async with Pool(database_url, sink=heard, server_settings=NAME) as pool, pool.transaction() as tx:
        tx.on_commit(lambda: called.append(1 // 0))
        tx.on_commit(lambda: called.append(2))
    assert called == [2]
    assert [signal.task for signal in heard.of(TaskFailed)] == ["pool main:on_commit"]


async def test_transactions_on_a_connection_leave_it_usable(pool: Pool) -> None:
    """`connection.transaction()`: after commit, rollback and a failed COMMIT the session goes on."""
    async with pool.acquire() as connection:
        pid = await connection.fetch_value("SELECT pg_backend_pid()")
        async with connection.transaction() as tx:
            await tx.execute(INSERT, 1)
        with pytest.raises(KeyError):
            async with connection.transaction() as tx:
                await tx.execute(INSERT, 2)
                raise KeyError
        with pytest.raises(asyncpg.UniqueViolationError):
            async with connection.transaction() as tx:
                await tx.execute(INSERT, 1)
        async with connection.transaction(read_only=True) as tx:
            assert await tx.fetch_value(COUNT) == 1
        assert await connection.fetch_value("SELECT pg_backend_pid()") == pid
    assert pool.stats().idle == pool.stats().size


async def test_a_deadline_that_passed_before_commit_rolls_back(pool: Pool) -> None:
    """COMMIT is not even sent: DeadlineExceeded is a definite no."""
    with within(0.05), pytest.raises(DeadlineExceeded):
        async with pool.transaction() as tx:
            await tx.execute(INSERT, 1)
            await asyncio.sleep(0.06)
    assert await pool.fetch_value(COUNT) == 0
    await until(lambda: pool.stats().idle == pool.stats().size)


@pytest.mark.parametrize(("fault", "committed"), [("cut", 1), ("drop", 0)])
async def test_a_connection_lost_during_commit_is_commit_unknown(
    server: PostgresServer, fault: str, committed: int
) -> None:
    """Cut after COMMIT left: it may have reached the server ("cut") or not ("drop"), and looks the same."""
    async with proxied(server, size=2, reserved=0) as (proxy, pool):
        await pool.execute("CREATE TABLE tally (n int)")
        called: list[int] = []
        with pytest.raises(CommitUnknown, match="lost while it had COMMIT"):
            async with pool.transaction() as tx:
                await tx.execute(INSERT, 1)
                tx.on_commit(lambda: called.append(1))
                proxy.on(b"COMMIT\x00", fault)
        assert called == []
        async with asyncio.timeout(5):
            while await pool.fetch_value(COUNT) != committed:
                await asyncio.sleep(0.01)


async def test_a_connection_lost_before_commit_is_a_definite_no(server: PostgresServer) -> None:
    """Nothing was committed: DatabaseUnavailable, never CommitUnknown."""
    async with proxied(server, size=2, reserved=0) as (proxy, pool):
        await pool.execute("CREATE TABLE tally (n int)")
        with pytest.raises(DatabaseUnavailable):
            async with pool.transaction() as tx:
                await tx.execute(INSERT, 1)
                proxy.cut()
                await until(lambda: tx._link().raw.is_closed())
        assert await pool.fetch_value(COUNT) == 0


async def test_a_farewell_that_was_read_before_commit_is_a_definite_no(server: PostgresServer) -> None:
    """The server has said that it ends the session, whose connection is still open: COMMIT is not sent."""
    async with proxied(server, size=2, reserved=0) as (proxy, pool):
        await pool.execute("CREATE TABLE tally (n int)")
        with pytest.raises(DatabaseUnavailable, match="lost before COMMIT"):
            async with pool.transaction() as tx:
                await tx.execute(INSERT, 1)
                farewell = proxy.on(b"57P01", "pass", side="server")
                farewell.add_done_callback(lambda _: proxy.half_open())  # nobody hears of the end itself
                other = await asyncpg.connect(server.url())
                await other.fetchval("SELECT pg_terminate_backend($1)", tx._link().raw.get_server_pid())
                await other.close()
                await farewell
                for _ in range(10):  # of the loop that both the proxy and the pool run in
                    await asyncio.sleep(0)
                assert not tx._link().raw.is_closed()
        proxy.resume()
        assert await pool.fetch_value(COUNT) == 0


async def test_commit_on_a_frozen_server_ends_at_the_deadline(server: PostgresServer) -> None:
    """COMMIT was sent and no answer comes: CommitUnknown at the deadline; later the COMMIT turns out done,
    because it was never cancelled, and its callback is called then."""
    async with Pool(server.url(), size=2, reserved=0, server_settings=NAME) as pool:
        await pool.execute("CREATE TABLE tally (n int)")
        called: list[int] = []
        with within(30.0) as context, pytest.raises(CommitUnknown, match="deadline"):
            async with pool.transaction() as tx:
                await tx.execute(INSERT, 1)
                tx.on_commit(lambda: called.append(1))
                server.freeze()
                begun = time.monotonic()
                context.deadline = begun + 0.2
        assert time.monotonic() - begun < PATIENCE
        server.thaw()
        await until(lambda: called == [1])
        assert await pool.fetch_value(COUNT) == 1
        await until(lambda: pool.stats().idle == pool.stats().size)


async def test_a_caller_cancelled_during_commit_does_not_cancel_it(server: PostgresServer) -> None:
    """The caller ends at once with CancelledError; the COMMIT goes through, its callback is called, and the
    connection returns."""
    async with proxied(server, size=2, reserved=0) as (proxy, pool):
        await pool.execute("CREATE TABLE tally (n int)")
        for on_connection in (False, True):
            called: list[int] = []
            stalled = proxy.on(b"COMMIT\x00", "stall")

            async def write(called: list[int] = called, on_connection: bool = on_connection) -> None:
                if on_connection:
                    async with pool.acquire() as connection, connection.transaction() as tx:
                        tx.on_commit(lambda: called.append(1))
                        await tx.execute(INSERT, 2)
                else:
                    async with pool.transaction() as tx:
                        tx.on_commit(lambda: called.append(1))
                        await tx.execute(INSERT, 1)

            caller = asyncio.create_task(write())
            await stalled
            begun = time.monotonic()
            caller.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller
            assert time.monotonic() - begun < PATIENCE
            proxy.resume()
            await until(lambda called=called: called == [1])
            await until(lambda: pool.stats().idle == pool.stats().size)
        assert await pool.fetch_value(COUNT) == 2


async def test_an_abandoned_commit_gives_its_place_back(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody listens and the server stays silent: the connection is given up in bounded time."""
    monkeypatch.setattr("springtide.db.transaction.ABANDONED_COMMIT", 0.2)
    async with proxied(server, size=1, reserved=0) as (proxy, pool):
        await pool.execute("CREATE TABLE tally (n int)")
        with within(0.2), pytest.raises(CommitUnknown):
            async with pool.transaction() as tx:
                await tx.execute(INSERT, 1)
                proxy.on(b"COMMIT\x00", "stall")
        await until(lambda: pool.stats().size == 0)
        proxy.resume()
        assert await pool.fetch_value("SELECT 1") == 1


async def test_a_commit_without_its_synchronous_standby_is_unknown(server: PostgresServer) -> None:
    """The wait for the standby is cancelled (an operator, a shutdown): the server says success with a
    warning, the caller hears CommitUnknown. A deadline does not cancel that wait."""
    async with Pool(server.url(), size=3, reserved=0, server_settings=NAME) as pool:
        await pool.execute("CREATE TABLE tally (n int)")
        await pool.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        await pool.execute("SELECT pg_reload_conf()")
        async with asyncio.timeout(5):
            while await pool.fetch_value("SHOW synchronous_standby_names") != "nobody":
                await asyncio.sleep(0.01)

        async def write() -> None:
            async with pool.transaction() as tx:
                await tx.execute(INSERT, 1)

        waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
        caller = asyncio.create_task(write())
        async with asyncio.timeout(5):
            while (pid := await pool.fetch_value(waiting)) is None:
                await asyncio.sleep(0.01)
        await pool.execute("SELECT pg_cancel_backend($1)", pid)
        with pytest.raises(CommitUnknown, match="standby"):
            await caller
        with within(1.0), pytest.raises(CommitUnknown, match="deadline"):
            await write()
        assert await pool.fetch_value(waiting) is not None  # still waiting: not cancelled by us
        await pool.execute("ALTER SYSTEM RESET synchronous_standby_names")
        await pool.execute("SELECT pg_reload_conf()")
        await until(lambda: pool.stats().idle == pool.stats().size)
        assert await pool.fetch_value(COUNT) == 2
