"""A job's reads find what it is about, also where replicas lag."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
from tests._cluster import Cluster
from tests.replicated import Session, registers, serving

from springtide.context import DOUBT, CausalityToken, RequestContext, activate
from springtide.db import Consistency, Database, ShardMap
from springtide.db.idempotency import Idempotency
from springtide.jobs import enqueue, job
from springtide.jobs._store import Store


@job(kind="registers.look")
class Look(msgspec.Struct, frozen=True):
    key: str


async def test_a_claim_covers_the_commit_that_enqueued_the_job(
    own_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """While the replica stands still the job reads on the primary; who has seen nothing does not."""
    world = await asyncio.to_thread(own_cluster, replicas=1)
    (replica,) = world.replicas
    async with registers(world, tmp_path) as (db, servers):
        await serving(servers, 1)
        await asyncio.to_thread(replica.catch_up)
        await asyncio.to_thread(replica.hold)
        try:
            session = Session(db, "ann")
            async with session.request(), db.write("cart") as tx:
                await enqueue(tx, Look("cart"))
            (claimed,) = await Store(db, "main").claim(["registers.look/1"], 5, "worker", 30.0)
            written = CausalityToken.decode(session.token).positions["main"]
            assert claimed.position is not None and claimed.position >= written
            token = CausalityToken({"main": claimed.position})
            assert servers.choose(Consistency.SESSION, token).node == "primary"
            assert servers.choose(Consistency.SESSION, CausalityToken()).node == "replica-1"
        finally:
            await asyncio.to_thread(replica.release)


async def test_what_was_seen_has_the_name_of_the_cluster_whatever_the_shard_is_called(
    own_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """A claim's position, and the doubt of a replayed answer, are those that reads of the shard look for."""
    world = await asyncio.to_thread(own_cluster, replicas=1)
    async with registers(world, tmp_path) as (_, servers):
        await serving(servers, 1)
        pools = {"left": servers.primary}
        db = Database("registers", ShardMap.even(["left"]), pools, servers={"left": servers})
        assert Store(db, "left").cluster == "main"
        with activate(RequestContext()) as context:
            Idempotency(db)._seen("cart")
        assert context.causality.witnesses == {"main": DOUBT}
