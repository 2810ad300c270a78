"""Jobs beside other queues and beside the same statements by hand, on one PostgreSQL that syncs every commit
and one Redis that writes every command to its log and syncs that each second.

Every worker is one process' worth of code on uvloop; contenders take turns, a ratio is the median of the
rounds. A drain is of no-op jobs with 50 in hand (our slots, PgQueuer's batch, Taskiq's tasks), in jobs per
second; what a contender claims or fetches ahead of that is its own affair, as it comes. Both queues in
PostgreSQL keep a history of what is done; `bench/_jobs_others.py` says how each of the others is set up.

Parts, each of which can be run alone (`bench.jobs drain redis`); none: all, the held transaction beside the
others.

    drain     drain_vs_pgqueuer, and with 10 and 200 in hand; ours over its
    redis     drain_redis_vs_taskiq: ours over Redis Streams with all that it does in PostgreSQL (the relay
              included, in the same process), over Taskiq's on Redis Streams, which knows only Redis
    others    drain_vs_procrastinate, drain_redis_vs_dramatiq, drain_redis_vs_celery: as the two above
    enqueue   enqueue_batch_vs_pgqueuer: in batches of 1,000, ours over its
    latency   latency_p50_vs_pgqueuer, latency_p99_vs_pgqueuer: from the call that enqueues to the handler at
              33 jobs per second, ours over its: below 1 is faster
    effects   tx_effect_vs_raw: jobs with a transactional effect over the same statements by hand
    relay     relay_vs_raw_publish: jobs that one relay makes `sent`, commits, publishes to Redis Streams and
              sees confirmed, over messages that redis-py adds by pipelines of a thousand
    promises  late_commit_skipped: jobs that are not run, of eight writers whose transactions commit out of
              order; long_job_duplicates: how often too many a job is begun that takes three times its
              lease; stale_first_read: jobs whose handler does not find what was committed with them, beside
              a replica that is a second behind
    held      held_xmin_slowdown: how much longer a drain (of 20,000) takes when a transaction of its
              database has been held open for five minutes (--quick: as long as the other parts) while jobs
              were enqueued and drained, than in a database where as much was done and none is;
              held_xmin_slowdown_plain: of the same queue without its cursor
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import uvloop
from tests._redis import RedisServer

from bench._harness import finish
from bench._jobs_others import celery_queue, dramatiq_queue, procrastinate_queue, taskiq_queue
from bench._jobs_peers import Contender, Drained, Springtide, by_hand, pgqueuer_queue, springtide_queue
from bench._jobs_promises import (
    HeldOpen,
    held_open,
    late_commits_skipped,
    long_job_duplicates,
    stale_first_reads,
)
from bench._jobs_relay import published_by_hand, relayed
from springtide.ops._process import begun
from springtide.ops.runner.postgres import EmbeddedPostgres

ROUNDS = 5
HANDS = 50
EVERY = 0.03
HELD = 300.0

Figures = dict[str, float]
Timed = Callable[[], Awaitable[float]]
"""Returns the seconds that it took."""


class World:
    """The servers, our queue and PgQueuer's, and how much of everything is to be done."""

    def __init__(
        self, postgres: str, redis: str, ours: Springtide, pgqueuer: Contender, *, quick: bool
    ) -> None:
        self.postgres = postgres
        self.redis = redis
        self.ours = ours
        self.pgqueuer = pgqueuer
        self.quick = quick
        self.rounds = 3 if quick else ROUNDS

    def count(self, full: int) -> int:
        return full // 20 if self.quick else full

    async def drained(self, count: int, hands: int = HANDS, *, redis: bool = False) -> float:
        await self.ours.enqueue(count)
        return await self.ours.drain(count, hands, redis=self.redis if redis else None)

    async def versus(self, what: str, ours: Timed, theirs: Timed, counts: tuple[int, int]) -> float:
        """Our speed over theirs, of so many jobs each: the median of the rounds."""
        found = []
        for number in range(self.rounds):
            seconds = {}
            for name in ("ours", "theirs") if number % 2 else ("theirs", "ours"):
                seconds[name] = await (ours if name == "ours" else theirs)()
            speeds = counts[0] / seconds["ours"], counts[1] / seconds["theirs"]
            found.append(speeds[0] / speeds[1])
            print(f"{what}: ours {speeds[0]:.0f}/s, theirs {speeds[1]:.0f}/s", flush=True)
        return statistics.median(found)


async def drained(queue: Drained, count: int, hands: int = HANDS) -> float:
    await queue.enqueue(count)
    return await queue.drain(count, hands)


async def drain(world: World) -> Figures:
    figures = {}
    await drained(world.pgqueuer, 1000)  # what is compiled, planned and opened once
    for hands, full in ((50, 20_000), (10, 10_000), (200, 20_000)):
        count = world.count(full)
        name = "drain_vs_pgqueuer" if hands == HANDS else f"drain_{hands}_vs_pgqueuer"
        figures[name] = await world.versus(
            f"drain with {hands} in hand beside PgQueuer",
            partial(world.drained, count, hands),
            partial(drained, world.pgqueuer, count, hands),
            (count, count),
        )
    return figures


async def redis(world: World) -> Figures:
    count, fewer = world.count(20_000), world.count(6000)
    async with taskiq_queue(world.redis) as theirs:
        await world.drained(1000, redis=True)
        figure = await world.versus(
            "drain over Redis Streams beside Taskiq",
            partial(world.drained, count, redis=True),
            partial(drained, theirs, fewer),
            (count, fewer),
        )
    return {"drain_redis_vs_taskiq": figure}


async def others(world: World) -> Figures:
    figures = {}
    for name, queue, redis, full in (
        ("procrastinate", procrastinate_queue(world.postgres), False, 1000),
        ("dramatiq", dramatiq_queue(world.redis), True, 4000),
        ("celery", celery_queue(world.redis), True, 2000),
    ):
        count, fewer = world.count(10_000), world.count(full)
        async with queue as theirs:
            figures[f"drain{'_redis' * redis}_vs_{name}"] = await world.versus(
                f"drain{' over Redis Streams' * redis} beside {name.title()}",
                partial(world.drained, count, redis=redis),
                partial(drained, theirs, fewer),
                (count, fewer),
            )
    return figures


async def enqueue(world: World) -> Figures:
    count = world.count(20_000)

    async def timed(queue: Drained | Springtide) -> float:
        begun = time.perf_counter()
        await queue.enqueue(count)
        return time.perf_counter() - begun

    figure = await world.versus(
        "enqueue beside PgQueuer",
        partial(timed, world.ours),
        partial(timed, world.pgqueuer),
        (count, count),
    )
    await world.ours.clear()
    await world.pgqueuer.clear()
    return {"enqueue_batch_vs_pgqueuer": figure}


def percentile(figures: Sequence[float], share: float) -> float:
    return sorted(figures)[min(int(len(figures) * share), len(figures) - 1)]


async def latency(world: World) -> Figures:
    ratios: dict[float, list[float]] = {0.5: [], 0.99: []}
    for number in range(world.rounds):
        waited = {}
        for name in ("ours", "theirs") if number % 2 else ("theirs", "ours"):
            one = world.ours if name == "ours" else world.pgqueuer
            waited[name] = await one.latencies(20 if world.quick else 300, EVERY)
        for share, found in ratios.items():
            ours, theirs = (percentile(waited[name], share) for name in ("ours", "theirs"))
            found.append(ours / theirs)
            print(f"latency, p{share * 100:.0f}: {ours * 1000:.1f} ms, PgQueuer {theirs * 1000:.1f} ms")
    return {f"latency_p{share * 100:.0f}_vs_pgqueuer": statistics.median(ratios[share]) for share in ratios}


async def effects(world: World) -> Figures:
    ours, count, hands = world.ours, world.count(5000), 10

    async def transactional() -> float:
        await ours.enqueue(count)
        return await ours.drain(count, hands, "transactional")

    async def raw() -> float:
        await ours.enqueue(count)
        return await by_hand(ours, count, hands)

    await transactional()
    return {
        "tx_effect_vs_raw": await world.versus(
            "transactional effects beside statements by hand", transactional, raw, (count, count)
        )
    }


async def relay(world: World) -> Figures:
    count = world.count(40_000)
    await relayed(world.ours, world.redis, 1000)
    figure = await world.versus(
        "relayed beside published by hand",
        partial(relayed, world.ours, world.redis, count),
        partial(published_by_hand, world.redis, count),
        (count, count),
    )
    return {"relay_vs_raw_publish": figure}


async def promises(world: World) -> Figures:
    return {
        "late_commit_skipped": await late_commits_skipped(world.ours, 20 if world.quick else 200),
        "long_job_duplicates": await long_job_duplicates(world.ours, 1.5 if world.quick else 3.0),
        "stale_first_read": await stale_first_reads(50 if world.quick else 1000),
    }


PARTS: Mapping[str, Callable[[World], Awaitable[Figures]]] = {
    "drain": drain,
    "redis": redis,
    "others": others,
    "enqueue": enqueue,
    "latency": latency,
    "effects": effects,
    "relay": relay,
    "promises": promises,
}


async def measure(world: World, parts: Sequence[str], held: HeldOpen | None) -> Figures:
    figures: Figures = {}
    ours = world.ours
    await ours.enqueue(1000)
    await ours.drain(1000, HANDS)
    for name, part in PARTS.items():
        if name in parts:
            begun = time.monotonic()
            figures |= await part(world)
            print(f"-- {name}: {time.monotonic() - begun:.0f} s", flush=True)
            if held is not None:
                await held.churn()
    if held is not None:
        for _ in range(0 if world.quick else 20):
            await held.churn()
        figures["held_xmin_slowdown"], figures["held_xmin_slowdown_plain"] = await held.slowdowns(
            0 if world.quick else HELD, 1 if world.quick else 5
        )
        print(f"a transaction was held open for {time.monotonic() - held.begun:.0f} s")
    return figures


async def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help="what to measure; nothing: all of it")
    parser.add_argument("--quick", action="store_true", help="three rounds of few jobs, a smoke test")
    options = parser.parse_args()
    if strange := set(options.parts) - {*PARTS, "held"}:
        parser.error(f"PART must be one of {', '.join(PARTS)}, held; got {', '.join(sorted(strange))}")
    parts, quick = options.parts or [*PARTS, "held"], options.quick
    home = Path(tempfile.mkdtemp(prefix="springtide-bench-jobs-"))
    home.chmod(0o755)  # otherwise root's data would go to /var/lib/springtide, and stay there
    server, broker = EmbeddedPostgres("db", home=home), RedisServer(appendonly="yes", appendfsync="everysec")
    try:
        broker.start()
        await server.start()
        for name in ("bench", "held", "twin"):
            await server.ensure_database(name)
        async with AsyncExitStack() as stack:
            url = server.url("bench")
            ours = await stack.enter_async_context(springtide_queue(url))
            theirs = await stack.enter_async_context(pgqueuer_queue(url))
            held = None
            if "held" in parts:
                some = 500 if quick else 20_000
                held = await stack.enter_async_context(
                    held_open(server.url("held"), server.url("twin"), some)
                )
            world = World(url, broker.url, ours, theirs, quick=quick)
            begun()  # else the collector passes all queues' code in each worker's process
            figures = await measure(world, parts, held)
    finally:
        with contextlib.suppress(Exception):
            await server.stop()
        broker.close()
        shutil.rmtree(home, ignore_errors=True)
    finish({name: round(figure, 3) for name, figure in figures.items()})


if __name__ == "__main__":
    uvloop.run(main())
