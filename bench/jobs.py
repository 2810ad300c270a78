"""Jobs beside PgQueuer and beside statements by hand, on one embedded server that syncs every commit.

Every worker is one process' worth of code on uvloop; contenders take turns, a ratio is the median of the
rounds. Both queues keep a history of what is done.

- `drain_vs_pgqueuer`: no-op jobs per second with 50 in hand (our slots, its batch size), ours over its;
  `drain_10_vs_pgqueuer` and `drain_200_vs_pgqueuer` with 10 and 200.
- `enqueue_batch_vs_pgqueuer`: jobs enqueued per second in batches of 1,000, ours over its.
- `latency_p50_vs_pgqueuer`, `latency_p99_vs_pgqueuer`: from the call that enqueues to the handler at 33 jobs
  per second, ours over its: below 1 is faster.
- `tx_effect_vs_raw`: no-op jobs with a transactional effect per second over the same statements by hand.
- `held_xmin_slowdown`: how much longer a drain takes after a transaction has been held open while jobs were
  enqueued and drained, over before; `held_xmin_slowdown_plain`: of the same queue without its cursor.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import asyncpg
import uvloop

from bench._harness import arguments, finish
from bench._jobs_peers import Contender, Springtide, by_hand, pgqueuer_queue, springtide_queue
from springtide.jobs._store import Store
from springtide.ops.runner.postgres import EmbeddedPostgres

EVERY = 0.03


def percentile(figures: Sequence[float], share: float) -> float:
    return sorted(figures)[min(int(len(figures) * share), len(figures) - 1)]


async def drains(ours: Springtide, theirs: Contender, count: int, hands: int, rounds: int) -> list[float]:
    """Our speed over theirs, one figure per round."""
    found = []
    for number in range(rounds):
        seconds = {}
        for name in ("ours", "theirs") if number % 2 else ("theirs", "ours"):
            one = ours if name == "ours" else theirs
            await one.enqueue(count)
            seconds[name] = await one.drain(count, hands)
        found.append(seconds["theirs"] / seconds["ours"])
        print(
            f"drain of {count} with {hands} in hand: {count / seconds['ours']:.0f}/s,"
            f" PgQueuer {count / seconds['theirs']:.0f}/s"
        )
    return found


async def held(ours: Springtide, url: str, churn: int, *, plain: bool) -> float:
    """How much longer a drain of the same jobs takes after `churn` jobs ran under a held transaction."""
    read, floors = Store.read, 5000

    async def nothing(self: Store) -> bool:
        return False

    if plain:
        Store.read = nothing  # type: ignore[method-assign]
    try:
        await ours.pool.execute("vacuum analyze bench._job")
        connection = await asyncpg.connect(url)
        try:
            transaction = connection.transaction(isolation="repeatable_read")
            await transaction.start()
            await connection.fetch("select count(*) from bench._job")
            await ours.enqueue(floors)
            before = await ours.drain(floors, 50)
            for _ in range(0, churn, floors):
                await ours.enqueue(floors)
                after = await ours.drain(floors, 50)
            await transaction.rollback()
        finally:
            await connection.close()
        return after / before - 1
    finally:
        Store.read = read  # type: ignore[method-assign]


async def measure(url: str, *, quick: bool, rounds: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    async with springtide_queue(url) as ours, pgqueuer_queue(url) as theirs:
        count = 2000 if quick else 20_000
        for one in (ours, theirs):  # what is compiled, planned and opened once
            await one.enqueue(1000)
            await one.drain(1000, 50)
        for hands, name in ((50, "drain"), (10, "drain_10"), (200, "drain_200")):
            some = count if hands >= 50 else count // 2
            ratios = await drains(ours, theirs, some, hands, rounds)
            figures[f"{name}_vs_pgqueuer"] = statistics.median(ratios)
        enqueues = []
        for number in range(rounds):
            seconds = {}
            for name in ("ours", "theirs") if number % 2 else ("theirs", "ours"):
                loop = asyncio.get_running_loop()
                begun = loop.time()
                await (ours if name == "ours" else theirs).enqueue(count)
                seconds[name] = loop.time() - begun
            enqueues.append(seconds["theirs"] / seconds["ours"])
            print(f"enqueue: {count / seconds['ours']:.0f}/s, PgQueuer {count / seconds['theirs']:.0f}/s")
        figures["enqueue_batch_vs_pgqueuer"] = statistics.median(enqueues)
        for one in (ours, theirs):
            await one.drain(count * rounds, 200)
        ratios_50, ratios_99 = [], []
        for number in range(rounds):
            waited = {}
            for name in ("ours", "theirs") if number % 2 else ("theirs", "ours"):
                waited[name] = await (ours if name == "ours" else theirs).latencies(
                    60 if quick else 500, EVERY
                )
            ratios_50.append(percentile(waited["ours"], 0.5) / percentile(waited["theirs"], 0.5))
            ratios_99.append(percentile(waited["ours"], 0.99) / percentile(waited["theirs"], 0.99))
            shown = [
                f"{percentile(waited[name], share) * 1000:.1f}"
                for name in ("ours", "theirs")
                for share in (0.5, 0.99)
            ]
            print(f"latency in ms: p50 {shown[0]} p99 {shown[1]}, PgQueuer p50 {shown[2]} p99 {shown[3]}")
        figures["latency_p50_vs_pgqueuer"] = statistics.median(ratios_50)
        figures["latency_p99_vs_pgqueuer"] = statistics.median(ratios_99)
        effects = []
        for number in range(rounds):
            seconds = {}
            for name in ("ours", "raw") if number % 2 else ("raw", "ours"):
                some = count // 4
                await ours.enqueue(some)
                if name == "ours":
                    seconds[name] = await ours.drain(some, 10, "transactional")
                else:
                    seconds[name] = await by_hand(ours, some, 10)
            effects.append(seconds["raw"] / seconds["ours"])
            print(f"transactional: {some / seconds['ours']:.0f}/s, by hand {some / seconds['raw']:.0f}/s")
        figures["tx_effect_vs_raw"] = statistics.median(effects)
        churn = 10_000 if quick else 200_000
        figures["held_xmin_slowdown"] = await held(ours, url, churn, plain=False)
        figures["held_xmin_slowdown_plain"] = await held(ours, url, churn, plain=True)
    return figures


async def main() -> None:
    options = arguments(__doc__, rounds=5)
    home = Path(tempfile.mkdtemp(prefix="springtide-bench-jobs-"))
    server = EmbeddedPostgres("db", home=home)
    try:
        await server.start()
        await server.ensure_database("bench")
        figures = await measure(server.url("bench"), quick=options.quick, rounds=options.rounds)
    finally:
        await server.stop()
        shutil.rmtree(home, ignore_errors=True)
    finish({name: round(figure, 3) for name, figure in figures.items()})


if __name__ == "__main__":
    uvloop.run(main())
