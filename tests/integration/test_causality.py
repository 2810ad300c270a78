"""Clients of two app processes see what they wrote, and never go backwards, while three replicas lag."""

from __future__ import annotations

import asyncio
import itertools
import random
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
from tests._cluster import Cluster
from tests.replicated import TABLE

from springtide.db.migrate import Migrator
from springtide.db.pool import Pool
from springtide.testing.history import Operation, Read, Write, check

Clusters = Callable[..., Cluster]
ROOT = Path(__file__).parents[2]
PATIENCE = 100.0
KINDS = ["browser", "session", "header", "bearer"]


class App:
    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    async def state(self) -> dict[str, Any]:
        async with httpx.AsyncClient() as http:
            state: dict[str, Any] = (await http.get(f"{self.url}/state")).json()
            return state


@asynccontextmanager
async def apps(world: Cluster, folder: Path, count: int) -> AsyncIterator[list[App]]:
    """App processes that have learnt of every replica."""
    folder.joinpath("0001_register.sql").write_text(TABLE)
    async with Pool(world.url(), cluster="main", size=2, reserved=0) as pool:
        await Migrator("registers", folder, {"main": pool}).apply()
    urls = [world.url(server) for server in world.servers]
    processes, made = [], []
    try:
        for _ in range(count):
            arguments = ["-m", "tests.causality_app", str(folder), *urls]
            process = await asyncio.create_subprocess_exec(
                sys.executable, *arguments, cwd=ROOT, stdout=asyncio.subprocess.PIPE
            )
            processes.append(process)
            assert process.stdout is not None
            made.append(App(int(await process.stdout.readline())))
        async with asyncio.timeout(PATIENCE):
            for app in made:
                while True:
                    try:
                        if (await app.state())["serving"] == len(world.replicas):
                            break
                    except httpx.TransportError:
                        pass
                    await asyncio.sleep(0.05)
        yield made
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            await process.wait()


class Client:
    """One browser or program: several tasks of it ask at once, each process in turn.

    kind: "browser" keeps cookies, "session" is signed in by one more, "header" sends back what it was given,
          "bearer" sends its identity and nothing else.
    """

    numbers = itertools.count(1)

    def __init__(self, kind: str, apps: list[App], history: list[Operation]) -> None:
        self.kind = kind
        self.number = next(self.numbers)
        self.apps = apps
        self.history = history
        self.http = httpx.AsyncClient()
        self.given: list[str] = []
        if kind == "session":
            self.http.cookies.set("session", str(self.number), domain="127.0.0.1")

    async def ask(self, method: str, key: str, **query: str) -> dict[str, Any]:
        headers = {}
        if self.kind == "bearer":
            self.http.cookies.clear()
            headers["authorization"] = f"Bearer {self.number}"
        sent = list(self.given)
        if self.kind == "header":
            self.http.cookies.clear()
            if sent:
                headers["springtide-causality"] = ",".join(sent)
        url = f"{random.choice(self.apps).url}/register/{key}"
        answer = await self.http.request(method, url, params=query, headers=headers)
        assert answer.status_code == 200, answer.text
        if (token := answer.headers.get("springtide-causality")) is not None:
            # the answer's token has all that was sent; what others got meanwhile stays
            self.given = [*(one for one in self.given if one not in sent), token]
        found: dict[str, Any] = answer.json()
        return found

    async def write(self, key: str) -> None:
        value, began = f"{self.number}-{time.monotonic_ns()}", time.monotonic()
        answer = await self.ask("POST", key, value=value)
        self._note(Write, key, value, answer["version"], began)

    async def read(self, key: str) -> None:
        began = time.monotonic()
        answer = await self.ask("GET", key)
        self._note(Read, key, answer["value"], answer["version"], began)

    def _note(self, kind: Any, key: str, value: str | None, version: int, began: float) -> None:
        ended, session = time.monotonic(), str(self.number)
        self.history.append(
            kind(session=session, key=key, value=value, version=version, began=began, ended=ended)
        )

    async def live(self, rounds: int, keys: list[str]) -> None:
        for _ in range(rounds):
            key = random.choice(keys)
            if random.random() < 0.05:
                await self.write(key)
            else:
                await self.read(key)


async def test_every_kind_of_client_sees_its_writes_over_two_processes(
    own_cluster: Clusters, tmp_path: Path
) -> None:
    """Two tasks of each client at once, on both processes, replicas 0 to 1 s behind: no read is too old.

    Replicas answer part of it, or nothing was tested.
    """
    world = await asyncio.to_thread(own_cluster, replicas=3)
    history: list[Operation] = []
    async with apps(world, tmp_path, 2) as made, AsyncExitStack() as stack:
        clients = [Client(kind, made, history) for kind in KINDS * 2]
        for client in clients:
            stack.push_async_callback(client.http.aclose)
            await client.write(f"own-{client.number}")  # who only reads, and is nobody, has no session
        # as if the platform had been running for longer than a lifetime
        since = "update springtide.generation set since = since - interval '1 hour'"
        await asyncio.to_thread(world.primary.query, since, dbname=world.dbname)
        for replica, seconds in zip(world.replicas, (0.0, 0.3, 1.0), strict=True):
            await asyncio.to_thread(replica.delay, seconds)
        keys = [f"key-{number}" for number in range(3)]
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
            for client in clients:
                for _ in range(2):
                    group.create_task(client.live(50, keys))
        states = [await app.state() for app in made]
    assert [violation.sentence for violation in check(history)] == []
    assert sum(state["replica_reads"] for state in states) > 0, states
