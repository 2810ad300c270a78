"""Reads whose replica is lost, stands still or has no connection to give are answered by another server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from tests._cluster import Cluster
from tests.replicated import QUICK, WRITE, Session, members, registers, serving

from springtide.db import bucket_of
from springtide.db.members import Member
from springtide.db.pool import Pool

Clusters = Callable[..., Cluster]


class Growing:
    """A source of members that may be told of more."""

    def __init__(self, known: list[Member]) -> None:
        self.known = known

    async def members(self) -> list[Member]:
        return self.known


async def test_a_replica_without_a_free_connection_costs_no_read(
    own_cluster: Clusters, tmp_path: Path
) -> None:
    """A replica stands still and nobody has noticed: who waits for its pool in vain is answered elsewhere."""
    world = await asyncio.to_thread(own_cluster, replicas=1)
    (replica,) = world.replicas
    async with registers(world, tmp_path, settings=replace(QUICK, look_timeout=60.0)) as (db, servers):
        await serving(servers, 1)
        readers = [Session(db, f"reader-{number}") for number in range(12)]
        await readers[0].read("cart")
        assert servers.replicas[0].reads == 1
        await asyncio.to_thread(replica.freeze)
        try:
            stuck = asyncio.create_task(readers[0].read("cart"))  # on the connection that there is
            answers = [asyncio.create_task(reader.read("cart")) for reader in readers[1:]]
            assert await asyncio.gather(*answers) == [0] * len(answers)
        finally:
            await asyncio.to_thread(replica.thaw)
        assert await stuck == 0


async def test_a_connection_broken_off_between_two_answers_is_taken_back(database_url: str) -> None:
    """A replica is given up while somebody holds a connection whose answers have all come: nothing fails."""
    async with Pool(database_url) as pool:
        async with pool.acquire() as held:
            assert await held.fetch_value("select 1") == 1
            pool.sever()
        assert await pool.fetch_value("select 2") == 2


async def test_a_write_that_began_without_replicas_is_noted_when_it_ends_with_them(
    own_cluster: Clusters, tmp_path: Path
) -> None:
    """A replica comes, settles and stands still while a long write is open: its session sees the write."""
    world = await asyncio.to_thread(own_cluster, replicas=1)
    (replica,) = world.replicas
    source = Growing(members(world)[:1])
    async with registers(world, tmp_path, source=source) as (db, servers):
        ann = Session(db, "ann")
        async with ann.request(), db.write("cart") as tx:
            await tx.fetch_value(WRITE, bucket_of("cart"), "cart", "long")
            source.known = members(world)
            await serving(servers, 1)
            await asyncio.to_thread(replica.hold)
        assert await ann.read("cart") == 1
