"""Reads over replicas: each consistency keeps what it promises while the world breaks."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests._cluster import Cluster, cluster
from tests.replicated import QUICK, READ, Session, members, registers, serving, states, until
from tests.servers import LoopThread, PostgresServer

from springtide.context import DOUBT, CausalityToken, RequestContext, activate
from springtide.db import Consistency, bucket_of
from springtide.db._looking import BLIND, Eye
from springtide.db.causality import parse_lsn
from springtide.db.members import Fixed, Member
from springtide.db.pool import Pool
from springtide.db.servers import Servers
from springtide.errors import DatabaseUnavailable, MembersUnknown, Unavailable
from springtide.ops.runner import processes
from springtide.ops.runner.accounts import server_account
from springtide.ops.runner.installs import find_install, reachable_install
from springtide.signals import Signal, StatementFinished
from springtide.testing.history import Operation, check
from springtide.testing.lifecycle import stress

Clusters = Callable[..., Cluster]

EVENTUAL, STRONG = Consistency.EVENTUAL, Consistency.STRONG


@pytest.fixture(scope="module")
def calm(_server_loop: LoopThread) -> Iterator[Cluster]:
    """A primary with one replica, for tests that leave them as they were."""
    with cluster(_server_loop, replicas=1) as world:
        yield world


@asynccontextmanager
async def held(world: Cluster, number: int = 0) -> AsyncIterator[None]:
    """The replica has all there is, and replays nothing more inside the block."""
    replica = world.replicas[number]
    await asyncio.to_thread(replica.catch_up)
    await asyncio.to_thread(replica.hold)
    try:
        yield
    finally:
        await asyncio.to_thread(replica.release)


def small_segments(server: PostgresServer) -> None:
    """Start the server again with log segments of 1 MiB."""
    server.stop()
    data, account = server.server.data, server_account()
    program = reachable_install(find_install(data), account).program("pg_resetwal")
    log, env = server.folder / "resetwal.log", {"LC_ALL": "C"}
    command = [str(program), "--wal-segsize=1", "-D", str(data)]
    status = server._loop.run(processes.run(command, log=log, env=env, account=account.switch))
    assert status == 0, log.read_text()
    server.start()


class Statements:
    """A sink that remembers which statements ran where."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def emit(self, signal: Signal) -> None:
        if isinstance(signal, StatementFinished):
            self.seen.append((signal.cluster, signal.statement))


# -- what each level promises --------------------------------------------------------------------------


async def test_a_session_sees_its_writes_and_replicas_serve_the_rest(calm: Cluster, tmp_path: Path) -> None:
    """While the replica lags, who wrote reads on the primary; who did not write reads on the replica."""
    async with registers(calm, tmp_path) as (db, servers):
        await serving(servers, 1)
        ann, bob = Session(db, "ann"), Session(db, "bob")
        before = await bob.read("cart")
        async with held(calm):
            assert await ann.write("cart") == before + 1
            assert await ann.read("cart") == before + 1
            assert await bob.read("cart") == before
            assert await bob.read("cart", consistency=STRONG) == before + 1
            assert await bob.read("cart") == before + 1  # it has seen that now
        await asyncio.to_thread(calm.replicas[0].catch_up)
        reads = servers.replicas[0].reads
        await until(lambda: servers.replicas[0].lag_bytes == 0)
        assert await ann.read("cart") == before + 1  # this one asks how far the primary is
        await until(lambda: servers.replicas[0].lag_bytes == 0)
        assert await ann.read("cart") == before + 1
        assert servers.replicas[0].reads == reads + 1
        assert not check(ann.history + bob.history)


async def test_what_one_statement_has_written_is_seen_by_its_session(calm: Cluster, tmp_path: Path) -> None:
    """Also while the replicas have not replayed it."""
    async with registers(calm, tmp_path) as (db, servers):
        await serving(servers, 1)
        ann = Session(db, "ann")
        async with held(calm):
            version = await ann.write_one("basket")
            assert await ann.read("basket") == version
        assert not check(ann.history)


async def test_without_a_request_nobody_remembers_so_the_primary_answers(
    calm: Cluster, tmp_path: Path
) -> None:
    """Nobody remembers what a script or a background task wrote; what may be stale has to be asked for."""
    async with registers(calm, tmp_path) as (db, servers):
        await serving(servers, 1)
        async with held(calm):
            async with db.write("script") as tx:
                await tx.execute(
                    "insert into registers.register values ($1, 'script', 1, 'x')", bucket_of("script")
                )
            reader = db.read("script")
            assert await reader.fetch_one(READ, bucket_of("script"), "script") is not None
            stale = db.read("script", consistency=EVENTUAL)
            assert await stale.fetch_one(READ, bucket_of("script"), "script") is None
        async with db.write("script") as tx:
            await tx.execute("delete from registers.register where key = 'script'")


async def test_bounded_is_proven_or_the_primarys(calm: Cluster, tmp_path: Path) -> None:
    """A replica that is known to be fresh enough answers; one that may be older does not. An idle primary is
    no lag: a replica that has everything stays fresh however long nothing is written."""
    async with registers(calm, tmp_path) as (db, servers):
        await serving(servers, 1)
        ann, bob = Session(db, "ann"), Session(db, "bob")
        await ann.write("bounded")
        await asyncio.to_thread(calm.replicas[0].catch_up)
        await until(lambda: servers.replicas[0].lag_bytes == 0)
        reads = servers.replicas[0].reads
        await bob.read("bounded", consistency=Consistency.bounded(30.0))
        assert servers.replicas[0].reads == reads + 1
        async with held(calm):
            version = await ann.write("bounded")
            await until(lambda: (servers.replicas[0].lag_seconds or 0.0) > 0.3)
            assert await bob.read("bounded", consistency=Consistency.bounded(0.3)) == version
            assert servers.primary_reads["unproven"] == 1
            assert await bob.read("bounded", consistency=Consistency.bounded(30.0)) == version - 1
        assert not check(ann.history + bob.history)


async def test_an_idle_cluster_at_a_page_boundary_goes_back_to_its_replicas(
    calm: Cluster, tmp_path: Path
) -> None:
    """The insert position behind a page's header is one that replay never reports: it is normalised."""
    where = "select (pg_current_wal_insert_lsn() - '0/0')::bigint"
    async with registers(calm, tmp_path) as (_, servers):
        await serving(servers, 1)
        connection = await asyncpg.connect(calm.url())
        try:
            while True:
                await connection.execute("create table if not exists filler (n int)")
                await connection.execute("insert into filler values (1)")
                await connection.execute("select pg_switch_wal()")
                raw = await connection.fetchval(where)
                captured = await servers.capture(connection)
                await asyncio.to_thread(calm.replicas[0].catch_up)
                replayed = parse_lsn(await asyncio.to_thread(lambda: calm.replicas[0].replayed))
                await until(lambda lsn=replayed: (servers.replicas[0].position or (0, 0))[1] >= lsn)
                position = servers.replicas[0].position
                if raw % 2**24 == 40 and await connection.fetchval(where) == raw:
                    break  # it was at a boundary, and nothing has been written since
            assert position is not None and position >= captured
            assert captured.lsn < raw
        finally:
            await connection.close()


async def test_a_position_is_what_replay_reaches_on_a_server_with_segments_of_another_size(
    own_cluster: Clusters,
) -> None:
    """At the start of a segment of 1 MiB, and before the server was ever looked at."""
    world = await asyncio.to_thread(own_cluster, replicas=0)
    await asyncio.to_thread(small_segments, world.primary)
    pool = Pool(world.url(), cluster="main")
    servers = Servers("main", pool, Fixed(members(world)), replica_pool=lambda member: pool)
    connection = await asyncpg.connect(world.url())
    try:
        while True:
            await connection.execute("create table if not exists filler (n int)")
            await connection.execute("select pg_switch_wal()")
            captured = await servers.capture(connection)
            if await connection.fetchval("select (pg_current_wal_insert_lsn() - '0/0') % 1048576") == 40:
                break
        assert captured.lsn % 2**20 == 0
    finally:
        await connection.close()


async def test_a_commit_costs_one_round_trip_more_and_only_where_there_are_replicas(
    calm: Cluster, tmp_path: Path
) -> None:
    """Without a replica nothing is asked at all; with one, each commit of a request asks once."""
    heard = Statements()
    alone = Fixed(members(calm)[:1])
    async with registers(calm, tmp_path, source=alone, pool_sink=heard) as (db, servers):
        ann = Session(db, "ann")
        heard.seen.clear()
        await ann.write("cost")
        await ann.read("cost")
        assert len(heard.seen) == 4 and ann.token == ""  # BEGIN, the write, COMMIT, the read
    async with registers(calm, tmp_path, pool_sink=heard) as (db, servers):
        await serving(servers, 1)
        ann = Session(db, "ann")
        heard.seen.clear()
        await ann.write("cost")
        asked = [statement for _, statement in heard.seen if "pg_current_wal_insert_lsn" in statement]
        assert (len(heard.seen), len(asked)) == (4, 1)


# -- every form of a read ------------------------------------------------------------------------------


async def test_every_form_of_a_read_follows_its_consistency(calm: Cluster, tmp_path: Path) -> None:
    """fetch, fetch_one, fetch_value, snapshots, scatter, scatter_sum, fetch_many, lookup, fetch_held."""
    async with registers(calm, tmp_path) as (db, servers):
        await serving(servers, 1)
        ann = Session(db, "ann")
        async with ann.request():
            owner = await db.ids.take_anywhere()
        async with held(calm):
            async with ann.request(), db.reserving(owner, claim={"name": "ann"}) as tx:
                await tx.execute(
                    "insert into registers.register values ($1, 'forms', 1, 'x')", bucket_of(owner)
                )

            async def answers(**options: Any) -> list[bool]:
                count = "select 1 from registers.register where key = 'forms'"
                keys = "select key from registers.register where key = 'forms'"
                total = "select count(*) from registers.register where key = 'forms'"
                many = count + " and $1::bigint[] is not null"
                held_sql = "select 1 as one where $1::int is not null and $2::bigint is not null"
                reader = db.read(owner, **options)
                found = [
                    bool(await reader.fetch(count)),
                    await reader.fetch_one(count) is not None,
                    await reader.fetch_value(count) is not None,
                    bool(await db.scatter(keys, **options)),
                    await db.scatter_sum(total, **options) > 0,
                    bool(await db.fetch_many(many, [owner], **options)),
                    await db.lookup("name", "ann", **options) == owner,
                    await db.fetch_held("name", "ann", held_sql, **options) is not None,
                ]
                async with db.read(owner, **options) as snapshot:
                    found.append(await snapshot.fetch_value(count) is not None)
                return found

            async with ann.request():
                assert await answers() == [True] * 9
                assert await answers(consistency=EVENTUAL) == [False] * 9
                assert await answers(consistency=STRONG) == [True] * 9
            async with Session(db, "stranger").request():
                assert await answers() == [False] * 9
                async with db.write(owner) as tx:  # inside a write, reads stay on it
                    assert await tx.fetch_value("select pg_is_in_recovery()") is False
                    assert (
                        await db.read(owner, consistency=EVENTUAL).fetch_value("select pg_is_in_recovery()")
                        is False
                    )
        async with db.reserving(owner, release={"name": "ann"}) as tx:
            await tx.execute("delete from registers.register where key = 'forms'")


async def test_what_a_replica_cannot_do_is_done_by_the_primary(calm: Cluster, tmp_path: Path) -> None:
    """A statement that writes, openly or inside a function, and what is not in the log. Who writes so is
    known to have written, whatever consistency the read was to have."""
    async with registers(calm, tmp_path) as (db, servers):
        await serving(servers, 1)
        async with db.write("x") as tx:
            await tx.execute("create unlogged table registers.unlogged (n int)")
            await tx.execute(
                "create function registers.writes() returns int language sql as"
                " 'insert into registers.unlogged values (1) returning n'"
            )
        await asyncio.to_thread(calm.replicas[0].catch_up)
        async with Session(db, "ann").request():
            reader = db.read("x", consistency=EVENTUAL)
            assert await reader.fetch_value("insert into registers.unlogged values (2) returning n") == 2
            assert await reader.fetch_value("select registers.writes()") == 1
            assert await reader.fetch_value("select count(*) from registers.unlogged") == 2
        for statement, writes in {
            "select count(*) from registers.unlogged": False,
            "delete from registers.unlogged returning n": True,
            "select registers.writes()": True,
        }.items():
            async with Session(db, "bob").request() as context:
                await db.read("x", consistency=EVENTUAL).fetch_value(statement)
                assert (context.causality.written, DOUBT in context.causality.witnesses.values()) == (
                    writes,
                    writes,
                )
        async with db.write("x") as tx:
            await tx.execute("drop function registers.writes()")
            await tx.execute("drop table registers.unlogged")
        assert (servers.primary_reads["refused"], servers.primary_reads["writes"]) == (4, 2)
        assert states(servers) == ["serving"]


async def test_reads_of_one_request_at_the_same_time_are_answered_by_one_replica(
    own_cluster: Clusters, tmp_path: Path
) -> None:
    """Else the two that they came from could never be told apart again, and the primary had to answer."""
    world = await asyncio.to_thread(own_cluster, replicas=3)
    calm = replace(QUICK, look_timeout=60.0)  # none of them is lost, however busy the machine is
    async with registers(world, tmp_path, settings=calm, patience=60.0) as (db, servers):
        await serving(servers, 3)
        for number in range(60):
            session = Session(db, f"s{number}")
            async with session.request() as context:
                await asyncio.gather(*(db.read("k").fetch_value("select 1") for _ in range(5)))
                assert list(context.causality.witnesses.values()) != ["?"]
        assert all(replica.reads for replica in servers.replicas) and not servers.primary_reads


async def test_a_socket_that_stays_open_comes_back_to_replicas_whatever_dies(
    own_cluster: Clusters, tmp_path: Path
) -> None:
    """One request that never ends, pinned when it began. Its replica dies; then the primary does, and another
    one is promoted. Each time it reads from a replica again, and its token has one entry for the cluster."""
    world = await asyncio.to_thread(own_cluster, replicas=2)
    context, seen = RequestContext(), [0]
    context.causality.pinned = True

    async def reads_from_a_replica() -> int:
        """The number of the one that answers."""
        await Session(db, "ann").write("k")
        before = {replica.node: replica.reads for replica in servers.replicas}
        with activate(context):
            async with asyncio.timeout(60):
                while True:
                    row = await db.read("k").fetch_one(READ, bucket_of("k"), "k")
                    seen.append(row["version"] if row is not None else 0)
                    if more := [one.node for one in servers.replicas if one.reads > before.get(one.node, 0)]:
                        return int(more[0].removeprefix("replica-")) - 1

    async with registers(world, tmp_path, patience=60.0) as (db, servers):
        await serving(servers, 2)
        number = await reads_from_a_replica()
        first, second = world.replicas[number], world.replicas[1 - number]
        await asyncio.to_thread(first.kill)
        await until(lambda: "ejected" in states(servers))
        assert await reads_from_a_replica() == 1 - number
        await asyncio.to_thread(first.restart)
        await asyncio.to_thread(second.catch_up)
        await asyncio.to_thread(world.primary.kill)
        await asyncio.to_thread(second.promote)
        await asyncio.to_thread(first.follow, second)
        await until(lambda: servers.primary.dsn == world.url(second))
        await serving(servers, 1)
        assert await reads_from_a_replica() == number
    assert seen == sorted(seen) and seen[-1] > 0
    token = context.causality
    assert len(token.positions) == 1 and len(token.witnesses) == 1 and len(token.leaning) == 1


async def test_a_session_that_has_seen_a_newer_primary_is_not_answered_by_the_old_one(
    calm: Cluster, tmp_path: Path
) -> None:
    """Its token comes from a process that found the new primary first: this one looks for it, and then says
    that it cannot be found, instead of showing what the old primary has."""
    async with registers(calm, tmp_path) as (db, servers):
        await serving(servers, 1)
        ann = Session(db, "ann")
        ann.token = "main:2:0"
        with pytest.raises(DatabaseUnavailable, match="newer primary"):
            await ann.read("k")
        with pytest.raises(DatabaseUnavailable, match="newer primary"):
            async with ann.request(), db.read("k"):
                pass


async def test_a_role_without_any_privilege_can_look(calm: Cluster) -> None:
    """An application's own role sees no details of the receiver: it falls back on what the standby keeps."""
    sql = "drop role if exists plain; create role plain login password 'plain'"
    for statement in sql.split(";"):
        await asyncio.to_thread(calm.primary.query, statement)
    await asyncio.to_thread(calm.replicas[0].catch_up)
    await asyncio.to_thread(calm.replicas[0].query, "checkpoint")
    for server, standby in ((calm.primary, False), (calm.replicas[0], True)):
        eye = Eye(f"postgresql://plain:plain@127.0.0.1:{server.port}/{calm.dbname}", timeout=10.0)
        privileged = Eye(calm.url(server), timeout=10.0)
        try:
            seen, full = await eye.look(), await privileged.look()
            assert (seen.recovering, seen.timeline, seen.run, seen.system) == (
                standby,
                1,
                full.run,
                full.system,
            )
            assert seen.position is not None and full.position is not None
            assert seen.position <= full.position
        finally:
            eye.close()
            privileged.close()


async def test_servers_survive_storms_of_start_stop_and_cancel(calm: Cluster) -> None:
    """At every await of a start, with looks and pools under way: no task and no connection is left."""

    def made() -> Servers:
        return Servers(
            "main",
            Pool(calm.url(), cluster="main"),
            Fixed(members(calm)),
            replica_pool=lambda member: Pool(member.url, size=2, reserved=0),
            settings=QUICK,
        )

    await stress(made, storms=5, pause=0.02)
    ours = "select count(*) from pg_stat_activity where application_name in"
    ours += " ('springtide', 'springtide-look')"
    for server in calm.servers:
        await until_gone(server, ours)


async def until_gone(server: PostgresServer, sql: str) -> None:
    while await asyncio.to_thread(server.query, sql) != "0":
        pass


# -- the world breaks ----------------------------------------------------------------------------------


async def test_a_position_of_a_replica_that_was_killed_means_nothing_to_its_next_run(
    own_cluster: Clusters, tmp_path: Path
) -> None:
    """A replica is looked at, killed, and is back at an older position before anybody looks again: what was
    known of it must not let a read pass, neither over a new connection nor in a new pool."""
    world = await asyncio.to_thread(own_cluster, replicas=1)
    (replica,) = world.replicas
    async with registers(world, tmp_path) as (db, servers):
        await serving(servers, 1)
        ann = Session(db, "ann")
        await asyncio.to_thread(replica.catch_up)
        await asyncio.to_thread(replica.query, "checkpoint")  # it will be back with the table at least
        kept = "select min_recovery_end_lsn <= '{}' from pg_control_recovery()"
        for _ in range(20):  # whenever a page goes to the disk, replay after a crash goes at least as far
            await asyncio.to_thread(replica.catch_up)
            before = await asyncio.to_thread(world.primary.query, "select pg_current_wal_flush_lsn()")
            version = await ann.write("k")
            await asyncio.to_thread(replica.catch_up)
            written = parse_lsn(
                await asyncio.to_thread(world.primary.query, "select pg_current_wal_flush_lsn()")
            )
            await until(lambda end=written: (seen := servers.replicas[0].position) and seen.lsn >= end)
            await until(lambda: servers.replicas[0].lag_bytes == 0)
            assert await ann.read("k") == version
            if await asyncio.to_thread(replica.query, kept.format(before)) == "t":
                break
        server = servers._watch._servers["replica-1"]
        assert server.watching is not None
        await server.watching.stop()  # nobody looks from now on
        known = servers.replicas[0].position
        await asyncio.to_thread(replica.delay, 3600)
        await asyncio.to_thread(replica.kill)
        await asyncio.to_thread(replica.restart)
        sql = READ.replace("$1", "bucket").replace("$2", "'k'")
        older = await asyncio.to_thread(replica.query, sql, dbname="cluster")
        assert not older.startswith(f"{version}|"), older
        assert servers.replicas[0].position == known and states(servers) == ["serving"]  # as it was told
        for _ in range(2):
            assert await ann.read("k") == version
        assert not check(ann.history)


async def test_a_crash_of_one_process_is_another_run_under_the_same_start(own_cluster: Clusters) -> None:
    """The postmaster starts its standby anew from the last restart point, and its own start time stays."""
    world = await asyncio.to_thread(own_cluster, replicas=1)
    (replica,) = world.replicas
    eye = Eye(world.url(replica), timeout=5.0)
    try:
        before = await eye.look()
        connection = await asyncpg.connect(world.url(replica))
        os.kill(await connection.fetchval("select pg_backend_pid()"), signal.SIGKILL)
        await until(connection.is_closed)
        async with asyncio.timeout(60):
            while True:
                try:
                    after = await eye.look()
                except BLIND:  # it is being recovered
                    continue
                if after.run != before.run:
                    break
        assert after.run.started == before.run.started and after.run.reset > before.run.reset
        assert after.recovering and after.system == before.system
    finally:
        eye.close()


@pytest.mark.parametrize("rounds", [1, pytest.param(10, marks=pytest.mark.stress)])
async def test_sessions_never_go_backwards_while_replicas_lag_freeze_and_die(
    own_cluster: Clusters, tmp_path: Path, rounds: int
) -> None:
    """Concurrent sessions over two processes' views, while replicas are held, delayed, frozen, and killed to
    come back at older positions: not one session misses its writes or sees less than before."""
    world = await asyncio.to_thread(own_cluster, replicas=2)
    history: list[Operation] = []
    async with (
        registers(world, tmp_path) as (one, first),
        registers(world, tmp_path, migrate=False) as (other, second),
    ):
        await serving(first, 2)
        await serving(second, 2)
        over = asyncio.Event()

        async def client(number: int) -> None:
            session = Session(one, f"s{number}", history)
            turn = 0
            while not over.is_set():
                turn += 1
                session.db = other if turn % 3 == 0 else one
                key = f"k{(number + turn) % 4}"
                if turn % (7 if number % 2 else 50) == 0:
                    await session.write(key)
                else:
                    await session.read(key)
                await asyncio.sleep(0.003)

        async def chaos() -> None:
            one, two = world.replicas
            for replica, sibling in [(one, two), (two, one)] * (rounds // 2) or [(one, two)]:
                await asyncio.to_thread(sibling.delay, 0.5)
                await asyncio.to_thread(replica.hold)
                await asyncio.to_thread(replica.query, "select pg_sleep(0.3)")
                await asyncio.to_thread(replica.release)
                await asyncio.to_thread(replica.query, "checkpoint")
                await asyncio.to_thread(replica.query, "select pg_sleep(0.5)")
                await asyncio.to_thread(replica.delay, 2)
                await asyncio.to_thread(replica.kill)
                await asyncio.to_thread(replica.restart)
                await asyncio.to_thread(sibling.delay, 0)
                await asyncio.to_thread(sibling.freeze)
                await asyncio.to_thread(replica.query, "select pg_sleep(1.5)")
                await asyncio.to_thread(sibling.thaw)
                await asyncio.to_thread(replica.delay, 0)
                await asyncio.to_thread(replica.catch_up)
            replicas = (*first.replicas, *second.replicas)
            await until(lambda: len(history) > 1000 and min(replica.reads for replica in replicas) > 20)
            over.set()

        async with asyncio.TaskGroup() as group:
            for number in range(6):
                group.create_task(client(number))
            group.create_task(chaos())
    assert check(history) == []


async def test_a_frozen_replica_is_noticed_and_its_readers_are_answered_elsewhere(
    own_cluster: Clusters, tmp_path: Path
) -> None:
    """Also those that had asked it already: they do not wait for it to thaw."""
    world = await asyncio.to_thread(own_cluster, replicas=2)
    async with registers(world, tmp_path) as (db, servers):
        await serving(servers, 2)
        await asyncio.to_thread(world.replicas[0].freeze)
        try:
            readers = (db.read("k", consistency=EVENTUAL).fetch_value("select 1") for _ in range(20))
            assert await asyncio.gather(*readers) == [1] * 20
            await until(lambda: sorted(states(servers)) == ["ejected", "serving"])
        finally:
            await asyncio.to_thread(world.replicas[0].thaw)
        await serving(servers, 2)


async def test_replay_that_cannot_wait_for_a_read_sends_it_elsewhere(
    own_cluster: Clusters, tmp_path: Path
) -> None:
    """A single statement is repeated, here on the primary; a snapshot cannot be, and says so."""
    world = await asyncio.to_thread(own_cluster, replicas=1)
    (replica,) = world.replicas
    await asyncio.to_thread(replica.configure, max_standby_streaming_delay="0")
    async with registers(world, tmp_path) as (db, servers):
        await serving(servers, 1)
        ann = Session(db, "ann")
        await ann.write("k")

        async def conflict() -> None:
            asleep = (
                "select count(*) from pg_stat_activity where state = 'active' and query like '%pg_sleep%'"
            )
            while int(await asyncio.to_thread(replica.query, asleep)) < 2:  # itself, and the reader
                pass
            sql = "update registers.register set value = value; vacuum registers.register"
            for statement in sql.split(";"):
                await asyncio.to_thread(world.primary.query, statement, dbname=world.dbname)

        await asyncio.to_thread(replica.catch_up)
        slow = "select count(*) filter (where pg_sleep(1) is not null) from registers.register"
        async with Session(db, "bob").request():
            reading = asyncio.create_task(db.read("k", consistency=EVENTUAL).fetch_value(slow))
            await conflict()
            assert await reading == 1
        assert servers.primary_reads["none serves"] + servers.primary_reads["lost"] == 1

        await serving(servers, 1)
        with pytest.raises(Unavailable, match="stood in the way"):
            async with Session(db, "eve").request(), db.read("k", consistency=EVENTUAL) as snapshot:
                await snapshot.fetch(READ, bucket_of("k"), "k")
                reading = asyncio.create_task(snapshot.fetch_value(slow))
                await conflict()
                await reading


async def test_a_promoted_replica_takes_over_and_sessions_go_on(
    own_cluster: Clusters, tmp_path: Path
) -> None:
    """Positions of the old timeline pass at the primary alone, until it has been asked for one of the new;
    eventual reads never fail; a replica that did not follow is not read from, whatever its position."""
    world = await asyncio.to_thread(own_cluster, replicas=3)
    heir, follower, _ = world.replicas
    async with registers(world, tmp_path) as (db, servers):
        await serving(servers, 3)
        ann, bob = Session(db, "ann"), Session(db, "bob")
        version = await ann.write("k")
        await bob.read("k")
        eve = Session(db, "eve")
        await eve.write("other")
        for replica in world.replicas:
            await asyncio.to_thread(replica.catch_up)
        over = asyncio.Event()

        async def watcher() -> int:
            count = 0
            while not over.is_set():
                async with Session(db, "watcher").request():
                    await db.read("k", consistency=EVENTUAL).fetch_value("select 1")
                count += 1
            return count

        watching = asyncio.create_task(watcher())
        await asyncio.to_thread(world.primary.kill)
        with pytest.raises(Unavailable):
            await bob.read("k", consistency=Consistency.bounded(0.01))
        await asyncio.to_thread(heir.promote)
        await asyncio.to_thread(follower.follow, heir)
        await until(lambda: servers.primary.dsn == world.url(heir))
        assert await ann.read("k") == version
        assert await ann.write("k") == version + 1
        assert ann.token.startswith("main:2:")
        await until(lambda: [r.state for r in servers.replicas if r.node == "replica-2"] == ["serving"])
        assert await ann.read("k") == version + 1
        assert await bob.read("k") >= version
        assert eve.token.startswith("main:1:")
        for _ in range(2):  # the second asks the primary where it is
            assert await eve.read("k") == version + 1
        assert eve.token.startswith("main:2:")
        strayed = next(r for r in servers.replicas if r.node == "replica-3")
        assert strayed.state == "ejected" and "timeline" in strayed.reason
        over.set()
        assert await watching > 0
        assert not check(ann.history + bob.history)


async def test_a_new_replica_serves_once_everybody_has_learnt_of_it(
    own_cluster: Clusters, tmp_path: Path
) -> None:
    """A session that wrote through a process which knew of no replica has no position: another process may
    not let the replica answer it before that has replayed what was written until all knew."""
    world = await asyncio.to_thread(own_cluster, replicas=1)
    (replica,) = world.replicas
    alone = Fixed(members(world)[:1])
    slow = replace(QUICK, settle=1.0)
    async with (
        registers(world, tmp_path, source=alone) as (unaware, _),
        registers(world, tmp_path, migrate=False, settings=slow) as (aware, servers),
    ):
        await asyncio.to_thread(replica.catch_up)
        ann = Session(unaware, "ann")
        await asyncio.to_thread(replica.hold)
        version = await ann.write("k")
        assert ann.token == ""
        ann.db = aware
        learnt = time.monotonic()
        while time.monotonic() < learnt + 1.5:
            assert await ann.read("k") == version
            assert states(servers) != ["serving"]
            ann.token = ""
        await asyncio.to_thread(replica.release)
        await serving(servers, 1)
        assert await ann.read("k") == version
        assert servers.replicas[0].reads == 1


async def test_members_come_and_go(own_cluster: Clusters, tmp_path: Path) -> None:
    """A replica that is listed is opened, one that is not listed any more is left; without any, no token."""
    world = await asyncio.to_thread(own_cluster, replicas=1)

    class Listed:
        def __init__(self) -> None:
            self.now = members(world)[:1]

        async def members(self) -> list[Member]:
            return self.now

    source = Listed()
    async with registers(world, tmp_path, source=source) as (db, servers):
        ann = Session(db, "ann")
        await ann.write("k")
        assert ann.token == "" and servers.replicas == []
        source.now = members(world)
        await serving(servers, 1)
        await ann.write("k")
        assert ann.token.startswith("main:1:")
        source.now = members(world)[:1]
        await until(lambda: servers.replicas == [])
        assert await ann.read("k") == 2
        streams = "select count(*) from pg_stat_activity"
        streams += " where application_name in ('springtide', 'springtide-look')"
        await until(lambda: servers._watch._leaving == set())
        assert await asyncio.to_thread(world.replicas[0].query, streams) == "0"


class Shrinking:
    """Members that are told once more to have changed when the gate is open."""

    def __init__(self, known: list[Member]) -> None:
        self.known = known
        self.gate = asyncio.Event()
        self.gate.set()

    async def members(self) -> list[Member]:
        await self.gate.wait()
        if len(self.known) == 1:
            self.gate.clear()
        return self.known


async def test_what_is_written_is_noted_until_everybody_has_learnt_that_the_last_replica_left(
    own_cluster: Clusters, tmp_path: Path
) -> None:
    """A process that still knows the replica does not let it answer a session that has written through one
    that does not; after `settle` nothing is noted any more."""
    world = await asyncio.to_thread(own_cluster, replicas=1)
    source = Shrinking(members(world))
    async with (
        registers(world, tmp_path, source=source) as (aware, alone),
        registers(world, tmp_path, migrate=False) as (unaware, servers),
    ):
        await serving(alone, 1)
        await serving(servers, 1)
        async with held(world):
            source.known = source.known[:1]
            await until(lambda: not alone.replicas)
            ann = Session(aware, "ann")
            version = await ann.write("k")
            ann.db = unaware
            assert await ann.read("k") == version
        while alone.replicated:
            source.gate.set()
            await asyncio.sleep(0.05)
        ann.db, ann.token = aware, ""
        await ann.write("k")
        assert ann.token == ""


class Unknown:
    async def members(self) -> list[Member]:
        raise MembersUnknown("nobody tells")


async def test_while_nobody_tells_who_there_is_writes_are_noted(calm: Cluster, tmp_path: Path) -> None:
    """A process that starts then may not take itself to be alone: others read from replicas."""
    async with (
        registers(calm, tmp_path, source=Unknown()) as (blind, _),
        registers(calm, tmp_path, migrate=False) as (db, servers),
    ):
        await serving(servers, 1)
        async with held(calm):
            ann = Session(blind, "ann")
            version = await ann.write("blind")
            ann.db = db
            assert await ann.read("blind") == version


async def test_a_read_at_the_same_time_as_a_commit_is_not_covered_by_its_position(
    calm: Cluster, tmp_path: Path
) -> None:
    """What a replica answers between the question where the log is and its answer may lie behind that."""
    async with registers(calm, tmp_path) as (db, servers):
        await serving(servers, 1)
        async with Session(db, "ann").request() as context, servers.primary.acquire() as connection:
            token = context.causality

            async def overtaken(sql: str) -> Any:
                row = await connection.fetch_one(sql)
                await Session(db, "bob").write("k")
                await asyncio.to_thread(calm.replicas[0].catch_up)
                await db.read("k").fetch_one(READ, bucket_of("k"), "k")
                return row

            await servers._cover(token, overtaken)
            assert list(token.positions) == list(token.witnesses) == ["main"]
            await servers._cover(token, connection.fetch_one)
            assert not token.witnesses


async def test_a_choice_by_hand_keeps_the_same_promises(calm: Cluster, tmp_path: Path) -> None:
    """`choose`, `saw`, `capture` and `cover` are what adapters of other libraries are made of."""
    async with registers(calm, tmp_path) as (_, servers):
        await serving(servers, 1)
        token = CausalityToken()
        choice = servers.choose(Consistency.SESSION, token)
        assert choice.node == "replica-1" and choice.witness is not None
        token.saw("main", choice.witness)
        with activate(RequestContext(causality=token)):
            assert servers.choose(Consistency.SESSION, token).node == "replica-1"
        token.doubt("main")
        assert servers.choose(Consistency.SESSION, token).why == "unsure"
        async with servers.primary.acquire() as connection:
            sights = token.sights("main")
            token.cover("main", await servers.capture(connection.raw), sights=sights)
        await until(lambda: servers.choose(Consistency.SESSION, token).node == "replica-1")
        assert servers.choose(STRONG, token).why == "strong"
        assert servers.choose(Consistency.SESSION, None).why == "no session"
