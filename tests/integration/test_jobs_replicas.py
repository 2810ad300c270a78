"""A job's reads find what it is about, also where replicas lag."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
from tests._cluster import Cluster
from tests.jobs_support import FAST, until
from tests.replicated import QUICK, READ, WRITE, Session, registers, serving

from springtide.context import DOUBT, CausalityToken, RequestContext, activate
from springtide.db import Consistency, Database, ShardMap, bucket_of
from springtide.db.idempotency import Idempotency
from springtide.errors import EventFailed
from springtide.events import Delivery, EventWorker, Group, On, Publisher, Subscription, event, operating
from springtide.flows import Flows, Step, StepRun, Workflow
from springtide.jobs import Enqueuer, Handler, Queue, Run, Worker, enqueue, job
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
            store, names = Store(db, "main"), ["registers.look/1"]
            (claimed,) = await store.claim(names, 5, "worker", 30.0)
            written = CausalityToken.decode(session.token).positions["main"]
            assert claimed.position is not None and claimed.position >= written
            async with session.request(), db.write("cart") as tx:
                await enqueue(tx, Look("cart"))
            wanted = names, 5, "worker", 30.0
            _, met = await store.turn([claimed.run], None, *wanted)
            (turned,) = await store.complete(met, *wanted)
            written = CausalityToken.decode(session.token).positions["main"]
            assert turned.position is not None and turned.position >= written
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


@job(kind="registers.many")
class Many(msgspec.Struct, frozen=True):
    key: str


@event(kind="registers.changed")
class Changed(msgspec.Struct, frozen=True):
    key: str


class Chain:
    """Each handler reads the register first, on any server, then changes it and orders the next handler in
    that write. `found` is who read which version."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.found: list[tuple[str, int]] = []
        self.fails = True
        self.flows = Flows(db, [FLOW])

    async def read(self, who: str, key: str) -> None:
        row = await self.db.read(key).fetch_one(READ, bucket_of(key), key)
        self.found.append((who, row["version"] if row is not None else 0))

    async def change(self, key: str, then: Callable[[Any], Any] | None = None) -> None:
        """As somebody who has seen nothing yet: no token covers what the next handler has to find."""
        with activate(RequestContext()):
            async with self.db.write(key) as tx:
                await tx.fetch_value(WRITE, bucket_of(key), key, "x")
                if then is not None:
                    await then(tx)

    async def look(self, one: Look, run: Run) -> None:
        await self.read("job", one.key)
        await self.change(one.key, lambda tx: tx.enqueue_many([Many(one.key), Many(one.key)]))

    async def many(self, jobs: list[Many], runs: list[Run]) -> None:
        await self.read("batch", jobs[0].key)
        await self.change(jobs[0].key, lambda tx: tx.publish(Changed(jobs[0].key)))

    async def hear(self, fact: Changed, delivery: Delivery) -> None:
        await self.read("dead letter" if delivery.attempt > 1 else "event", fact.key)
        if self.fails:
            self.fails = False
            raise EventFailed("first")
        await self.change(fact.key, lambda tx: self.flows.start(tx, FLOW, Look(fact.key)))

    async def first(self, one: Look, run: StepRun) -> None:
        await self.read("step", one.key)
        await self.change(one.key)

    async def second(self, one: Look, run: StepRun) -> None:
        await self.read("next step", one.key)


FLOW = Workflow("registers.walk", Look, [Step("first", Chain.first), Step("second", Chain.second)])


async def test_every_handler_of_a_chain_reads_what_ordered_it(
    own_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """A job, a batch of jobs, an event, the same as a dead letter, and two steps of a workflow, each ordered
    by the one before: none misses what was committed with its order, while the replica that would have
    answered stands still."""
    world = await asyncio.to_thread(own_cluster, replicas=1)
    (replica,) = world.replicas
    settings = dataclasses.replace(QUICK, max_lag=600.0)
    async with registers(world, tmp_path, settings=settings) as (plain, servers):
        db = Database(
            "registers", ShardMap.even(["main"]), plain.pools, servers={"main": servers},
            enqueue=Enqueuer(), publish=Publisher(),
        )  # fmt: skip
        chain, dsns = Chain(db), {"main": world.url()}
        handlers = [Handler(Look, Chain.look), Handler(Many, Chain.many, batch=2), *chain.flows.handlers]
        jobs = Worker([Queue(database=db, handlers=handlers, implementation=chain)], dsns=dsns, **FAST)
        group = Group("ears", [On(Changed, Chain.hear)])
        subscription = Subscription(group=group, log=db, implementation=chain)
        events = EventWorker([subscription], logs=[db], dsns=dsns, poll=0.2, upkeep=0.1)
        await serving(servers, 1)
        await asyncio.to_thread(replica.catch_up)
        await asyncio.to_thread(replica.hold)
        try:
            await jobs.start()
            await events.start()
            await chain.change("cart", lambda tx: tx.enqueue(Look("cart")))
            await until(lambda: operating.dead_letters(db, "ears"))
            await operating.retry(db, "ears")
            await until(lambda: len(chain.found) == 6)
            assert chain.found == [
                ("job", 1), ("batch", 2), ("event", 3), ("dead letter", 3), ("step", 4), ("next step", 5)
            ]  # fmt: skip
            assert servers.choose(Consistency.SESSION, CausalityToken()).node == "replica-1"
        finally:
            await events.stop()
            await jobs.stop()
            await asyncio.to_thread(replica.release)
