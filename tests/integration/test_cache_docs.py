"""The examples, tables and messages of docs/cache.md are those of the code."""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests._redis import RedisServer
from tests.sharded import pools

from springtide.cache import Cache, HttpPolicy
from springtide.cache.behind import WriteBehind
from springtide.db import Database, Migrator, ShardMap
from springtide.errors import CacheDefinitionError
from springtide.services.module import ModuleContext
from springtide.signals import NullSink
from springtide.topology import load

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cache.md"
NO_OPTIONS = {"self", "name", "pattern", "type", "database", "clock", "sink", "key_type"}


def block(name: str) -> str:
    found = re.search(rf"<!-- test: {name} -->\n```\w+\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None, f"docs/cache.md has no example {name}"
    return found[1]


async def example(name: str) -> dict[str, Any]:
    def run() -> dict[str, Any]:
        names: dict[str, Any] = {"__name__": "example"}
        exec(compile(block(name), f"{PAGE.name}:{name}", "exec"), names)
        return names

    return await asyncio.to_thread(run)


@pytest.mark.needs("redis-server")
async def test_the_five_minutes(redis_server: RedisServer, database_url: str, tmp_path: Path) -> None:
    """The module keeps what it has loaded, and a rename is seen; by redis and without."""
    made = await example("module")
    (tmp_path / "0001_profile.sql").write_text(
        "create table profiles.profile"
        " (bucket smallint, id bigint, name text, org int, primary key (bucket, id));"
        " insert into profiles.profile values (7, 7, 'Ada', 3);"
    )
    async with pools([database_url]) as started:
        await Migrator("profiles", tmp_path, started).apply()
        for redis in (redis_server.url, None):
            database = Database("profiles", ShardMap.even(["main"]), started)
            cache = Cache("shop", redis=redis)
            context = ModuleContext(
                "profiles",
                clock=cache.clock,
                sink=NullSink(),
                database=database,
                cache=lambda found=cache: found,
            )
            profiles = made["Profiles"](context)
            async with cache:
                stats = cache.classes["profile"].stats
                async with asyncio.timeout(60):
                    while not stats.l1_hits:
                        assert (await profiles.get(7)).org == 3
                        if redis is None:
                            break
                        await asyncio.sleep(0.02)
                await profiles.rename(7, "Grace")
                assert (await profiles.get(7)).name == "Grace"
                assert await profiles.get(8) is None


def test_the_lines_of_the_topology_are_enough(tmp_path: Path) -> None:
    """In a file that says nothing else about a cache."""
    file = tmp_path / "springtide.toml"
    file.write_text(f'name = "shop"\nstage = 1\napp = "shop:app"\n{block("topology")}')
    spec = load(file).cache
    assert spec is not None and spec.node == "redis"


async def test_the_budget_error_reads_as_the_page_shows_it(database_url: str) -> None:
    """Word by word."""
    made = await example("budget")
    database = _database(database_url)

    async def load(source: Any, id: int) -> int:
        return id

    with pytest.raises(CacheDefinitionError) as caught:
        made["define"](Cache("shop"), database, int, load)
    assert str(caught.value) == block("budget error").strip()


def _database(url: str) -> Database:
    from springtide.db.pool import Pool

    return Database("shop", ShardMap.even(["main"]), {"main": Pool(url, cluster="main")})


async def test_the_view_counter(database_url: str, tmp_path: Path) -> None:
    """Views are counted once each."""
    made = await example("behind")
    (tmp_path / "0001_page.sql").write_text(
        "create table pages.page"
        " (bucket smallint, id bigint, views bigint not null, primary key (bucket, id));"
    )
    async with pools([database_url]) as started:
        await Migrator("pages", tmp_path, started).apply()
        pages = made["Pages"](Database("pages", ShardMap.even(["main"]), started))
        await asyncio.gather(*(pages.seen(7) for _ in range(20)))
        await pages.flush()
        assert await started["main"].fetch_value("select views from pages.page") == 20


async def test_what_is_applied_and_what_waits_are_one_exact_number(database_url: str, tmp_path: Path) -> None:
    """While others put and flush, a reader never sees fewer than were put before he asked, nor more than ever
    were: no view is missing between the two places, and none is in both."""
    made = await example("behind")
    exec(block("behind exact"), made)
    (tmp_path / "0001_page.sql").write_text(
        "create table pages.page"
        " (bucket smallint, id bigint, views bigint not null, primary key (bucket, id));"
    )
    async with pools([database_url]) as started:
        await Migrator("pages", tmp_path, started).apply()
        database = Database("pages", ShardMap.even(["main"]), started)
        pages = made["Pages"](database)
        done = asked = 0

        async def views() -> None:
            nonlocal done, asked
            for _ in range(100):
                asked += 1
                await pages.seen(7)
                done += 1

        async def flushes() -> None:
            while done < 100:
                await pages.flush()

        async def reads() -> None:
            while done < 100:
                least = done
                assert least <= await made["exactly"](database, pages, 7) <= asked

        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            for body in (views, flushes, reads, reads):
                group.create_task(body())
        assert await made["exactly"](database, pages, 7) == 100


async def test_the_headers_of_the_edge() -> None:
    """As the page shows them."""
    app = (await example("edge"))["app"]
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answer = await client.get("/articles/a")
    for line in block("edge headers").splitlines():
        name, _, value = line.partition(": ")
        if name == "ETag":
            assert answer.headers[name].startswith('"')
        else:
            assert answer.headers[name] == value


@pytest.mark.parametrize(
    ("section", "function"),
    [
        ("## Classes and their options", Cache.define),
        ("## Classes and their options", Cache),
        ("### Write-behind", WriteBehind),
        ("## HTTP: the edge contract", HttpPolicy),
    ],
)
def test_every_option_is_in_its_table_with_its_default(section: str, function: Callable[..., Any]) -> None:
    """The page and the signatures cannot drift apart."""
    rows = PAGE.read_text().partition(section)[2].splitlines()
    for name, parameter in inspect.signature(function).parameters.items():
        if (name in NO_OPTIONS and function is not Cache.define) or name in ("self", "pattern", "type"):
            continue
        fitting = [line for line in rows if line.startswith("|") and f"`{name}`" in line.split("|")[1]]
        assert fitting, f"docs/cache.md does not explain {name} of {function.__qualname__}"
        default = parameter.default
        if default not in (None, inspect.Parameter.empty):
            assert any(f"`{default}`" in row for row in fitting), f"{name} has another default: {fitting}"
