"""What breaks around a cache costs time and nothing else: no old value, no error for the cache's sake."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from tests._cluster import Cluster
from tests._redis import RedisServer
from tests.cached import another, node, until
from tests.replicated import QUICK, members
from tests.sharded import NOTES, notes

from springtide.db import Database, Migrator, ShardMap
from springtide.db.members import Fixed
from springtide.db.pool import Pool
from springtide.db.servers import Servers

pytestmark = pytest.mark.needs("redis-server")


@pytest.fixture
async def db(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    async with notes([database_url], tmp_path) as db:
        yield db


async def test_a_flush_forgets_everything_and_brings_nothing_back(
    own_redis: Callable[..., RedisServer], db: Database
) -> None:
    """Tombstones are gone with the values: what was read before is not kept, until the relay has said from
    where on it may be. Loads are bounded meanwhile."""
    server = own_redis()
    async with node(server, db, cache={"max_loads": 2}) as here, node(server, another(db)) as there:
        await here.write(7, "old")
        here.hold()
        early = asyncio.create_task(here.text(7))
        await until(lambda: here.reads)
        await there.write(7, "new")
        server.flush()
        readers = [asyncio.create_task(here.text(id)) for id in range(100, 110)]
        await until(lambda: here.cache.admission.waiting)
        assert here.cache.admission.running <= 2
        here.go.set()
        assert await early == "old"
        await asyncio.gather(*readers)
        assert [await one.text(7) for one in (here, there)] == ["new", "new"]
        await until(lambda: here.place.trusted(here.place.level()))

        async def kept() -> bool:
            assert await here.text(7) == "new"
            return 7 in here.entries

        await until(kept)
        await there.write(7, "newest")
        await until(lambda: 7 not in here.entries)
        assert await here.text(7) == "newest"


async def test_redis_killed_and_back_is_slower_and_never_wrong(
    own_redis: Callable[..., RedisServer], db: Database
) -> None:
    """Reads are loads while it is away, writes go through, and what the process had in memory is not given
    out longer than it is proven. Back again it is another server, that has nothing."""
    server = own_redis()
    options: dict[str, Any] = {"ttl": 10_000.0, "l1": 1000.0}  # nothing but the proof ends them
    async with node(server, db, **options) as here, node(server, another(db), **options) as there:
        await here.write(7, "old")
        assert [await one.text(7) for one in (here, there)] == ["old", "old"]
        await asyncio.to_thread(server.kill)
        await here.write(7, "new")
        assert await here.text(7) == "new"

        async def heard() -> bool:
            return await there.text(7) == "new"

        await until(heard)
        assert [await one.text(7) for one in (here, there) for _ in range(5)] == ["new"] * 10
        await asyncio.to_thread(server.restart)
        for one in (here, there):
            await until(lambda one=one: one.place.trusted(one.place.level()))
        await here.write(7, "newest")

        async def kept() -> bool:
            assert await there.text(7) != "old"
            return await there.text(7) == "newest" and 7 in there.entries

        await until(kept)


async def test_a_frozen_redis_holds_up_nobody_for_long(
    own_redis: Callable[..., RedisServer], db: Database
) -> None:
    """Each question to it has a time-out, and after a few it is not asked any more."""
    server = own_redis()
    async with node(server, db, timeout=0.1) as here:
        await here.write(7, "old")
        assert await here.text(7) == "old"
        await asyncio.to_thread(server.freeze)
        try:
            await here.write(7, "new")
            assert [await here.text(7) for _ in range(10)] == ["new"] * 10
            assert here.stats.unvoided == 1
        finally:
            await asyncio.to_thread(server.thaw)

        async def kept() -> bool:
            assert await here.text(7) == "new"
            return 7 in here.entries

        await until(kept)


async def test_a_lagging_replica_brings_nothing_back(
    own_cluster: Callable[..., Cluster], redis_server: RedisServer, tmp_path: Path
) -> None:
    """A load reads a replica whose replay stands still: its snapshot has not seen the write, so nothing of it
    is kept, and the primary is asked instead."""
    world = await asyncio.to_thread(own_cluster, replicas=1)
    (tmp_path / "0001_note.sql").write_text(NOTES)
    pool = Pool(world.url(), cluster="main", acquire_timeout=30.0)
    servers = Servers(
        "main",
        pool,
        Fixed(members(world)),
        replica_pool=lambda member: Pool(member.url, cluster="main/replica", acquire_timeout=30.0),
        settings=QUICK,
    )
    async with pool, AsyncExitStack() as stack:
        await Migrator("notes", tmp_path, {"main": pool}).apply()
        await servers.start()
        stack.push_async_callback(servers.stop)
        db = Database("notes", ShardMap.even(["main"]), {"main": pool}, servers={"main": servers})
        await until(lambda: any(replica.state == "serving" for replica in servers.replicas))
        here = await stack.enter_async_context(node(redis_server, db, budget=600.0))
        await here.write(7, "old")
        replayed = "select count(*) from notes.note where text = 'old'"
        replica = world.replicas[0]
        await until(lambda: asyncio.to_thread(lambda: replica.query(replayed, dbname=world.dbname) == "1"))
        await asyncio.to_thread(replica.hold)
        try:
            await here.write(7, "new")
            assert await here.text(7) == "new"
            assert here.stats.refused["unseen"] == 1  # the replica was asked first
            assert here.stats.reloads == 1
            assert await here.text(7) == "new"
            assert 7 in here.entries
        finally:
            await asyncio.to_thread(replica.release)
