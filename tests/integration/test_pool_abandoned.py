"""What a cancelled statement or block leaves behind: nothing that is committed or met by others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import asyncpg
import pytest
from tests.integration.test_pool import no_backend_left, until, within
from tests.integration.test_pool_faults import NAME

from springtide.db.pool import Pool
from springtide.errors import DeadlineExceeded, PoolClosed

INSERT = "INSERT INTO tally VALUES ($1)"
COUNT = "SELECT count(*) FROM tally"


@pytest.fixture
async def pool(database_url: str) -> AsyncIterator[Pool]:
    async with Pool(database_url, size=2, reserved=0, acquire_timeout=5.0, server_settings=NAME) as pool:
        await pool.execute("CREATE TABLE tally (n int)")
        yield pool
        await until(lambda: pool.stats().busy == 0)
        assert pool._lent == pool._common == 0
    await no_backend_left(database_url)


async def test_a_savepoint_that_was_cancelled_is_never_committed(pool: Pool) -> None:
    """The outer block survives the cancellation: it can neither go on nor commit what the inner one did."""
    with pytest.raises(asyncpg.InFailedSQLTransactionError, match="cancelled"):
        async with pool.transaction() as tx:
            await tx.execute(INSERT, 1)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05), tx.savepoint():
                    await tx.execute(INSERT, 2)
                    await asyncio.Event().wait()
            with pytest.raises(asyncpg.InFailedSQLTransactionError, match="cancelled"):
                await tx.execute(INSERT, 3)
    assert await pool.fetch_value(COUNT) == 0


@pytest.mark.parametrize("raises", [False, True])
async def test_a_savepoint_that_cannot_end_in_time_is_never_committed(pool: Pool, raises: bool) -> None:
    """Its deadline passed, the one of the block around it did not: what raised was not undone alone."""
    with pytest.raises(asyncpg.InFailedSQLTransactionError, match="ran out of time"):
        async with pool.transaction() as tx:
            await tx.execute(INSERT, 1)
            with within(0.2) as context, pytest.raises(KeyError if raises else DeadlineExceeded):
                async with tx.savepoint():
                    await tx.execute(INSERT, 2)
                    context.deadline = 0.0
                    if raises:
                        raise KeyError
    assert await pool.fetch_value(COUNT) == 0


async def test_a_statement_that_was_cancelled_is_never_committed(pool: Pool) -> None:
    """It may have been executed or not, so the transaction around it cannot mean anything any more."""
    called: list[int] = []
    with pytest.raises(asyncpg.InFailedSQLTransactionError, match="cancelled"):
        async with pool.transaction() as tx:
            tx.on_commit(lambda: called.append(1))
            await tx.execute(INSERT, 1)
            with suppress(TimeoutError):
                async with asyncio.timeout(0.05):
                    await tx.fetch_value("SELECT pg_sleep(60)")
    assert await pool.fetch_value(COUNT) == 0
    assert called == []


async def test_a_snapshot_whose_statement_was_cancelled_ends_without_an_error(pool: Pool) -> None:
    """It has nothing to commit; only further reads are refused."""
    async with pool.transaction(read_only=True) as tx:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await tx.fetch_value("SELECT pg_sleep(60)")
        with pytest.raises(asyncpg.InFailedSQLTransactionError):
            await tx.fetch_value(COUNT)


async def test_a_connection_does_not_go_on_inside_an_abandoned_transaction(pool: Pool) -> None:
    """A statement after it would report success and be rolled back when the connection returns."""
    async with pool.acquire() as connection:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05), connection.transaction() as tx:
                await tx.execute(INSERT, 1)
                await asyncio.Event().wait()
        with pytest.raises(PoolClosed, match="acquire another"):
            await connection.execute(INSERT, 2)
        with pytest.raises(PoolClosed, match="acquire another"):
            async with connection.transaction():
                pass
    async with pool.acquire() as connection:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await connection.execute("SELECT pg_sleep(60)")
        with pytest.raises(PoolClosed, match="acquire another"):
            _ = connection.raw
    assert await pool.fetch_value(COUNT) == 0


@pytest.mark.parametrize("on_connection", [False, True])
async def test_a_caller_who_leaves_during_callbacks_costs_no_connection(
    pool: Pool, monkeypatch: pytest.MonkeyPatch, on_connection: bool
) -> None:
    """COMMIT is answered: the connection is back, whoever has it next keeps it, and the callback ends."""
    monkeypatch.setattr("springtide.db.transaction.ABANDONED_COMMIT", 0.05)
    entered, leave, called = asyncio.Event(), asyncio.Event(), []

    async def slow() -> None:
        entered.set()
        await leave.wait()
        called.append(1)

    async def write() -> None:
        if on_connection:
            async with pool.acquire() as connection, connection.transaction() as tx:
                tx.on_commit(slow)
                await tx.execute(INSERT, 1)
        else:
            async with pool.transaction() as tx:
                tx.on_commit(slow)
                await tx.execute(INSERT, 1)

    caller = asyncio.create_task(write())
    await entered.wait()
    caller.cancel()
    with suppress(asyncio.CancelledError):
        await caller
    async with pool.acquire() as first, pool.acquire() as second:
        for connection in (first, second):
            assert await connection.fetch_value("SELECT 1 FROM pg_sleep(0.1)") == 1
    leave.set()
    await until(lambda: called == [1])
    assert await pool.fetch_value(COUNT) == 1


async def test_a_deadline_that_passes_during_callbacks_does_not_hide_the_commit(pool: Pool) -> None:
    """COMMIT was confirmed: that is what the caller hears, and the callback runs on beside it."""
    leave, called = asyncio.Event(), []

    async def slow() -> None:
        await leave.wait()
        called.append(1)

    with within(0.3):
        async with pool.transaction() as tx:
            tx.on_commit(slow)
            await tx.execute(INSERT, 1)
    assert called == []
    leave.set()
    await until(lambda: called == [1])


async def test_a_block_that_two_tasks_enter_belongs_to_the_first(pool: Pool) -> None:
    """The second is refused, and what the first holds is neither lost nor shared."""
    for make in (pool.acquire, pool.transaction):
        block = make()

        async def use(block: Any = block) -> None:
            async with block as held, pool.acquire():  # both connections
                await held.fetch_value("SELECT 1")

        results = await asyncio.gather(use(), use(), return_exceptions=True)
        assert [type(result) for result in results] == [type(None), RuntimeError]
        assert pool.stats().busy == 0


async def test_what_a_cancelled_caller_ran_on_the_raw_connection_ends_on_the_server(pool: Pool) -> None:
    """The pool replaces a connection used raw, and does not leave its statement running."""
    started = asyncio.Event()

    async def run() -> None:
        async with pool.acquire() as connection:
            raw = connection.raw
            started.set()
            await raw.execute("SELECT pg_sleep(60)")

    caller = asyncio.create_task(run())
    await started.wait()
    running = (
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(60)' AND state = 'active'"
        " AND pid <> pg_backend_pid()"
    )
    async with asyncio.timeout(5):
        while not await pool.fetch_value(running):
            await asyncio.sleep(0.01)
        caller.cancel()
        with suppress(asyncio.CancelledError):
            await caller
        while await pool.fetch_value(running):
            await asyncio.sleep(0.01)


async def test_stop_ends_callbacks_that_never_end(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After `stop` nothing of the pool is left, not even a task."""
    monkeypatch.setattr("springtide.db.pool.STOP_GRACE", 0.1)
    before = asyncio.all_tasks()
    entered = asyncio.Event()

    async def endless() -> None:
        entered.set()
        await asyncio.Event().wait()

    async def write(pool: Pool) -> None:
        async with pool.transaction() as tx:
            tx.on_commit(endless)

    async with Pool(database_url, size=1, reserved=0, server_settings=NAME) as pool:
        caller = asyncio.create_task(write(pool))
        await entered.wait()
    await caller
    assert asyncio.all_tasks() <= before
