"""What the cache brings market: its readers' journeys over a primary and three replicas, cache off and on.

    db_queries_saved    statements per request without the cache over those with it (target >= 8)
    hit_rate            share of the values asked for that one of the two levels had (target >= 0.90)
    p50_ms, p95_ms      with the cache, at half the rate that can be answered without; `..._off` without
    statements          per request; `relay_statements` of them are the relay's
    db_cpu_us           CPU of PostgreSQL's backends per request; app_cpu_us of the app process
    max_rps             requests/s that are answered with p95 < 200 ms, none refused; `max_rps_off` without

The mix is that of `springtide load` (apps/market/journeys.py) without the journeys that write, in an open
loop. Of 92 requests 15 read articles with a list and comments, 15 compare wares, 14 each are front and
category pages, and product and shop pages, 12 search, 14 go through lists, tags and people, 6 are a signed-in
reader's feed, suggestions and notices, 2 a seller's figures. Wares and articles are chosen by Zipf's law with
s = 0.99.

Each side is one app process over the same four servers; the replicas are LAGS behind. Both have answered the
same requests for as long before anything counts. They take turns, the other one stays up: medians of rounds.
Statements are all that a process sends to a server: those of requests, of positions and health, and the
relay's. A side has a database role of its own, and the CPU of the backends of that role is its own; the rest
of PostgreSQL (walreceivers, checkpointer) is neither's. All CPU is read from the kernel. The highest rate is
searched for between one that is answered in time and one that is not.

The driver, PostgreSQL, Redis and the app share the cores of the machine (two, where the figures in
docs/cache.md come from), so latencies and the highest rate are those of all of them together. Needs
redis-server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import shutil
import statistics
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import uvloop

from bench._cluster import Cluster, Node, cluster, scratch
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

LAGS = (0.1, 0.2, 0.4)
"""Seconds that the replicas are behind at least."""

CLOSE = 1.15
"""The search for the highest rate ends when what fails is less than this times what does not."""

GUESS, GROWTH, MOST = 60.0, 1.7, 5000.0
"""Requests per second: where that search begins, what it multiplies by until it has failed once, its end."""

CALM, PATIENCE = 0.1, 30.0
"""Seconds that an idle server needs for a page at most; how long it may take to be idle after a search."""


@dataclass(frozen=True)
class Scale:
    """users: seeded. warm_up, seconds, trial: of traffic before anything counts, of a round, of one rate of a
    search. searches: of the highest rate, for each side."""

    users: int
    warm_up: float
    seconds: float
    trial: float
    searches: int


QUICK = Scale(users=150, warm_up=6.0, seconds=1.0, trial=0.8, searches=1)
FULL = Scale(users=2_000, warm_up=180.0, seconds=10.0, trial=4.0, searches=2)

BACKENDS = "select coalesce(array_agg(pid), '{{}}') as pids from pg_stat_activity where usename = '{role}'"

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
    """What was measured while so many requests were answered; `statements` without the relay's."""

    requests: int
    seconds: float
    p50: float
    p95: float
    failed: dict[str, int]
    statements: float
    db_cpu: float
    app_cpu: float
    reads: float
    hits: float


class Side:
    """One app server; `name` is "off" or "on", `role` whom PostgreSQL takes it for."""

    def __init__(self, name: str, role: str, server: Server, world: Cluster) -> None:
        self.name = name
        self.server = server
        self._backends = BACKENDS.format(role=role)
        self._world = world
        self._site: Site | None = None

    async def prepare(self) -> None:
        """Look around and sign in."""
        await self._driver(rate=1.0, seconds=1.0, seed=1)

    async def window(self, *, rate: float, seconds: float, seed: int) -> Window:
        generator = await self._driver(rate=rate, seconds=seconds, seed=seed)
        before, db, app = await self.metrics(), await self._database_cpu(), self.server.cpu()
        results = await generator.run()
        app_cpu, after = self.server.cpu() - app, await self._database_cpu()
        db_cpu = sum(spent - db.get(pid, 0.0) for pid, spent in after.items())
        more = await self.metrics() - before
        answered = max(results.ok, 1)
        return Window(
            requests=results.ok,
            seconds=seconds,
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
        best, fails, rate = 0.0, MOST, GUESS
        while rate < fails and (not best or fails / best >= CLOSE):
            results = await (await self._driver(rate=rate, seconds=seconds, seed=seed)).run()
            if results.latency.quantile(0.95) < LIMIT and not results.failed and not results.unsent:
                best = rate
                rate = min(rate * GROWTH, MOST) if fails == MOST else math.sqrt(best * fails)
            else:
                fails = rate
                await self.idle()
                rate = math.sqrt(best * fails) if best else rate / GROWTH
            if rate < 1.0:
                break
        return best

    async def idle(self) -> None:
        """Return when what a search has left behind is done."""
        give_up = time.monotonic() + PATIENCE
        while time.monotonic() < give_up:
            begun = time.monotonic()
            await asyncio.to_thread(self._get, "/")
            if time.monotonic() - begun < CALM:
                return
            await asyncio.sleep(CALM)

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

    async def _database_cpu(self) -> dict[int, float]:
        """Seconds so far of each backend that serves this side; one that has ended takes its own with it."""
        spent: dict[int, float] = {}
        for node in self._world.nodes:
            row = await node.query(self._backends)
            for pid in row["pids"] if row is not None else ():
                with contextlib.suppress(OSError):
                    spent[pid] = cpu_seconds(pid)
        return spent

    async def metrics(self) -> Counter[str]:
        text = await asyncio.to_thread(self._get, "/metrics")
        found: Counter[str] = Counter()
        for name, labels, value in re.findall(r"^(\w+)\{([^}]*)\} ([\d.e+]+)$", text, re.MULTILINE):
            if name == "springtide_db_statement_seconds_count":
                found["statements"] += round(float(value))
            elif name == "springtide_cache_relay_rounds_total":
                found["rounds"] += round(float(value))
            elif name == "springtide_cache_reads_total":
                found["reads"] += round(float(value))
                found["hits"] += round(float(value)) if HIT.search(labels) else 0
        return found

    def _get(self, path: str) -> str:
        try:
            with urllib.request.urlopen(f"{self.server.url}{path}", timeout=30) as answer:
                text: str = answer.read().decode()
        except OSError:  # it is too busy, or says so
            return ""
        return text


def topology(folder: Path, world: Cluster, redis: str | None, role: str = "") -> Path:
    file = folder / f"{'on' if redis else 'off'}.toml"

    def url(node: Node) -> str:
        parts = urlsplit(node.url)
        if not role:
            return node.url
        return parts._replace(netloc=f"{role}:{role}@{parts.netloc.rpartition('@')[2]}").geturl()

    file.write_text(
        TOPOLOGY.format(
            path=json.dumps(str(ROOT / "apps")),
            nodes="".join(f"[nodes.{node.name}]\nurl = {json.dumps(url(node))}\n" for node in world.nodes),
            primary=json.dumps(world.primary.name),
            replicas=json.dumps([node.name for node in world.replicas]),
            cache=CACHE.format(redis=json.dumps(redis)) if redis else "",
        )
    )
    return file


@asynccontextmanager
async def sides(world: Cluster, redis: str, *, scale: Scale) -> AsyncIterator[list[Side]]:
    folder = scratch("springtide-cache-app-")
    made: list[Side] = []
    try:
        platform = Platform.from_topology(topology(folder, world, None), modules=modules())
        await platform.migrate()
        async with platform:
            await seed(platform, users=scale.users, seed=1, progress=Silent(), today=TODAY)
        await world.primary.query("vacuum analyze")
        for name in ("off", "on"):
            await world.primary.query(f"create role bench_{name} superuser login password 'bench_{name}'")
        await world.caught_up()
        for node, lag in zip(world.replicas, LAGS, strict=True):
            node.delay(lag)
        for name, address in (("off", None), ("on", redis)):
            environment = {
                "SPRINGTIDE_NODE": "app",
                "SPRINGTIDE_TOPOLOGY": str(topology(folder, world, address, f"bench_{name}")),
                "SPRINGTIDE_HOME": str(folder / ".springtide"),
            }
            server = Server(
                name, "market.asgi:app", cores=None, path=ROOT / "apps", env=environment,
                log=folder / f"{name}.log",
            )  # fmt: skip
            made.append(Side(name, f"bench_{name}", server, world))
        yield made
    finally:
        for side in made:
            side.server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def median(windows: list[Window], of: str) -> float:
    found: float = statistics.median(getattr(window, of) for window in windows)
    return found


async def measure(both: list[Side], *, rounds: int, scale: Scale) -> dict[str, Any]:
    off, on = both
    for side in both:  # the first one opens shops, which the replicas show the other one a little later
        await side.prepare()
        await asyncio.sleep(5 * max(LAGS))
    await asyncio.gather(
        *(side.window(rate=GUESS, seconds=scale.warm_up, seed=2) for side in both)
    )  # the same requests for both
    for side in both:
        await side.idle()
    fastest: dict[str, list[float]] = {side.name: [] for side in both}
    fastest["off"].append(await off.fastest(seconds=scale.trial, seed=100))
    rate = max(fastest["off"][0] / 2, 1.0)
    windows: dict[str, list[Window]] = {side.name: [] for side in both}
    begun, before = time.monotonic(), await on.metrics()
    for number in range(rounds):
        for side in both if number % 2 else both[::-1]:
            windows[side.name].append(await side.window(rate=rate, seconds=scale.seconds, seed=number + 3))
    relayed = (await on.metrics() - before)["rounds"] / (time.monotonic() - begun)
    for number in range(scale.searches):
        for side in both if number % 2 else both[::-1]:
            if len(fastest[side.name]) == number:
                fastest[side.name].append(await side.fastest(seconds=scale.trial, seed=100 + number))
    return report(windows, fastest, relayed, rate)


def report(
    windows: dict[str, list[Window]], fastest: dict[str, list[float]], relayed: float, rate: float
) -> dict[str, Any]:
    """The table, and its figures. relayed: statements per second of the relay, the cached side's alone."""
    first = windows["on"][0]
    print(
        f"\n{len(windows['on'])} rounds of {first.seconds:g} s at {rate:.0f} requests/s;"
        f" p95 < {LIMIT * 1e3:g} ms for the rate"
    )
    print(
        f"{'cache':8}{'p50 ms':>9}{'p95 ms':>9}{'statements':>12}{'db CPU us':>11}{'app CPU us':>12}"
        f"{'failed':>8}{'max req/s':>11}"
    )
    figures: dict[str, Any] = {}
    for name, found in windows.items():
        off = "" if name == "on" else "_off"
        for window in found:
            if name == "on":
                window.statements += relayed * window.seconds / max(window.requests, 1)
        figures[f"p50_ms{off}"] = round(median(found, "p50") * 1e3, 1)
        figures[f"p95_ms{off}"] = round(median(found, "p95") * 1e3, 1)
        figures[f"statements{off}"] = round(median(found, "statements"), 3)
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
        "relay_statements": round(relayed * first.seconds / max(median(on, "requests"), 1), 3),
        "rate": round(rate),
    }


async def main(*, rounds: int, scale: Scale) -> dict[str, Any]:
    async with (
        cluster(replicas=len(LAGS), quorum=False) as world,
        redis_alone() as redis,
        sides(world, redis, scale=scale) as both,
    ):
        return await measure(both, rounds=rounds, scale=scale)


if __name__ == "__main__":
    options = arguments(__doc__, rounds=5)
    finish(uvloop.run(main(rounds=options.rounds, scale=QUICK if options.quick else FULL)))
