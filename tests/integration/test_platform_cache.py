"""A platform whose topology has a cache, and the same modules without one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import httpx
import msgspec
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from tests._redis import RedisServer
from tests.cached import until

from springtide.db import Queries
from springtide.platform import Platform
from springtide.services import Module, ModuleContext
from springtide.telemetry.prometheus import render
from springtide.topology import Topology, loads


class Note(msgspec.Struct, frozen=True):
    id: int
    text: str


class Notes(Protocol):
    async def find(self, id: int) -> Note | None: ...

    async def put(self, id: int, text: str) -> None: ...


class NoteService:
    def __init__(self, context: ModuleContext) -> None:
        self._db = context.db
        self.loads = 0
        self.notes = context.cache.define("note:{id:int}", Note, database=context.db, load=self._load)

    async def _load(self, source: Queries, id: int) -> Note | None:
        self.loads += 1
        sql = "select id, text from notes.note where bucket = $1 and id = $2"
        row = await source.fetch_one(sql, id & 1023, id)
        return Note(row["id"], row["text"]) if row is not None else None

    async def find(self, id: int) -> Note | None:
        return await self.notes.get(id)

    async def put(self, id: int, text: str) -> None:
        async with self._db.write(id) as tx:
            await tx.execute(
                "insert into notes.note (bucket, id, text) values ($1, $2, $3)"
                " on conflict (bucket, id) do update set text = excluded.text",
                id & 1023, id, text,
            )  # fmt: skip
            tx.invalidate(self.notes, id)


@pytest.fixture
def modules(tmp_path: Path) -> list[Module]:
    folder = tmp_path / "migrations"
    folder.mkdir()
    (folder / "0001_note.sql").write_text(
        "create table notes.note (bucket smallint not null, id bigint not null, text text not null,"
        " primary key (bucket, id));\n"
    )
    return [Module("notes", migrations=folder, provides=Notes, factory=NoteService)]


def topology(database_url: str, redis_url: str | None) -> Topology:
    toml = f"""
        name = "cached"
        app = "app:app"
        [nodes.db]
        url = "{database_url}"
        [clusters.main]
        primary = "db"
        [databases.default]
        shards = ["main"]
    """
    if redis_url is not None:
        toml += f'[nodes.redis]\nkind = "redis"\nurl = "{redis_url}"\n[cache]\nnode = "redis"\n'
    return loads(toml)


def service(platform: Platform) -> Any:
    return platform.service(Notes)


def site(platform: Platform) -> Any:
    """`/7` reads a note, `/7?text=...` writes it."""

    async def answer(request: Request) -> Response:
        id, text = int(request.path_params["id"]), request.query_params.get("text")
        if text is not None:
            await service(platform).put(id, text)
            return PlainTextResponse("written")
        note = await service(platform).find(id)
        return PlainTextResponse("nothing" if note is None else note.text)

    return platform.wrap(Starlette(routes=[Route("/{id}", answer)]))


def client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test")


@pytest.mark.needs("redis-server")
async def test_a_topology_with_a_cache_keeps_values_and_sessions_see_their_writes(
    database_url: str, redis_server: RedisServer, modules: list[Module], tmp_path: Path
) -> None:
    """Two processes: what one keeps the other has, and a browser that writes by one reads it by the other."""
    first, second = (
        Platform(topology(database_url, redis_server.url), modules=modules, home=tmp_path / "home")
        for _ in range(2)
    )
    await first.migrate()
    async with first, second:
        for platform in (first, second):
            place = platform.cache.classes["note"].places["main"]
            await until(lambda place=place: place.trusted(place.level()))
        async with client(site(first)) as one, client(site(second)) as two:
            assert (await one.get("/7")).text == "nothing"

            async def kept() -> bool:
                await one.get("/7")
                return bool(first.cache.classes["note"].stats.l1_hits)

            await until(kept)
            for number in range(20):
                written = await one.get(f"/7?text=text {number}")
                two.cookies.update(written.cookies)
                assert (await two.get("/7")).text == f"text {number}"
            assert service(second).loads + service(first).loads < 60
        states = await first.health.dependencies()
        assert states["cache"].ok
        page, _ = render(first.metrics)
        assert b'springtide_cache_reads_total{class="note",level="l1"}' in page


@pytest.mark.needs("redis-server")
async def test_a_cache_that_is_away_is_degraded_and_everything_is_served(
    database_url: str, modules: list[Module], tmp_path: Path
) -> None:
    """Nobody answers where Redis should be: values are loaded, health says so, and this process is ready."""
    platform = Platform(
        topology(database_url, "redis://127.0.0.1:1"), modules=modules, home=tmp_path / "home"
    )
    await platform.migrate()
    async with platform, client(site(platform)) as one:
        assert (await one.get("/7?text=there")).status_code == 200
        assert [(await one.get("/7")).text for _ in range(3)] == ["there"] * 3
        assert platform.health.obstacle() is None
        states = await platform.health.dependencies()
        assert (states["cache"].ok, states["cache"].error) == (False, "RedisUnavailable")


async def test_without_a_cache_the_same_calls_load(
    database_url: str, modules: list[Module], tmp_path: Path
) -> None:
    """Nothing is kept, and no invalidation is written down that nobody would ever apply."""
    platform = Platform(topology(database_url, None), modules=modules, home=tmp_path / "home")
    await platform.migrate()
    async with platform, client(site(platform)) as one:
        await one.get("/7?text=there")
        assert [(await one.get("/7")).text for _ in range(3)] == ["there"] * 3
        assert service(platform).loads == 3
        assert await platform.pools["main"].fetch_value("select count(*) from notes._invalidation") == 0
