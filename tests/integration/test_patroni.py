"""A cluster that Patroni runs: its members come from its REST API, its leader from the servers themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from tests._patroni import PatroniWorld, patroni_cluster

from springtide.db.durability import check_quorum
from springtide.db.members import Member, Patroni
from springtide.db.pool import Pool
from springtide.db.servers import RoutingSettings, Servers
from springtide.errors import CommitUnknown, DatabaseUnavailable

pytestmark = pytest.mark.needs("postgresql-15", "patroni", "etcd-server")


@pytest.fixture
def world() -> Iterator[PatroniWorld]:
    with patroni_cluster() as world:
        yield world


@pytest.mark.timeout(180)
async def test_the_application_follows_patroni_s_leader(world: PatroniWorld) -> None:
    """kill -9 of the leader: Patroni promotes the other node, the pool goes there by itself, waiting callers
    are served, and under synchronous_mode everything that was acknowledged is there. The REST address that
    is asked first may be dead, and the pool need not know who leads when it starts."""
    source = Patroni(["http://127.0.0.1:9", *(node.rest for node in world.nodes)], "main", url=world.url)
    members = {member.node: member for member in await source.members()}
    assert sorted(members) == ["one", "two"]
    old = await asyncio.to_thread(world.leader)
    follower = next(node for node in world.nodes if node is not old)

    def replica(member: Member) -> Pool:
        return Pool(member.url, cluster=f"main/{member.node}", reserved=0)

    pool = Pool(members[follower.name].url, primary_only=True, outage_timeout=90.0)
    servers = Servers(
        "main", pool, source, replica_pool=replica, settings=RoutingSettings(settle=0.0, recover=0.0)
    )
    await servers.start()
    try:
        async with pool:
            assert pool.dsn == members[old.name].url
            await check_quorum(pool, database="ledger")
            await pool.execute("CREATE TABLE tally (n int PRIMARY KEY)")
            acknowledged: list[int] = []
            ended = asyncio.Event()

            async def write() -> None:
                n = 0
                while not ended.is_set():
                    n += 1
                    try:
                        async with pool.transaction() as tx:
                            await tx.execute("INSERT INTO tally VALUES ($1)", n)
                    except (CommitUnknown, DatabaseUnavailable):
                        continue
                    acknowledged.append(n)
                    await asyncio.sleep(0.005)

            writing = asyncio.create_task(write())
            async with asyncio.timeout(90):
                while len(acknowledged) < 20:
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(old.kill)
                before = len(acknowledged)
                while len(acknowledged) < before + 20:
                    await asyncio.sleep(0.01)
                ended.set()
                await writing
            assert pool.dsn == members[follower.name].url
            there = {row["n"] for row in await pool.fetch("SELECT n FROM tally")}
            assert set(acknowledged) <= there
    finally:
        await servers.stop()
