"""Reads over replicas: each consistency keeps what it promises while the world breaks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from tests._cluster import Cluster
from tests.replicated import Session, registers, serving

Clusters = Callable[..., Cluster]


async def test_a_session_sees_its_writes_and_replicas_serve_the_rest(
    own_cluster: Clusters, tmp_path: Path
) -> None:
    """While a replica lags, who wrote reads on the primary; who did not write reads on the replica."""
    world = await asyncio.to_thread(own_cluster, replicas=1)
    (replica,) = world.replicas
    async with registers(world, tmp_path) as (db, servers):
        await serving(servers, 1)
        await asyncio.to_thread(replica.catch_up)
        await asyncio.to_thread(replica.hold)
        ann, bob = Session(db, "ann"), Session(db, "bob")
        assert await ann.write("cart") == 1
        assert await ann.read("cart") == 1
        assert await bob.read("cart") == 0
        print(servers.replicas, dict(servers.primary_reads), ann.token, bob.token)
