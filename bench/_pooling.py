"""A thousand connections of an application through PgBouncer, beside a thousand to the server itself.

Both sides hold their connections open in processes of their own and take turns: every connection reads by
primary key, one statement after the other. The server's connections are counted while they do.

    pgbouncer_app_connections      what the application holds on each side
    pgbouncer_server_connections   most that the server saw of the pooled side
    pgbouncer_throughput_ratio     reads per second, pooled over direct
    pgbouncer_statement_ratio      time of one read alone on one connection, pooled over direct: the way
                                   through it, and parsing each statement anew in a round trip of its own
"""

from __future__ import annotations

import asyncio
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

import uvloop

from springtide.db.pool import Pool
from springtide.ops.runner.pgbouncer import PgBouncer
from springtide.ops.runner.postgres import EmbeddedPostgres

__all__ = ["measure"]

ROWS = 10_000
SERVER_CONNECTIONS = 50
PROCESSES = 2
SIDES = ("direct", "pooled")
READ = "SELECT value FROM item WHERE id = $1"


async def measure(quick: bool) -> dict[str, float]:
    connections, seconds, rounds = (100, 0.4, 5) if quick else (1_000, 5.0, 7)
    folder = Path(tempfile.mkdtemp(prefix="springtide-bench-"))
    folder.chmod(0o755)
    server = EmbeddedPostgres(
        "db", home=folder / "home", max_connections=connections + SERVER_CONNECTIONS + 50, durable=False
    )
    try:
        await server.start()
        for side in SIDES:
            await server.ensure_database(side)
            await server.query(
                "CREATE TABLE item (id int PRIMARY KEY, value text NOT NULL);"
                f"INSERT INTO item SELECT n, md5(n::text) FROM generate_series(1, {ROWS}) AS n;"
                "VACUUM ANALYZE item;",
                dbname=side,
            )
        pooler = PgBouncer(
            "pooler",
            {"pooled": server.url("pooled")},
            home=folder / "home",
            server_connections=SERVER_CONNECTIONS,
            max_clients=connections + 20,
        )
        await pooler.start()
        try:
            urls = {"direct": server.url("direct"), "pooled": pooler.url("pooled")}
            return await _contest(server, urls, connections, seconds, rounds)
        finally:
            await pooler.stop()
    finally:
        await server.stop()
        shutil.rmtree(folder, ignore_errors=True)


async def _contest(
    server: EmbeddedPostgres, urls: dict[str, str], connections: int, seconds: float, rounds: int
) -> dict[str, float]:
    alone = [await _alone(urls, 100 if seconds <= 1 else 1_000) for _ in range(rounds)]
    crowds = {side: _Crowd(side, urls[side], connections) for side in SIDES}
    ratios, most = [], 0
    try:
        for crowd in crowds.values():  # one after the other: a login costs both ends a thousand hashes
            await crowd.start()
        for number in range(rounds):
            rates = {}
            for side in SIDES if number % 2 else reversed(SIDES):
                working = asyncio.ensure_future(crowds[side].work(seconds))
                await asyncio.sleep(seconds / 2)
                if side == "pooled":
                    most = max(most, await _backends(server, "pooled"))
                rates[side] = await working
            ratios.append(rates["pooled"] / rates["direct"])
            print(f"  {rates['pooled']:.0f} reads/s pooled, {rates['direct']:.0f} direct")
        held = await _backends(server, "direct")
    finally:
        for crowd in crowds.values():
            await crowd.stop()
    if held < connections:
        raise RuntimeError(f"the direct side held {held} of {connections} connections: nothing was compared")
    return {
        "pgbouncer_app_connections": connections,
        "pgbouncer_server_connections": most,
        "pgbouncer_throughput_ratio": round(statistics.median(ratios), 3),
        "pgbouncer_statement_ratio": round(statistics.median(alone), 2),
    }


async def _backends(server: EmbeddedPostgres, dbname: str) -> int:
    return int(await server.query(f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{dbname}';"))


async def _alone(urls: dict[str, str], reads: int) -> float:
    """Time of one read, pooled over direct."""
    took = {}
    for side in SIDES:
        async with Pool(urls[side], size=1, reserved=0, pooled=side == "pooled") as pool:
            await pool.fetch_value(READ, 1)
            begun = time.perf_counter()
            for number in range(reads):
                await pool.fetch_value(READ, number % ROWS + 1)
            took[side] = time.perf_counter() - begun
    return took["pooled"] / took["direct"]


class _Crowd:
    """Processes that hold a side's connections; each works when it is told for how long."""

    def __init__(self, side: str, url: str, connections: int) -> None:
        self._arguments = [url, side, str(connections // PROCESSES)]
        self._processes: list[asyncio.subprocess.Process] = []

    async def start(self) -> None:
        for _ in range(PROCESSES):
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "bench._pooling",
                *self._arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
            )
            self._processes.append(process)
        await asyncio.gather(*map(_said, self._processes))

    async def work(self, seconds: float) -> float:
        """Reads per second of all of them."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(f"{seconds}\n".encode())
        return sum(await asyncio.gather(*map(_said, self._processes))) / seconds

    async def stop(self) -> None:
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
        for process in self._processes:
            try:
                await asyncio.wait_for(process.wait(), 30)
            except TimeoutError:
                process.kill()
                await process.wait()


async def _said(process: asyncio.subprocess.Process) -> float:
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise RuntimeError("a process that holds connections has ended")
    said: float = json.loads(line)
    return said


async def _hold(url: str, pooled: bool, size: int) -> None:
    async with Pool(
        url, size=size, reserved=0, pooled=pooled, acquire_timeout=300.0, idle=3600.0, max_age=86_400.0
    ) as pool:
        opened = asyncio.Barrier(size + 1)
        leave = asyncio.Event()

        async def hold() -> None:
            async with pool.acquire() as connection:
                await connection.fetch_value(READ, 1)
                await opened.wait()
                await leave.wait()

        holding = [asyncio.ensure_future(hold()) for _ in range(size)]
        await opened.wait()
        leave.set()
        await asyncio.gather(*holding)
        print(json.dumps(pool.stats().size), flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            print(json.dumps(await _read(pool, size, float(line))), flush=True)


async def _read(pool: Pool, size: int, seconds: float) -> int:
    end, done = time.monotonic() + seconds, 0

    async def client() -> None:
        nonlocal done
        while time.monotonic() < end:
            await pool.fetch_value(READ, random.randint(1, ROWS))
            done += 1

    await asyncio.gather(*(client() for _ in range(size)))
    return done


if __name__ == "__main__":
    uvloop.run(_hold(sys.argv[1], sys.argv[2] == "pooled", int(sys.argv[3])))
