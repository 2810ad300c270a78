"""Jobs beside PgQueuer and beside statements by hand, on one embedded server that syncs every commit.

Every worker is one process' worth of code on uvloop; contenders take turns, a ratio is the median of the
rounds. Both queues keep a history of what is done.

- `drain_vs_pgqueuer`: no-op jobs per second with 50 in hand (our slots, its batch size), ours over its;
  `drain_10_vs_pgqueuer` and `drain_200_vs_pgqueuer` with 10 and 200.
- `enqueue_batch_vs_pgqueuer`: jobs enqueued per second in batches of 1,000, ours over its.
- `latency_p50_vs_pgqueuer`, `latency_p99_vs_pgqueuer`: from the call that enqueues to the handler at 33 jobs
  per second, ours over its: below 1 is faster.
- `tx_effect_vs_raw`: no-op jobs with a transactional effect per second over the same statements by hand.
- `late_commit_skipped`: jobs that are not run, of eight writers whose transactions commit out of order.
- `long_job_duplicates`: how often too many a job is begun that takes three times its lease.
- `held_xmin_slowdown`: how much longer a drain takes when a transaction of its database has been held open
  for five minutes (--quick: as long as the other rounds) while jobs were enqueued and drained, over before;
  `held_xmin_slowdown_plain`: of the same queue without its cursor.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import uvloop

from bench._harness import arguments, finish
from bench._jobs_peers import Contender, Springtide, by_hand, pgqueuer_queue, springtide_queue
from bench._jobs_promises import held_open, late_commits_skipped, long_job_duplicates
from springtide.ops.runner.postgres import EmbeddedPostgres

EVERY = 0.03

HELD = 300.0


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


async def measure(url: str, held_url: str, *, quick: bool, rounds: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    async with (
        springtide_queue(url) as ours,
        pgqueuer_queue(url) as theirs,
        held_open(held_url, 1000 if quick else 5000, 1 if quick else 3) as held,
    ):
        count = 2000 if quick else 20_000
        for one in (ours, theirs):  # what is compiled, planned and opened once
            await one.enqueue(1000)
            await one.drain(1000, 50)
        for hands, name in ((50, "drain"), (10, "drain_10"), (200, "drain_200")):
            some = count if hands >= 50 else count // 2
            ratios = await drains(ours, theirs, some, hands, rounds)
            figures[f"{name}_vs_pgqueuer"] = statistics.median(ratios)
            await held.churn()
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
        figures["late_commit_skipped"] = await late_commits_skipped(ours, 20 if quick else 200)
        figures["long_job_duplicates"] = await long_job_duplicates(ours)
        if not quick:
            for _ in range(20):
                await held.churn()
        figures["held_xmin_slowdown"], figures["held_xmin_slowdown_plain"] = await held.slowdowns(
            0 if quick else HELD, 1 if quick else 3
        )
        print(f"a transaction was held open for {time.monotonic() - held.begun:.0f} s")
    return figures


async def main() -> None:
    options = arguments(__doc__, rounds=5)
    home = Path(tempfile.mkdtemp(prefix="springtide-bench-jobs-"))
    server = EmbeddedPostgres("db", home=home)
    try:
        await server.start()
        for name in ("bench", "held"):
            await server.ensure_database(name)
        figures = await measure(
            server.url("bench"), server.url("held"), quick=options.quick, rounds=options.rounds
        )
    finally:
        await server.stop()
        shutil.rmtree(home, ignore_errors=True)
    finish({name: round(figure, 3) for name, figure in figures.items()})


if __name__ == "__main__":
    uvloop.run(main())
