"""A cluster that Patroni runs: its members come from its REST API, its leader from the servers themselves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest
from tests._patroni import PatroniWorld, patroni_cluster

from springtide.db.durability import check_quorum
from springtide.db.members import Member, Patroni
from springtide.db.pool import Pool
from springtide.db.servers import RoutingSettings, Servers
from springtide.errors import CommitUnknown, ConfigurationError, DatabaseUnavailable
from springtide.platform import Platform
from springtide.topology import Topology, loads

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


def topology(world: PatroniWorld, port: int) -> Topology:
    parts = urlsplit(world.url)
    account = parts.netloc.rpartition("@")[0]
    url = urlunsplit(parts._replace(netloc=f"{account}@127.0.0.1:{port}"))
    return loads(
        f"""
        name = "ledger"
        app = "ledger:app"
        [pool]
        size = 4
        reserved = 1
        acquire_timeout = 20.0
        [nodes.db]
        url = "{url}"
        [clusters.main]
        primary = "db"
        patroni = {[node.rest for node in world.nodes]}
        [databases.default]
        shards = ["main"]
        durability = "quorum"
        """
    )


@pytest.mark.timeout(180)
async def test_a_platform_holds_patroni_to_quorum(world: PatroniWorld, tmp_path: Path) -> None:
    """A platform is told the REST addresses and the url of a server that does not lead. It starts, because
    Patroni has the leader wait for the other, and writes. The leader is killed: the platform follows, but
    nobody is left to confirm and Patroni, not told to be strict, stops waiting. So writes are refused, reads
    go on, and a platform does not start."""
    old = await asyncio.to_thread(world.leader)
    follower = next(node for node in world.nodes if node is not old)
    asked = topology(world, follower.port)
    async with Platform(asked, home=tmp_path) as platform:
        pool, servers = platform.pools["main"], platform.servers["main"]
        assert f":{old.port}/" in (pool.dsn or "")
        async with servers.transaction() as tx:
            await tx.execute("CREATE TABLE tally (n int PRIMARY KEY)")
        assert not servers.unconfirmed
        await asyncio.to_thread(old.kill)
        async with asyncio.timeout(90):
            while f":{follower.port}/" not in (pool.dsn or "") or not servers.unconfirmed:
                await asyncio.sleep(0.05)
        with pytest.raises(DatabaseUnavailable, match=rf"{follower.name} of main waits for no standby"):
            async with servers.transaction() as tx:
                await tx.execute("INSERT INTO tally VALUES (1)")
        assert await pool.fetch_value("SELECT count(*) FROM tally") == 0
        late = Platform(asked, home=tmp_path)
        with pytest.raises(
            ConfigurationError, match=r"databases\.default\.durability .* waits for no standby"
        ):
            await late.start()
