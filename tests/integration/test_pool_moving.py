"""The pool when its cluster gets another primary: what waits, what is sent again, what is reported."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from tests._cluster import Cluster
from tests.integration.test_pool import Heard, until, within
from tests.integration.test_pool_faults import NAME, PATIENCE, through
from tests.servers import PostgresServer

from springtide.db.pool import Pool
from springtide.errors import (
    CommitUnknown,
    DatabaseUnavailable,
    DeadlineExceeded,
    PoolTimeout,
    RoleChanged,
    Unavailable,
)
from springtide.signals import ConnectionClosed
from springtide.testing.faults import FaultProxy

WHERE = "SELECT name FROM whoami"
COUNT = "SELECT count(*) FROM tally"


@pytest.fixture
async def two(database_urls: tuple[str, str]) -> tuple[str, str]:
    """Two databases that stand for two servers, each knowing its name."""
    for name, url in zip(("old", "new"), database_urls, strict=True):
        connection = await asyncpg.connect(url)
        await connection.execute("CREATE TABLE whoami (name text); CREATE TABLE tally (n int)")
        await connection.execute("INSERT INTO whoami VALUES ($1)", name)
        await connection.close()
    return database_urls


async def count(url: str) -> int:
    connection = await asyncpg.connect(url)
    try:
        number: int = await connection.fetchval(COUNT)
        return number
    finally:
        await connection.close()


@asynccontextmanager
async def behind(
    postgres: PostgresServer, url: str, **options: Any
) -> AsyncIterator[tuple[FaultProxy, Pool]]:
    """A pool that reaches the old server through a fault proxy."""
    async with FaultProxy(target=postgres.port) as proxy:
        options = {"reserved": 0, "server_settings": NAME, **options}
        async with Pool(through(proxy, url), **options) as pool:
            yield proxy, pool


async def test_a_move_replaces_every_connection(two: tuple[str, str]) -> None:
    """Idle ones and lent ones; whoever held one unused does not notice, the next statement is answered by
    the new server. A move to where the pool is already changes nothing."""
    heard = Heard()
    async with Pool(two[0], size=3, reserved=0, sink=heard, server_settings=NAME) as pool:
        assert await pool.fetch_value(WHERE) == "old"
        async with pool.acquire() as held:
            pool.move(two[0])
            assert pool.stats().generation == 0
            pool.move(two[1])
            assert (pool.dsn, pool.stats().idle) == (two[1], 0)
            assert await pool.fetch_value(WHERE) == "new"
            assert await held.fetch_value(WHERE) == "new"
        async with pool.transaction() as tx:
            assert await tx.fetch_value(WHERE) == "new"
        reasons = {signal.reason for signal in heard.of(ConnectionClosed)}
        assert reasons <= {"generation", "broken"}
        await until(lambda: pool.stats().idle == pool.stats().size)


async def test_reads_under_way_are_sent_again_and_writes_are_not(
    postgres: PostgresServer, two: tuple[str, str]
) -> None:
    """The old server takes everything and answers nothing. At the move a read, a waiter and a BEGIN go on
    with the new server; a write and a transaction that had begun are unavailable, and are nowhere twice."""
    async with behind(postgres, two[0], size=4) as (proxy, pool):

        async def begin() -> str:
            async with pool.transaction(read_only=True) as tx:
                return str(await tx.fetch_value(WHERE))

        lent = [await pool._begin(None, lambda link: link.greet()) for _ in range(4)]
        for link in lent:
            pool._put(link)
        begun = pool.transaction()
        tx = await begun.__aenter__()
        await tx.execute("INSERT INTO tally VALUES (1)")
        proxy.stall()
        read = asyncio.create_task(pool.fetch_value(WHERE))
        write = asyncio.create_task(pool.execute("INSERT INTO tally VALUES (2)"))
        first = asyncio.create_task(begin())
        await until(lambda: pool.stats().idle == 0)
        waiter = asyncio.create_task(pool.fetch_value(WHERE))
        await until(lambda: pool.stats().waiting == 1)
        pool.move(two[1])
        async with asyncio.timeout(PATIENCE):
            assert await asyncio.gather(read, first, waiter) == ["new", "new", "new"]
            with pytest.raises(DatabaseUnavailable):
                await write
            with pytest.raises(DatabaseUnavailable):
                await tx.execute("INSERT INTO tally VALUES (3)")
            with pytest.raises(DatabaseUnavailable):
                await begun.__aexit__(None, None, None)
        proxy.resume()
        assert await pool.fetch_value(COUNT) == 0
        assert await count(two[0]) <= 1
        assert pool.stats().busy == 0


async def test_a_commit_confirmed_by_the_server_that_was_left_is_not_believed(
    postgres: PostgresServer, two: tuple[str, str]
) -> None:
    """The old server has committed and its answer is on the way when the pool moves: CommitUnknown, at once;
    and COMMIT was not cancelled there."""
    async with behind(postgres, two[0], size=2) as (proxy, pool):
        answered = proxy.on(b"COMMIT", "stall", side="server")

        async def write() -> None:
            async with pool.transaction() as tx:
                await tx.execute("INSERT INTO tally VALUES (1)")

        writing = asyncio.create_task(write())
        await answered
        pool.move(two[1])
        proxy.resume()
        with pytest.raises(CommitUnknown):
            async with asyncio.timeout(PATIENCE):
                await writing
        assert await pool.fetch_value(WHERE) == "new"
        assert (await count(two[0]), await count(two[1])) == (1, 0)


async def test_without_a_server_callers_wait_for_the_next_one(two: tuple[str, str]) -> None:
    """`move(None)`: longer than acquire_timeout, up to outage_timeout, never past the deadline; a time-out of
    the caller's own holds; and the next server serves whoever still waits."""
    async with Pool(
        two[0], size=2, reserved=0, acquire_timeout=1.0, outage_timeout=60.0, server_settings=NAME
    ) as pool:
        pool.watched(lambda: None)
        pool.move(None)
        assert pool.dsn is None
        waiting = [asyncio.create_task(pool.fetch_value(WHERE)) for _ in range(3)]
        with pytest.raises(Unavailable, match="no server now"):
            async with pool.acquire(timeout=0.02):
                pass
        with within(1.2), pytest.raises(DatabaseUnavailable, match="no server now"):
            await pool.fetch_value(WHERE)
        assert [task.done() for task in waiting] == [False, False, False]
        assert pool.stats().size == 0
        pool.move(two[1])
        async with asyncio.timeout(PATIENCE):
            assert await asyncio.gather(*waiting) == ["new"] * 3


async def test_a_busy_pool_is_no_outage(two: tuple[str, str]) -> None:
    """While the server is there, waiting ends after acquire_timeout however long an outage may be waited for;
    and without an outage_timeout an outage is waited for as long as everything else."""
    options: Any = {"size": 1, "reserved": 0, "acquire_timeout": 1.0, "server_settings": NAME}
    async with Pool(two[0], outage_timeout=6 * PATIENCE, **options) as pool, pool.acquire():
        pool.watched(lambda: None)
        with pytest.raises(PoolTimeout):
            async with asyncio.timeout(PATIENCE):
                await pool.fetch_value(WHERE)
        with within(0.02), pytest.raises(DeadlineExceeded):
            await pool.fetch_value(WHERE)
    for more in ({}, {"outage_timeout": 6 * PATIENCE}):  # nobody watches: there is nobody to wait for
        async with Pool(two[0], **options, **more) as pool:
            pool.move(None)
            with pytest.raises(DatabaseUnavailable):
                async with asyncio.timeout(PATIENCE):
                    await pool.fetch_value(WHERE)
    with pytest.raises(ValueError, match=r"outage_timeout must be >= acquire_timeout or None, got 1 < 2\.0"):
        Pool(two[0], outage_timeout=1)


async def test_a_move_does_not_wait_for_attempts_at_the_old_server(
    postgres: PostgresServer, two: tuple[str, str]
) -> None:
    """The old server's machine takes connections and never answers: who waits is served by the new one at
    once, not when those attempts have timed out."""
    async with behind(postgres, two[0], size=2, acquire_timeout=PATIENCE) as (proxy, pool):
        proxy.stall()
        pool.retire("the test wants new connections")
        waiting = asyncio.create_task(pool.fetch_value(WHERE))
        await until(lambda: proxy.accepted == 2)
        begun = time.monotonic()
        pool.move(two[1])
        assert await waiting == "new"
        assert time.monotonic() - begun < 4.9  # an attempt has 5 s: one that was waited for is told apart
        assert pool.stats().size == 1


READ_ONLY = "options=-c%20default_transaction_read_only%3Don"


async def test_a_refused_statement_is_sent_again_after_the_move(two: tuple[str, str]) -> None:
    """25006 is a definite no: told of it, the watcher finds the new primary, and the write is there once. In
    a transaction the caller hears RoleChanged, and so does everybody when nobody watches."""
    demoted = f"{two[0]}?{READ_ONLY}"
    write = "INSERT INTO tally VALUES (1)"
    async with Pool(demoted, size=2, reserved=0, server_settings=NAME) as pool:
        with pytest.raises(RoleChanged):
            await pool.execute(write)
        doubts: list[int] = []

        def doubt() -> None:
            doubts.append(1)
            asyncio.get_running_loop().call_later(0.01, pool.move, two[1])

        pool.watched(doubt)
        assert await pool.execute(write) == "INSERT 0 1"
        assert doubts
        assert (await count(two[0]), await count(two[1])) == (0, 1)
        pool.watched(lambda: None)
        pool.move(demoted)
        with pytest.raises(RoleChanged):
            async with pool.transaction() as tx:
                await tx.execute(write)
        with within(0.1), pytest.raises(RoleChanged):
            await pool.execute(write)
        with within(0.1), pytest.raises(RoleChanged):
            await pool.execute("INSERT INTO tally VALUES (2); INSERT INTO tally VALUES (3)")
        assert (await count(two[0]), await count(two[1])) == (0, 1)


async def test_whoever_watches_is_told_of_trouble(postgres: PostgresServer, two: tuple[str, str]) -> None:
    """A connection that is lost and one that cannot be opened are reasons to look."""
    async with behind(postgres, two[0], size=1, acquire_timeout=1.0) as (proxy, pool):
        doubts: list[int] = []
        pool.watched(lambda: doubts.append(1))
        await pool.fetch_value(WHERE)
        assert doubts == []
        proxy.cut()
        await until(lambda: len(doubts) == 1)
        proxy.refuse()
        with pytest.raises(DatabaseUnavailable):
            await pool.fetch_value(WHERE)
        assert len(doubts) > 1


@pytest.fixture
def world(own_cluster: Callable[..., Cluster]) -> Cluster:
    return own_cluster(replicas=1)


async def test_a_standby_is_no_primary(world: Cluster) -> None:
    """With `primary_only` no connection to a standby is ever lent, so nothing stale is read as if it were
    not; once it is promoted, the same address serves. Without the option a standby may be read from."""
    replica = world.replicas[0]
    async with Pool(
        world.url(), size=4, reserved=0, primary_only=True, outage_timeout=60.0, server_settings=NAME
    ) as pool:
        pool.watched(lambda: None)
        await pool.execute("CREATE TABLE tally (n int)")
        await pool.execute("INSERT INTO tally VALUES (1)")
        await asyncio.to_thread(replica.catch_up)
        async with Pool(world.url(replica), size=1, reserved=0) as reading:
            assert await reading.fetch_value(COUNT) == 1
        pool.move(world.url(replica))
        waiting = [asyncio.create_task(pool.fetch_value(COUNT)) for _ in range(4)]
        with within(0.3), pytest.raises(DatabaseUnavailable, match="is a standby"):
            await pool.execute("INSERT INTO tally VALUES (2)")
        assert pool.stats().opened == 1
        await asyncio.to_thread(world.primary.kill)
        await asyncio.to_thread(replica.promote)
        assert await asyncio.gather(*waiting) == [1] * 4
        await pool.execute("INSERT INTO tally VALUES (2)")
        assert await pool.fetch_value(COUNT) == 2
