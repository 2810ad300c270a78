"""What is left of jobs when workers, relays, the broker and the database are killed, on each transport.

Two worker processes, each of which relays and runs, do jobs with a transactional effect while they are added.
Meanwhile, in turns, a worker with its relay, the broker and the database get SIGKILL and are started again.
When nothing is left to do, each acknowledged job must have exactly one effect, says SQL. The brokers are
those of the conformance suite (tests/transports.py): real servers, and stand-ins for SQS and Kafka, whose
memory is gone after a kill: what they had is sent again from SQL.

    lost                jobs whose enqueueing was acknowledged and that have no effect (0)
    double_effects      jobs with more than one effect (0)
    rerun_after_kill_s  from the kill of a worker to the next run of the job that it held; the longest (<= 35)
    dropped_unknown     jobs of a kind that only a newer version knows, enqueued while old workers run, and
                        not done once a newer worker runs beside an old one (0)
    jobs                how many there were per transport (100,000; --quick 1,000)

Of all transports together and, with its name, of each. `bench.jobs_crash nats` takes that one; nothing:
redis. One transport ends within 10 minutes (it takes 3 to 5), with --quick within one; several, one after the
other, each as long. --quick kills the worker while the load and the other kills go on. What is not done by
the end of a transport's time counts as lost, and is told by kind and state.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import uvloop
from tests.transports import BROKERS, Broker, begin

from bench._harness import finish
from bench._jobs_crash_worker import SCHEMA, Effect, Hold, New
from springtide.db import Database, Migrator, ShardMap
from springtide.db.pool import Pool
from springtide.errors import SpringtideError
from springtide.jobs import Enqueuer
from springtide.ops.runner.postgres import EmbeddedPostgres
from springtide.outbox import Bell

JOBS, QUICK_JOBS = 100_000, 1000
MANY = 100
PATIENCE = 90.0
"""Seconds that one step may take which nothing disturbs: a worker's start, the run of a job."""

ENOUGH, QUICK_ENOUGH = 450.0, 50.0
"""Seconds from the beginning after which what is left counts as lost."""

LEAVING = 40.0
"""Seconds that a worker has to end in order: more than its drain."""

KINDS = ["postgres", *BROKERS]

LEFT = "select count(*) from crash._job where state not in ('dead', 'parked')"
TOLD = """
select string_agg(format('%s %s %s since %s', jobs, state, kind, age), ', ') from (
    select count(*) as jobs, state, kind, date_trunc('second', max(now() - run_at)) as age
    from crash._job group by state, kind
) as left_over
"""


class Worker:
    """A worker process; `held` is set when it holds the job that it is to be killed with."""

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self.held = asyncio.Event()
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def start(self) -> Worker:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench._jobs_crash_worker", msgspec.json.encode(self._options).decode(),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert self._process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            assert await self._process.stdout.readline() == b"ready\n", "a worker did not start"
        self._reading = asyncio.create_task(self._read(self._process.stdout))
        return self

    async def _read(self, lines: asyncio.StreamReader) -> None:
        while line := await lines.readline():
            if line.startswith(b"held"):
                self.held.set()

    async def end(self, how: signal.Signals) -> None:
        assert self._process is not None and self._reading is not None
        if self._process.returncode is None:
            self._process.send_signal(how)
        try:
            async with asyncio.timeout(LEAVING):
                await self._process.wait()
        except TimeoutError:
            print("a worker did not end", flush=True)
            self._process.kill()
            await self._process.wait()
        await self._reading


class World:
    """One transport: its database, its broker (None: postgres), its workers."""

    def __init__(self, server: EmbeddedPostgres, kind: str, broker: Broker | None, *, enough: float) -> None:
        self.server = server
        self.kind = kind
        self.dbname = f"crash_{kind}"
        self.broker = broker
        self.workers: list[Worker] = []
        self.until = time.monotonic() + enough
        self.sure: list[Any] = []
        """Ids of jobs whose commit was acknowledged."""

    @property
    def url(self) -> str:
        return self.server.url(self.dbname)

    async def worker(self, *, newer: bool = False) -> Worker:
        options: dict[str, Any] = {"url": self.url, "newer": newer}
        if self.broker is not None:
            options["transport"] = [self.kind, self.broker.url(), f"crash{self.dbname}"]
        return await Worker(options).start()

    async def query(self, sql: str) -> Any:
        """The first value; again while the database is being started."""
        async with asyncio.timeout(120):
            while True:
                with contextlib.suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    connection = await asyncpg.connect(self.url)
                    try:
                        return await connection.fetchval(sql)
                    finally:
                        await connection.close()
                await asyncio.sleep(0.1)

    # -- faults ----------------------------------------------------------------------------------------

    async def kill_worker(self) -> None:
        victim = self.workers.pop(0)
        await victim.end(signal.SIGKILL)
        self.workers.append(await self.worker())

    async def kill_broker(self) -> None:
        if self.broker is not None:
            await asyncio.to_thread(self.broker.kill)
            await asyncio.sleep(random.uniform(0.0, 1.0))
            await asyncio.to_thread(self.broker.start)

    async def kill_database(self) -> None:
        await self.server.kill()
        await self.server.stop()  # it has ended already; now it may be started, at the same port
        await self.server.start()

    async def trouble(
        self, faults: Sequence[Callable[[], Awaitable[None]]], kills: int, pause: float
    ) -> None:
        for number in range(kills):
            await asyncio.sleep(pause * random.uniform(0.5, 1.5))
            await faults[number % len(faults)]()

    # -- work ------------------------------------------------------------------------------------------

    async def add(self, database: Database, jobs: list[Any]) -> None:
        """Until the commit is acknowledged; one of unknown end may be there besides."""
        while True:
            try:
                async with database.write(str(random.random())) as tx:
                    ids = await tx.enqueue_many(jobs)
            except SpringtideError:
                if time.monotonic() > self.until:
                    raise
                await asyncio.sleep(0.1)
            else:
                self.sure += ids
                return

    async def fill(self, database: Database, count: int, seconds: float) -> None:
        """Add so many over about so long, so that kills fall between."""
        begun = time.monotonic()
        for start in range(0, count, MANY):
            await self.add(database, [Effect(number) for number in range(start, min(start + MANY, count))])
            late = begun + seconds * start / count - time.monotonic()
            await asyncio.sleep(max(late, 0))

    async def empty(self) -> None:
        """Wait until nothing is left to do, or the time of this transport is over."""
        while await self.query(LEFT):
            if time.monotonic() > self.until:
                print(f"{self.kind}: not done: {await self.query(TOLD)}", flush=True)
                return
            await asyncio.sleep(0.2)

    async def rerun(self, database: Database) -> float:
        """Seconds from the kill of who holds a job to its next run."""
        await self.add(database, [Hold(1)])
        id = self.sure[-1]
        holders = {asyncio.create_task(worker.held.wait()): worker for worker in self.workers}
        done, waiting = await asyncio.wait(holders, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        assert done, f"a job did not begin to run within {PATIENCE:g} s"
        victim = holders[done.pop()]
        self.workers.remove(victim)
        await victim.end(signal.SIGKILL)
        killed = time.monotonic()
        self.workers.append(await self.worker())
        done_sql = f"select count(*) from crash.effect where job = '{id}'"
        while not await self.query(done_sql):
            if time.monotonic() - killed > PATIENCE:
                break
            await asyncio.sleep(0.05)
        return time.monotonic() - killed

    async def deploy(self, database: Database, count: int) -> int:
        """A rolling deploy: jobs of a new kind while old workers run, then one newer beside an old one."""
        first = len(self.sure)
        await self.add(database, [New(number) for number in range(count // 2)])
        await asyncio.sleep(1.0)
        await self.workers.pop(0).end(signal.SIGTERM)
        self.workers.append(await self.worker(newer=True))
        await self.add(database, [New(number) for number in range(count // 2)])
        ids = ", ".join(f"'{id}'" for id in self.sure[first:])
        done_sql = f"select count(distinct job) from crash.effect where job in ({ids})"
        until = time.monotonic() + PATIENCE
        while (missing := count // 2 * 2 - await self.query(done_sql)) and time.monotonic() < until:
            await asyncio.sleep(0.2)
        return int(missing)

    async def judge(self) -> tuple[int, int]:
        """(lost, double effects)"""
        connection = await asyncpg.connect(self.url)
        try:
            lost = await connection.fetchval(
                "select count(*) from unnest($1::uuid[]) as sure (id)"
                " where not exists (select from crash.effect as e where e.job = sure.id)",
                self.sure,
            )
            double = await connection.fetchval(
                "select count(*) from (select job from crash.effect group by job having count(*) > 1) as d"
            )
        finally:
            await connection.close()
        return int(lost), int(double)


@contextlib.asynccontextmanager
async def opened(
    server: EmbeddedPostgres, kind: str, folder: Path, *, enough: float
) -> AsyncIterator[tuple[World, Database]]:
    broker = await asyncio.to_thread(begin, kind) if kind != "postgres" else None
    world = World(server, kind, broker, enough=enough)
    try:
        await server.ensure_database(world.dbname)
        async with Pool(world.url, cluster="main", size=4) as pool:
            await Migrator("crash", folder, {"main": pool}).apply()
            bell = Bell()
            await bell.start()
            shards = ShardMap.even(["main"])
            try:
                yield world, Database("crash", shards, {"main": pool}, enqueue=Enqueuer(bell=bell))
            finally:
                await bell.stop()
                for worker in world.workers:
                    await worker.end(signal.SIGTERM)
    finally:
        if broker is not None:
            await asyncio.to_thread(broker.close)


@dataclass(frozen=True, slots=True)
class Found:
    lost: int
    double_effects: int
    rerun_after_kill_s: float
    dropped_unknown: int


async def under_fire(world: World, database: Database, *, quick: bool) -> None:
    """Load and kills, until nothing is left to do."""
    count = QUICK_JOBS if quick else JOBS
    kills, pause = (2, 3.0) if quick else (15, 4.0)
    faults = [world.kill_broker, world.kill_database]
    if not quick:
        faults.insert(0, world.kill_worker)
    begun = time.monotonic()
    await asyncio.gather(world.fill(database, count, kills * pause), world.trouble(faults, kills, pause))
    await world.empty()
    print(
        f"{world.kind}: {len(world.sure)} jobs, {kills} kills, {time.monotonic() - begun:.0f} s", flush=True
    )


async def measure(world: World, database: Database, *, quick: bool) -> Found:
    world.workers = [await world.worker(), await world.worker()]
    dropped = await world.deploy(database, 20 if quick else 200)
    if quick:
        rerun, _ = await asyncio.gather(world.rerun(database), under_fire(world, database, quick=quick))
        await world.empty()
    else:
        rerun = await world.rerun(database)
        await under_fire(world, database, quick=quick)
    lost, double = await world.judge()
    found = Found(lost, double, round(rerun, 1), dropped)
    print(f"{world.kind}: {found}", flush=True)
    return found


def summary(found: Mapping[str, Found], jobs: int) -> dict[str, float]:
    """What is found of all transports together, and then of each."""
    figures: dict[str, float] = {}
    for name in Found.__dataclass_fields__:
        each = [getattr(one, name) for one in found.values()]
        figures[name] = max(each) if name == "rerun_after_kill_s" else sum(each)
    figures["jobs"] = jobs
    return figures | {
        f"{name}_{kind}": getattr(one, name)
        for kind, one in found.items()
        for name in Found.__dataclass_fields__
    }


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test")
    parser.add_argument("transports", nargs="*", metavar="TRANSPORT", help=f"{', '.join(KINDS)}; redis")
    options = parser.parse_args()
    if strange := set(options.transports) - set(KINDS):
        parser.error(f"TRANSPORT must be one of {', '.join(KINDS)}, got {', '.join(sorted(strange))}")
    kinds, quick = options.transports or ["redis"], options.quick
    home = Path(tempfile.mkdtemp(prefix="springtide-bench-crash-"))
    home.chmod(0o755)  # otherwise root's data would go to /var/lib/springtide, and stay there
    folder = home / "migrations"
    folder.mkdir()
    (folder / "0001_effect.sql").write_text(SCHEMA)
    server = EmbeddedPostgres("db", home=home)
    try:
        await server.start()
        found = {}
        for kind in kinds:
            enough = QUICK_ENOUGH if quick else ENOUGH
            async with opened(server, kind, folder, enough=enough) as (world, database):
                found[kind] = await measure(world, database, quick=quick)
    finally:
        await server.stop()
        shutil.rmtree(home, ignore_errors=True)
    finish(summary(found, QUICK_JOBS if quick else JOBS))


if __name__ == "__main__":
    uvloop.run(main())
