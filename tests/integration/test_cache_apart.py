"""Whose values are whose: caches that share one Redis, and a name, share nothing that is not the same."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests._redis import RedisServer
from tests.cached import Note, node
from tests.sharded import notes

from springtide.cache import Cache
from springtide.db import Database, Queries, ShardMap
from springtide.db.pool import Pool

pytestmark = pytest.mark.needs("redis-server")


async def test_two_databases_of_one_server_have_values_of_their_own(
    database_urls: tuple[str, str], tmp_path: Path, redis_server: RedisServer
) -> None:
    """Two platforms of one name, on one server of databases and one Redis, such as a copy that somebody tries
    things out on: the server, its timeline and all names are the same, the databases are not."""
    folders = [tmp_path / "one", tmp_path / "other"]
    for folder in folders:
        folder.mkdir()
    one_url, other_url = database_urls
    async with (
        notes([one_url], folders[0]) as one_db,
        notes([other_url], folders[1]) as other_db,
        node(redis_server, one_db) as one,
        node(redis_server, other_db) as other,
    ):
        await one.write(7, "one")
        await other.write(7, "other")
        for _ in range(2):
            assert await one.text(7) == "one"
            assert await other.text(7) == "other"
        assert one.place.slot.scope != other.place.slot.scope
        assert one.loads == other.loads == [7]


async def test_two_schemas_of_one_database_have_values_of_their_own() -> None:
    """Two services, each with a class of the same name over a schema of its own."""

    async def load(_source: Queries, _id: int) -> Note | None:
        return None

    def scope(schema: str) -> str | None:
        pool = Pool("postgresql://localhost:1/app", cluster="main")
        pool.epoch = 1
        db = Database(schema, ShardMap.even(["main"]), {"main": pool})
        return Cache("app").define("note:{id}", Note, database=db, load=load).places["main"].scope("run")

    assert scope("one") == scope("one") != scope("other")
