"""What bench.jobs counts rather than times: commits out of order, jobs longer than their lease, reads of jobs
on a replica that lags, a transaction that is held open for minutes beside the other rounds."""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable

import asyncpg
import msgspec

from bench._cluster import cluster, until
from bench._jobs_peers import Springtide, springtide_queue
from springtide.db import Consistency, Database, Migrator, ShardMap, bucket_of
from springtide.db.members import Fixed, Member
from springtide.db.pool import Pool
from springtide.db.servers import RoutingSettings, Servers
from springtide.jobs import Enqueuer, Handler, Queue, Run, Worker, job
from springtide.jobs._store import Store

__all__ = ["HeldOpen", "held_open", "late_commits_skipped", "long_job_duplicates", "stale_first_reads"]

WRITERS = 8
PATIENCE = 60.0


@job(kind="bench.numbered")
class Numbered(msgspec.Struct, frozen=True):
    number: int
    seconds: float = 0.0


class Seen:
    def __init__(self) -> None:
        self.begun: Counter[int] = Counter()
        self.ended = 0

    async def do(self, one: Numbered, run: Run) -> None:
        self.begun[one.number] += 1
        if one.seconds:
            await asyncio.sleep(one.seconds)
        self.ended += 1


@contextlib.asynccontextmanager
async def working(ours: Springtide, seen: Seen, **options: float) -> AsyncIterator[None]:
    queue = Queue(database=ours.database, handlers=[Handler(Numbered, Seen.do)], implementation=seen)
    worker = Worker([queue], dsns={"main": ours.url}, slots=10, **options)  # type: ignore[arg-type]
    await worker.start()
    try:
        yield
    finally:
        await worker.stop()


async def ended(seen: Seen | Reader, count: int) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE):
            while seen.ended < count:
                await asyncio.sleep(0.05)


async def late_commits_skipped(ours: Springtide, each: int) -> int:
    """Jobs that are not run of eight writers, whose transactions commit in another order than they began."""
    seen, dice = Seen(), random.Random(7)

    async def write(writer: int) -> None:
        for number in range(each):
            async with ours.database.write(f"{writer}") as tx:
                await tx.enqueue(Numbered(writer * each + number))
                await tx.fetch("select pg_sleep($1)", dice.uniform(0, 0.03))

    async with working(ours, seen):
        await asyncio.gather(*(write(writer) for writer in range(WRITERS)))
        await ended(seen, WRITERS * each)
    return WRITERS * each - len(seen.begun)


async def long_job_duplicates(ours: Springtide, seconds: float) -> int:
    """How often too many a job was begun that takes three times its lease of `seconds`, by two workers."""
    seen = Seen()
    lease = {"lease": seconds, "heartbeat": seconds / 3, "upkeep": 0.5}
    async with working(ours, seen, **lease), working(ours, seen, **lease):
        async with ours.database.write("long") as tx:
            await tx.enqueue(Numbered(1, lease["lease"] * 3))
        await ended(seen, 1)
    return seen.begun.total() - 1


LAG = 1.0
"""Seconds that the replica is behind."""

FACT = "create table bench.fact (bucket smallint, number integer, primary key (bucket, number))"
FIND = "select number from bench.fact where bucket = $1 and number = $2"


class Reader:
    """Counts jobs whose first read misses what was committed with them, and reads that may: on any server."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.ended = self.stale = self.behind = 0

    async def do(self, one: Numbered, run: Run) -> None:
        found = [
            await self.database.read(one.number, consistency=wanted).fetch_one(
                FIND, bucket_of(one.number), one.number
            )
            for wanted in (None, Consistency.EVENTUAL)
        ]
        self.stale += found[0] is None
        self.behind += found[1] is None
        self.ended += 1


async def stale_first_reads(count: int) -> int:
    """Jobs whose handler does not find what was committed with them, beside a replica that is LAG behind."""
    async with cluster(replicas=1, quorum=False) as world:
        (replica,) = world.replicas
        members = [Member(node="primary", url=world.primary.url), Member(node="replica", url=replica.url)]
        pool = Pool(world.primary.url, cluster="main")
        servers = Servers(
            "main",
            pool,
            Fixed(members),
            replica_pool=lambda member: Pool(member.url, cluster=f"main/{member.node}", reserved=0),
            settings=RoutingSettings(settle=0.2, look_every=0.05, recover=0.1, slow_start=0.0),
        )
        async with pool:
            await Migrator("bench", None, {"main": pool}).apply()
            await pool.execute(FACT)
            await servers.start()
            try:
                database = Database(
                    "bench", ShardMap.even(["main"]), {"main": pool}, servers={"main": servers},
                    enqueue=Enqueuer(),
                )  # fmt: skip
                return await _first_reads(database, servers, world.primary.url, count, replica.delay)
            finally:
                await servers.stop()


async def _first_reads(
    database: Database, servers: Servers, url: str, count: int, delay: Callable[[float], None]
) -> int:
    async def serving() -> bool:
        return any(one.state == "serving" for one in servers.replicas)

    await until(serving, "a replica that serves")
    delay(LAG)
    reader = Reader(database)
    queue = Queue(database=database, handlers=[Handler(Numbered, Reader.do)], implementation=reader)
    worker = Worker([queue], dsns={"main": url}, slots=10)
    await worker.start()
    try:
        for number in range(count):
            async with database.write(number) as tx:
                await tx.execute(
                    "insert into bench.fact (bucket, number) values ($1, $2)", bucket_of(number), number
                )
                await tx.enqueue(Numbered(number))
        await ended(reader, count)
    finally:
        await worker.stop()
    print(f"first reads: {reader.stale} of {reader.ended} stale; {reader.behind} where any server may answer")
    if not reader.behind:
        raise RuntimeError("the replica has answered nothing that is late: nothing is shown")
    return reader.stale + count - reader.ended


class HeldOpen:
    """A queue in a database of its own, in which a transaction is held open since `begun`, and its twin, in
    one where none is."""

    def __init__(self, held: Springtide, twin: Springtide, some: int) -> None:
        self._held = held
        self._twin = twin
        self._some = some
        self.begun = time.monotonic()

    async def churn(self) -> None:
        """Some jobs more, whose entries cannot be removed."""
        for ours in (self._held, self._twin):
            await drained(ours, self._some // 4)

    async def slowdowns(self, seconds: float, rounds: int) -> tuple[float, float]:
        """How much longer a drain, with the start of its worker, takes than the twin's, once the transaction
        is so old: of our queue, and of the plain one, which begins each claim at its oldest entry."""
        await asyncio.sleep(max(self.begun + seconds - time.monotonic(), 0))
        ours = await self._slowdown(rounds)
        read = Store.read

        async def nothing(self: Store) -> bool:
            return False

        Store.read = nothing  # type: ignore[method-assign]
        try:
            plain = await self._slowdown(rounds)
        finally:
            Store.read = read  # type: ignore[method-assign]
        return ours, plain

    async def _slowdown(self, rounds: int) -> float:
        found = []
        for number in range(rounds):
            first, second = (self._held, self._twin) if number % 2 else (self._twin, self._held)
            took = {ours: await drained(ours, self._some) for ours in (first, second)}
            found.append(took[self._held] / took[self._twin] - 1)
        return statistics.median(found)


async def drained(ours: Springtide, some: int) -> float:
    """Seconds to drain so many jobs."""
    await ours.enqueue(some)
    return await ours.drain(some, 50)


@contextlib.asynccontextmanager
async def held_open(url: str, twin: str, some: int) -> AsyncIterator[HeldOpen]:
    async with springtide_queue(url) as ours, springtide_queue(twin) as other:
        for one in (ours, other):
            await drained(one, some)
        connection = await asyncpg.connect(url)
        try:
            await connection.execute("begin isolation level repeatable read")
            await connection.fetch("select count(*) from bench._job")
            yield HeldOpen(ours, other, some)
        finally:
            await connection.close()
