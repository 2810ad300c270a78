"""Loads that read from replicas: a cached read fails no sooner than one without a cache."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
from tests._cluster import Cluster
from tests.replicated import registers, serving, until

from springtide.cache import Cache
from springtide.context import Consistency, RequestContext, activate
from springtide.db import Queries
from springtide.errors import DatabaseUnavailable

HANGS = 60.0
WHERE = "select pg_is_in_recovery()"


@pytest.mark.timeout(180)
async def test_a_load_whose_replica_dies_is_made_once_more_on_the_primary(
    own_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """The replica that a load is pinned to is killed between two of its statements: nobody hears of it."""
    world = await asyncio.to_thread(own_cluster, replicas=1)
    standbys: list[bool] = []

    async def load(source: Queries, key: str) -> int:
        standbys.append(await source.fetch_value(WHERE))
        if standbys == [True]:
            await asyncio.to_thread(world.replicas[0].kill)
        return len([await source.fetch_value(WHERE) for _ in range(2)])

    async with registers(world, tmp_path) as (db, servers):
        cache = Cache("tests")
        values = cache.define("value:{key}", int, database=db, load=load, hard_timeout=HANGS)
        async with cache:
            await serving(servers, 1)
            with activate(RequestContext()):
                assert await values.get("a") == 2
    assert standbys == [True, False]
    assert values.stats.failed == {}


@pytest.mark.timeout(180)
async def test_a_load_waits_for_the_primary_when_no_replica_is_near_enough(
    own_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """Nobody asked for a bound, the budget is the class's own: without a cache the read would wait too."""
    world = await asyncio.to_thread(own_cluster, replicas=1)

    async def load(source: Queries, key: str) -> bool:
        recovering: bool = await source.fetch_value(WHERE)
        return recovering

    async with registers(world, tmp_path, patience=HANGS) as (db, servers):
        cache = Cache("tests")
        values = cache.define("value:{key}", bool, database=db, load=load, budget=1.1, hard_timeout=HANGS)
        async with cache:
            await serving(servers, 1)
            await asyncio.to_thread(world.replicas[0].catch_up)
            await asyncio.to_thread(world.primary.kill)
            near = Consistency.bounded(values.definition.parts.replica)
            await until(lambda: servers._watch.headless.is_set())
            await until(lambda: servers.choose(near, None).node == "primary")
            with activate(RequestContext()):
                reading = asyncio.create_task(values.get("a"))
            await until(lambda: reading.done() or values.stats.bypassed.total())
            await asyncio.to_thread(world.replicas[0].promote)
            async with asyncio.timeout(HANGS):
                assert await reading is False
    assert values.stats.failed == {}


@pytest.mark.timeout(180)
async def test_a_load_that_the_primary_refuses_is_not_made_again(
    own_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """What is lost with the primary itself is told: asking it again would only double its load."""
    world = await asyncio.to_thread(own_cluster, replicas=0)
    calls = 0

    async def load(source: Queries, key: str) -> int:
        nonlocal calls
        calls += 1
        raise DatabaseUnavailable("as a primary that dies meanwhile")

    async with registers(world, tmp_path) as (db, _):
        cache = Cache("tests")
        values = cache.define("value:{key}", int, database=db, load=load)
        async with cache:
            with pytest.raises(DatabaseUnavailable):
                await values.get("a")
    assert calls == 1
