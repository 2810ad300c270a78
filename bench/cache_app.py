"""What the cache brings market: its readers' journeys over a primary and three replicas, cache off and on.

One app process; PostgreSQL, Redis and the driver share the machine with it. Traffic is that of `springtide
load`, the journeys that only read, in an open loop; what is popular follows Zipf's law with s = 0.99.

    db_queries_saved    statements per request without the cache over those with it (target >= 8)
    hit_rate            share of the values asked for that one of the two levels had (target >= 0.90)
    p50_ms, p95_ms      at the same rate, with the cache; `..._off` without it
    db_cpu_us           CPU of all PostgreSQL servers per request; app_cpu_us of the app process
    max_rps             requests/s that are answered with p95 < 200 ms, none refused; `max_rps_off` without

Both app servers run all the time over the same data, and take turns: medians of rounds. The rate is raised
in steps until p95 reaches 200 ms or requests fail; the best step before counts. Statements are those that the
app process ran (its /metrics), CPU is read from the kernel. Needs redis-server.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import statistics
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import uvloop

from bench._cluster import Cluster, cluster, scratch
from bench._harness import arguments, finish
from bench._pinned import ROOT, Server, cpu_seconds
from bench._redis_world import redis_alone
from market.journeys import journeys
from market.platform import modules
from market.seed import seed
from market.visiting.site import Site, prepare
from springtide.ops.load.arrivals import Phase
from springtide.ops.load.generator import Generator, Options
from springtide.ops.load.journeys import Client, Journey, World
from springtide.ops.load.progress import Silent
from springtide.ops.load.zipf import Zipf
from springtide.platform import Platform

READING = ("front", "look", "compare", "read", "browse", "person", "topic", "feed", "figures", "find")
S = 0.99
TODAY = date(2025, 1, 1)
HIT = re.compile(r'level="l[12]"')
LIMIT = 0.2
"""Seconds that 95 of 100 answers must stay below."""

FIRST, STEP, MOST = 20.0, 1.35, 3000.0
"""Requests per second: where the search for the highest rate begins, and by how much it goes on."""

TOPOLOGY = """
name = "market"
app = "market.asgi:app"
path = {path}
modules = "market.platform:modules"
{nodes}
[clusters.main]
primary = {primary}
replicas = {replicas}
[databases.default]
shards = ["main"]
{cache}
[telemetry]
log_level = "error"
"""


CACHE = """
[nodes.redis]
kind = "redis"
url = {redis}
[cache]
node = "redis"
"""


@dataclass
class Window:
    """What was measured while so many requests were answered."""

    requests: int
    p50: float
    p95: float
    failed: dict[str, int]
    statements: float
    db_cpu: float
    app_cpu: float
    reads: float
    hits: float


class Side:
    """One app server; `name` is "off" or "on"."""

    def __init__(self, name: str, server: Server, world: Cluster) -> None:
        self.name = name
        self.server = server
        self._world = world
        self._site: Site | None = None

    async def window(self, *, rate: float, seconds: float, seed: int) -> Window:
        generator = await self._driver(rate=rate, seconds=seconds, seed=seed)
        before, db, app = await self._metrics(), self._database_cpu(), self.server.cpu()
        results = await generator.run()
        app_cpu, db_cpu = self.server.cpu() - app, self._database_cpu() - db
        more = await self._metrics() - before
        answered = max(results.ok, 1)
        return Window(
            requests=results.ok,
            p50=results.latency.quantile(0.5),
            p95=results.latency.quantile(0.95),
            failed=results.errors,
            statements=more["statements"] / answered,
            db_cpu=db_cpu / answered,
            app_cpu=app_cpu / answered,
            reads=more["reads"],
            hits=more["hits"],
        )

    async def fastest(self, *, seconds: float, seed: int) -> float:
        """The best rate of answers with p95 below LIMIT and none failed; 0.0 without any."""
        best, rate = 0.0, FIRST
        while rate <= MOST:
            results = await (await self._driver(rate=rate, seconds=seconds, seed=seed)).run()
            kept = results.latency.quantile(0.95) < LIMIT and not results.failed and not results.unsent
            if not kept:
                break
            best = results.ok / seconds
            rate *= STEP
        return best

    async def _driver(self, *, rate: float, seconds: float, seed: int) -> Generator:
        """`rate` requests per second of market's readers, prepared."""
        chosen = [
            Journey(one.name, one.weight, one.run, steps=one.steps, prepare=self._prepare)
            for one in journeys()
            if one.name in READING
        ]
        steps = sum(one.weight * one.steps for one in chosen) / sum(one.weight for one in chosen)
        phase = Phase(name="steady", duration=seconds, start_rate=rate / steps, end_rate=rate / steps)
        generator = Generator(
            Options(url=self.server.url, phases=(phase,), seed=seed, connections=64), chosen
        )
        await generator.prepare()
        return generator

    async def _prepare(self, client: Client, world: World) -> None:
        """Look around and sign in, once."""
        if self._site is None:
            await prepare(client, world)
            self._site = world.get(Site)
            self._site.articles_by_rank = Zipf(self._site.articles_by_rank.n, s=S)
            self._site.wares_by_rank = Zipf(self._site.wares_by_rank.n, s=S)
        world.put(self._site)

    def _database_cpu(self) -> float:
        """Seconds of all servers so far; a backend that ended takes its own with it."""
        total = 0.0
        for node in self._world.nodes:
            for pid in node.processes():
                try:
                    total += cpu_seconds(pid)
                except OSError:
                    continue
        return total

    async def _metrics(self) -> Counter[str]:
        text = await asyncio.to_thread(self._scrape)
        found: Counter[str] = Counter()
        for name, labels, value in re.findall(r"^(\w+)\{([^}]*)\} ([\d.e+]+)$", text, re.MULTILINE):
            if name == "springtide_db_statement_seconds_count":
                found["statements"] += round(float(value))
            elif name == "springtide_cache_reads_total":
                found["reads"] += round(float(value))
                found["hits"] += round(float(value)) if HIT.search(labels) else 0
        return found

    def _scrape(self) -> str:
        with urllib.request.urlopen(f"{self.server.url}/metrics", timeout=30) as answer:
            text: str = answer.read().decode()
        return text


def topology(folder: Path, world: Cluster, redis: str | None) -> Path:
    file = folder / f"{'on' if redis else 'off'}.toml"
    file.write_text(
        TOPOLOGY.format(
            path=json.dumps(str(ROOT / "apps")),
            nodes="".join(f"[nodes.{node.name}]\nurl = {json.dumps(node.url)}\n" for node in world.nodes),
            primary=json.dumps(world.primary.name),
            replicas=json.dumps([node.name for node in world.replicas]),
            cache=CACHE.format(redis=json.dumps(redis)) if redis else "",
        )
    )
    return file


@asynccontextmanager
async def sides(world: Cluster, redis: str, *, quick: bool) -> AsyncIterator[list[Side]]:
    folder = scratch("springtide-cache-app-")
    made: list[Side] = []
    try:
        platform = Platform.from_topology(topology(folder, world, None), modules=modules())
        await platform.migrate()
        async with platform:
            await seed(platform, users=300 if quick else 2_000, seed=1, progress=Silent(), today=TODAY)
        await world.primary.query("vacuum analyze")
        await world.caught_up()
        for name, address in (("off", None), ("on", redis)):
            environment = {
                "SPRINGTIDE_NODE": "app",
                "SPRINGTIDE_TOPOLOGY": str(topology(folder, world, address)),
                "SPRINGTIDE_HOME": str(folder / ".springtide"),
            }
            server = Server(
                name, "market.asgi:app", cores=None, path=ROOT / "apps", env=environment,
                log=folder / f"{name}.log",
            )  # fmt: skip
            made.append(Side(name, server, world))
        yield made
    finally:
        for side in made:
            side.server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def median(windows: list[Window], of: str) -> float:
    return statistics.median(getattr(window, of) for window in windows)


async def measure(both: list[Side], *, rounds: int, quick: bool) -> dict[str, Any]:
    rate, seconds = (20.0, 2.0) if quick else (60.0, 8.0)
    windows: dict[str, list[Window]] = {side.name: [] for side in both}
    fastest: dict[str, list[float]] = {side.name: [] for side in both}
    for number in range(-1, rounds):  # the first warms everything up and does not count
        for side in both if number % 2 else both[::-1]:
            window = await side.window(rate=rate, seconds=seconds, seed=number + 2)
            if number >= 0:
                windows[side.name].append(window)
    for number in range(2 if quick else 3):
        for side in both if number % 2 else both[::-1]:
            fastest[side.name].append(await side.fastest(seconds=1.5 if quick else 4.0, seed=100 + number))
    print(f"\n{rounds} rounds of {seconds:g} s at {rate:g} requests/s; p95 < {LIMIT * 1e3:g} ms for the rate")
    print(
        f"{'cache':8}{'p50 ms':>9}{'p95 ms':>9}{'statements':>12}{'db CPU us':>11}{'app CPU us':>12}", end=""
    )
    print(f"{'failed':>8}{'max req/s':>11}")
    figures: dict[str, Any] = {}
    for name, found in windows.items():
        off = "" if name == "on" else "_off"
        figures[f"p50_ms{off}"] = round(median(found, "p50") * 1e3, 1)
        figures[f"p95_ms{off}"] = round(median(found, "p95") * 1e3, 1)
        figures[f"statements{off}"] = round(median(found, "statements"), 2)
        figures[f"db_cpu_us{off}"] = round(median(found, "db_cpu") * 1e6)
        figures[f"app_cpu_us{off}"] = round(median(found, "app_cpu") * 1e6)
        figures[f"max_rps{off}"] = round(statistics.median(fastest[name]))
        failed = sum((Counter(window.failed) for window in found), Counter[str]())
        print(
            f"{name:8}{figures[f'p50_ms{off}']:9}{figures[f'p95_ms{off}']:9}{figures[f'statements{off}']:12}"
            f"{figures[f'db_cpu_us{off}']:11}{figures[f'app_cpu_us{off}']:12}{failed.total():8}"
            f"{figures[f'max_rps{off}']:11}  {', '.join(failed) or ''}"
        )
    on = windows["on"]
    pairs = zip(windows["off"], on, strict=True)
    saved = statistics.median(off.statements / max(with_.statements, 1e-6) for off, with_ in pairs)
    reads = sum(window.reads for window in on)
    hits = sum(window.hits for window in on)
    return {
        "db_queries_saved": round(saved, 2),
        "hit_rate": round(hits / reads, 4) if reads else 0.0,
        **figures,
    }


async def main(*, rounds: int, quick: bool) -> dict[str, Any]:
    async with (
        cluster(replicas=3, quorum=False) as world,
        redis_alone() as redis,
        sides(world, redis, quick=quick) as both,
    ):
        return await measure(both, rounds=rounds, quick=quick)


if __name__ == "__main__":
    options = arguments(__doc__, rounds=5)
    finish(uvloop.run(main(rounds=options.rounds, quick=options.quick)))
