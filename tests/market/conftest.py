"""`api`: market on one logical shard and on two, its tables empty. Migrations run once per run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
from tests.market.harness import Api, serving, topology
from tests.servers import LoopThread, PostgresServer

from market.platform import modules
from springtide.platform import Platform

EMPTY = """
do $$
declare name text;
begin
    for name in select format('%I.%I', schemaname, tablename) from pg_tables
        where schemaname in ('users', 'content')
    loop
        execute 'delete from ' || name;
    end loop;
end $$
"""


@pytest.fixture(scope="session")
def _databases(
    postgres: PostgresServer, _server_loop: LoopThread, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[str]]:
    """Two migrated databases; a test uses the first or both."""
    first = postgres.create_database()
    home = tmp_path_factory.mktemp("migrating")

    async def migrate() -> None:
        await Platform(topology([postgres.url(first)]), modules=modules(), home=home).migrate()

    _server_loop.run(migrate())
    second = postgres.create_database(template=first)
    yield [postgres.url(first), postgres.url(second)]
    postgres.drop_database(first)
    postgres.drop_database(second)


@pytest.fixture(params=[1, 2], ids=["one-shard", "two-shards"])
def shards(request: pytest.FixtureRequest) -> int:
    count: int = request.param
    return count


@pytest.fixture
async def urls(_databases: list[str], shards: int) -> list[str]:
    """The databases of this test, empty."""
    for url in _databases[:shards]:
        connection = await asyncpg.connect(url)
        try:
            await connection.execute(EMPTY)
        finally:
            await connection.close()
    return _databases[:shards]


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the platforms of all tests keep their token key."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
async def api(urls: list[str], home: Path) -> AsyncIterator[Api]:
    async with serving(urls, home) as api:
        yield api
