"""The register on several app processes over lagging replicas, and what its sessions saw."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import msgspec

from bench._cluster import Cluster, scratch
from bench._drift import Drift
from bench._pinned import ROOT, Server
from bench._registers import ready, write_topology
from bench._sessions import Plan, Record
from bench.register.app import modules
from springtide.platform import Platform
from springtide.testing.history import Operation, Read, Violation, Write, check

__all__ = ["Fleet", "Seen", "fleet"]

KEYS = 240
SUBJECTS = 1_000
DAY = 86_400.0


@dataclass
class Seen:
    """What the sessions of one run saw. `failed`: answers that were no success, by kind."""

    reads: int
    writes: int
    seconds: float
    failed: Counter[str]
    violations: list[Violation] = field(repr=False)

    def count(self, rule: str) -> int:
        return sum(violation.rule == rule for violation in self.violations)

    @property
    def others(self) -> list[Violation]:
        """Neither stale nor backwards: something was lost, or came from nowhere."""
        return [v for v in self.violations if v.rule not in ("read-your-writes", "monotonic-reads")]

    def sentence(self, pin: str) -> str:
        failed = ", ".join(f"{kind}: {number}" for kind, number in self.failed.most_common())
        return (
            f"{pin:7} {self.reads:7d} reads, {self.writes:6d} writes in {self.seconds:5.1f} s:"
            f" {self.count('read-your-writes')} did not see the session's own write,"
            f" {self.count('monotonic-reads')} went backwards; failed requests: {failed or 'none'}"
        )


class Fleet:
    def __init__(self, world: Cluster, servers: list[Server], tokens: list[str], folder: Path) -> None:
        self._world = world
        self.servers = servers
        self._tokens = tokens
        self._folder = folder
        self._runs = 0

    async def observe(
        self, pin: str, *, reads: int, seconds: float, sessions: int, clients: int, seed: int, failovers: int
    ) -> Seen:
        """Let sessions read at least `reads` times and for `seconds`, in so many client processes."""
        self._runs += 1
        first = self._runs * KEYS  # keys of its own for every run: what was there before is nobody's
        keys = [number << 10 | (number * 7) % 1024 for number in range(first, first + KEYS)]
        drift = Drift(self._world, seed=seed, deadly=pin == "token")
        drifting = asyncio.create_task(drift.run())
        begun = time.monotonic()
        plans = [
            Plan(
                urls=[server.url for server in self.servers], name=f"r{self._runs}c{number}",
                sessions=sessions // clients, tokens=self._tokens[number::clients], keys=keys, pin=pin,
                writes=0.2, reads=8, out=str(self._folder / f"{self._runs}-{number}"), seed=seed + number,
            )
            for number in range(clients)
        ]  # fmt: skip
        processes = [await _client(plan) for plan in plans]
        try:
            counts = [0] * clients
            watching = [
                asyncio.create_task(_follow(process, counts, place))
                for place, process in enumerate(processes)
            ]
            for number in range(failovers):
                while sum(counts) < reads * (number + 1) / (failovers + 1):
                    await self._pause(watching, drifting)
                print(f"failover after {sum(counts)} reads: {await drift.fail_over():.2f} s to a new primary")
            while sum(counts) < reads or time.monotonic() - begun < seconds:
                await self._pause(watching, drifting)
            for process in processes:
                assert process.stdin is not None
                process.stdin.close()
            for process in processes:
                if await asyncio.wait_for(process.wait(), 60):
                    raise RuntimeError("a client process failed")
        finally:
            for process in processes:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
            drifting.cancel()
            await asyncio.gather(drifting, *watching, return_exceptions=True)
        took = time.monotonic() - begun
        print(f"done to replicas: {dict(sorted(drift.done.items()))}")
        return await self._judge([Path(plan.out) for plan in plans], took)

    async def _pause(self, watching: list[asyncio.Task[None]], drifting: asyncio.Task[None]) -> None:
        done, _ = await asyncio.wait([*watching, drifting], timeout=0.2, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
            raise RuntimeError("a client process ended before its time")

    async def _judge(self, files: Iterable[Path], seconds: float) -> Seen:
        records: list[Record] = []
        failed: Counter[str] = Counter()
        for file in files:
            found = msgspec.msgpack.decode(file.read_bytes())
            records += msgspec.convert(found["records"], list[Record])
            failed.update(found["failed"])
            file.unlink()
        history = [operation(record) for record in records]
        violations = await asyncio.to_thread(check, history, final=await self._final())
        writes = sum(isinstance(one, Write) for one in history)
        return Seen(len(history) - writes, writes, seconds, failed, violations)

    async def _final(self) -> Mapping[str, Mapping[int, str]]:
        connection = await asyncpg.connect(self._world.primary.url, ssl=False)
        try:
            rows = await connection.fetch("select id, version, value from register.past")
        finally:
            await connection.close()
        final: dict[str, dict[int, str]] = {}
        for id, version, value in rows:
            final.setdefault(str(id), {})[version] = value
        return final


def operation(record: Record) -> Operation:
    times = {"began": record.began, "ended": record.ended}
    if record.outcome == "read":
        return Read(
            session=record.session, key=record.key, value=record.value, version=record.version, **times
        )
    assert record.value is not None
    outcome = "ok" if record.outcome == "ok" else "unknown"
    version = record.version or None
    return Write(
        session=record.session, key=record.key, value=record.value, version=version, outcome=outcome, **times
    )


async def _client(plan: Plan) -> asyncio.subprocess.Process:
    file = Path(f"{plan.out}.plan")
    file.write_bytes(msgspec.json.encode(plan))
    arguments = [sys.executable, "-m", "bench._sessions", str(file)]
    return await asyncio.create_subprocess_exec(
        *arguments, cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )


async def _follow(process: asyncio.subprocess.Process, counts: list[int], place: int) -> None:
    assert process.stdout is not None
    async for line in process.stdout:
        counts[place] = int(line)


@asynccontextmanager
async def fleet(world: Cluster, *, processes: int) -> AsyncIterator[Fleet]:
    """The register on so many app processes over `world`, migrated and ready."""
    folder = scratch("springtide-register-")
    servers: list[Server] = []
    try:
        topology = write_topology(folder, world, world.replicas, durability="quorum")
        platform = Platform.from_topology(topology, modules=modules())
        await platform.migrate()
        issuer = platform.tokens
        async with platform:
            tokens = [issuer.issue(subject, lifetime=DAY) for subject in range(1, SUBJECTS + 1)]
        environment = {
            "SPRINGTIDE_NODE": "app", "SPRINGTIDE_TOPOLOGY": str(topology),
            "SPRINGTIDE_HOME": str(folder / ".springtide"),
        }  # fmt: skip
        for number in range(processes):
            log = folder / f"app-{number}.log"
            servers.append(
                Server(
                    f"app-{number}", "bench.register.app:app", cores=None, path=ROOT, log=log, env=environment
                )
            )
        async with Platform.from_topology(topology, modules=modules()) as platform:
            await ready(platform, len(world.replicas))
        yield Fleet(world, servers, tokens, folder)
    finally:
        for server in servers:
            server.stop()
        for server in servers:
            _complaints(server.name, folder / f"{server.name}.log")
        shutil.rmtree(folder, ignore_errors=True)


def _complaints(name: str, log: Path, *, most: int = 20) -> None:
    """Print what an app process logged that is worse than information: the last lines of it."""
    with contextlib.suppress(FileNotFoundError):
        lines = log.read_text(errors="replace").splitlines()
        bad = [line for line in lines if '"level":"info"' not in line]
        print("".join(f"{name}: {line[:600]}\n" for line in bad[-most:]), end="")
