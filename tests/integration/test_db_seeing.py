"""Reads pinned to one server, and what they say of it: never more than what is read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import pytest
from tests._cluster import Cluster, cluster
from tests._pooler import PoolerServer
from tests.replicated import Session, registers, serving, until
from tests.servers import LoopThread
from tests.sharded import notes

from springtide.context import DOUBT, CausalityToken, RequestContext, activate
from springtide.db import Consistency, Database, ShardMap
from springtide.db.pool import Pool
from springtide.db.seeing import Seen
from springtide.errors import DatabaseUnavailable
from springtide.testing.faults import FaultProxy

EVENTUAL, STRONG, SESSION = Consistency.EVENTUAL, Consistency.STRONG, Consistency.SESSION

INSERT = "insert into notes.note (bucket, id) values (1, $1) returning pg_current_xact_id()::text"
IDS = "select id from notes.note order by id"


def shows(seen: Seen, xid: int) -> bool:
    """The rule of the module's docstring."""
    if seen.standby:
        return xid < seen.xmin
    return xid < seen.xmax and xid not in seen.running


@pytest.fixture(scope="module")
def calm(_server_loop: LoopThread) -> Iterator[Cluster]:
    """A primary with one replica, for tests that leave them as they were."""
    with cluster(_server_loop, replicas=1) as world:
        yield world


async def test_a_primary_shows_what_is_committed_and_nothing_that_runs(
    database_url: str, tmp_path: Path
) -> None:
    """What was committed before is shown; a transaction that is open when the sight begins is not, nor one
    that begins later, although the sight's statements may see both."""
    async with notes([database_url], tmp_path) as db:
        done = int(await db.pools["main"].fetch_value(INSERT, 1))
        writer = await asyncpg.connect(database_url)
        try:
            await writer.execute("begin")
            running = int(await writer.fetchval(INSERT, 2))
            async with db.seeing("main") as sight:
                await writer.execute("commit")
                later = int(await writer.fetchval(INSERT, 3))
                rows = await sight.fetch(IDS)
        finally:
            await writer.close()
        assert [row["id"] for row in rows] == [1, 2, 3]
        assert [shows(sight.seen, xid) for xid in (done, running, later)] == [True, False, False]
        assert (sight.seen.cluster, sight.seen.standby) == ("main", False)


async def test_a_standby_shows_only_what_is_below_its_xmin(calm: Cluster, tmp_path: Path) -> None:
    """A write that was committed on the primary and not replayed yet is not shown, also when a later number
    has been replayed: the standby's own list of running transactions does not have it."""
    async with registers(calm, tmp_path) as (db, servers):
        await serving(servers, 1)
        pool, replica = db.pools["main"], calm.replicas[0]
        writer = await asyncpg.connect(calm.url())
        try:
            await writer.execute("begin; create table early (n int)")
            early = int(await writer.fetchval("select pg_current_xact_id()::text"))
            await pool.execute("create table later (n int)")
            await asyncio.to_thread(replica.catch_up)
            await asyncio.to_thread(replica.hold)
            await writer.execute("commit")
            async with db.seeing("main", consistency=EVENTUAL) as sight:
                assert await sight.fetch_value("select to_regclass('early') is null")
        finally:
            await writer.close()
            await asyncio.to_thread(replica.release)
            await pool.execute("drop table if exists early, later")
        seen = sight.seen
        assert seen.standby
        assert seen.epoch == db.epoch("main")
        assert not shows(seen, early)
        assert early < seen.xmax
        assert early not in seen.running  # a primary's rule would have shown it


async def test_a_sight_stays_on_the_server_that_consistency_chose(calm: Cluster, tmp_path: Path) -> None:
    """Every statement of it, while replicas and primary share other reads."""
    where = "select inet_server_port()"
    async with registers(calm, tmp_path) as (db, servers):
        await serving(servers, 1)
        for consistency, server in ((EVENTUAL, calm.replicas[0]), (STRONG, calm.primary)):
            async with db.seeing("main", consistency=consistency) as sight:
                ports = {await sight.fetch_value(where) for _ in range(20)}
                assert (await sight.fetch_one(where))[0] == (await sight.fetch(where))[0][0] == server.port
            assert ports == {server.port}
            assert sight.seen.standby is (consistency is EVENTUAL)


async def test_a_session_remembers_what_its_sight_saw(calm: Cluster, tmp_path: Path) -> None:
    """On a replica which run of it; on the primary a doubt, for what was read last is not bounded."""
    async with registers(calm, tmp_path) as (db, servers):
        await serving(servers, 1)
        session = Session(db, "ann")
        async with session.request() as context:
            async with db.seeing("main", consistency=SESSION) as sight:
                await sight.fetch_value("select 1")
            assert sight.seen.standby
            assert context.causality.witnesses["main"] not in (None, DOUBT)
        request = RequestContext(causality=CausalityToken.decode(""))
        with activate(request):
            async with db.seeing("main", consistency=STRONG) as sight:
                await db.read("key", consistency=SESSION).fetch_value("select 1")
            assert request.causality.witnesses["main"] == DOUBT


@pytest.mark.needs("pgbouncer")
async def test_a_pooler_that_is_led_elsewhere_does_not_lead_a_sight_there(
    database_urls: tuple[str, str],
    tmp_path: Path,
    own_pooler: Callable[..., PoolerServer],
) -> None:
    """Between two statements of a sight it stays with the server that said what it had."""
    first, second = database_urls
    async with notes([first], tmp_path) as db:
        await db.pools["main"].fetch_value(INSERT, 1)
    pooler = own_pooler({"main": first}, server_connections=2)
    async with Pool(pooler.url("main"), pooled=True, cluster="main") as pool:
        pooled = Database("notes", ShardMap.even(["main"]), {"main": pool})
        assert pooled.epoch("main") is None
        async with pooled.seeing("main") as sight:
            await asyncio.to_thread(pooler.repoint, {"main": second})
            other = await asyncpg.connect(pooler.url("main"), statement_cache_size=0)
            try:
                name = "select current_database()"

                async def led_elsewhere() -> bool:
                    return await other.fetchval(name) == second.rpartition("/")[2].partition("?")[0]

                async with asyncio.timeout(60):
                    while not await led_elsewhere():
                        await asyncio.sleep(0.02)
            finally:
                await other.close()
            assert [row["id"] for row in await sight.fetch(IDS)] == [1]
        assert pooled.epoch("main") == sight.seen.epoch


async def test_a_connection_that_is_lost_first_is_nobodys_error(database_url: str, tmp_path: Path) -> None:
    """Lost with the question what its server has: a sight begins on a fresh one. Lost in the middle of it,
    that is the caller's to hear: another server may be there by then."""
    port = urlsplit(database_url).port
    assert port is not None
    async with notes([database_url], tmp_path):
        pass
    async with FaultProxy(target=port) as proxy:
        through = database_url.replace(f":{port}", f":{proxy.port}")
        async with Pool(through, cluster="main", size=2, reserved=0) as pool:
            db = Database("notes", ShardMap.even(["main"]), {"main": pool})
            proxy.on(b"pg_current_snapshot", "drop")
            async with db.seeing("main") as sight:
                assert await sight.fetch(IDS) == []
                proxy.cut()
                with pytest.raises(DatabaseUnavailable):
                    await sight.fetch(IDS)
    assert proxy.accepted == 2


async def test_a_sight_only_reads(database_url: str, tmp_path: Path) -> None:
    """A loader that writes is refused before anything is sent; inside an open write there is no sight, for
    the write's rows would be missing from it."""
    async with notes([database_url], tmp_path) as db:
        async with db.seeing("main") as sight:
            with pytest.raises(ValueError, match="may only be read from"):
                await sight.fetch_value(INSERT, 1)
            assert await sight.fetch(IDS) == []
        async with db.write(1) as tx:
            with pytest.raises(RuntimeError, match="read through it"):
                async with db.seeing("main"):
                    pass
            await tx.fetch_value("select 1")
        with pytest.raises(ValueError, match="no shard 'west'"):
            async with db.seeing("west"):
                pass


async def test_an_epoch_is_known_from_the_first_connection_on(database_url: str, tmp_path: Path) -> None:
    """Asking does no I/O: a pool that was asked before its start knows the epoch after it, and a restored or
    new system has another one."""
    pool = Pool(database_url, cluster="main")
    db = Database("notes", ShardMap.even(["main"]), {"main": pool})
    assert db.epoch("main") is None
    async with pool:
        assert db.epoch("main") is not None
        async with db.seeing("main") as sight:
            assert sight.seen.epoch == db.epoch("main")
        system = await pool.fetch_value("select system_identifier from pg_control_system()")
        number = await pool.fetch_value(
            "select oid::bigint from pg_database where datname = current_database()"
        )
        assert db.epoch("main") == number << 96 | system << 32 | 1


async def test_a_promoted_replica_begins_another_epoch(
    own_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    """With the servers watched, and also for a database that has nothing but an address."""
    world = await asyncio.to_thread(own_cluster, replicas=1)
    (tmp_path / "watched").mkdir()
    async with registers(world, tmp_path / "watched") as (db, servers):
        await serving(servers, 1)
        before = db.epoch("main")
        assert before is not None
        await asyncio.to_thread(world.primary.kill)
        await asyncio.to_thread(world.replicas[0].promote)
        after = await until(lambda: (now := db.epoch("main")) != before and now)
        assert after == before + 1
        async with db.seeing("main", consistency=STRONG) as sight:
            assert sight.seen.epoch == after
    pool = Pool(world.url(world.replicas[0]), cluster="main")
    plain = Database("registers", ShardMap.even(["main"]), {"main": pool})
    async with pool, plain.seeing("main") as sight:
        assert sight.seen.epoch == after == plain.epoch("main")
