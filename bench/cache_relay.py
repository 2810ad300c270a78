"""What the database's side of the cache costs: writes that invalidate, reads that tell, the relay.

One embedded PostgreSQL, one redis-server, one process on uvloop. Contenders take turns.

- `invalidate_vs_plain_write`: an UPDATE by primary key in a transaction that also invalidates a key and a
  tag, over the same without; nobody is told after the commit, so this is the row alone.
- `seeing_vs_plain_read`: a read by primary key on a pinned connection, after its snapshot, over the pool's.
- `relay_told_us`: of the relay, per row of a transaction that had told the cache itself (the usual case):
  read, void without effect, delete. `relay_untold_us`: of one that had not. Wall time of a round by its rows.
- `relay_cpu_us`: this process's CPU time per row of the usual case.
- `delete_alone_us`: wall time per row if writers deleted, in batches of 100, what they had told.
- `round_ms`: a round without work, with ten slots.
"""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from bench._harness import alternate, arguments, drive, finish
from springtide.cache._codec import Codec
from springtide.cache._level2 import Level2
from springtide.cache._names import Names, scope_name, slot_name
from springtide.cache._rounds import Leadership
from springtide.clock import SystemClock
from springtide.db import Database, Migrator, ShardMap
from springtide.db.pool import Pool
from springtide.db.seeing import SEEN, seen_of
from springtide.ops.runner.postgres import EmbeddedPostgres
from springtide.redis import Link, Redis
from springtide.signals import NullSink

ROWS = 10_000
SLOTS = 10

TABLE = """create table bench.thing (
    bucket smallint not null, id bigint not null, n int, primary key (bucket, id)
);"""
READ = "select n from bench.thing where bucket = 1 and id = $1"
UPDATE = "update bench.thing set n = n + 1 where bucket = 1 and id = $1"


class Thing(msgspec.Struct, frozen=True):
    n: int


class Silent:
    """A cache that is never told, so that only what the database does is measured."""

    def fields_of(
        self, tx: Any, cls: Any, key: tuple[Any, ...], tags: Sequence[str]
    ) -> tuple[str, list[str]]:
        return cls, [f"k:{key[0]}", *(f"t:{tag}" for tag in tags)]

    async def void(self, tx: Any, recorded: Any, fields: Any) -> None:
        pass


@contextlib.contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--save", "", "--dir", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


async def connected(redis: Redis) -> Link:
    async with asyncio.timeout(20):
        while (link := redis.link("")) is None:
            await asyncio.sleep(0.01)
    return link


def slots(link: Link, epoch: int) -> dict[str, list[Level2[Any]]]:
    def level(cls: str) -> Level2[Any]:
        names = Names(slot_name(cls, "main"), scope_name("bench", link.run_id, "main", epoch))
        return Level2(link, names, Codec(Thing), life=300.0, cluster="main", epoch=epoch)

    return {f"class{number}": [level(f"class{number}")] for number in range(SLOTS)}


async def relayed(db: Database, link: Link, *, count: int, rounds: int) -> dict[str, float]:
    pool = db.pools["main"]
    seen = seen_of("main", await pool.fetch_one(SEEN))
    targets = slots(link, seen.epoch)
    leader = Leadership("main", ["bench"], 30.0, SystemClock(), NullSink())
    await leader.one(pool, targets)
    figures: dict[str, list[float]] = {}

    async def write(number: int) -> tuple[str, int, list[str]]:
        cls = f"class{number % SLOTS}"
        async with db.write(1) as tx:
            tx.invalidate(cls, number, tags=(str(number % 97),))
        assert tx.recorded is not None
        return cls, tx.recorded.xid, [f"k:{number}", f"t:{number % 97}"]

    for turn in range(rounds):
        for name in ("untold", "told"):
            written: list[tuple[str, int, list[str]]] = []

            async def one(number: int, into: list[tuple[str, int, list[str]]] = written) -> None:
                into.append(await write(number))

            await drive(lambda n, turn=turn: one(n + turn * count), total=count, concurrency=10)
            if name == "told":
                for cls, xid, fields in written:
                    await targets[cls][0].void(fields, xid=xid)
            begun, cpu = time.perf_counter(), time.process_time()
            await leader.one(pool, targets)
            figures.setdefault(name, []).append((time.perf_counter() - begun) / count * 1e6)
            figures.setdefault(f"{name} cpu", []).append((time.process_time() - cpu) / count * 1e6)
            assert await pool.fetch_value("select count(*) from bench._invalidation") == 0
        xids = [(await write(number))[1] for number in range(count)]
        begun = time.perf_counter()
        for at in range(0, count, 100):
            part = list(map(str, xids[at : at + 100]))
            await pool.execute("delete from bench._invalidation where xid = any($1::text[]::xid8[])", part)
        figures.setdefault("delete", []).append((time.perf_counter() - begun) / count * 1e6)
        begun = time.perf_counter()
        for _ in range(20):
            await leader.one(pool, targets)
        figures.setdefault("round", []).append((time.perf_counter() - begun) / 20 * 1e3)
    return {
        "relay_told_us": statistics.median(figures["told"]),
        "relay_untold_us": statistics.median(figures["untold"]),
        "relay_cpu_us": statistics.median(figures["told cpu"]),
        "delete_alone_us": statistics.median(figures["delete"]),
        "round_ms": statistics.median(figures["round"]),
    }


async def measure(url: str, redis_url: str, folder: Path, rounds: int, total: int) -> dict[str, float]:
    (folder / "migrations").mkdir()
    (folder / "migrations" / "0001_thing.sql").write_text(TABLE)
    redis = Redis(redis_url, timeout=5.0)
    async with Pool(url, cluster="main", size=12, reserved=0) as pool:
        await Migrator("bench", folder / "migrations", {"main": pool}).apply()
        await pool.execute("insert into bench.thing select 1, n, 0 from generate_series(1, $1) as n", ROWS)
        db = Database("bench", ShardMap.even(["main"]), {"main": pool}, invalidations=Silent())

        async def plain_write(number: int) -> None:
            async with db.write(1) as tx:
                await tx.execute(UPDATE, number % ROWS + 1)

        async def invalidating_write(number: int) -> None:
            async with db.write(1) as tx:
                await tx.execute(UPDATE, number % ROWS + 1)
                tx.invalidate("class0", number, tags=("all",))

        async def plain_read(number: int) -> None:
            await pool.fetch_one(READ, number % ROWS + 1)

        async def seeing_read(number: int) -> None:
            async with db.seeing("main") as sight:
                await sight.fetch_one(READ, number % ROWS + 1)

        contenders = {
            one.__name__: lambda one=one: drive(one, total=total, concurrency=1)
            for one in (plain_write, invalidating_write, plain_read, seeing_read)
        }
        result = await alternate(contenders, rounds=rounds)
        print(result.table("plain_read"))
        await pool.execute("truncate bench._invalidation")
        await redis.start()
        try:
            figures = await relayed(db, await connected(redis), count=total, rounds=rounds)
        finally:
            await redis.stop()
    return {
        "invalidate_vs_plain_write": result.ratio("invalidating_write", "plain_write"),
        "seeing_vs_plain_read": result.ratio("seeing_read", "plain_read"),
        **figures,
    }


def main() -> None:
    options = arguments(__doc__)
    total = 150 if options.quick else 2000
    with tempfile.TemporaryDirectory(prefix="springtide-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        postgres = EmbeddedPostgres("bench", home=folder / "home")
        uvloop.run(postgres.start())
        try:
            with redis_server(folder) as redis_url:
                figures = uvloop.run(measure(postgres.url(), redis_url, folder, options.rounds, total))
        finally:
            uvloop.run(postgres.stop())
            shutil.rmtree(folder / "home", ignore_errors=True)
    for figure, value in figures.items():
        print(f"{figure:28}{value:10.2f}")
    finish({figure: round(value, 3) for figure, value in figures.items()})


if __name__ == "__main__":
    main()
