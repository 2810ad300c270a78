"""What a commit survives: quorum and async on a real primary with a synchronous standby."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests._cluster import Cluster, eventually
from tests.integration.test_db_idempotency import COUNT, note, once
from tests.integration.test_pool import Heard, within
from tests.integration.test_pool_faults import PATIENCE, through
from tests.replicated import Session, members, registers, until
from tests.sharded import notes

from springtide.db import Database, ShardMap, idempotency
from springtide.db.durability import check_quorum
from springtide.db.idempotency import Idempotency, Outcome
from springtide.db.members import Member
from springtide.db.pool import Pool
from springtide.errors import (
    CommitUnknown,
    ConfigurationError,
    DatabaseUnavailable,
    IdempotencyInFlight,
    IdempotencyLost,
)
from springtide.signals import QuorumChanged, StatementFinished
from springtide.testing.faults import FaultProxy

WAITING = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'"


@pytest.fixture
def world(own_cluster: Callable[..., Cluster]) -> Cluster:
    """A primary that answers COMMIT when its one standby has it on disk."""
    world = own_cluster(replicas=1)
    world.primary.query("alter system set synchronous_standby_names = 'ANY 1 (*)'")
    world.primary.query("select pg_reload_conf()")
    synchronous = "select count(*) from pg_stat_replication where sync_state = 'quorum'"
    eventually(lambda: world.primary.query(synchronous) == "1")
    return world


@asynccontextmanager
async def stored(world: Cluster, folder: Path) -> AsyncIterator[tuple[FaultProxy, Database, Pool]]:
    """The notes, reached through a proxy whose pool waits for another primary."""
    async with FaultProxy(target=world.primary.port) as proxy:
        options: dict[str, Any] = {"size": 4, "reserved": 0, "outage_timeout": 60.0}
        async with notes([through(proxy, world.url())], folder, **options) as database:
            database.pools["main"].watched(lambda: None)
            yield proxy, database, database.pools["main"]


async def fail_over(world: Cluster, pool: Pool) -> None:
    """The primary is gone, its standby takes over, the pool follows."""
    await asyncio.to_thread(world.primary.kill)
    await asyncio.to_thread(world.replicas[0].thaw)
    await asyncio.to_thread(world.replicas[0].promote)
    pool.move(world.url(world.replicas[0]))


async def test_a_commit_waits_for_its_standby(world: Cluster) -> None:
    """The standby is frozen. A deadline, a cancelled caller and an operator who ends the wait all leave the
    outcome unknown, and none of them cancels COMMIT; a database that does not ask for quorum commits at
    once, with not one message more; once the standby is back, everything is there."""
    heard = Heard()
    async with Pool(world.url(), size=6, reserved=0, sink=heard) as pool, Pool(world.url()) as other:
        await pool.execute("create table tally (n int)")
        await asyncio.to_thread(world.replicas[0].freeze)

        async def write(n: int, **options: Any) -> None:
            async with pool.transaction(**options) as tx:
                await tx.execute("insert into tally values ($1)", n)

        with within(0.5), pytest.raises(CommitUnknown, match="deadline"):
            await write(1)
        caller = asyncio.create_task(write(2))

        async def held(count: int) -> None:
            async with asyncio.timeout(PATIENCE):
                while await other.fetch_value(WAITING) != count:
                    await asyncio.sleep(0.01)

        await held(2)
        ended = asyncio.create_task(write(3))
        await held(3)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        last = f"{WAITING.replace('count(*)', 'pid')} order by xact_start desc limit 1"
        await other.execute(f"select pg_cancel_backend(({last}))")
        with pytest.raises(CommitUnknown, match="standby did not confirm"):
            await ended
        await held(2)
        heard.signals.clear()
        async with asyncio.timeout(PATIENCE):
            await write(4, synchronous_commit="local")
        assert len(heard.of(StatementFinished)) == 3
        await asyncio.to_thread(world.replicas[0].thaw)
        await held(0)
        async with asyncio.timeout(PATIENCE):
            while sorted(r["n"] for r in await other.fetch("select n from tally")) != [1, 2, 3, 4]:
                await asyncio.sleep(0.01)
    with pytest.raises(ValueError, match=r"must be one of on, local, .* got 'maybe'"):
        pool.transaction(synchronous_commit="maybe")


@pytest.mark.parametrize("moment", ["begin", "commit", "waiting", "confirmed", "answered"])
async def test_the_primary_dies_around_commit(world: Cluster, tmp_path: Path, moment: str) -> None:
    """kill -9 before BEGIN or COMMIT arrives, while COMMIT waits for the standby, when it is confirmed and
    its answer is on the way, after the answer. The request itself hears from the promoted server what became
    of it, and so does every repetition: the effect is there once, or not at all and the key is free."""
    async with stored(world, tmp_path) as (proxy, database, pool):
        keys = Idempotency(database)
        asked = asyncio.create_task(keys.run(once(), frozen_after(world, moment), home=3))
        if moment == "answered":
            await asked
        elif moment == "waiting":
            await until_waiting(world)
        else:  # the claim commits by itself: these are the effect's
            await {
                "begin": lambda: proxy.on(b"BEGIN", "drop"),
                "commit": lambda: proxy.on(b"COMMIT\0", "drop"),
                "confirmed": lambda: proxy.on(b"COMMIT\0", "stall", side="server"),
            }[moment]()
        await fail_over(world, pool)
        proxy.resume()
        outcome: Outcome | None = None
        async with asyncio.timeout(60):
            try:
                outcome = await asked
            except (DatabaseUnavailable, IdempotencyLost):  # a claim may be lost with its server
                assert moment in ("begin", "commit", "waiting")
            there = await database.read(3).fetch_value(COUNT)
            assert there == (0 if outcome is None else 1)
            again = await repeated(keys)
        assert again.replayed == (outcome is not None)
        assert outcome is None or again.answer == outcome.answer
        assert await database.read(3).fetch_value(COUNT) == 1


async def test_a_request_looks_for_its_effect_until_its_deadline(
    world: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to COMMIT is lost with the primary, and the next primary comes later than a request without
    a deadline would wait: it still hears that the effect is there."""
    monkeypatch.setattr(idempotency, "RESOLVE_TIMEOUT", 0.0)
    async with stored(world, tmp_path) as (proxy, database, pool):
        keys = Idempotency(database)
        proxy.on(b"COMMIT\0", "stall", side="server")
        with within(60):
            asked = asyncio.create_task(keys.run(once(), note(3), home=3))
        await fail_over(world, pool)
        assert not (await asked).replayed
        assert (await keys.run(once(), note(3), home=3)).replayed
        assert await database.read(3).fetch_value(COUNT) == 1


def frozen_after(world: Cluster, moment: str) -> Any:
    made = note(3)

    async def effect(tx: Any) -> Any:
        answer = await made(tx)
        if moment == "waiting":
            await asyncio.to_thread(world.replicas[0].freeze)
        return answer

    return effect


async def until_waiting(world: Cluster) -> None:
    async with Pool(world.url(), size=1, reserved=0) as watching, asyncio.timeout(PATIENCE):
        while await watching.fetch_value(WAITING) != 1:
            await asyncio.sleep(0.01)


async def repeated(keys: Idempotency) -> Outcome:
    """The next request with the same key; 409 for as long as somebody may still hold it."""
    while True:
        try:
            return await keys.run(once(), note(3), home=3)
        except IdempotencyInFlight:
            await asyncio.sleep(0.05)


async def test_a_server_that_promises_less_is_refused(world: Cluster, database_url: str) -> None:
    """It waits for no standby, or acknowledges before the standby has the commit on disk: both are named,
    with what to change. A server that is set up for it passes."""
    async with Pool(database_url, size=1, reserved=0) as pool:
        with pytest.raises(ConfigurationError, match="no standby: set its synchronous_standby_names"):
            await check_quorum(pool, database="ledger")
    for value, refused in (("on", False), ("remote_apply", False), ("local", True), ("remote_write", True)):
        settings = {"synchronous_commit": value}
        async with Pool(world.url(), size=1, reserved=0, server_settings=settings) as pool:
            if refused:
                with pytest.raises(ConfigurationError, match=rf"its synchronous_commit is '{value}'"):
                    await check_quorum(pool, database="ledger")
            else:
                await check_quorum(pool, database="ledger")


async def test_a_promoted_server_that_waits_for_nobody_takes_no_quorum_writes(
    world: Cluster, tmp_path: Path
) -> None:
    """The standby was never told to wait for one itself. Once it is primary, quorum writes are refused and
    leave nothing, while reads and writes of databases that ask for less go on; told to wait, it takes them.
    A transaction that had begun before the setting was taken away is refused at its COMMIT."""
    heard, promoted = Heard(), world.replicas[0]
    async with registers(world, tmp_path, sink=heard, quorum=True) as (db, servers):
        ann = Session(db, "ann")
        await ann.write("cart")
        assert not servers.unconfirmed
        await asyncio.to_thread(world.primary.kill)
        await asyncio.to_thread(promoted.promote)
        with (
            within(PATIENCE),
            pytest.raises(DatabaseUnavailable, match=r"replica-1 of main waits for no standby"),
        ):
            await ann.write("cart")
        assert await ann.read("cart") == 1 and servers.unconfirmed
        modest = Database("registers", db.shards, db.pools, servers=db.servers, local_commits=["main"])
        assert await Session(modest, "bob").write("basket") == 1
        await asyncio.to_thread(world.add_replica, of=promoted)
        await asyncio.to_thread(promoted.configure, synchronous_standby_names="ANY 1 (*)")
        await until(lambda: not servers.unconfirmed)
        assert await ann.write("cart") == 2
        with pytest.raises(DatabaseUnavailable, match="waits for no standby"):
            async with db.write("cart") as tx:
                await tx.execute("delete from registers.register")
                await asyncio.to_thread(promoted.configure, synchronous_standby_names="")
                await until(lambda: servers.unconfirmed)
        assert await ann.read("cart") == 2
    told = [(signal.node, signal.waits) for signal in heard.of(QuorumChanged)]
    assert told == [("replica-1", False), ("replica-1", True), ("replica-1", False)]


class Listed:
    """Whoever the test says belongs to the cluster."""

    def __init__(self, now: Sequence[Member]) -> None:
        self.now = now

    async def members(self) -> Sequence[Member]:
        return self.now


async def test_the_last_server_of_a_cluster_takes_no_quorum_writes(world: Cluster, tmp_path: Path) -> None:
    """The primary is dead, and whoever keeps the list has struck it off: that only one is left is no reason
    not to look whether it waits for another. Told to wait for one that has come, it takes them."""
    listed, promoted = Listed(members(world)), world.replicas[0]
    async with registers(world, tmp_path, source=listed, quorum=True) as (db, servers):
        ann = Session(db, "ann")
        await ann.write("cart")
        await asyncio.to_thread(world.primary.kill)
        await asyncio.to_thread(promoted.promote)
        listed.now = listed.now[1:]
        await until(lambda: not servers.replicas and servers.primary.dsn == world.url(promoted))
        with pytest.raises(DatabaseUnavailable, match=r"replica-1 of main waits for no standby"):
            await ann.write("cart")
        assert await ann.read("cart") == 1
        await asyncio.to_thread(world.add_replica, of=promoted)
        await asyncio.to_thread(promoted.configure, synchronous_standby_names="ANY 1 (*)")
        await until(lambda: not servers.unconfirmed)
        assert await ann.write("cart") == 2


async def test_only_a_database_without_quorum_commits_locally(world: Cluster, tmp_path: Path) -> None:
    """Two databases on one cluster whose standby is frozen: the one that does not ask for quorum goes on,
    the other's writes wait."""
    async with notes([world.url()], tmp_path, size=4, reserved=0) as ledger:
        relaxed = Database("notes", ShardMap.even(["main"]), ledger.pools, local_commits=["main"])
        await asyncio.to_thread(world.replicas[0].freeze)
        async with asyncio.timeout(PATIENCE):
            async with relaxed.write(3) as tx:
                await note(3)(tx)
        with within(0.3), pytest.raises(CommitUnknown):
            async with ledger.write(3) as tx:
                await note(3)(tx)
        await asyncio.to_thread(world.replicas[0].thaw)
        await until(lambda: ledger.pools["main"].stats().busy == 0)
