"""Our pool beside asyncpg's own, psycopg_pool and SQLAlchemy Core on asyncpg, on one embedded server.

Speed: the same read by primary key, each peer used the way its manual shows, by 1 and by 20 callers at
once on uvloop, a pool of 10; a ratio is the larger (worse for us) of the two.

- `read_vs_asyncpg_pool`, `read_vs_psycopg_pool`, `read_vs_sqlalchemy_core`: our time over theirs.
- `read_vs_asyncpg_pool_in_a_request`: the same with what a platform adds: a deadline, a ledger, metrics.
- `cancel_frozen_ms`: every process of the server is stopped (SIGSTOP) while all connections run a query;
  all callers are cancelled; the time until the last of them has ended.
- `slots_lost`: after SIGCONT, the pool's size minus the connections that can be held and used at once.
- `failed_after_restart`: reads run all the time while the server is restarted; how many failed, counted
  until all is well again.

The peers go through the same faults, and their figures are in the JSON too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import psycopg_pool
import sqlalchemy
import sqlalchemy.ext.asyncio
import uvloop

from bench._harness import alternate, arguments, drive, finish
from springtide.context import RequestContext, activate
from springtide.db.insight import Insight
from springtide.db.pool import Pool
from springtide.ops.runner import pgdata
from springtide.ops.runner.postgres import EmbeddedPostgres
from springtide.telemetry.metrics import MetricsSink

SIZE = 10
ROWS = 10_000
PATIENCE = 5.0

TABLE = sqlalchemy.table("thing", sqlalchemy.column("id"), sqlalchemy.column("name"), sqlalchemy.column("at"))


@dataclass
class Contender:
    """`read(id)` is the measured statement; `sleep()` one that runs until it is cancelled."""

    read: Callable[[int], Awaitable[object]]
    sleep: Callable[[], Awaitable[object]]
    hold: Callable[[asyncio.Event, Callable[[], None]], Awaitable[None]]
    """Takes a connection, uses it, calls `ready` and keeps it until the event is set."""


def ours(pool: Pool, read: Callable[[int], Awaitable[object]]) -> Contender:
    async def hold(leave: asyncio.Event, ready: Callable[[], None]) -> None:
        async with pool.acquire() as connection:
            await connection.fetch_value("SELECT 1")
            ready()
            await leave.wait()

    return Contender(read, lambda: pool.fetch_value("SELECT pg_sleep(600)"), hold)


@contextlib.asynccontextmanager
async def springtide_pool(url: str) -> AsyncIterator[Contender]:
    async with Pool(url, size=SIZE, reserved=0, acquire_timeout=20.0) as pool:
        yield ours(pool, lambda key: pool.fetch_one("SELECT id, name, at FROM thing WHERE id = $1", key))


@contextlib.asynccontextmanager
async def in_a_request(url: str) -> AsyncIterator[Contender]:
    """The same pool as the platform runs it: every read with a deadline, a ledger, metrics, insight."""
    insight, metrics = Insight(), MetricsSink(process=False)
    async with Pool(url, size=SIZE, reserved=0, sink=metrics, insight=insight) as pool:

        async def read(key: int) -> object:
            with activate(RequestContext(deadline=time.monotonic() + 30.0)):
                return await pool.fetch_one("SELECT id, name, at FROM thing WHERE id = $1", key)

        yield ours(pool, read)


@contextlib.asynccontextmanager
async def asyncpg_pool(url: str) -> AsyncIterator[Contender]:
    pool = await asyncpg.create_pool(url, min_size=0, max_size=SIZE)

    async def hold(leave: asyncio.Event, ready: Callable[[], None]) -> None:
        async with pool.acquire() as connection:
            await connection.fetchval("SELECT 1")
            ready()
            await leave.wait()

    try:
        yield Contender(
            lambda key: pool.fetchrow("SELECT id, name, at FROM thing WHERE id = $1", key),
            lambda: pool.fetchval("SELECT pg_sleep(600)"),
            hold,
        )
    finally:
        pool.terminate()


@contextlib.asynccontextmanager
async def psycopg_own_pool(url: str) -> AsyncIterator[Contender]:
    pool = psycopg_pool.AsyncConnectionPool(
        url, min_size=0, max_size=SIZE, open=False, timeout=20.0, kwargs={"autocommit": True}
    )
    await pool.open()

    async def read(key: int) -> object:
        async with pool.connection() as connection:
            cursor = await connection.execute("SELECT id, name, at FROM thing WHERE id = %s", (key,))
            return await cursor.fetchone()

    async def sleep() -> None:
        async with pool.connection() as connection:
            await connection.execute("SELECT pg_sleep(600)")

    async def hold(leave: asyncio.Event, ready: Callable[[], None]) -> None:
        async with pool.connection() as connection:
            await connection.execute("SELECT 1")
            ready()
            await leave.wait()

    try:
        yield Contender(read, sleep, hold)
    finally:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(pool.close(timeout=1.0), PATIENCE)


@contextlib.asynccontextmanager
async def sqlalchemy_core(url: str) -> AsyncIterator[Contender]:
    engine = sqlalchemy.ext.asyncio.create_async_engine(
        url.replace("postgresql://", "postgresql+asyncpg://"),
        pool_size=SIZE,
        max_overflow=0,
        pool_timeout=20.0,
    )
    statement = sqlalchemy.select(TABLE).where(TABLE.c.id == sqlalchemy.bindparam("key"))

    async def read(key: int) -> object:
        async with engine.connect() as connection:
            return (await connection.execute(statement, {"key": key})).one()

    async def sleep() -> None:
        async with engine.connect() as connection:
            await connection.execute(sqlalchemy.text("SELECT pg_sleep(600)"))

    async def hold(leave: asyncio.Event, ready: Callable[[], None]) -> None:
        async with engine.connect() as connection:
            await connection.execute(sqlalchemy.text("SELECT 1"))
            ready()
            await leave.wait()

    try:
        yield Contender(read, sleep, hold)
    finally:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(engine.dispose(), PATIENCE)


CONTENDERS: dict[str, Callable[[str], Any]] = {
    "springtide": springtide_pool,
    "springtide_in_a_request": in_a_request,
    "asyncpg_pool": asyncpg_pool,
    "psycopg_pool": psycopg_own_pool,
    "sqlalchemy_core": sqlalchemy_core,
}


class Server:
    """The embedded server, and what is done to it."""

    def __init__(self, home: Path) -> None:
        self.postgres = EmbeddedPostgres("bench", home=home)

    @property
    def url(self) -> str:
        return self.postgres.url()

    def signal(self, sig: signal.Signals) -> None:
        for pid in pgdata.servers(self.postgres.data):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sig)


async def speed(url: str, concurrency: int, rounds: int, total: int) -> dict[str, float]:
    async with contextlib.AsyncExitStack() as stack:
        racers: dict[str, Callable[[], Awaitable[float]]] = {}
        for name, enter in CONTENDERS.items():
            contender = await stack.enter_async_context(enter(url))

            async def race(read: Callable[[int], Awaitable[object]] = contender.read) -> float:
                return await drive(lambda n: read(n * 7919 % ROWS), total=total, concurrency=concurrency)

            racers[name] = race
        result = await alternate(racers, rounds=rounds)
    print(f"\nread by primary key, {concurrency} caller(s), pool of {SIZE}; {rounds} rounds of {total}")
    print(result.table("asyncpg_pool"))
    ratios = {peer: result.ratio("springtide", peer) for peer in CONTENDERS if peer != "springtide"}
    ratios["asyncpg_pool_in_a_request"] = result.ratio("springtide_in_a_request", "asyncpg_pool")
    return ratios


async def usable(contender: Contender) -> int:
    """How many connections answer and can be held at the same time."""
    leave, ready, everybody = asyncio.Event(), 0, asyncio.Event()

    def count() -> None:
        nonlocal ready
        ready += 1
        if ready == SIZE:
            everybody.set()

    holders = [asyncio.create_task(contender.hold(leave, count)) for _ in range(SIZE)]
    await asyncio.wait([asyncio.create_task(everybody.wait())], timeout=PATIENCE)
    leave.set()
    _, stuck = await asyncio.wait(holders, timeout=PATIENCE)
    for holder in stuck:
        holder.cancel()
    await asyncio.gather(*holders, return_exceptions=True)
    return ready


async def frozen(server: Server, enter: Callable[[str], Any]) -> tuple[float, int]:
    """Milliseconds until the last cancelled caller has ended (at most PATIENCE), and places lost."""
    async with enter(server.url) as contender:
        await usable(contender)
        callers = [asyncio.create_task(contender.sleep()) for _ in range(SIZE)]
        running = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
        while int(await server.postgres.query(running)) < SIZE:
            await asyncio.sleep(0.02)
        server.signal(signal.SIGSTOP)
        try:
            begun = time.perf_counter()
            for caller in callers:
                caller.cancel()
            await asyncio.wait(callers, timeout=PATIENCE)
            took = time.perf_counter() - begun
        finally:
            server.signal(signal.SIGCONT)
        await asyncio.wait(callers, timeout=PATIENCE)
        await asyncio.gather(*(c for c in callers if c.done()), return_exceptions=True)
        return took * 1000, SIZE - await usable(contender)


async def restarted(server: Server, enter: Callable[[str], Any]) -> tuple[int, int]:
    """Reads failed and done while the server restarted under 2 * SIZE readers."""
    async with enter(server.url) as contender:
        await usable(contender)
        stop, failed, done = False, 0, 0

        async def reader(seed: int) -> None:
            nonlocal failed, done
            key = seed
            while not stop:
                key = (key + 7919) % ROWS
                try:
                    await contender.read(key)
                    done += 1
                except Exception:  # whatever a peer raises is a failed request
                    failed += 1
                    await asyncio.sleep(0.01)  # a caller that comes again, not a busy loop

        readers = [asyncio.create_task(reader(seed)) for seed in range(2 * SIZE)]
        while done < 500:
            await asyncio.sleep(0.01)
        await server.postgres.stop()
        await server.postgres.start()
        goal = done + 2000
        limit = time.perf_counter() + 2 * PATIENCE
        while done < goal and time.perf_counter() < limit:
            await asyncio.sleep(0.01)
        stop = True
        await asyncio.wait(readers, timeout=PATIENCE)
        for task in readers:
            task.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
        return failed, done


async def measure(home: Path, rounds: int, total: int) -> dict[str, object]:
    server = Server(home)
    await server.postgres.start()
    try:
        await server.postgres.query(
            "CREATE TABLE thing (id bigint PRIMARY KEY, name text NOT NULL, at timestamptz NOT NULL);"
            f"INSERT INTO thing SELECT g, 'thing ' || g, now() FROM generate_series(0, {ROWS - 1}) g;"
            "VACUUM ANALYZE thing"
        )
        alone = await speed(server.url, 1, rounds, total)
        crowd = await speed(server.url, 20, rounds, total * 2)
        figures: dict[str, object] = {
            f"read_vs_{peer}": round(max(alone[peer], crowd[peer]), 3)
            for peer in alone
            if not peer.startswith("springtide")
        }
        print("\n                       frozen: all ended after   places lost     restart: failed / done")
        for name, enter in CONTENDERS.items():
            if name == "springtide_in_a_request":
                continue  # the same pool
            ended, lost = await frozen(server, enter)
            failed, done = await restarted(server, enter)
            print(f"{name:28}{ended:15.0f} ms{lost:15}{failed:20} / {done}")
            prefix = "" if name == "springtide" else f"{name}_"
            figures[f"{prefix}cancel_frozen_ms"] = round(ended, 1)
            figures[f"{prefix}slots_lost"] = lost
            figures[f"{prefix}failed_after_restart"] = failed
        return figures
    finally:
        server.signal(signal.SIGCONT)
        await server.postgres.stop()


def main() -> None:
    options = arguments(__doc__, rounds=9)
    logging.getLogger("psycopg").setLevel(logging.CRITICAL)  # it tells every retry of the faults below
    home = Path(tempfile.mkdtemp(prefix="springtide-bench-"))
    home.chmod(0o755)
    try:
        figures = uvloop.run(measure(home, options.rounds, 400 if options.quick else 3000))
    finally:
        shutil.rmtree(home, ignore_errors=True)
    finish(figures)


if __name__ == "__main__":
    main()
