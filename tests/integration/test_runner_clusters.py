"""The runner keeps a cluster: one primary at any time, replicas that follow, acknowledged commits kept."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import asyncpg
import pytest
from tests._keeping import kept, primaries, until
from tests.servers import scratch

from springtide.errors import RunnerError
from springtide.ops.runner import clusters, membership, pgdata, promoting, replication, tending
from springtide.ops.runner.clusters import Keeper
from springtide.ops.runner.postgres import EmbeddedPostgres
from springtide.ops.runner.records import Record, read_record, write_record
from springtide.ops.runner.standby import is_standby, slot_name


@pytest.fixture
def home() -> Iterator[Path]:
    made = scratch("springtide-cluster-")
    yield made / "home"
    shutil.rmtree(made, ignore_errors=True)


class Writer:
    """Writes one row after the other to whoever is primary; `acked` are those that were acknowledged."""

    def __init__(self, keeper: Keeper) -> None:
        self.keeper = keeper
        self.acked: list[int] = []
        self.next = 0

    async def write(self) -> None:
        number, self.next = self.next, self.next + 1
        await self.keeper.server().query(f"insert into kept values ({number})", timeout=20.0)
        self.acked.append(number)

    async def run(self) -> None:
        while True:
            try:
                await self.write()
            except (RunnerError, AssertionError):
                await asyncio.sleep(0.02)

    async def lost(self) -> set[int]:
        there = (await self.keeper.server().query("select id from kept")).split()
        return set(self.acked) - {int(row) for row in there}


def left(home: Path) -> list[object]:
    """Processes and half-made folders of a cluster that was stopped."""
    data = home / "data"
    servers: list[object] = [pid for folder in data.iterdir() for pid in pgdata.servers(folder)]
    return servers + [path.name for path in data.iterdir() if path.name.startswith(".")]


async def streaming(keeper: Keeper) -> bool:
    """Whether every replica runs and streams from the primary."""
    if not all(child.running for child in keeper.children):
        return False
    try:
        said = await keeper.server().query(
            "select count(*) from pg_stat_replication where state = 'streaming'"
        )
    except RunnerError:
        return False
    return int(said) == len(keeper.replicas)


@pytest.mark.parametrize("how", ["freeze", "postmaster"])
async def test_a_dead_primary_is_replaced(home: Path, how: str) -> None:
    """Frozen under writes, or killed while its backends live, with quorum: one primary, nothing acknowledged
    lost, the old one rejoins."""
    async with kept(home, replicas=("r1", "r2"), quorum=True, failover_after=1.5) as keeper:
        await keeper.server().query("create table kept (id int)")
        writer = Writer(keeper)
        writing = asyncio.ensure_future(writer.run())
        await until(lambda: asyncio.sleep(0, len(writer.acked) > 5))
        data, pid = keeper.server().data, keeper.server().pid
        if how == "postmaster":
            os.kill(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGSTOP)  # first, so that no new backend appears meanwhile
            for process in await asyncio.to_thread(pgdata.servers, data):
                os.kill(process, signal.SIGSTOP)
        acked = len(writer.acked)
        await until(lambda: asyncio.sleep(0, keeper.primary != "db" and len(writer.acked) > acked + 5))
        await until(lambda: streaming(keeper))
        writing.cancel()
        await asyncio.wait([writing])
        assert await writer.lost() == set()
        assert await asyncio.to_thread(primaries, home) == [keeper.primary]
        assert keeper.role("db") == "replica" and keeper.epoch == 2
        noted = await asyncio.to_thread(record, home)
        assert (noted.primary, noted.promoting) == (keeper.primary, False)
        assert set(noted.voters) == set(keeper.replicas)  # of whom the next failover must hear
    assert await asyncio.to_thread(left, home) == []


async def test_a_promotion_that_hangs_is_told_and_carried_out_once_it_can_be(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The replica's recovery is frozen: the step is in the status, ends at its bound, and is done again."""
    monkeypatch.setattr(promoting, "PROMOTE", 5.0)
    async with kept(home, replicas=("r1",), quorum=True) as keeper:
        await keeper.server().query("create table kept (id int); insert into kept values (1)")
        recovery = int(
            await keeper.server("r1").query("select pid from pg_stat_activity where backend_type = 'startup'")
        )
        os.kill(recovery, signal.SIGSTOP)
        try:
            os.kill(keeper.server().pid, signal.SIGKILL)
            await until(lambda: asyncio.sleep(0, "promote r1, at most" in (keeper.notice or "")))
            assert keeper.primary == "r1" and not keeper.settled
            await until(lambda: asyncio.sleep(0, "was not promoted within 5 s" in caplog.text))
            assert await asyncio.to_thread(primaries, home) == []
        finally:
            os.kill(recovery, signal.SIGCONT)
        await until(lambda: asyncio.sleep(0, keeper.settled))
        await until(lambda: streaming(keeper))
        await until(lambda: asyncio.sleep(0, keeper.notice is None))
        assert keeper.epoch == 2
        assert await keeper.server("db").query("select id from kept") == "1"


async def write_until_it_fails(home: Path, acked: list[int]) -> None:
    """Rows to the first primary, one commit each."""
    found = await asyncio.to_thread(pgdata.postmaster, home / "data" / "db")
    assert found is not None
    password = (home / "secrets" / "db.password").read_text().strip()
    connection = await asyncpg.connect(
        host="127.0.0.1", port=found.port, user="springtide", password=password, database="postgres"
    )
    try:
        await connection.execute("create table if not exists kept (id int)")
        while True:
            await connection.execute("insert into kept values ($1)", len(acked))
            acked.append(len(acked))
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError):
        pass
    finally:
        connection.terminate()


def record(home: Path) -> Record:
    found = read_record(home / "clusters", "main")
    assert found is not None
    return found


MOMENTS: dict[str, Callable[[Path], bool]] = {
    "dead": lambda home: True,
    "decided": lambda home: record(home).promoting,
    "fenced": lambda home: is_standby(home / "data" / "db"),
    "promoted": lambda home: record(home).epoch == 2 and not is_standby(home / "data" / record(home).primary),
    "done": lambda home: record(home).epoch == 2 and not record(home).promoting,
}


async def die_and_kill_the_runner(home: Path, reached: Callable[[Path], bool]) -> list[int]:
    """Kill the primary under writes, then the runner at a moment of the failover; what was acknowledged."""
    options = json.dumps({"replicas": ["r1", "r2"], "quorum": True})
    command = [sys.executable, "-m", "tests._keeping", str(home), options]
    runner = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    acked: list[int] = []
    try:
        assert runner.stdout is not None and await runner.stdout.readline() == b"up\n"
        writing = asyncio.ensure_future(write_until_it_fails(home, acked))
        await until(lambda: asyncio.sleep(0, len(acked) > 20))
        for process in await asyncio.to_thread(pgdata.servers, home / "data" / "db"):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        await writing
        await until(lambda: asyncio.to_thread(reached, home))
    finally:
        runner.kill()
        await runner.wait()
    return acked


async def recovered(home: Path, acked: list[int]) -> None:
    """A new runner: one primary, which has every acknowledged row; all others follow it; nothing is left."""
    async with kept(home, replicas=("r1", "r2"), quorum=True) as keeper:
        await until(lambda: streaming(keeper))
        assert await asyncio.to_thread(primaries, home) == [keeper.primary]
        rows = (await keeper.server().query("select id from kept")).split()
        assert set(acked) - {int(row) for row in rows} == set()
        await keeper.server().query("insert into kept values (-1)")
        assert keeper.settled and len(keeper.replicas) == 2
    assert await asyncio.to_thread(left, home) == []


@pytest.mark.parametrize("moment", ["dead", "decided", "promoted"])
async def test_the_runner_is_killed_in_the_middle_of_a_promotion(home: Path, moment: str) -> None:
    """What was decided is finished by the next runner; what was not, is not: never two primaries."""
    acked = await die_and_kill_the_runner(home, MOMENTS[moment])
    await recovered(home, acked)


class Watched(EmbeddedPostgres):
    """Notes, when it is promoted, who works on the data of `db`, and whether that is a replica's."""

    seen: tuple[list[int], bool] | None = None

    async def promote(self, *, timeout: float = 60.0) -> None:
        self.seen = await asyncio.to_thread(self._look, self.home / "data" / "db")
        await super().promote(timeout=timeout)

    def _look(self, data: Path) -> tuple[list[int], bool]:
        return pgdata.servers(data.resolve()), is_standby(data)


@pytest.mark.parametrize("runner", ["lives", "was killed"])
async def test_the_old_primary_is_fenced_before_another_is_promoted(home: Path, runner: str) -> None:
    """None of its processes is left and its folder is a replica's, also when a runner died after deciding
    and left the old primary at work."""
    made: dict[str, Watched] = {}

    async def make(node: str) -> EmbeddedPostgres:
        made[node] = Watched(node, home=home, durable=False, max_connections=50)
        return made[node]

    if runner == "was killed":
        command = [sys.executable, "-m", "tests._keeping", str(home), json.dumps({"replicas": ["r1"]})]
        dying = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert dying.stdout is not None and await dying.stdout.readline() == b"up\n"
        dying.kill()
        await dying.wait()
        assert await asyncio.to_thread(primaries, home) == ["db"]
        decided = Record(primary="r1", epoch=2, promoting=True)
        await asyncio.to_thread(write_record, home / "clusters", "main", decided)
    keeper = Keeper(
        "main",
        primary="db",
        replicas=("r1",),
        folder=home / "clusters",
        make=make,
        changed=lambda: None,
    )
    try:
        await keeper.start()
        if runner == "lives":
            await until(lambda: streaming(keeper))
            await keeper.promote("r1")
        assert keeper.primary == "r1" and made["r1"].seen == ([], True)
        await until(lambda: streaming(keeper))
    finally:
        await keeper.stop()


@pytest.mark.stress
@pytest.mark.parametrize("attempt", range(20))
async def test_the_runner_is_killed_at_any_moment_of_a_promotion(home: Path, attempt: int) -> None:
    """As above, at a random time after one of the moments."""
    reached = random.choice(list(MOMENTS.values()))
    acked = await die_and_kill_the_runner(
        home, lambda path: reached(path) and (time.sleep(random.uniform(0, 0.5)) or True)
    )
    await recovered(home, acked)


async def test_what_dies_without_quorum_is_started_again_where_it_is(home: Path) -> None:
    """A replica comes back and streams, and nobody else is touched. A primary loses nothing, nobody is
    promoted, and the replicas go on following."""
    async with kept(home, replicas=("r1", "r2"), failover_after=30.0) as keeper:
        await keeper.server().query("create table kept (id int); insert into kept values (1)")
        pids = {node: keeper.server(node).pid for node in ("db", "r2")}
        os.kill(keeper.server("r1").pid, signal.SIGKILL)
        await until(lambda: asyncio.sleep(0, keeper.members["r1"].child.restarts == 1))
        await until(lambda: streaming(keeper))
        assert {node: keeper.server(node).pid for node in ("db", "r2")} == pids
        os.kill(pids["db"], signal.SIGKILL)
        await until(lambda: asyncio.sleep(0, keeper.members["db"].child.restarts == 1))
        await until(lambda: streaming(keeper))
        assert (keeper.primary, keeper.epoch) == ("db", 1)
        assert await keeper.server().query("select id from kept") == "1"


async def test_a_primary_that_cannot_come_back_is_replaced(home: Path) -> None:
    """Without quorum: its folder is broken, so in the end the replica takes over, and it is copied."""
    async with kept(home, replicas=("r1",), failover_after=1.0) as keeper:
        await keeper.server().query("create table kept (id int); insert into kept values (1)")
        await until(lambda: streaming(keeper))
        (keeper.server().data / "global" / "pg_control").rename(home / "lost")
        os.kill(keeper.server().pid, signal.SIGKILL)
        await until(lambda: asyncio.sleep(0, keeper.primary == "r1" and keeper.settled))
        await until(lambda: streaming(keeper))
        assert await keeper.server("db").query("select id from kept") == "1"


async def test_a_slow_recovery_is_left_alone_until_another_can_take_over(
    home: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without quorum, the replica runs and does not say its position: the primary that hangs in its start is
    not killed again and again. Once the replica answers, it takes over."""
    monkeypatch.setattr(replication, "TIMEOUT", 0.5)
    async with kept(home, replicas=("r1",), failover_after=0.5) as keeper:
        await until(lambda: streaming(keeper))
        data, frozen = keeper.server().data, await asyncio.to_thread(pgdata.servers, keeper.server("r1").data)
        (data / "pg_ident.conf").rename(home / "pg_ident.conf")
        os.mkfifo(data / "pg_ident.conf")  # its start waits for somebody who writes to it
        (data / "pg_ident.conf").chmod(0o644)
        for process in frozen:
            os.kill(process, signal.SIGSTOP)
        try:
            old = keeper.server().pid
            os.kill(old, signal.SIGKILL)
            await until(lambda: asyncio.to_thread(postmaster_but, data, old))
            begun = await asyncio.to_thread(postmaster_but, data, old)
            await until(lambda: asyncio.sleep(0, (keeper._promoting.down_for or 0.0) > 0.5))
            looks = keeper._looks
            await until(lambda: asyncio.sleep(0, keeper._looks > looks + 1))
            assert await asyncio.to_thread(postmaster_but, data, old) == begun
        finally:
            (home / "pg_ident.conf").rename(data / "pg_ident.conf")
            for process in frozen:
                os.kill(process, signal.SIGCONT)
        monkeypatch.undo()
        await until(lambda: asyncio.sleep(0, keeper.primary == "r1" and keeper.settled))
        assert "primary db does not come back within 0.5 s" in caplog.text


def postmaster_but(data: Path, old: int) -> int | None:
    found = pgdata.postmaster(data)
    return None if found is None or found.pid == old else found.pid


async def test_nobody_is_promoted_who_may_lack_an_acknowledged_commit(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With quorum and one replica unheard, which may have confirmed alone: the primary is started again."""
    monkeypatch.setattr(promoting, "PATIENCE", 2.0)
    monkeypatch.setattr(replication, "TIMEOUT", 2.0)
    async with kept(home, replicas=("r1", "r2"), quorum=True) as keeper:
        await keeper.server().query("create table kept (id int)")
        await until(lambda: streaming(keeper))
        silent = keeper.server("r1")
        for process in await asyncio.to_thread(pgdata.servers, silent.data):
            os.kill(process, signal.SIGSTOP)
        await keeper.server().query("insert into kept values (1)")  # only r2 confirms it
        for process in await asyncio.to_thread(pgdata.servers, keeper.server("r2").data):
            os.kill(process, signal.SIGSTOP)
        for process in await asyncio.to_thread(pgdata.servers, silent.data):
            os.kill(process, signal.SIGCONT)
        os.kill(keeper.server().pid, signal.SIGKILL)
        await until(lambda: asyncio.sleep(0, keeper.members["db"].child.restarts == 1))
        assert (keeper.primary, keeper.epoch) == ("db", 1)
        assert await keeper.server().query("select id from kept") == "1"
        for process in await asyncio.to_thread(pgdata.servers, keeper.server("r2").data):
            os.kill(process, signal.SIGCONT)


async def test_writes_wait_for_a_replica_and_that_is_told(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With quorum and no replica that confirms, a write waits and the notice says so, until one is back. A
    slot of nobody goes meanwhile, and those of others stay."""
    monkeypatch.setattr(clusters, "LINKS_EVERY", 1)
    async with kept(home, replicas=("r1",), quorum=True) as keeper:
        await keeper.server().query("create table kept (id int)")
        await keeper.members["r1"].child.stop()
        writing = asyncio.ensure_future(keeper.server().query("insert into kept values (1)", timeout=90.0))
        await until(lambda: asyncio.sleep(0, "writes wait" in (keeper.notice or "")))
        make = "select pg_create_physical_replication_slot('{0}', true);\n"
        await keeper.server().query(make.format("springtide_gone") + make.format("theirs"))
        await until(lambda: slots(keeper, [slot_name("r1"), "theirs"]))
        assert not writing.done()
        await keeper.members["r1"].child.start()
        await writing
        await until(lambda: asyncio.sleep(0, keeper.notice is None))


async def test_a_replica_that_lost_its_log_is_copied_anew(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its slot was invalidated while it was away: it is rebuilt by a base backup, which the log says."""
    async with kept(home, replicas=("r1",)) as keeper:
        server = keeper.server()
        await server.query("create table kept (id int)")
        replica = keeper.server("r1")
        await keeper.members["r1"].child.stop()
        await server.query("alter system set max_slot_wal_keep_size = '1MB'")
        await server.query("alter system set wal_keep_size = 0; select pg_reload_conf()")
        for _ in range(4):
            await server.query("insert into kept values (1); select pg_switch_wal(); checkpoint")
        said = "select wal_status from pg_replication_slots"
        await until(lambda: is_lost(server, said))
        await server.query("alter system reset max_slot_wal_keep_size")
        await server.query("select pg_reload_conf()")
        await keeper.members["r1"].child.start()
        await until(lambda: asyncio.sleep(0, keeper.members["r1"].child.restarts >= 1))
        await until(lambda: streaming(keeper))
        assert await replica.query("select count(*) from kept") == "4"
        assert "copied anew" in caplog.text


async def is_lost(server: EmbeddedPostgres, sql: str) -> bool:
    await server.query("checkpoint")
    return await server.query(sql) == "lost"


def serves_again(data: Path, before: pgdata.Postmaster) -> bool:
    found = pgdata.postmaster(data)
    return found is not None and found.status == "ready" and found.pid != before.pid


async def test_a_replica_that_becomes_primary_is_not_removed(home: Path) -> None:
    """Asked for while it is promoted: it is refused once that is done, and the data stay."""
    async with kept(home, replicas=("r1",)) as keeper:
        await keeper.server().query("create table kept (id int); insert into kept values (1)")
        await until(lambda: streaming(keeper))
        promoting = asyncio.ensure_future(keeper.promote("r1"))
        await until(lambda: asyncio.sleep(0, keeper.deciding.locked()))
        assert keeper.primary == "db"
        with pytest.raises(RunnerError, match="r1 is the primary"):
            await keeper.remove("r1")
        await promoting
        assert await keeper.server("r1").query("select id from kept") == "1"


async def test_voters_are_noted_before_a_server_is_told_of_them(home: Path) -> None:
    """A replica that came into the topology while nothing ran may confirm from the primary's start on."""
    seen: list[tuple[str, ...]] = []

    class Watched(EmbeddedPostgres):
        async def start(self) -> None:
            seen.append((await asyncio.to_thread(record, home)).voters)
            raise RunnerError("seen")

    async def make(node: str) -> EmbeddedPostgres:
        return Watched(node, home=home)

    home.mkdir()
    await asyncio.to_thread(write_record, home / "clusters", "main", Record(primary="db", voters=("r1",)))
    options = {"folder": home / "clusters", "make": make, "changed": lambda: None, "quorum": True}
    keeper = Keeper("main", primary="db", replicas=("r1", "r2"), **options)
    with pytest.raises(RunnerError, match="seen"):
        await keeper.start()
    assert seen == [("r1", "r2")]


async def test_what_was_acknowledged_before_commits_had_to_be_confirmed_is_kept(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster becomes one with quorum while its replica is behind: that one is not promoted until it has
    caught up once, and then it is. When the data of the primary are gone as it is to be started, the other
    one has all and takes over: no empty database takes their place."""
    monkeypatch.setattr(tending, "BEGIN", 1)
    monkeypatch.setattr(clusters, "LINKS_EVERY", 1)
    async with kept(home, replicas=("r1",)) as keeper:
        cut = "alter system set primary_conninfo = 'host=127.0.0.1 port=1'; select pg_reload_conf()"
        await keeper.server().query("create table kept (id int)")
        await until(lambda: streaming(keeper))
        await keeper.server("r1").query(cut.replace("; ", ";\n"))
        await until(lambda: gone(keeper))
        await keeper.server().query("insert into kept values (1)")
    async with kept(home, replicas=("r1",), quorum=True) as keeper:
        os.kill(keeper.server().pid, signal.SIGKILL)
        await until(lambda: asyncio.sleep(0, keeper.members["db"].child.restarts == 1))
        assert keeper.primary == "db" and await keeper.server().query("select id from kept") == "1"
        await keeper.server("r1").query(
            cut.replace("set primary_conninfo = 'host=127.0.0.1 port=1'; ", "reset primary_conninfo;\n")
        )
        await until(lambda: asyncio.sleep(0, keeper.record.voters == ("r1",)))
        os.kill(keeper.server().pid, signal.SIGKILL)
        await until(lambda: asyncio.sleep(0, keeper.primary == "r1" and keeper.settled))
        assert await keeper.server().query("select id from kept") == "1"
        await until(lambda: streaming(keeper))
    (home / "data" / "r1").rename(home / "lost")
    async with kept(home, replicas=("r1",), quorum=True) as keeper:
        assert (keeper.primary, keeper.epoch) == ("db", 3)
        assert await keeper.server().query("select id from kept") == "1"
        await until(lambda: streaming(keeper))


async def slots(keeper: Keeper, expected: list[str]) -> bool:
    said = await keeper.server().query("select slot_name from pg_replication_slots order by 1")
    return said.split() == expected


async def gone(keeper: Keeper) -> bool:
    return await keeper.server().query("select count(*) from pg_stat_replication") == "0"


async def test_members_come_and_go_under_writes(
    home: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replicas are added and removed with quorum while rows are written: none is lost, no slot is left. One
    that dies as it joins is started again. Where the primary is counts once the leaver has ended and confirms
    nothing; the only one that confirms has to stay."""
    asked = replication.links
    lives: list[object] = []

    async def links(primary: EmbeddedPostgres) -> Mapping[str, replication.Link]:
        lives.append(await asyncio.to_thread(pgdata.postmaster, home / "data" / "r1"))
        return await asked(primary)

    async with kept(home, replicas=("r1",), quorum=True) as keeper:
        await keeper.server().query("create table kept (id int)")
        writer = Writer(keeper)
        writing = asyncio.ensure_future(writer.run())
        async with keeper.deciding:  # so that it waits to be a member
            adding = asyncio.ensure_future(keeper.add("r2"))
            await until(lambda: asyncio.sleep(0, "waiters" in repr(keeper.deciding) or adding.done()))
            found = await asyncio.to_thread(pgdata.postmaster, home / "data" / "r2")
            assert found is not None and not adding.done()
            os.kill(found.pid, signal.SIGKILL)
            await until(lambda: asyncio.to_thread(serves_again, home / "data" / "r2", found))
        await adding
        assert "not watched any more" not in caplog.text
        assert (await asyncio.to_thread(record, home)).voters == ("r1", "r2")
        monkeypatch.setattr(replication, "links", links)
        await keeper.remove("r1")
        assert lives[0] is not None and lives[-1] is None
        assert (await asyncio.to_thread(record, home)).voters == ("r2",)
        acked = len(writer.acked)
        await until(lambda: asyncio.sleep(0, len(writer.acked) > acked + 3))
        writing.cancel()
        await asyncio.wait([writing])
        assert await writer.lost() == set()
        assert await keeper.server().query("select slot_name from pg_replication_slots") == slot_name("r2")
        assert "r2" in await keeper.server().query("show synchronous_standby_names")
        async with asyncio.timeout(membership.JOIN / 2):  # at once: no commit may go unconfirmed meanwhile
            with pytest.raises(RunnerError, match="has to stay"):
                await keeper.remove("r2")
    assert await asyncio.to_thread(left, home) == []
