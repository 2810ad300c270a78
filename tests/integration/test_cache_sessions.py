"""Whoever has written sees it, over both levels and all processes: by cookie, by header, or by name alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from tests._redis import RedisServer
from tests.cached import HANGS, Node, node, until
from tests.sharded import notes

from springtide.context import Identity, current
from springtide.db import Database
from springtide.testing.faults import FaultProxy
from springtide.web.asgi import Layers
from springtide.web.causality import HEADER, Carrier, CausalityKeys, new_key

pytestmark = pytest.mark.needs("redis-server")

KEYS = CausalityKeys([new_key()])
NAME = HEADER.decode()


@pytest.fixture
async def db(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    async with notes([database_url], tmp_path) as db:
        yield db


class Process:
    """An application over a cache of its own: GET /7 reads the note, POST /7?text=... writes it; `?user=9` is
    a bearer's name."""

    def __init__(self, node: Node) -> None:
        self.node = node
        routes = [Route("/{id:int}", self._answer, methods=["GET", "POST"])]
        self.app = Layers(Starlette(routes=routes), causality=Carrier(KEYS, name="notes"))

    async def _answer(self, request: Request) -> PlainTextResponse:
        context = current()
        assert context is not None
        if "user" in request.query_params:
            context.identity = Identity(int(request.query_params["user"]), "token")
        if request.method == "POST":
            await self.node.write(request.path_params["id"], request.query_params["text"])
            return PlainTextResponse("written")
        return PlainTextResponse(str(await self.node.text(request.path_params["id"])))

    async def ask(self, method: str, path: str, **options: object) -> httpx.Response:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **options)  # type: ignore[arg-type]


@asynccontextmanager
async def processes(
    server: RedisServer, db: Database, *, timeout: float = HANGS
) -> AsyncIterator[tuple[Process, Process, FaultProxy]]:
    """Two of them, the first one with a proxy between it and Redis."""
    async with AsyncExitStack() as stack:
        same = Database("notes", db.shards, db.pools)
        proxy = await stack.enter_async_context(FaultProxy(target=server.port))
        url = f"redis://127.0.0.1:{proxy.port}/0"
        one = await stack.enter_async_context(node(url, db, timeout=timeout))
        other = await stack.enter_async_context(node(server, same, timeout=timeout))
        yield Process(one), Process(other), proxy


async def warm(process: Process) -> None:
    """Until it answers from its memory."""
    hits = process.node.stats.l1_hits

    async def hit() -> bool:
        await process.ask("GET", "/7")
        return bool(process.node.stats.l1_hits > hits)

    await until(hit)


def deafen(server: RedisServer) -> None:
    """Cut off all listeners; until they are connected again, they have proof, and hear nothing."""
    for line in server.command("CLIENT", "LIST").splitlines():
        if "cmd=xread" in line:
            server.command("CLIENT", "KILL", "ID", line.split()[0].removeprefix("id="))


@pytest.mark.parametrize("by", ["cookie", "header", "name"])
async def test_a_client_sees_its_write_on_a_process_that_has_not_heard_of_it(
    redis_server: RedisServer, db: Database, by: str
) -> None:
    """The other process has the old value in its memory, with proof, and is deaf for the moment."""
    async with processes(redis_server, db) as (one, other, _):
        await one.node.write(7, "0")
        user = "&user=9" if by == "name" else ""
        for turn in range(1, 6):
            await warm(other)
            deafen(redis_server)
            wrote = await one.ask("POST", f"/7?text={turn}{user}")
            brought: dict[str, dict[str, str]] = {"cookie": {}, "header": {}, "name": {}}
            brought["cookie"]["cookie"] = "; ".join(f"{k}={v}" for k, v in wrote.cookies.items())
            brought["header"][NAME] = wrote.headers[NAME]
            read = await other.ask("GET", f"/7?{user}", headers=brought[by])
            assert read.text == str(turn)


async def test_a_bearer_sees_a_write_that_the_cache_could_not_be_told(
    redis_server: RedisServer, db: Database
) -> None:
    """Who wrote is cut off from Redis: his answer waits until no process trusts what it has from before."""
    async with processes(redis_server, db, timeout=0.25) as (one, other, proxy):
        await one.node.write(7, "old")
        await warm(other)
        proxy.stall()
        await one.ask("POST", "/7?text=new&user=9")
        read = await other.ask("GET", "/7?user=9")
        proxy.resume()
        assert read.text == "new"


async def test_a_client_with_a_token_reads_past_both_levels_what_they_could_not_be_told(
    redis_server: RedisServer, db: Database
) -> None:
    """It need not wait for the answer to its write: its token says that no level has it."""
    async with processes(redis_server, db, timeout=0.25) as (one, other, proxy):
        first = await one.ask("POST", "/7?text=old")
        headers = {NAME: first.headers[NAME]}
        await warm(other)
        proxy.stall()
        wrote = await one.ask("POST", "/7?text=new&user=9", headers=headers)
        read = await other.ask("GET", "/7?user=9", headers={NAME: wrote.headers[NAME]})
        proxy.resume()
        assert read.text == "new"


async def test_tasks_that_a_write_starts_see_it_too(redis_server: RedisServer, db: Database) -> None:
    """Several reads at once by a client that was deaf a moment ago: none of them is from before."""
    async with processes(redis_server, db) as (one, other, _):
        await one.node.write(7, "old")
        await warm(other)
        deafen(redis_server)
        wrote = await one.ask("POST", "/7?text=new")
        headers = {NAME: wrote.headers[NAME]}
        reads = await asyncio.gather(*(other.ask("GET", "/7", headers=headers) for _ in range(20)))
        assert {read.text for read in reads} == {"new"}
