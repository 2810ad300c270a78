"""The pool behind a transaction pooler: a real PgBouncer whose server connections change hands."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import asyncpg
import pytest
from tests._pooler import PoolerServer
from tests.integration.test_pool import until, within
from tests.servers import PostgresServer

from springtide.db.pool import Pool
from springtide.errors import CommitUnknown, DatabaseUnavailable, DeadlineExceeded, SessionStateRefused

pytestmark = pytest.mark.needs("pgbouncer")

OwnPooler = Callable[..., PoolerServer]

PATIENCE = 20.0
"""Seconds in which something ends that would otherwise never end; no promise of speed."""


@pytest.fixture
def shared(database_url: str, own_pooler: OwnPooler) -> PoolerServer:
    """One server connection, so that every client meets the session of the one before."""
    return own_pooler({"main": database_url}, server_connections=1)


@pytest.fixture
def roomy(database_url: str, own_pooler: OwnPooler) -> PoolerServer:
    return own_pooler({"main": database_url}, server_connections=4)


async def test_statements_and_transactions_work_through_it(roomy: PoolerServer) -> None:
    """Every kind of statement, from many callers at once over few server connections; a type of the
    application's own is looked up on the way."""
    async with Pool(roomy.url("main"), pooled=True) as pool:
        await pool.execute("CREATE TYPE mood AS ENUM ('calm', 'wild')")
        await pool.execute("CREATE TABLE thing (id int PRIMARY KEY, mood mood)")

        async def work(number: int) -> None:
            async with pool.transaction() as tx:
                await tx.execute("INSERT INTO thing VALUES ($1, $2)", number * 10, "calm")
                async with tx.savepoint():
                    await tx.execute_many(
                        "INSERT INTO thing VALUES ($1, $2)", [(number * 10 + n, "wild") for n in range(1, 4)]
                    )
                assert await tx.copy_in("thing", ["id", "mood"], [(number * 10 + 4, "calm")]) == 1
            row = await pool.fetch_one("SELECT mood, id FROM thing WHERE id = $1", number * 10 + 2)
            assert row is not None
            assert tuple(row) == ("wild", number * 10 + 2)

        async with asyncio.TaskGroup() as group:
            for number in range(1, 31):
                group.create_task(work(number))
        assert await pool.fetch_value("SELECT count(*) FROM thing WHERE mood = $1", "calm") == 60
        async with pool.acquire() as connection:
            await connection.execute_many("UPDATE thing SET mood = $2 WHERE id = $1", [(10, "wild")])
            assert await connection.fetch_value("SELECT pg_is_in_recovery()") is False


async def test_a_deadline_leaves_no_time_limit_to_the_next_client(shared: PoolerServer) -> None:
    """The next client of the same server session finds the limit that the server itself has: reads and
    transactions with a deadline have set none that stays."""
    async with Pool(shared.url("main"), pooled=True) as pool, Pool(shared.url("main"), pooled=True) as other:
        before = await other.fetch_value("SHOW statement_timeout")
        session = await other.fetch_value("SELECT pg_backend_pid()")
        with within(5.0):
            assert await pool.fetch_value("SELECT pg_backend_pid()") == session
            async with pool.acquire() as connection:
                assert await connection.fetch_value("SELECT pg_backend_pid()") == session
            async with pool.transaction() as tx:
                assert await tx.fetch_value("SELECT pg_backend_pid()") == session
                assert await tx.fetch_value("SHOW statement_timeout") not in (before, "0")
        assert await other.fetch_value("SELECT pg_backend_pid()") == session
        assert await other.fetch_value("SHOW statement_timeout") == before


async def test_looking_up_a_type_changes_no_setting(
    own_postgres: Callable[..., PostgresServer], own_pooler: OwnPooler
) -> None:
    """asyncpg switches `jit` off and on around its question for a type that it does not know; the two would
    reach different sessions."""
    server = own_postgres()
    server.query("ALTER DATABASE postgres SET jit = on; ALTER DATABASE postgres SET log_statement = 'all'")
    server.query("CREATE TYPE mood AS ENUM ('calm', 'wild')")
    pooler = own_pooler({"main": server.url()}, server_connections=2)
    async with Pool(pooler.url("main"), pooled=True) as pool:
        assert await pool.fetch_value("SELECT ARRAY['calm'::mood]") == ["calm"]
        assert await pool.fetch_value("SHOW jit") == "on"
    log = await asyncio.to_thread(server.server.log.read_text)
    assert "typname" in log  # it has asked
    assert "set_config('jit'" not in log


async def test_the_deadline_of_a_single_statement_ends_it_on_the_server(shared: PoolerServer) -> None:
    """It has no limit of its own there; the cancel request goes through the pooler, and the one server
    connection is free for the next."""
    async with Pool(shared.url("main"), pooled=True, size=4, reserved=0) as pool:
        with within(0.2), pytest.raises(DeadlineExceeded):
            await pool.fetch("SELECT pg_sleep(60)")
        async with asyncio.timeout(PATIENCE):
            assert await pool.fetch_value("SELECT 1") == 1
        async with asyncio.timeout(PATIENCE):
            while pool.stats().busy:
                await asyncio.sleep(0.01)


async def test_a_cancelled_caller_returns_and_its_place_is_free(shared: PoolerServer) -> None:
    """Running, waiting in the pooler for a server connection, or in a transaction: the caller ends at once,
    and neither the place in the pool nor the server connection is lost."""
    async with Pool(shared.url("main"), pooled=True, size=3, reserved=0) as pool:
        for block in ("single", "waiting", "transaction"):

            async def work(block: str = block) -> None:
                if block == "transaction":
                    async with pool.transaction() as tx:
                        await tx.execute("SELECT pg_sleep(60)")
                elif block == "waiting":
                    async with pool.transaction() as tx:  # holds the only server connection
                        await tx.fetch_value("SELECT 1")
                        await pool.fetch_value("SELECT 2")
                else:
                    await pool.fetch_value("SELECT pg_sleep(60)")

            task = asyncio.create_task(work())
            await until(lambda: pool.stats().busy >= 1)
            await asyncio.sleep(0)
            task.cancel()
            done, _ = await asyncio.wait((task,), timeout=PATIENCE)
            assert done and task.cancelled()
            async with asyncio.timeout(PATIENCE):
                assert await pool.fetch_value("SELECT 3") == 3
            await until(lambda: pool.stats().busy == 0)


@pytest.mark.parametrize(
    ("sql", "what", "instead"),
    [
        ("SET search_path = other", "SET", "SET LOCAL"),
        ("SELECT 1; set session timezone to 'UTC'", "SET", "SET LOCAL"),
        ("RESET ALL", "RESET", "SET LOCAL"),
        ("SELECT set_config('work_mem', '1MB', false)", "set_config", "true"),
        ("SELECT pg_advisory_lock(1)", "pg_advisory_lock", "pg_advisory_xact_lock"),
        ("SELECT pg_try_advisory_lock(1)", "pg_try_advisory_lock", "pg_try_advisory_xact_lock"),
        ("SELECT pg_advisory_unlock_all()", "pg_advisory_unlock_all", "direct connection"),
        ("LISTEN news", "LISTEN", "direct connection"),
        ("CREATE TEMP TABLE t (n int)", "TEMP", "ON COMMIT DROP"),
        ("SELECT 1 AS n INTO TEMP t", "TEMP", "ON COMMIT DROP"),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "WITH HOLD", "WITHOUT HOLD"),
        ("PREPARE p AS SELECT 1", "PREPARE", "leave preparing to the pool"),
        ("DISCARD ALL", "DISCARD", "direct connection"),
        ("LOAD 'plpgsql'", "LOAD", "direct connection"),
    ],
)
async def test_what_would_stay_in_a_session_is_refused_by_name(
    shared: PoolerServer, sql: str, what: str, instead: str
) -> None:
    """Nothing is sent; the error names it and says what to do; the connection goes on."""
    async with Pool(shared.url("main"), pooled=True) as pool:
        for run in (pool.execute, pool.fetch):
            with pytest.raises(SessionStateRefused, match=instead) as refused:
                await run(sql)
            assert refused.value.what == what
        async with pool.transaction() as tx:
            with pytest.raises(SessionStateRefused):
                await tx.execute(sql)
            assert await tx.fetch_value("SELECT 1") == 1
        assert pool.stats().opened == 1


async def test_what_ends_with_the_transaction_is_allowed(shared: PoolerServer) -> None:
    """SET LOCAL, a local set_config, transaction locks, cursors, and tables that are dropped at COMMIT."""
    async with Pool(shared.url("main"), pooled=True) as pool:
        for _ in range(2):
            async with pool.transaction() as tx:
                await tx.execute("SET LOCAL work_mem = '1MB'")
                await tx.fetch_value("SELECT set_config('work_mem', '2MB', true)")
                await tx.execute("SELECT pg_advisory_xact_lock(1)")
                await tx.execute("CREATE TEMP TABLE t (n int) ON COMMIT DROP")
                await tx.execute("DECLARE c CURSOR FOR SELECT 1")
                await tx.execute("DO $$ BEGIN PERFORM 1; END $$")
        assert await pool.fetch_value("SHOW work_mem") != "2MB"
        assert await pool.fetch_value("SELECT to_regclass('pg_temp.t')") is None
        assert pool.stats().opened == 1


async def test_a_session_cannot_be_had_by_the_back_door(shared: PoolerServer) -> None:
    """asyncpg's own connection, and a promise to be reset, both speak of a session."""
    async with Pool(shared.url("main"), pooled=True) as pool, pool.acquire() as connection:
        with pytest.raises(SessionStateRefused, match="raw"):
            _ = connection.raw
        with pytest.raises(SessionStateRefused, match="mark_dirty"):
            connection.mark_dirty()


async def test_settings_that_the_pooler_would_not_carry_are_refused(shared: PoolerServer) -> None:
    """In the options when the pool is made; in the url when it connects, at once and not after a wait."""
    with pytest.raises(ValueError, match=r"server_settings.search_path must be one of .*ALTER ROLE"):
        Pool(shared.url("main"), pooled=True, server_settings={"search_path": "x"})
    with pytest.raises(ValueError, match="prepared_statements must be None without pooled"):
        Pool(shared.url("main"), prepared_statements=False)
    pool = Pool(f"{shared.url('main')}?statement_timeout=5", pooled=True, acquire_timeout=PATIENCE)
    began = time.monotonic()
    with pytest.raises(DatabaseUnavailable, match="unsupported startup parameter: statement_timeout"):
        await pool.start()
    assert time.monotonic() - began < PATIENCE / 2
    async with Pool(
        shared.url("main"), pooled=True, server_settings={"application_name": "mine", "TimeZone": "UTC"}
    ) as carried:
        assert await carried.fetch_value("SHOW application_name") == "mine"


async def test_wrong_names_and_passwords_are_told_at_once(shared: PoolerServer) -> None:
    """Waiting does not mend them."""
    password = shared.url("main").partition("springtide:")[2].partition("@")[0]
    for url in (shared.url("nobody"), shared.url("main").replace(password, "wrong")):
        began = time.monotonic()
        with pytest.raises(DatabaseUnavailable):
            await Pool(url, pooled=True, acquire_timeout=PATIENCE).start()
        assert time.monotonic() - began < PATIENCE / 2


async def test_a_server_that_restarts_behind_it_costs_no_caller_an_error(
    own_postgres: Callable[..., PostgresServer], own_pooler: OwnPooler
) -> None:
    """Reads and writes that were not sent wait, within their time, until the pooler has a server again;
    none is executed twice."""
    server = own_postgres()
    server.query("CREATE TABLE done (n int)")
    pooler = own_pooler({"main": server.url()}, server_connections=2)
    async with Pool(pooler.url("main"), pooled=True, size=8, acquire_timeout=PATIENCE) as pool:
        assert await pool.fetch_value("SELECT 1") == 1
        await asyncio.to_thread(server.stop)

        async def write(number: int) -> None:
            await pool.execute("INSERT INTO done VALUES ($1)", number)

        async def block(number: int) -> None:
            async with pool.transaction() as tx:
                await tx.execute("INSERT INTO done VALUES ($1)", number)

        tasks = [asyncio.create_task(work(n)) for n in range(10) for work in (write, block)]
        reading = asyncio.create_task(pool.fetch_value("SELECT count(*) FROM done"))
        await until(lambda: pool.stats().closed)  # the pooler has told somebody that it has no server
        await asyncio.to_thread(server.start)
        await asyncio.gather(*tasks)
        assert isinstance(await reading, int)
        rows = await pool.fetch("SELECT n, count(*) AS times FROM done GROUP BY n ORDER BY n")
        assert [tuple(row) for row in rows] == [(n, 2) for n in range(10)]


async def test_a_write_whose_server_died_is_not_repeated(
    own_postgres: Callable[..., PostgresServer], own_pooler: OwnPooler
) -> None:
    """It was with the server when the connection broke: it may have happened. A read is sent again, a
    transaction fails, and nobody gets somebody else's answer."""
    server = own_postgres()
    server.query("CREATE TABLE done (n int)")
    pooler = own_pooler({"main": server.url()}, server_connections=3)
    async with Pool(pooler.url("main"), pooled=True, size=6, acquire_timeout=PATIENCE) as pool:
        writing = asyncio.create_task(pool.execute("INSERT INTO done SELECT 1 FROM pg_sleep(60)"))
        reading = asyncio.create_task(
            pool.fetch_value("SELECT CASE WHEN (SELECT count(*) FROM done) = 0 THEN pg_sleep(60) END IS NULL")
        )

        async def block() -> None:
            async with pool.transaction() as tx:
                await tx.execute("SELECT pg_sleep(60)")

        blocking = asyncio.create_task(block())
        busy = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%pg_sleep(60)%'"
        while int(await asyncio.to_thread(server.query, busy)) < 4:  # the asking one is among them
            await asyncio.sleep(0.02)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.restart)
        await asyncio.to_thread(server.query, "INSERT INTO done VALUES (2)")
        for lost in (writing, blocking):
            with pytest.raises((DatabaseUnavailable, CommitUnknown)):
                await lost
        reading.cancel()
        assert [row["n"] for row in await pool.fetch("SELECT n FROM done")] == [2]


async def test_a_statement_of_a_client_that_dies_ends_on_the_server(
    database_url: str, shared: PoolerServer
) -> None:
    """Nobody is left to cancel it: the server looks after its client by itself."""
    client = await asyncpg.connect(shared.url("main"), statement_cache_size=0)
    sleeping = asyncio.ensure_future(client.execute("SELECT pg_sleep(60)"))
    watcher = await asyncpg.connect(database_url)
    count = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE query = 'SELECT pg_sleep(60)' AND state = 'active' AND datname = current_database()"
    )
    try:
        async with asyncio.timeout(PATIENCE):
            while not await watcher.fetchval(count):
                await asyncio.sleep(0.01)
            client.terminate()
            while await watcher.fetchval(count):
                await asyncio.sleep(0.01)
    finally:
        await watcher.close()
        client.terminate()
        await asyncio.wait([sleeping])
        sleeping.exception()


async def test_it_is_told_where_its_servers_are_now(
    own_postgres: Callable[..., PostgresServer], own_pooler: OwnPooler
) -> None:
    """After `repoint` the same clients reach the other server, with no connection of theirs lost."""
    first, second = own_postgres(), own_postgres()
    pooler = own_pooler({"main": first.url()}, server_connections=2)
    async with Pool(pooler.url("main"), pooled=True) as pool:
        assert await pool.fetch_value("SELECT inet_server_port()") == first.port
        await asyncio.to_thread(pooler.repoint, {"main": second.url()})
        async with asyncio.timeout(PATIENCE):
            while await pool.fetch_value("SELECT inet_server_port()") != second.port:
                await asyncio.sleep(0.01)
        assert pool.stats().opened == 1


async def test_many_clients_share_few_server_connections(database_url: str, own_pooler: OwnPooler) -> None:
    """The pooler lets them in, and the server sees no more than it was told to have."""
    pooler = own_pooler({"main": database_url}, server_connections=3, max_clients=45)
    async with Pool(pooler.url("main"), pooled=True, size=40, reserved=0, acquire_timeout=60.0) as pool:
        async with asyncio.TaskGroup() as group:
            for _ in range(40):
                group.create_task(pool.fetch_value("SELECT pg_sleep(0.01)"))
        assert pool.stats().opened > 10
        watcher = await asyncpg.connect(database_url)
        try:
            many = await watcher.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid()"
            )
        finally:
            await watcher.close()
        assert 1 <= many <= 3


async def test_another_primary_breaks_what_is_under_way_and_keeps_the_pooler(
    own_postgres: Callable[..., PostgresServer], own_pooler: OwnPooler
) -> None:
    """Told of a new primary, a pool behind a pooler gives up every connection, for the old server's answers
    count no more, and connects to the pooler again. To hear whom it has already changes nothing."""
    first, second = own_postgres(), own_postgres()
    pooler = own_pooler({"main": first.url()}, server_connections=2)
    async with Pool(pooler.url("main"), pooled=True, primary_only=True, acquire_timeout=PATIENCE) as pool:
        pool.move(first.url())
        assert await pool.fetch_value("SELECT inet_server_port()") == first.port
        assert pool.stats().opened == 1
        with pytest.raises(DatabaseUnavailable):
            async with pool.transaction() as tx:
                await tx.execute("CREATE TABLE lost (n int)")
                await asyncio.to_thread(pooler.repoint, {"main": second.url()})
                pool.move(second.url())
                await tx.execute("SELECT 1")
        pool.move(second.url())
        async with asyncio.timeout(PATIENCE):
            while await pool.fetch_value("SELECT inet_server_port()") != second.port:
                await asyncio.sleep(0.01)
        assert pool.stats().opened == 2
    assert first.query("SELECT to_regclass('lost') IS NULL") == "t"
