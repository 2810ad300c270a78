"""Clients of the cached registers, a process of its own: sessions that read and write, and what they saw.

    python -m bench._cache_sessions PLAN      (a file that holds a `Plan` as JSON)

Sessions are those of bench/_sessions.py (cookie, header and bearer; half of the cookie and of the bearer
sessions have two requests under way), and every request goes to an app process chosen at random. The writer
of a key is chosen anew each time, so most keys are written by many.
A read asks for several keys, in one of the three ways of bench/cached. A line with the number of reads so far
is printed twice a second; when stdin ends, the record is written and the process ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import uvloop

from bench._sessions import KINDS, Connection, Lost, Session
from bench.cached.crowd import WAYS
from bench.cached.journal import Journal, Wrote

__all__ = ["Plan"]

THINK = (0.05, 0.5)
"""Mean seconds that a hasty and a slow session waits between two turns; exponential. Without any, whatever
makes reads dearer for a moment would keep all processes busy with nothing else."""


class Plan(msgspec.Struct):
    """What one client process does. `tokens` are those of its bearer sessions, in turn."""

    urls: list[str]
    name: str
    sessions: int
    tokens: list[str]
    keys: list[int]
    cache: str
    writes: float
    reads: int
    out: str
    seed: int


class Clients:
    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._chance = random.Random(plan.seed)
        self._numbers = iter(range(10**9))
        self.journal = Journal()

    async def run(self, ended: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(self._plan.sessions):
                kind = KINDS[number % len(KINDS)]
                token = self._plan.tokens[number // len(KINDS)] if kind == "bearer" else ""
                session = Session(f"{self._plan.name}-{number}-{kind}", kind, token)
                think = THINK[number // (2 * len(KINDS)) % 2]
                for _ in range(1 if kind == "header" or number % 2 else 2):
                    group.create_task(self._live(session, think, ended))

    async def _live(self, session: Session, think: float, ended: asyncio.Event) -> None:
        """A session begins with a write; every write is followed by a read of what was written."""
        plan, chance = self._plan, self._chance
        connections = [Connection(url) for url in plan.urls]
        own = chance.choice(plan.keys)
        try:
            while not ended.is_set():
                chosen = chance.sample(plan.keys, plan.reads)
                if session.wrote < 0 or chance.random() < plan.writes:
                    own = chance.choice(plan.keys)
                    await self._write(session, chance.choice(connections), own)
                chosen[0] = own
                await self._read(session, connections, chosen)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(chance.expovariate(1 / think)):
                        await ended.wait()
        finally:
            for connection in connections:
                connection.close()

    async def _write(self, session: Session, connection: Connection, key: int) -> None:
        value = f"{session.name}.{next(self._numbers)}"
        asked = time.monotonic()
        answer = await self._ask(session, connection, "POST", f"/write?key={key}&value={value}")
        ended = time.monotonic()
        version, acknowledged = (0, ended) if answer is None else answer
        session.wrote = ended
        self.journal.wrote.append(Wrote(session.name, key, version, value, asked, acknowledged, ended))

    async def _read(self, session: Session, connections: list[Connection], keys: list[int]) -> None:
        app = self._chance.randrange(len(connections))
        way = self._chance.choice(WAYS)
        query = f"/read?how={way}&keys={','.join(map(str, keys))}"
        asked = time.monotonic()
        answer = await self._ask(session, connections[app], "GET", query)
        ended = time.monotonic()
        if answer is not None:
            self.journal.saw(session.name, app, asked, ended, zip(keys, answer, strict=True))

    async def _ask(self, session: Session, connection: Connection, method: str, path: str) -> Any:
        """What was answered; None when the request failed, which is noted."""
        asked = time.monotonic()
        try:
            lines = [f"X-Cache: {self._plan.cache}", *session.headers("token")]
            status, head, body = await connection.ask(method, path, lines)
        except Lost as error:
            self.journal.failed.append((asked, time.monotonic(), f"{method} {error}"))
            return None
        session.heard(head)
        if status != 200:
            said = json.loads(body) if body[:1] == b"{" else {}
            kind = f"{said.get('title', '')}: {said.get('detail', '')}"
            self.journal.failed.append((asked, time.monotonic(), f"{method} {status} {kind}"))
            return None
        return json.loads(body)


async def main(plan: Plan) -> None:
    clients = Clients(plan)
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_reader(sys.stdin, lambda: None if sys.stdin.buffer.read1() else ended.set())
    running = asyncio.create_task(clients.run(ended))
    while not running.done():
        await asyncio.wait([running], timeout=0.5)
        print(clients.journal.reads, flush=True)
    loop.remove_reader(sys.stdin)
    running.result()
    clients.journal.keep(Path(plan.out))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Plan)))
