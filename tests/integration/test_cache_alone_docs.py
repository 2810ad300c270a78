"""The applications of docs/cache-alone.md run as they stand there, two processes' worth of each."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from tests._redis import RedisServer

pytestmark = pytest.mark.needs("redis-server")

PAGE = Path(__file__).resolve().parents[2] / "docs" / "cache-alone.md"


def example(name: str) -> dict[str, Any]:
    found = re.search(rf"<!-- test: {name} -->\n```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert found is not None, f"docs/cache-alone.md has no example {name}"
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(found[1], f"{PAGE.name}:{name}", "exec"), names)
    return names


@asynccontextmanager
async def running(made: dict[str, Any]) -> AsyncIterator[httpx.AsyncClient]:
    inner = made.get("api", made["app"])
    transport = httpx.ASGITransport(app=made["app"])
    async with (
        inner.router.lifespan_context(inner),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


async def until(condition: Any, wanted: Any) -> None:
    async with asyncio.timeout(60):
        while await condition() != wanted:
            await asyncio.sleep(0.02)


async def test_with_redis_alone(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """One process changes a rate, the other one hears of it; what is not there is a 404."""
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    one, other = [await asyncio.to_thread(example, "redis") for _ in range(2)]
    other["RATES"].clear()
    async with running(one) as here, running(other) as there:

        async def seen() -> Any:
            return (await there.get("/rates/eur")).json()

        await until(lambda: _kept(one["rates"], here), True)
        assert await seen() == {"per_dollar": 0.92}  # the other process has it from Redis: it knows no rates
        assert (await here.get("/rates/xxx")).status_code == 404
        other["RATES"]["eur"] = 0.95
        assert (await here.put("/rates/eur", params={"per_dollar": 0.95})).status_code == 200
        await until(seen, {"per_dollar": 0.95})


async def _kept(rates: Any, client: httpx.AsyncClient) -> bool:
    """Whether a value of this class has come to the second level."""
    assert (await client.get("/rates/eur")).status_code == 200
    return bool(rates.stats.fills)


async def test_with_redis_and_postgresql(
    redis_server: RedisServer, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over an application's own table: a client reads its own write from either process, and soon all do."""
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("KEYS", str(tmp_path / "causality.key"))
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("CREATE TABLE public.person (id bigint PRIMARY KEY, name text NOT NULL)")
        await connection.execute("INSERT INTO public.person VALUES (7, 'Ada')")
    finally:
        await connection.close()
    one, other = [await asyncio.to_thread(example, "postgresql") for _ in range(2)]
    async with running(one) as here, running(other) as there:

        async def filled() -> bool:
            assert (await here.get("/people/7")).json() == {"name": "Ada"}
            return bool(one["people"].stats.fills)

        async def hit() -> bool:
            assert (await there.get("/people/7")).json() == {"name": "Ada"}
            return bool(other["people"].stats.l1_hits)

        await until(filled, True)
        await until(hit, True)
        there.cookies = here.cookies  # one browser, whose next request meets the other process
        assert (await here.put("/people/7", params={"name": "Grace"})).status_code == 200
        assert (await there.get("/people/7")).json() == {"name": "Grace"}
        assert (await here.get("/people/7")).json() == {"name": "Grace"}
        assert (await here.get("/people/8")).status_code == 404


async def test_other_programs_can_invalidate(
    redis_server: RedisServer, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the statement of the page, in their own transaction: the relay tells everybody."""
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("KEYS", str(tmp_path / "causality.key"))
    statement = re.search(r"`(INSERT INTO shop\._invalidation.*?)`", PAGE.read_text(), re.DOTALL)
    assert statement is not None
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute("CREATE TABLE public.person (id bigint PRIMARY KEY, name text NOT NULL)")
        await connection.execute("INSERT INTO public.person VALUES (7, 'Ada')")
        made = await asyncio.to_thread(example, "postgresql")
        async with running(made) as client:

            async def hit() -> bool:
                assert (await client.get("/people/7")).json() == {"name": "Ada"}
                return bool(made["people"].stats.l1_hits)

            await until(hit, True)
            async with connection.transaction():
                await connection.execute("UPDATE public.person SET name = 'Grace' WHERE id = 7")
                await connection.execute(statement[1])

            async def name() -> Any:
                return (await client.get("/people/7")).json()

            await until(name, {"name": "Grace"})
    finally:
        await connection.close()
