"""Both levels over a real Redis and a real PostgreSQL: what is kept, for how long, and what ends it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests._redis import RedisServer
from tests.cached import node
from tests.sharded import notes

from springtide.db import Database

pytestmark = pytest.mark.needs("redis-server")


@pytest.fixture
async def db(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    async with notes([database_url], tmp_path) as db:
        yield db


@asynccontextmanager
async def another(db: Database) -> AsyncIterator[Database]:
    """The same database as another process has it."""
    yield Database("notes", db.shards, db.pools)


async def test_what_was_loaded_is_kept_in_both_levels(redis_server: RedisServer, db: Database) -> None:
    """The second level serves other processes, the first one this one; nothing is loaded twice."""
    async with node(redis_server, db) as here, another(db) as same, node(redis_server, same) as there:
        await here.write(7, "old")
        assert await here.text(7) == "old"
        assert [await here.text(7) for _ in range(3)] == ["old"] * 3
        assert (here.stats.loads, here.stats.l1_hits) == (1, 3)
        assert await there.text(7) == "old"
        assert (there.stats.loads, there.stats.l2_hits) == (0, 1)
        assert await there.text(7) == "old"
        assert there.stats.l1_hits == 1
