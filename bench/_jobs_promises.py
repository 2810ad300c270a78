"""What bench.jobs counts rather than times: commits out of order, jobs longer than their lease, a transaction
that is held open for minutes beside the other rounds."""

from __future__ import annotations

import asyncio
import contextlib
import random
import statistics
import time
from collections import Counter
from collections.abc import AsyncIterator

import asyncpg
import msgspec

from bench._jobs_peers import Springtide, springtide_queue
from springtide.jobs import Handler, Queue, Run, Worker, job
from springtide.jobs._store import Store

__all__ = ["HeldOpen", "held_open", "late_commits_skipped", "long_job_duplicates"]

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


async def ended(seen: Seen, count: int) -> None:
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


class HeldOpen:
    """A queue in a database of its own, in which a transaction is held open since `begun`."""

    def __init__(self, ours: Springtide, some: int, before: float) -> None:
        self._ours = ours
        self._some = some
        self._before = before
        self.begun = time.monotonic()

    async def churn(self) -> None:
        """Some jobs more, whose entries cannot be removed."""
        await drained(self._ours, self._some, 1)

    async def slowdowns(self, seconds: float, rounds: int) -> tuple[float, float]:
        """How much longer a drain takes than before, once the transaction is so old: of our queue, and of the
        plain one, which begins each claim at its oldest entry."""
        await asyncio.sleep(max(self.begun + seconds - time.monotonic(), 0))
        ours = await drained(self._ours, self._some, rounds)
        read = Store.read

        async def nothing(self: Store) -> bool:
            return False

        Store.read = nothing  # type: ignore[method-assign]
        try:
            plain = await drained(self._ours, self._some, rounds)
        finally:
            Store.read = read  # type: ignore[method-assign]
        return ours / self._before - 1, plain / self._before - 1


async def drained(ours: Springtide, some: int, rounds: int) -> float:
    """Seconds to drain so many jobs, the median of the rounds."""
    seconds = []
    for _ in range(rounds):
        await ours.enqueue(some)
        seconds.append(await ours.drain(some, 50))
    return statistics.median(seconds)


@contextlib.asynccontextmanager
async def held_open(url: str, some: int, rounds: int) -> AsyncIterator[HeldOpen]:
    async with springtide_queue(url) as ours:
        await drained(ours, some, 1)
        before = await drained(ours, some, rounds)
        connection = await asyncpg.connect(url)
        try:
            await connection.execute("begin isolation level repeatable read")
            await connection.fetch("select count(*) from bench._job")
            yield HeldOpen(ours, some, before)
        finally:
            await connection.close()
