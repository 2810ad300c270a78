"""The queues of bench.jobs on one server: ours, PgQueuer, and a transactional job's statements by hand."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import asyncpg
import msgspec
import pgqueuer
from pgqueuer.db import AsyncpgPoolDriver
from pgqueuer.queries import Queries
from pgqueuer.types import QueueExecutionMode

from springtide.db import Database, Migrator, ShardMap
from springtide.db.pool import Pool
from springtide.jobs import Effect, Enqueuer, Handler, Queue, Run, Worker, job
from springtide.jobs._store import Store
from springtide.jobs.transports import driver
from springtide.outbox import Bell

__all__ = [
    "CONNECTIONS",
    "Contender",
    "Counter",
    "Drained",
    "Nothing",
    "Springtide",
    "by_hand",
    "pgqueuer_queue",
    "springtide_queue",
]

CONNECTIONS = 20
KIND = "bench.nothing"


@job(kind=KIND)
class Nothing(msgspec.Struct, frozen=True):
    at: float


@dataclass
class Drained:
    """`enqueue(count)` adds no-op jobs, in batches of 1,000 where the queue has such; `drain(count, hands)`
    runs them all, so many in hand at once, and returns the seconds it took."""

    enqueue: Callable[[int], Awaitable[None]]
    drain: Callable[[int, int], Awaitable[float]]


@dataclass
class Contender(Drained):
    """`latencies(count, every)` adds one every so many seconds to a running worker and returns the seconds
    from before the call to the handler; `clear()` forgets all jobs."""

    latencies: Callable[[int, float], Awaitable[list[float]]]
    clear: Callable[[], Awaitable[object]]


class Counter:
    """A handler's implementation that says when it was called so often."""

    def __init__(self) -> None:
        self.left = 0
        self.waited: list[float] = []
        self.all = asyncio.Event()

    def expect(self, count: int) -> None:
        self.left, self.waited = count, []
        self.all.clear()

    def called(self, at: float = 0.0) -> None:
        if at:
            self.waited.append(time.perf_counter() - at)
        self.left -= 1
        if self.left == 0:
            self.all.set()

    async def do(self, one: Nothing, run: Run) -> None:
        self.called(one.at)


class Springtide:
    """A module of one shard, without a platform."""

    def __init__(self, url: str, pool: Pool, database: Database) -> None:
        self.url = url
        self.pool = pool
        self.database = database
        self.counter = Counter()

    @contextlib.asynccontextmanager
    async def working(
        self, hands: int, effect: Effect = "any", redis: str | None = None
    ) -> AsyncIterator[Worker]:
        queue = Queue(
            database=self.database,
            handlers=[Handler(Nothing, Counter.do, effect=effect)],
            implementation=self.counter,
        )
        worker = Worker(
            [queue],
            dsns={"main": self.url},
            slots=hands,
            transport=driver("redis", redis, name="bench") if redis else None,
        )
        await worker.start()
        try:
            yield worker
        finally:
            await worker.stop()

    async def enqueue(self, count: int) -> None:
        for start in range(0, count, 1000):
            async with self.database.write("a") as tx:
                await tx.enqueue_many([Nothing(0.0)] * min(1000, count - start))

    async def drain(self, count: int, hands: int, effect: Effect = "any", redis: str | None = None) -> float:
        """Seconds until all is done and written."""
        self.counter.expect(count)
        begun = time.perf_counter()
        async with self.working(hands, effect, redis) as worker:
            await self.counter.all.wait()
            while worker.running:
                await asyncio.sleep(0.001)
            return time.perf_counter() - begun

    async def clear(self) -> None:
        await self.pool.execute("truncate bench._job")

    async def latencies(self, count: int, every: float) -> list[float]:
        async with self.working(10):
            await self._one(10, every)  # the worker listens
            return await self._one(count, every)

    async def _one(self, count: int, every: float) -> list[float]:
        async def add() -> None:
            at = time.perf_counter()
            async with self.database.write("a") as tx:
                await tx.enqueue(Nothing(at))

        return await paced(self.counter, add, count, every)


async def paced(
    counter: Counter, add: Callable[[], Awaitable[None]], count: int, every: float
) -> list[float]:
    """Add at fixed times, whatever came of the ones before; the latencies of all."""
    counter.expect(count)
    loop, begun, tasks = asyncio.get_running_loop(), asyncio.get_running_loop().time(), []
    for number in range(count):
        await asyncio.sleep(max(begun + number * every - loop.time(), 0))
        tasks.append(asyncio.ensure_future(add()))
    await asyncio.gather(*tasks)
    await counter.all.wait()
    return counter.waited


@contextlib.asynccontextmanager
async def springtide_queue(url: str) -> AsyncIterator[Springtide]:
    async with Pool(url, cluster="main", size=CONNECTIONS) as pool:
        await Migrator("bench", None, {"main": pool}).apply()
        bell = Bell()
        await bell.start()
        enqueue = Enqueuer(bell=bell)
        try:
            yield Springtide(
                url, pool, Database("bench", ShardMap.even(["main"]), {"main": pool}, enqueue=enqueue)
            )
        finally:
            await bell.stop()


@contextlib.asynccontextmanager
async def pgqueuer_queue(url: str) -> AsyncIterator[Contender]:
    """As its manual shows it with a pool; its log, which is its history, is on by default."""
    async with asyncpg.create_pool(url, min_size=1, max_size=CONNECTIONS) as pool:
        driver, counter = AsyncpgPoolDriver(pool), Counter()
        queries = Queries(driver)
        await queries.install()

        def queue() -> pgqueuer.PgQueuer:
            made = pgqueuer.PgQueuer(driver)

            @made.entrypoint("nothing")
            async def nothing(one: Any) -> None:
                counter.called(json.loads(one.payload)["at"])

            return made

        async def enqueue(count: int) -> None:
            for start in range(0, count, 1000):
                some = min(1000, count - start)
                await queries.enqueue(["nothing"] * some, [b'{"at":0.0}'] * some, [0] * some)

        async def drain(count: int, hands: int) -> float:
            counter.expect(count)
            begun = time.perf_counter()
            await queue().run(batch_size=hands, mode=QueueExecutionMode.drain)
            assert counter.all.is_set()
            return time.perf_counter() - begun

        async def latencies(count: int, every: float) -> list[float]:
            made = queue()
            running = asyncio.ensure_future(made.run(batch_size=10))

            async def add() -> None:
                await queries.enqueue("nothing", json.dumps({"at": time.perf_counter()}).encode())

            try:
                await paced(counter, add, 10, every)
                return await paced(counter, add, count, every)
            finally:
                made.shutdown.set()
                await running

        yield Contender(enqueue, drain, latencies, lambda: pool.execute("truncate pgqueuer"))


async def by_hand(ours: Springtide, count: int, hands: int) -> float:
    """Seconds for the same statements as a transactional job's, by asyncpg alone: the claim of as many jobs
    as there are hands, and for each of them BEGIN, the end of the job, COMMIT."""
    store = Store(ours.database, "main")
    claim, finish = store.statements.claim, store.statements.finish_one
    floors = store.cursor.floors
    async with asyncpg.create_pool(ours.url, min_size=hands + 1, max_size=hands + 1) as pool:

        async def one(row: Any) -> None:
            name = (row["bucket"], row["id"], row["attempt"], "by hand")
            async with pool.acquire() as connection, connection.transaction():
                assert await connection.fetch(finish, *name, None)

        begun, left = time.perf_counter(), count
        while left:
            rows = await pool.fetch(claim, [f"{KIND}/1"], hands, "by hand", 30.0, floors)
            await asyncio.gather(*(one(row) for row in rows))
            left -= len(rows)
        return time.perf_counter() - begun
