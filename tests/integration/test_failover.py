"""A process whose cluster loses its primary: it finds the next one, and never the old one again."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests._cluster import Cluster
from tests.integration.test_pool import Heard, within
from tests.integration.test_pool_faults import through
from tests.replicated import READ, Session, members, registers, states, until

from springtide.context import CausalityToken
from springtide.db import Consistency, bucket_of
from springtide.db.members import Fixed, Member
from springtide.db.pool import Pool
from springtide.db.servers import Servers
from springtide.errors import CommitUnknown, SpringtideError, StalenessUnknown
from springtide.signals import PrimaryChanged, ServerBarred
from springtide.testing.faults import FaultProxy
from springtide.testing.history import check

LONG = 60.0


@pytest.fixture
def world(own_cluster: Callable[..., Cluster]) -> Cluster:
    return own_cluster(replicas=1)


@asynccontextmanager
async def proxied(world: Cluster) -> AsyncIterator[tuple[FaultProxy, Fixed]]:
    """The members, with a proxy in front of the first primary."""
    async with FaultProxy(target=world.primary.port) as proxy:
        yield (
            proxy,
            Fixed(
                [
                    Member(node="primary", url=through(proxy, world.url())),
                    Member(node="replica-1", url=world.url(world.replicas[0])),
                ]
            ),
        )


async def moved(pool: Pool, url: str) -> None:
    async with asyncio.timeout(LONG):
        while pool.dsn != url:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("fault", ["half_open", "stall", "cut"])
async def test_a_primary_that_is_cut_off_is_left(world: Cluster, tmp_path: Path, fault: str) -> None:
    """Its network is gone (half open, silent, or refusing) while a replica is promoted: sessions go on with
    the promoted one, `eventual` reads never fail, nothing acknowledged is lost. When its network is back the
    old primary still calls itself one, on its old timeline: it is used for nothing."""
    heard = Heard()
    promoted = world.replicas[0]
    async with (
        proxied(world) as (proxy, source),
        registers(world, tmp_path, source=source, sink=heard, patience=LONG) as (db, servers),
    ):
        ann = Session(db, "ann")
        await moved(servers.primary, through(proxy, world.url()))
        await ann.write("cart")
        await ann.read("cart")
        await asyncio.to_thread(promoted.catch_up)

        async def glance() -> int:
            done = 0
            while not over.is_set():
                with within(LONG):
                    await db.read(3, consistency=Consistency.EVENTUAL).fetch_value("select 1")
                done += 1
                await asyncio.sleep(0.01)
            return done

        over = asyncio.Event()
        glancing = asyncio.create_task(glance())
        if fault == "stall":
            proxy.stall()
        else:
            proxy.refuse()
            proxy.half_open() if fault == "half_open" else proxy.cut()
        await asyncio.to_thread(promoted.promote)
        await moved(servers.primary, world.url(promoted))
        await ann.write("cart")
        proxy.resume()
        async with asyncio.timeout(LONG):  # until the old primary has been seen again
            while servers._watch._servers["primary"].look is None:
                await asyncio.sleep(0.01)
        for _ in range(5):
            await ann.write("cart")
            await ann.read("cart")
        assert servers.primary.dsn == world.url(promoted)
        over.set()
        assert await glancing > 0
        assert check(ann.history) == []
        later = "select count(*) from registers.register where version > 1"
        assert await asyncio.to_thread(world.primary.query, later, dbname=world.dbname) == "0"
    changes = [(signal.node, signal.epoch) for signal in heard.of(PrimaryChanged)]
    assert changes == [("primary", 1), ("replica-1", 2)]


async def test_a_frozen_primary_is_left(world: Cluster, tmp_path: Path) -> None:
    """It takes connections and answers nothing: a read and a COMMIT that are under way end when the pool
    moves, the read with the promoted server's answer, the COMMIT as unknown. Thawed, it is not used again."""
    promoted = world.replicas[0]
    async with registers(world, tmp_path, patience=LONG) as (db, servers):
        ann = Session(db, "ann")
        await ann.write("cart")
        await asyncio.to_thread(promoted.catch_up)
        pool = servers.primary
        block = pool.transaction()
        await (await block.__aenter__()).execute("update registers.register set version = 100")
        await asyncio.to_thread(world.primary.freeze)
        read = asyncio.create_task(pool.fetch_value("select version from registers.register"))
        commit = asyncio.create_task(block.__aexit__(None, None, None))
        await asyncio.to_thread(promoted.promote)
        async with asyncio.timeout(LONG):
            assert await read == 1
            with pytest.raises(CommitUnknown):
                await commit
        assert pool.dsn == world.url(promoted)
        await ann.write("cart")
        await asyncio.to_thread(world.primary.thaw)
        async with asyncio.timeout(LONG):  # until the old primary has been seen again
            while servers._watch._servers["primary"].look is None:
                await asyncio.sleep(0.01)
        await ann.write("cart")
        await ann.read("cart")
        assert pool.dsn == world.url(promoted)
        assert check(ann.history) == []


async def test_an_old_primary_that_is_restarted_is_not_used(world: Cluster, tmp_path: Path) -> None:
    """kill -9, promotion, and the old primary is back at its address as if nothing had happened, while the
    promoted one is frozen: reads and writes wait, nobody is served by the history that is over."""
    promoted = world.replicas[0]
    async with registers(world, tmp_path, patience=LONG) as (db, servers):
        ann = Session(db, "ann")
        await ann.write("cart")
        await asyncio.to_thread(promoted.catch_up)
        await asyncio.to_thread(world.primary.kill)
        await asyncio.to_thread(promoted.promote)
        await moved(servers.primary, world.url(promoted))
        await ann.write("cart")
        await asyncio.to_thread(promoted.freeze)
        await asyncio.to_thread(world.primary.restart)
        key = bucket_of("cart")
        for consistency in (Consistency.STRONG, Consistency.SESSION, Consistency.EVENTUAL):
            with within(1.0), pytest.raises(SpringtideError):
                await db.read(key, consistency=consistency).fetch_one(READ, key, "cart")
        with within(1.0), pytest.raises((StalenessUnknown, SpringtideError)):
            await db.read(key, consistency=Consistency.bounded(5.0)).fetch_one(READ, key, "cart")
        with within(1.0), pytest.raises((SpringtideError, CommitUnknown)):
            async with db.write(key) as tx:
                await tx.execute("delete from registers.register")
        assert await asyncio.to_thread(world.primary.query, "select pg_is_in_recovery()") == "f"
        rows = "select count(*) from registers.register"
        assert await asyncio.to_thread(world.primary.query, rows, dbname=world.dbname) == "1"
        await asyncio.to_thread(promoted.thaw)
        async with asyncio.timeout(LONG):
            await ann.write("cart")
            await ann.read("cart")
        assert servers.primary.dsn == world.url(promoted)
        assert check(ann.history) == []


async def test_a_process_that_starts_finds_the_primary(world: Cluster) -> None:
    """The address that its pool was given is that of a standby now: it begins with the primary."""
    first, second = world.url(), world.url(world.replicas[0])
    nodes = [Member(node="a", url=second), Member(node="b", url=first)]
    pool = Pool(second, primary_only=True, outage_timeout=LONG, reserved=0)
    servers = Servers("main", pool, Fixed(nodes), replica_pool=lambda member: Pool(member.url, reserved=0))
    await servers.start()
    async with pool:
        assert pool.dsn == first
        assert await pool.fetch_value("select pg_is_in_recovery()") is False
    await servers.stop()


class Listed:
    """Members that come and go."""

    def __init__(self, members: list[Member]) -> None:
        self.listed = members

    async def members(self) -> list[Member]:
        return self.listed


async def test_a_rival_is_barred(own_cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    """Two replicas are promoted to one timeline. The one in use stays, the other is reported and never read
    from; and because a position on that timeline may be of either history, the third server, a replica, is
    read from by `eventual` alone. When the rival is taken off the list, that is reported, and the replica
    serves again. A process that starts while both are there uses neither."""
    heard = Heard()
    world = await asyncio.to_thread(own_cluster, replicas=3)
    first, second, third = world.replicas
    listed = Listed(members(world))
    async with registers(world, tmp_path, source=listed, sink=heard, patience=LONG) as (db, servers):
        ann = Session(db, "ann")
        await ann.write("cart")
        for replica in world.replicas:
            await asyncio.to_thread(replica.catch_up)
        await asyncio.to_thread(world.primary.kill)
        await asyncio.to_thread(first.promote)
        await asyncio.to_thread(third.follow, first)
        await moved(servers.primary, world.url(first))
        await until(lambda: states(servers).count("serving") == 1)  # the second follows nobody any more
        assert [health.node for health in servers._watch.readable] == ["replica-3"]
        assert servers.barred == {}

        await asyncio.to_thread(second.promote)
        await until(lambda: servers.barred == {"replica-2": "rival"})
        assert servers.primary.dsn == world.url(first) and "replica-2" not in servers._watch.pools
        token = CausalityToken.decode(ann.token)
        for consistency in (Consistency.SESSION, Consistency.bounded(60.0)):
            assert servers.choose(consistency, token).pool is servers.primary
        assert servers.choose(Consistency.EVENTUAL, None).node == "replica-3"
        assert await ann.write("cart") == 2
        assert await ann.read("cart") == 2

        pool = Pool(world.url(second), primary_only=True, outage_timeout=LONG, reserved=0)
        late = Servers(
            "main",
            pool,
            Fixed(listed.listed[1:3]),
            replica_pool=lambda member: Pool(member.url, reserved=0),
        )
        await late.start()
        try:
            await until(lambda: late.barred == {"replica-1": "rival", "replica-2": "rival"})
            assert pool.dsn is None
        finally:
            await late.stop()

        listed.listed = [member for member in listed.listed if member.node != "replica-2"]
        await until(lambda: servers.barred == {})
        await until(lambda: servers.choose(Consistency.bounded(60.0), None).node == "replica-3")
        assert check(ann.history) == []
    told = [(signal.node, signal.why) for signal in heard.of(ServerBarred)]
    assert told == [("replica-2", "rival"), ("replica-2", None)]


async def test_a_server_of_another_system_is_not_read_from(
    own_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """A standby of somebody else's primary stands in the list, first of all: it is reported, no connection
    for reads is opened to it, and not even `eventual` is answered there when nobody else is left."""
    heard = Heard()
    world = await asyncio.to_thread(own_cluster, replicas=1)
    foreign = await asyncio.to_thread(own_cluster, replicas=1)
    stranger = Member(node="stranger", url=foreign.url(foreign.replicas[0]))
    source = Fixed([stranger, *members(world)])
    async with registers(world, tmp_path, source=source, sink=heard) as (db, servers):
        await Session(db, "ann").write("cart")
        await until(lambda: servers.barred == {"stranger": "stranger"})
        await until(lambda: "replica-1" in servers._watch.pools)
        await asyncio.to_thread(world.replicas[0].kill)
        await until(lambda: servers._watch.pools == {})
        assert servers.choose(Consistency.EVENTUAL, None).pool is servers.primary
    assert [(signal.node, signal.why) for signal in heard.of(ServerBarred)] == [("stranger", "stranger")]
