"""The pool when the server is frozen, killed or restarted, and when callers give up."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest
from tests.integration.test_pool import Heard, no_backend_left, until, within
from tests.servers import PostgresServer

from springtide.db.pool import Pool
from springtide.errors import (
    DatabaseUnavailable,
    DeadlineExceeded,
    PoolTimeout,
    RoleChanged,
    SpringtideError,
    Unavailable,
)
from springtide.signals import ConnectionClosed
from springtide.testing.faults import FaultProxy

PATIENCE = 10.0
"""Seconds in which something ends that would otherwise never end; no promise of speed."""

NAME = {"application_name": "under-test"}


@pytest.fixture
def server(own_postgres: Callable[..., PostgresServer]) -> Iterator[PostgresServer]:
    server = own_postgres(max_connections=60)
    yield server
    server.thaw()


def through(proxy: FaultProxy, url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{proxy.port}").geturl()


@asynccontextmanager
async def proxied(server: PostgresServer, **options: Any) -> AsyncIterator[tuple[FaultProxy, Pool]]:
    """A pool that reaches the server through a fault proxy."""
    async with FaultProxy(target=server.port) as proxy:
        options.setdefault("server_settings", NAME)
        async with Pool(through(proxy, server.url()), **options) as pool:
            yield proxy, pool


async def usable(pool: Pool, count: int) -> int:
    """How many connections can be held at the same time and answer."""
    ready, leave, held = 0, asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        nonlocal ready
        async with pool.acquire(timeout=5.0) as connection:
            await connection.fetch_value("SELECT 1")
            ready += 1
            if ready == count:
                held.set()
            await leave.wait()

    async with asyncio.TaskGroup() as group:
        for _ in range(count):
            group.create_task(hold())
        async with asyncio.timeout(6):
            await held.wait()
        leave.set()
    return ready


async def test_cancelling_on_a_frozen_server_is_quick_and_loses_no_place(server: PostgresServer) -> None:
    """SIGSTOP: queries, transactions and waiters all end within 250 ms of their cancellation with
    CancelledError; nothing waits for the server, and every place is usable once it goes on."""
    async with Pool(server.url(), size=6, reserved=0, server_settings=NAME) as pool:
        assert await usable(pool, 6) == 6

        async def in_transaction() -> None:
            async with pool.transaction() as tx:
                await tx.fetch_value("SELECT 1")
                await tx.fetch_value("SELECT pg_sleep(60)")

        async def on_connection() -> None:
            async with pool.acquire() as connection:
                await connection.fetch_value("SELECT pg_sleep(60)")

        async def between_statements() -> None:
            async with pool.transaction() as tx:
                await tx.fetch_value("SELECT 'the last one was no sleep(60)'")
                await asyncio.Event().wait()

        callers = [asyncio.create_task(pool.fetch_value("SELECT pg_sleep(60)")) for _ in range(2)]
        callers += [asyncio.create_task(in_transaction()) for _ in range(2)]
        callers += [asyncio.create_task(on_connection()), asyncio.create_task(between_statements())]
        async with asyncio.timeout(5):
            while int(server.query("SELECT count(*) FROM pg_stat_activity WHERE query ~ 'sleep.60'")) < 7:
                await asyncio.sleep(0.01)
        callers += [asyncio.create_task(pool.fetch_value("SELECT 1")) for _ in range(3)]
        await until(lambda: pool.stats().waiting == 3)
        server.freeze()
        begun = time.monotonic()
        for caller in callers:
            caller.cancel()
        results = await asyncio.gather(*callers, return_exceptions=True)
        assert time.monotonic() - begun < PATIENCE
        assert all(isinstance(result, asyncio.CancelledError) for result in results), results
        await until(lambda: pool.stats().size == 0)  # nobody will be handed a connection that is stuck
        assert time.monotonic() - begun < PATIENCE
        server.thaw()
        assert await usable(pool, 6) == 6
        # the SQL of those who left does not go on
        async with asyncio.timeout(5):
            while await pool.fetch_value(
                "SELECT count(*) FROM pg_stat_activity WHERE query ~ 'sleep.60' AND state = 'active'"
                " AND pid <> pg_backend_pid()"
            ):
                await asyncio.sleep(0.01)
    await no_backend_left(server.url())


async def test_the_deadline_holds_on_a_frozen_server(server: PostgresServer) -> None:
    """The server cannot end its statement: the client does, on time, also inside a transaction."""
    async with Pool(server.url(), size=3, reserved=0, server_settings=NAME) as pool:
        assert await usable(pool, 3) == 3
        server.freeze()

        async def transaction() -> None:
            async with pool.transaction() as tx:
                await tx.fetch_value("SELECT 1")

        for call in (lambda: pool.fetch_value("SELECT 1"), transaction, transaction):
            begun = time.monotonic()
            with within(0.2), pytest.raises(DeadlineExceeded):
                await call()
            assert 0.15 < time.monotonic() - begun < PATIENCE
        # the places are free although the server is still frozen; new connections are not to be had
        begun = time.monotonic()
        with within(0.2), pytest.raises(SpringtideError):
            await pool.fetch_value("SELECT 1")
        assert time.monotonic() - begun < PATIENCE
        server.thaw()
        assert await usable(pool, 3) == 3
    await no_backend_left(server.url())


async def test_reads_and_transactions_survive_a_restart(server: PostgresServer) -> None:
    """Reads run all the time while the server restarts: none fails. Afterwards neither a write nor a
    transaction meets a dead connection."""
    async with Pool(server.url(), size=8, reserved=0, acquire_timeout=20.0, server_settings=NAME) as pool:
        await pool.execute("CREATE TABLE tally (n int)")
        assert await usable(pool, 8) == 8
        stop, done, failures = asyncio.Event(), 0, []

        async def read() -> None:
            nonlocal done
            while not stop.is_set():
                try:
                    await pool.fetch_value("SELECT count(*) FROM tally")
                    done += 1
                except SpringtideError as error:
                    failures.append(error)

        readers = [asyncio.create_task(read()) for _ in range(12)]
        await until(lambda: done > 100)
        for restart in (server.restart, lambda: (server.kill(), server.restart())):
            await asyncio.to_thread(restart)
            seen = done
            await until(lambda seen=seen: done > seen + 100)
        stop.set()
        await asyncio.gather(*readers)
        assert failures == []


@pytest.mark.parametrize("how", ["restart", "kill"])
async def test_idle_connections_that_died_fail_nobody(server: PostgresServer, how: str) -> None:
    """A pool full of dead connections: writes, transactions, COPY and reads all succeed."""
    async with Pool(server.url(), size=8, reserved=0, server_settings=NAME) as pool:
        await pool.execute("CREATE TABLE tally (n int)")
        assert await usable(pool, 8) == 8
        # in this thread: the loop cannot notice the deaths before the first statement is sent
        if how == "kill":
            server.kill()
        server.restart()

        async def write() -> None:
            await pool.execute("INSERT INTO tally VALUES (1)")

        async def transact() -> None:
            async with pool.transaction() as tx:
                await tx.execute("INSERT INTO tally VALUES (2)")

        async def copy() -> None:
            async with pool.acquire() as connection:
                await connection.copy_in("tally", ["n"], [(3,)])

        async def read() -> None:
            await pool.fetch("SELECT n FROM tally")

        await asyncio.gather(*(call() for call in (write, transact, copy, read) for _ in range(4)))
        assert await pool.fetch_value("SELECT count(*) FROM tally") == 12


async def test_a_connection_that_dies_in_its_lessee_s_hands_is_exchanged_before_use(
    server: PostgresServer,
) -> None:
    """Acquired, then killed, then used for the first time: another one, silently. In use: an error."""
    async with Pool(server.url(), size=2, reserved=0, server_settings=NAME) as pool:
        async with pool.acquire() as connection:
            await asyncio.to_thread(server.query, _TERMINATE)
            await until(lambda: connection._link().raw.is_closed())
            assert await connection.fetch_value("SELECT 1") == 1
            await asyncio.to_thread(server.query, _TERMINATE)
            with pytest.raises(DatabaseUnavailable):
                await connection.fetch_value("SELECT 2")
        assert await pool.fetch_value("SELECT 3") == 3


_TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'under-test'"


async def test_a_lost_read_is_repeated_and_a_lost_write_is_not(server: PostgresServer) -> None:
    """The connection is cut after the statement was sent: who reads hears nothing of it, who writes does,
    and the write has happened at most once."""
    async with proxied(server, size=2, reserved=0) as (proxy, pool):
        await pool.execute("CREATE TABLE tally (n int)")
        cut = proxy.on(b"read-marker", "cut")
        assert await pool.fetch_value("SELECT count(*) /* read-marker */ FROM tally") == 0
        assert cut.done()
        insert = "INSERT INTO tally VALUES (1) RETURNING n"
        await pool.fetch_value("DELETE FROM tally")
        for statement in (insert, "SELECT nextval('tally_seq'), 'write-marker'"):
            await pool.execute("CREATE SEQUENCE IF NOT EXISTS tally_seq")
            cut = proxy.on(statement[:20].encode(), "cut")
            with pytest.raises(DatabaseUnavailable):
                await pool.fetch_value(statement)
            assert cut.done()
        assert await pool.fetch_value("SELECT count(*) FROM tally") <= 1


async def test_begin_is_repeated_on_a_fresh_connection(server: PostgresServer) -> None:
    """Nothing was executed yet, so a connection that dies at BEGIN costs the caller nothing."""
    async with proxied(server, size=2, reserved=0) as (proxy, pool):
        cut = proxy.on(b"BEGIN", "drop")
        async with pool.transaction() as tx:
            assert await tx.fetch_value("SELECT 1") == 1
        assert cut.done()


async def test_an_unreachable_server_is_awaited_within_the_time_given(server: PostgresServer) -> None:
    """Connection refused: the statement waits and succeeds when the server is back in time; otherwise
    DatabaseUnavailable with the reason, at its time and not later."""
    async with proxied(server, size=2, reserved=0, acquire_timeout=0.6) as (proxy, pool):
        proxy.refuse()
        proxy.cut()
        begun = time.monotonic()
        with pytest.raises(DatabaseUnavailable) as caught:
            await pool.fetch_value("SELECT 1")
        assert 0.5 < time.monotonic() - begun < PATIENCE
        assert caught.value.__cause__ is not None
        waiting = asyncio.create_task(pool.fetch_value("SELECT 1"))
        await until(lambda: pool.stats().waiting == 1)
        proxy.resume()
        assert await waiting == 1


async def test_what_waiting_cannot_mend_fails_at_once(server: PostgresServer) -> None:
    """A wrong password or database is reported without using up the waiting time."""
    for url in (server.url("nowhere"), server.url().replace(":", ":wrong", 2).replace("wrong//", "//", 1)):
        pool = Pool(url, acquire_timeout=10.0)
        begun = time.monotonic()
        with pytest.raises(DatabaseUnavailable):
            await pool.start()
        assert time.monotonic() - begun < PATIENCE
        assert pool.stats().size == 0 and pool.state == "failed"


async def test_one_dead_connection_has_its_siblings_asked(server: PostgresServer) -> None:
    """The first loss is a hint: idle siblings that still look alive are asked, and go if they are silent."""
    async with proxied(server, size=3, reserved=0) as (proxy, pool):
        assert await usable(pool, 3) == 3
        proxy.stall()
        proxy.cut(1)
        await until(lambda: pool.stats().size == 0)
        proxy.resume()
        assert await usable(pool, 3) == 3
        proxy.cut(1)
        await until(lambda: pool.stats().idle == 2)  # these two had an answer, and stay
        assert pool.stats().size == 2


async def test_idle_connections_leave_when_their_server_does(server: PostgresServer) -> None:
    """Nobody has to use a dead connection for it to be noticed."""
    heard = Heard()
    async with Pool(server.url(), size=5, reserved=0, sink=heard, server_settings=NAME) as pool:
        assert await usable(pool, 5) == 5
        await asyncio.to_thread(server.query, _TERMINATE)
        await until(lambda: pool.stats().size == 0)
        assert {signal.reason for signal in heard.of(ConnectionClosed)} == {"broken"}
        assert await pool.fetch_value("SELECT 1") == 1


async def test_a_server_that_refuses_writes_retires_every_connection(server: PostgresServer) -> None:
    """SQLSTATE 25006 means the role changed: RoleChanged, and a new generation. In a transaction that was
    opened read-only it is the caller's own mistake and changes nothing."""
    async with Pool(server.url(), size=3, reserved=0, server_settings=NAME) as pool:
        await pool.execute("CREATE TABLE tally (n int)")
        assert await usable(pool, 3) == 3
        with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
            async with pool.transaction(read_only=True) as tx:
                await tx.execute("INSERT INTO tally VALUES (1)")
        assert pool.stats().generation == 0
        await pool.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        await pool.execute("SELECT pg_reload_conf()")
        async with asyncio.timeout(5):
            while await pool.fetch_value("SHOW default_transaction_read_only") != "on":
                await asyncio.sleep(0.01)
        assert await usable(pool, 3) == 3
        writes = [pool.execute("INSERT INTO tally VALUES (1)") for _ in range(3)]
        errors = await asyncio.gather(*writes, return_exceptions=True)
        assert all(isinstance(error, RoleChanged) for error in errors)
        assert pool.stats().generation == 1  # once for all that were open then
        with pytest.raises(RoleChanged):
            async with pool.transaction() as tx:
                await tx.execute("INSERT INTO tally VALUES (1)")
        assert pool.stats().generation == 2


@pytest.mark.parametrize("seed", range(3))
async def test_a_storm_of_cancellations_loses_nothing(database_url: str, seed: int) -> None:
    """Callers of every kind cancelled at random moments: all places are there afterwards, no statement
    runs on, no transaction stays open, no session state leaks, no task is left."""
    chance = random.Random(seed)
    before = asyncio.all_tasks()
    async with Pool(database_url, size=4, reserved=1, acquire_timeout=10.0, server_settings=NAME) as pool:
        await pool.execute("CREATE TABLE tally (n int)")

        async def read() -> None:
            assert await pool.fetch_value("SELECT $1::int", 7) == 7

        async def sleep() -> None:
            await pool.fetch_value("SELECT pg_sleep($1)", chance.uniform(0, 0.02))

        async def write() -> None:
            async with pool.transaction() as tx:
                await tx.execute("INSERT INTO tally VALUES (1)")
                await tx.fetch_value("SELECT pg_sleep($1)", chance.uniform(0, 0.01))

        async def dirty() -> None:
            async with pool.acquire() as connection:
                await connection.execute("SET app.mark = 'dirty'")
                await connection.fetch_value("SELECT 1")

        async def limited() -> None:
            with within(chance.uniform(0.001, 0.02)), suppress(DeadlineExceeded, Unavailable):
                await pool.fetch_value("SELECT pg_sleep(0.01)")

        async def caller() -> None:
            for _ in range(25):
                body = chance.choice((read, sleep, write, dirty, limited))
                task = asyncio.create_task(body())
                await asyncio.wait([task], timeout=chance.choice((0, 0.0005, 0.002, 0.008)))
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

        await asyncio.gather(*(caller() for _ in range(8)))
        await until(lambda: pool.stats().busy == 0)
        assert pool._lent == pool._common == 0
        assert await pool.fetch_value("SELECT coalesce(current_setting('app.mark', true), '')") == ""
        busy = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'under-test'"
        assert await pool.fetch_value(busy + " AND state <> 'idle' AND pid <> pg_backend_pid()") == 0
        assert await pool.fetch_value("SHOW statement_timeout") == "0"
    assert asyncio.all_tasks() <= before
    await no_backend_left(database_url)


async def test_a_full_pool_says_so_and_not_that_the_server_is_gone(server: PostgresServer) -> None:
    """Busy is PoolTimeout, gone is DatabaseUnavailable: an operator must be able to tell them apart."""
    async with Pool(server.url(), size=1, reserved=0, acquire_timeout=0.5, server_settings=NAME) as pool:
        async with pool.acquire():
            with pytest.raises(PoolTimeout):
                await pool.fetch_value("SELECT 1")
        server.stop()
        with pytest.raises(DatabaseUnavailable):
            await pool.fetch_value("SELECT 1")


async def test_stop_while_busy_ends_in_bounded_time(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Callers that never come back do not hold `stop`; their statements end on the server too."""
    monkeypatch.setattr("springtide.db.pool.STOP_GRACE", 0.2)
    pool = Pool(server.url(), size=3, reserved=0, server_settings=NAME)
    await pool.start()
    lost = asyncio.create_task(pool.fetch_value("SELECT pg_sleep(60)"))
    lease = pool.acquire()
    connection = await lease.__aenter__()
    await until(lambda: pool.stats().busy == 2)
    begun = time.monotonic()
    await pool.stop()
    assert time.monotonic() - begun < PATIENCE
    with pytest.raises(SpringtideError):
        await lost
    with pytest.raises(SpringtideError):
        await connection.fetch_value("SELECT 1")
    await lease.__aexit__(None, None, None)
    assert pool.stats().size == 0
    await no_backend_left(server.url())
