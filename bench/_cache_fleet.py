"""The cached registers on three app processes over lagging replicas, and what their sessions saw."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import msgspec

from bench._cache_judge import Judge, Verdict
from bench._cache_sessions import Plan
from bench._cluster import Cluster, scratch, until
from bench._pinned import ROOT, Server
from bench._redis_world import RedisWorld, SteppedClock
from bench._sessions import Connection, Lost
from bench.cached.app import CROWD, modules
from bench.cached.crowd import CrowdPlan
from bench.cached.journal import Record, Wrote, stamp
from bench.cached.stores import BUDGET
from bench.cached.values import SIZE
from springtide.clock import SystemClock
from springtide.platform import Platform
from springtide.topology import load

__all__ = ["Fleet", "Seen", "fleet"]

PROCESSES = 3
CLIENTS = 2
SESSIONS = 12
"""Of each client process, which ask by HTTP."""

CROWD_SESSIONS = 8
CROWD_WRITES = 0.02
"""Of each app process, which ask within it; half of them write, with this share of their requests."""

KEYS = 240
READS = 16
"""Keys that a request reads."""

DAY = 86_400.0

TOPOLOGY = """
name = "cached"
app = "bench.cached.app:app"
path = {path}
modules = "bench.cached.app:modules"
{nodes}
[clusters.main]
primary = "primary"
replicas = {replicas}
[databases.cached]
shards = ["main"]
durability = "quorum"
[cache]
node = "redis"
ttl = 30.0
[servers]
request_timeout = 12.0
[pool]
acquire_timeout = 10.0
[telemetry]
log_level = "error"
"""


@dataclass
class Seen:
    """What the sessions of one run saw, and what was done meanwhile."""

    cache: str
    seconds: float
    verdict: Verdict
    failed: list[tuple[float, float, str]]
    """When a request that failed was sent and ended, and how it failed."""
    told: int
    asked: int
    """Reads by HTTP."""
    counts: Counter[str] = field(default_factory=Counter)

    def sentence(self) -> str:
        said = self.verdict
        return (
            f"{self.cache:10} {said.reads:8d} reads, {said.writes:6d} writes in {self.seconds:5.1f} s:"
            f" {said.counts['beyond budget']} beyond the budget of {BUDGET:g} s,"
            f" {said.counts['own write lost']} without the session's own write,"
            f" {said.counts['backward']} backward ({said.counts['backward in one process']} in one process),"
            f" {said.counts['phantom']} phantoms; {len(self.failed)} requests failed"
        )


class Fleet:
    """`clocks` are the wall clocks of the app processes."""

    def __init__(
        self,
        world: Cluster,
        redis: RedisWorld,
        servers: list[Server],
        clocks: list[SteppedClock],
        folder: Path,
    ) -> None:
        self.world = world
        self.redis = redis
        self.servers = servers
        self.clocks = clocks
        self.folder = folder
        self.tokens: list[str] = []
        self.cache = ""
        self.keys: list[int] = []
        self.heard = 0
        """Reads by HTTP so far, about."""
        self.crowds = 0
        """Reads within the app processes when they were asked last."""
        self.unheard: list[tuple[int, int, float]] = []
        self.wrote: list[Wrote] = []
        self._runs = 0

    @property
    def saw(self) -> int:
        """Reads so far, about."""
        return self.heard + self.crowds

    # -- for those who make trouble --------------------------------------------------------------------

    async def ask(self, app: int, method: str, path: str) -> Any:
        """What an app process answers to somebody without a session; None when it fails."""
        connection = Connection(self.servers[app].url)
        try:
            lines = [f"X-Cache: {self.cache}"]
            status, _, body = await connection.ask(method, path, lines)
            return json.loads(body) if status == 200 else None
        except Lost:
            return None
        finally:
            connection.close()

    async def write(self, app: int, key: int, value: str, *, hold: float = 0.0) -> Wrote:
        asked = time.monotonic()
        answer = await self.ask(app, "POST", f"/write?key={key}&value={value}&hold={hold:.3f}")
        ended = time.monotonic()
        version, acknowledged = answer or (0, ended)
        wrote = Wrote("trouble", key, version, value, asked, acknowledged, ended)
        self.wrote.append(wrote)
        return wrote

    async def counts(self) -> Counter[str]:
        """What all app processes have counted."""
        total: Counter[str] = Counter()
        for app in range(len(self.servers)):
            total.update(await self.ask(app, "GET", "/counts") or {})
        self.crowds = max(self.crowds, total.pop(CROWD, 0))
        return total

    async def fetch(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.world.primary.url, ssl=False)
        try:
            return list(await connection.fetch(sql, *arguments))
        finally:
            await connection.close()

    def topology(self, folder: Path, *, primary: str = "") -> Path:
        """springtide.toml in `folder`; `primary` is another way to the primary."""
        return _topology(folder, self.world, self.redis.url, primary=primary)

    # -- observing -------------------------------------------------------------------------------------

    @asynccontextmanager
    async def observed(self, cache: str, *, seed: int) -> AsyncIterator[list[Seen]]:
        """Sessions read and write through `cache` during the block; afterwards the list has what they saw."""
        self._runs += 1
        self.cache = cache
        first = self._runs * KEYS  # keys of its own for every run: what was there before is nobody's
        self.keys = [number << 10 | (number // SIZE * 7) % 1024 for number in range(first, first + KEYS)]
        self.heard, self.crowds, self.unheard, self.wrote = 0, 0, [], []
        before = await self.counts()
        plans = [
            Plan(
                urls=[server.url for server in self.servers], name=f"r{self._runs}c{number}",
                sessions=SESSIONS, tokens=self.tokens[number::CLIENTS], keys=self.keys, cache=cache,
                writes=0.15, reads=READS, out=str(self.folder / f"{self._runs}-{number}"), seed=seed + number,
            )
            for number in range(CLIENTS)
        ]  # fmt: skip
        seen: list[Seen] = []
        begun = time.monotonic()
        processes = [await _client(plan) for plan in plans]
        counts = [0] * CLIENTS
        following = [
            asyncio.create_task(self._follow(process, counts, n)) for n, process in enumerate(processes)
        ]
        try:
            records = [Path(plan.out) for plan in plans] + await self._gather(seed)
            yield seen
            await self._everywhere("/disperse")
            for process in processes:
                assert process.stdin is not None
                process.stdin.close()
            async with asyncio.timeout(60):
                if any([await process.wait() for process in processes]):
                    raise RuntimeError("a client process failed")
        finally:
            for process in processes:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            await asyncio.gather(*following, return_exceptions=True)

        async def recorded() -> bool:
            return all(record.exists() for record in records)

        await until(recorded, "the end of the crowds' last requests")
        took = time.monotonic() - begun
        seen.append(await self._judge(cache, records, took))
        seen[0].counts = await self.counts() - before

    async def _follow(self, process: asyncio.subprocess.Process, counts: list[int], place: int) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            counts[place] = int(line)
            self.heard = sum(counts)

    async def _gather(self, seed: int) -> list[Path]:
        """Let a crowd read within each app process; where their records will be."""
        records = []
        for app in range(len(self.servers)):
            out = self.folder / f"{self._runs}-crowd-{app}"
            name = f"r{self._runs}w{app}"
            plan = CrowdPlan(
                name,
                app,
                self.cache,
                CROWD_SESSIONS,
                self.keys,
                READS,
                CROWD_WRITES,
                str(out),
                seed + 100 + app,
            )
            out.with_suffix(".plan").write_bytes(msgspec.json.encode(plan))
            records.append(out)
        await self._everywhere(lambda app: f"/gather?plan={records[app].with_suffix('.plan')}")
        return records

    async def _everywhere(self, path: str | Callable[[int], str]) -> None:
        for app in range(len(self.servers)):
            connection = Connection(self.servers[app].url)
            try:
                asked = path if isinstance(path, str) else path(app)
                status, _, body = await connection.ask("POST", asked, [])
                if status != 200:
                    raise RuntimeError(f"{asked} of app {app} was answered {status}: {body!r}")
            finally:
                connection.close()

    async def _judge(self, cache: str, files: Sequence[Path], seconds: float) -> Seen:
        past: dict[int, dict[int, int]] = {}
        for row in await self.fetch("select id, version, value from cached.past"):
            past.setdefault(row["id"], {})[row["version"]] = stamp(row["value"])
        return await asyncio.to_thread(self._judged, cache, files, seconds, past)

    def _judged(
        self, cache: str, files: Sequence[Path], seconds: float, past: dict[int, dict[int, int]]
    ) -> Seen:
        records = [Record.of(file) for file in files]
        wrote = [*self.wrote, *(write for record in records for write in record.wrote)]
        judge = Judge(wrote, past, budget=BUDGET, unheard=self.unheard)
        for record in records:
            judge.judge(record.reads())
        asked = sum(record.seen for record in records[:CLIENTS])
        failed = [failure for record in records for failure in record.failed]
        for file in files:
            file.unlink()
        return Seen(cache, seconds, judge.verdict, failed, sum(record.told for record in records), asked)


class _TwoHoursAgo(SystemClock):
    """Access tokens issued now would be of the future where a wall clock is stepped back by an hour."""

    def now(self) -> float:  # type: ignore[override]
        return time.time() - 7200.0


async def _client(plan: Plan) -> asyncio.subprocess.Process:
    file = Path(f"{plan.out}.plan")
    file.write_bytes(msgspec.json.encode(plan))
    arguments = [sys.executable, "-m", "bench._cache_sessions", str(file)]
    return await asyncio.create_subprocess_exec(
        *arguments, cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )


def _topology(folder: Path, world: Cluster, redis: str, *, primary: str = "") -> Path:
    others = world.replicas
    addresses = {"primary": primary or world.primary.url, **{node.name: node.url for node in others}}
    nodes = [f"[nodes.{name}]\nurl = {json.dumps(url)}\n" for name, url in addresses.items()]
    nodes.append(f'[nodes.redis]\nkind = "redis"\nurl = {json.dumps(redis)}\n')
    file = folder / "springtide.toml"
    file.write_text(
        TOPOLOGY.format(
            path=json.dumps(str(ROOT)), nodes="".join(nodes),
            replicas=json.dumps([node.name for node in others]),
        )
    )  # fmt: skip
    return file


@asynccontextmanager
async def fleet(world: Cluster, redis: RedisWorld) -> AsyncIterator[Fleet]:
    """Three app processes, the last of them of the application's next version, migrated and ready."""
    folder = scratch("springtide-cached-")
    servers: list[Server] = []
    os.environ["CACHED_REDIS"] = redis.url
    try:
        clocks = [SteppedClock(folder, f"clock-{number}") for number in range(PROCESSES)]
        made = Fleet(world, redis, servers, clocks, folder)
        topology = made.topology(folder)
        platform = Platform(
            load(topology), modules=modules(), home=folder / ".springtide", clock=_TwoHoursAgo()
        )
        await platform.migrate()
        issuer = platform.tokens
        async with platform:
            made.tokens = [issuer.issue(n, lifetime=DAY) for n in range(1, CLIENTS * SESSIONS + 1)]
        for number, clock in enumerate(clocks):
            environment = {
                "SPRINGTIDE_NODE": "app", "SPRINGTIDE_TOPOLOGY": str(topology),
                "SPRINGTIDE_HOME": str(folder / ".springtide"),
                "CACHED_SCHEMA": "2" if number == PROCESSES - 1 else "1", **clock.env,
            }  # fmt: skip
            servers.append(
                Server(
                    f"app-{number}", "bench.cached.app:app", cores=None, path=ROOT,
                    log=folder / f"app-{number}.log", env=environment,
                )
            )  # fmt: skip
        yield made
    finally:
        for server in servers:
            server.stop()
        with contextlib.suppress(KeyError):
            del os.environ["CACHED_REDIS"]
        shutil.rmtree(folder, ignore_errors=True)
