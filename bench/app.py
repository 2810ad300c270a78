"""market at stage 1 against a conventional twin (bench/twin: FastAPI, SQLAlchemy's ORM on asyncpg, pydantic).

Both serve the same six endpoints with the same answers, over the same data in two databases of one PostgreSQL
(settings and fsync of the runner), under the same app server (one process, uvloop, httptools, no access log),
with the same password cost and the same payment provider. The app server has a core alone, everything else
the rest. No worker runs: the jobs that market's writes enqueue stay queued, and the twin has none. What the
twin lacks is in bench/twin/README.md.

    cpu_reads_vs_twin      CPU of the app server per request, market over twin: geometric mean over article
                           list, article, feed and listing search (target <= 0.5)
    cpu_writes_vs_twin     the same over placing an order and registering (target <= 1.0)
    max_rps_reads_vs_twin  requests/s that are answered with p95 < 200 ms, market over twin (target >= 2)

CPU: the process's CPU clock (user and system, all threads) over a fixed number of requests that a closed loop
counts out over a few connections, divided by that number. market and twin take turns, who begins alternates;
a ratio is taken within each round, and the median of the rounds counts.

Rate: wrk repeats a mix of the four reads (4 lists, 8 articles, 2 feeds, 2 searches) over 1, 2, 4 and more
connections (--quick: 4 and 16) until p95 reaches 200 ms or the rate has twice not grown; the best rate with
p95 below is the server's. wrk's loop is closed, so at c connections the latency is about c / rate: the rate
grows until the core is full, and more connections only add waiting. Each side stops where it is at its best,
so neither is held to a number of connections that suits the other. If the first number is too much already
(others use the machine), it is halved down to 1; if even one request at a time comes too late too often, what
counts is the requests/s that came in time, which is said in the line of the round. market and twin take turns
here as well; a ratio is taken within each round, and the median of the rounds counts.

Statements are counted in the server's log during one request of each kind: BEGIN and COMMIT count, because
each is a round trip. Memory is the proportional set size of the app server at the end. Needs wrk.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench import _wrk
from bench._closed_loop import Numbers, closed_loop
from bench._contest import Contest, Side, contest
from bench._harness import arguments, finish
from bench._pinned import Cores
from springtide.ops.runner.postgres import EmbeddedPostgres

READS = ("article list", "article", "feed", "listing search")
WRITES = ("place order", "register")
MIX = {"article list": 4, "article": 8, "feed": 2, "listing search": 2}
LIMIT = 0.2
"""Seconds that 95 of 100 answers must stay below."""

CONNECTIONS = (1, 2, 4, 8, 16, 32, 64)
QUICK_CONNECTIONS = (12,)
PATIENCE = 2
"""Steps without a better rate after which there is none to come: one may be bad luck."""

AT_ONCE = {"register": 2}
"""Connections of the closed loop; 4 where nothing is said."""


@dataclass
class Cost:
    """What one endpoint takes of one side: a figure per round, and all latencies in seconds."""

    cpu: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def cpu_us(self) -> float:
        return statistics.median(self.cpu) * 1e6

    def quantile_ms(self, share: float) -> float:
        ordered = sorted(self.seconds)
        return ordered[min(int(share * len(ordered)), len(ordered) - 1)] * 1e3


async def measure(side: Side, endpoint: str, cost: Cost, *, requests: int, numbers: Numbers) -> None:
    connections = AT_ONCE.get(endpoint, 4)
    calls, loop = side.calls[endpoint], asyncio.get_running_loop()
    begun, before = loop.time(), side.server.cpu()
    seconds = await closed_loop(
        side.server.url, calls, requests=requests, connections=connections, numbers=numbers
    )
    cost.cpu.append((side.server.cpu() - before) / requests)
    cost.rate.append(requests / (loop.time() - begun))
    cost.seconds += seconds


async def costs(
    sides: Sequence[Side], *, rounds: int, requests: Callable[[str], int]
) -> dict[str, dict[str, Cost]]:
    """endpoint -> side -> cost. A first round warms everything up and does not count."""
    numbers = itertools.count(1)
    found = {name: {side.name: Cost() for side in sides} for name in (*READS, *WRITES)}
    for number in range(-1, rounds):
        for endpoint in found:
            turn = sides if number % 2 else sides[::-1]
            for side in turn:
                cost = found[endpoint][side.name] if number >= 0 else Cost()
                await measure(side, endpoint, cost, requests=requests(endpoint), numbers=numbers)
    return found


def ratio(cost: dict[str, Cost]) -> float:
    return statistics.median(m / t for m, t in zip(cost["market"].cpu, cost["twin"].cpu, strict=True))


def fastest(side: Side, wrk: _wrk.Wrk, *, steps: Sequence[int], seconds: float) -> _wrk.Seen:
    """The best run with p95 below LIMIT; without any, the one at a single connection as it is."""
    mix = [
        side.calls[name][turn % len(side.calls[name])]
        for turn in range(50)
        for name, share in MIX.items()
        for _ in range(share)
    ]

    def see(connections: int) -> _wrk.Seen:
        return wrk.run(side.server.url, mix, connections=connections, seconds=seconds, limit=LIMIT)

    best, worse = None, 0
    for connections in steps:
        seen = see(connections)
        if seen.p95 >= LIMIT:
            break
        if best is None or seen.rate > best.rate * 1.02:
            best, worse = seen, 0
        elif (worse := worse + 1) == PATIENCE:
            break
    connections = steps[0]
    while best is None and connections > 1:
        connections //= 2
        seen = see(connections)
        best = seen if seen.p95 < LIMIT else None
    return best or seen


async def run(options: object, fight: Contest) -> dict[str, object]:
    quick, rounds = options.quick, options.rounds  # type: ignore[attr-defined]
    sides = fight.sides
    counts = {"register": 8 if quick else 40, "place order": 16 if quick else 100}
    found = await costs(sides, rounds=rounds, requests=lambda name: counts.get(name, 60 if quick else 1000))
    statements = await fight.statements()
    print(f"{'':16}{'':9}{'CPU us':>9}{'req/s':>9}{'p50 ms':>9}{'p95 ms':>9}{'statements':>12}{'ratio':>8}")
    for name, cost in found.items():
        for side in sides:
            one = cost[side.name]
            said = f"{ratio(cost):8.2f}" if side.name == "market" else ""
            print(
                f"{name:16}{side.name:9}{one.cpu_us:9.0f}{statistics.median(one.rate):9.0f}"
                f"{one.quantile_ms(0.5):9.1f}{one.quantile_ms(0.95):9.1f}{statements[side.name][name]:12}{said}"
            )
    rates: dict[str, list[float]] = {side.name: [] for side in sides}
    steps, seconds = (QUICK_CONNECTIONS, 1.0) if quick else (CONNECTIONS, 3.0)
    for number in range(rounds):
        for side in sides if number % 2 else sides[::-1]:
            seen = await asyncio.to_thread(fastest, side, fight.wrk, steps=steps, seconds=seconds)
            kept = seen.p95 < LIMIT
            rates[side.name].append(seen.rate if kept else seen.rate * seen.in_time)
            said = f"p95 {seen.p95 * 1e3:.0f} ms" + ("" if kept else f", {seen.in_time:.0%} in time")
            print(f"reads, round {number + 1}: {side.name} {seen.rate:.0f} requests/s, {said}")
    for side in sides:
        print(f"{side.name}: {side.server.memory_mb():.0f} MB")
    pairs = [pair for pair in zip(rates["market"], rates["twin"], strict=True) if all(pair)]
    if not pairs:
        raise RuntimeError(f"no answer came within {LIMIT} s: this machine is too busy to be measured on")
    best = statistics.median(ours / theirs for ours, theirs in pairs)
    return {
        "cpu_reads_vs_twin": round(geometric_mean([ratio(found[name]) for name in READS]), 3),
        "cpu_writes_vs_twin": round(geometric_mean([ratio(found[name]) for name in WRITES]), 3),
        "max_rps_reads_vs_twin": round(best, 2),
        **{f"cpu_{name.replace(' ', '_')}_vs_twin": round(ratio(cost), 3) for name, cost in found.items()},
    }


def geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(value) for value in values))


def main() -> None:
    options = arguments(__doc__)
    if shutil.which("wrk") is None:
        sys.exit("bench.app needs wrk: `make servers`, or apt-get install wrk")
    home = Path(tempfile.mkdtemp(prefix="springtide-bench-"))
    home.chmod(0o755)

    async def whole() -> dict[str, object]:
        cores, postgres = Cores(), EmbeddedPostgres("db", home=home / "postgres")
        await postgres.start()
        try:
            users, listings = (1_000, 1_000) if options.quick else (5_000, 5_000)
            async with contest(home, postgres, users=users, listings=listings, cores=cores) as fight:
                return await run(options, fight)
        finally:
            await postgres.stop()

    try:
        figures = asyncio.run(whole())
    finally:
        shutil.rmtree(home, ignore_errors=True)
    finish(figures)


if __name__ == "__main__":
    main()
