"""The embedded PostgreSQL as a streaming replica: copied, followed, adopted, promoted, rewound."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import asyncpg
import pytest
from tests.servers import scratch

from springtide.errors import RunnerError
from springtide.ops.runner import pgdata, standby
from springtide.ops.runner.postgres import EmbeddedPostgres
from springtide.ops.runner.standby import Upstream, slot_name


@pytest.fixture
def home() -> Iterator[Path]:
    made = scratch("springtide-standby-")
    yield made / "home"
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
async def primary(home: Path) -> AsyncIterator[EmbeddedPostgres]:
    server = EmbeddedPostgres("db", home=home, durable=False)
    await server.start()
    await server.query("create table kept (id int); insert into kept values (1)")
    yield server
    await server.stop()


def following(primary: EmbeddedPostgres, name: str = "r1") -> EmbeddedPostgres:
    follows = Upstream(primary.name, primary.port)
    return EmbeddedPostgres(name, home=primary.home, follows=follows, durable=False)


async def until(condition: Callable[[], Awaitable[object]], *, seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


async def has(server: EmbeddedPostgres, rows: str) -> bool:
    return await server.query("select string_agg(id::text, ' ' order by id) from kept") == rows


async def test_a_replica_follows(primary: EmbeddedPostgres) -> None:
    """It has what was there and what comes; it takes no writes; its slot is active on the primary."""
    replica = following(primary)
    await replica.start()
    try:
        assert await has(replica, "1")
        await primary.query("insert into kept values (2)")
        await until(lambda: has(replica, "1 2"))
        with pytest.raises(RunnerError, match="read-only transaction"):
            await replica.query("insert into kept values (3)")
        said = await primary.query(
            "select slot_name, active, application_name from pg_replication_slots"
            " join pg_stat_replication on pid = active_pid"
        )
        assert said == f"{slot_name('r1')}|t|r1"
    finally:
        await replica.stop()


async def test_its_password_is_private(primary: EmbeddedPostgres) -> None:
    """The cluster's password is in files of the owner only, and on no command line or setting."""
    replica = following(primary)
    await replica.start()
    try:
        secret = (primary.home / "secrets" / "db.password").read_text().strip()
        assert (primary.home / "secrets" / "r1.password").read_text().strip() == secret
        assert secret not in await replica.query("show primary_conninfo")
        for file in (replica.data / standby.PASSFILE, primary.home / "secrets" / "r1.password"):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
    finally:
        await replica.stop()


async def test_a_replica_is_adopted(primary: EmbeddedPostgres) -> None:
    """A second owner of the home takes the running replica over, and it goes on following."""
    first, second = following(primary), following(primary)
    await first.start()
    await second.start()
    try:
        assert (second.adopted, second.pid) == (True, first.pid)
        await primary.query("insert into kept values (2)")
        await until(lambda: has(second, "1 2"))
    finally:
        await second.stop()
        await first.stop()


async def test_a_replica_is_never_opened_as_a_primary(primary: EmbeddedPostgres) -> None:
    """Whoever takes its folder for a primary's is refused; also while it runs, which ends it."""
    replica = following(primary)
    await replica.start()
    wrong = EmbeddedPostgres("r1", home=primary.home, durable=False)
    with pytest.raises(RunnerError, match="it can only follow"):
        await wrong.start()
    assert await asyncio.to_thread(pgdata.servers, replica.data) == []
    await replica.stop()


async def test_it_finds_a_primary_that_moved(primary: EmbeddedPostgres) -> None:
    """With a reload, without a restart, a replica follows its primary to another port."""
    replica = following(primary)
    await replica.start()
    try:
        pid = replica.pid
        await primary.stop()
        primary._port = None
        await primary.start()
        await primary.query("insert into kept values (2)")
        replica.follows = Upstream("db", primary.port)
        await replica.reload()
        await until(lambda: has(replica, "1 2"))
        assert replica.pid == pid
    finally:
        await replica.stop()


async def test_nobody_who_reads_holds_a_promotion_up(primary: EmbeddedPostgres) -> None:
    """Replay stands still before what removes rows that a reader of the replica still sees, for 30 s by
    PostgreSQL's default; a promotion has to replay it, and ends the reader."""
    replica = following(primary)
    await replica.start()
    try:
        await until(lambda: has(replica, "1"))
        reader = await asyncpg.connect(replica.url())
        try:
            await reader.execute("begin isolation level repeatable read")
            assert await reader.fetchval("select count(*) from kept") == 1
            assert await replica.query(standby.END_READERS) == "0"  # nobody waits for him yet
            await primary.query("delete from kept; insert into kept values (2)")
            await primary.query("vacuum kept")
            await until(lambda: waits_for_a_reader(replica))
            await primary.kill()
            await replica.promote(timeout=20.0)
            assert await has(replica, "2")
            with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, OSError)):
                await reader.fetchval("select 1")
        finally:
            reader.terminate()
        await replica.query("insert into kept values (3)")
        assert await replica.query("show max_standby_streaming_delay") == "30s"
    finally:
        await replica.stop()


async def waits_for_a_reader(replica: EmbeddedPostgres) -> bool:
    sql = "select count(*) from pg_stat_activity where wait_event like 'RecoveryConflict%'"
    return await replica.query(sql) == "1"


async def test_promotion_and_return_of_the_old_primary(primary: EmbeddedPostgres) -> None:
    """The promoted replica takes writes on a new timeline; the old primary, which has rows that nobody else
    got, is fenced, rewound and follows without them."""
    replica = following(primary)
    await replica.start()
    try:
        await replica.stop()  # so that it misses what comes now
        await primary.query("insert into kept values (2)")
        await primary.fence()
        await primary.stop()
        await replica.start()
        await replica.promote()
        await replica.query("insert into kept values (3)")
        assert await replica.query("select timeline_id from pg_control_checkpoint()") == "2"
        with pytest.raises(RunnerError, match="it can only follow"):
            await primary.start()
        primary.follows = Upstream("r1", replica.port)
        await primary.start()
        await until(lambda: has(primary, "1 3"))
        assert "pg_rewind: Done!" in (primary.home / "logs" / "db.log").read_text()  # and no copy
        assert await asyncio.to_thread(standby.repair_wanted, primary.data) is None
    finally:
        await replica.stop()


async def test_a_rewind_that_was_cut_off_is_followed_by_a_copy(primary: EmbeddedPostgres) -> None:
    """A folder that a rewind may have half changed is not opened: it is copied anew."""
    replica = following(primary)
    await replica.start()
    await replica.stop()
    (replica.data / "base").rename(replica.data / "lost")  # what a cut-off rewind may leave: anything
    await asyncio.to_thread(standby.want_repair, replica.data, "copy")
    await replica.start()
    try:
        assert await has(replica, "1") and not (replica.data / "lost").exists()
        assert await asyncio.to_thread(standby.repair_wanted, replica.data) is None
    finally:
        await replica.stop()


async def test_only_a_replica_that_ended_in_order_is_rewound(
    primary: EmbeddedPostgres, caplog: pytest.LogCaptureFixture
) -> None:
    """One that was killed would recover alone, and end its log with records that nobody else has: it counts
    as the one that goes furthest, and lacks what is written there. It is copied."""
    replica = following(primary)
    for number, end in enumerate((replica.shut_down, replica.kill), start=2):
        await replica.start()
        await end()
        await replica.stop()
        await primary.query(f"insert into kept values ({number})")
        await asyncio.to_thread(standby.want_repair, replica.data, "rewind")
        await replica.start()
        await until(lambda number=number: has(replica, " ".join(map(str, range(1, number + 1)))))
        assert ("it is copied anew" in caplog.text) == (end == replica.kill)
    await replica.stop()


async def test_a_copy_confirms_no_commit(primary: EmbeddedPostgres) -> None:
    """While the base backup of a replica is made, which may come to nothing, it does not count as that."""
    await primary.query("create table big as select g, repeat('x', 500) t from generate_series(1, 60000) g")
    primary.confirming = ("r1",)
    await primary.reload()
    staging = primary.home / "data"
    replica = following(primary)
    starting = asyncio.ensure_future(replica.start())

    def copying() -> dict[int, bool]:
        """Its processes; True: the one that it forked for the log."""
        found = {}
        for pid in (pid for folder in staging.glob(".new-r1-*") for pid in pgdata.inside(folder)):
            with contextlib.suppress(ProcessLookupError):
                found[pid] = os.getsid(pid) != pid
        return found

    async def said() -> str:
        return await primary.query("select sync_state from pg_stat_replication where state = 'streaming'")

    def stop_copying() -> list[int]:
        """Once the log has its process; whoever ended meanwhile is not among those that were stopped."""
        found, held = copying(), []
        for pid, log in found.items():
            if not log and any(found.values()):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
                    held.append(pid)
        return held

    async def stopping() -> list[int]:
        stopped.extend(await asyncio.to_thread(stop_copying))
        return stopped

    stopped: list[int] = []
    await until(stopping)
    try:
        await until(said)
        assert await said() == "async"
    finally:
        for pid in stopped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    await starting

    async def confirms() -> bool:
        return await said() == "quorum"

    await until(confirms)
    await replica.stop()


async def test_a_copy_that_has_no_room_is_not_begun(
    primary: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would fill the disk that the primary writes to, each time that it is tried again."""
    size = int(await primary.query("select sum(pg_database_size(oid)) from pg_database"))
    usage = shutil.disk_usage(primary.home)
    for free, fits in ((size // 2 + pgdata.NEEDED_BYTES, False), (2 * size + pgdata.NEEDED_BYTES, True)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        replica = following(primary)
        if fits:
            await replica.start()
            await replica.stop()
        else:
            with pytest.raises(RunnerError, match="no room for a new database"):
                await replica.start()
            assert sorted(path.name for path in (primary.home / "data").iterdir()) == ["db"]


async def test_a_rewind_that_cannot_work_becomes_a_copy(primary: EmbeddedPostgres) -> None:
    """A folder of another database cannot be rewound: it is replaced by a base backup."""
    stranger = EmbeddedPostgres("r1", home=primary.home, durable=False)
    await stranger.start()
    await stranger.stop()
    replica = following(primary)
    await replica.start()
    try:
        assert await has(replica, "1")
    finally:
        await replica.stop()


async def test_a_rewound_primary_that_lacks_a_part_of_the_log_is_copied(primary: EmbeddedPostgres) -> None:
    """The new primary has removed what the rewound one needs to be opened: it is made anew, at once."""
    replica = following(primary)
    replica.replicated = False  # it keeps no more of its log than it must
    await replica.start()
    try:
        await primary.fence()
        await primary.stop()
        await replica.promote()
        for _ in range(4):
            await replica.query("insert into kept values (3); select pg_switch_wal(); checkpoint")
        oldest = await replica.query("select min(name) from pg_ls_waldir() where length(name) = 24")
        assert oldest > "000000020000000000000003"
        primary.follows = Upstream("r1", replica.port)
        await primary.start()
        await until(lambda: has(primary, "1 3 3 3 3"))
    finally:
        await replica.stop()


COPY = """
import asyncio, sys
from pathlib import Path
from springtide.ops.runner.postgres import EmbeddedPostgres
from springtide.ops.runner.standby import Upstream
async def main():
    follows = Upstream("db", int(sys.argv[2]))
    await EmbeddedPostgres("r1", home=Path(sys.argv[1]), follows=follows, durable=False).start()
asyncio.run(main())
"""


@pytest.mark.parametrize("moment", ["begun", "copying"])
async def test_a_killed_base_backup_leaves_nothing(primary: EmbeddedPostgres, moment: str) -> None:
    """kill -9 of the supervisor while it copies: no half database; the next start makes a whole one."""
    await primary.query("create table big as select g, repeat('x', 500) t from generate_series(1, 60000) g")
    data = primary.home / "data"
    child = await asyncio.to_thread(
        subprocess.Popen, [sys.executable, "-c", COPY, str(primary.home), str(primary.port)]
    )

    async def copying() -> bool:
        files = await asyncio.to_thread(lambda: list(data.glob(".new-r1-*/data/*")))
        return bool(files) if moment == "copying" else bool(list(data.glob(".new-r1-*")))

    try:
        await until(copying)
    finally:
        os.kill(child.pid, signal.SIGKILL)
        await asyncio.to_thread(child.wait)
    assert not (data / "r1" / "PG_VERSION").exists()
    replica = following(primary)
    await replica.start()
    try:
        assert await replica.query("select count(*) from big") == "60000"
        assert sorted(path.name for path in data.iterdir()) == ["db", "r1"]
    finally:
        await replica.stop()
    assert await primary.query("select count(*) from pg_replication_slots") == "1"


async def test_a_cancelled_base_backup_leaves_nothing(primary: EmbeddedPostgres) -> None:
    """Stopped at several moments of its first start: no process, no staging folder; then it starts well."""
    data = primary.home / "data"
    for delay in (0.05, 0.15, 0.3, 0.6):
        replica = following(primary)
        starting = asyncio.ensure_future(replica.start())
        await asyncio.wait([starting], timeout=delay)
        await replica.stop()
        await asyncio.wait([starting])
        assert [path.name for path in data.iterdir() if path.name.startswith(".")] == []
        assert await asyncio.to_thread(pgdata.servers, data / "r1") == []
    await replica.start()
    await replica.stop()


async def test_a_start_that_is_stopped_while_it_clears_up_has_cleared_up(
    primary: EmbeddedPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also just when the copy is in its place: a stop returns when nothing is at work in the folder."""
    data, remove = primary.home / "data", pgdata.remove
    begun, go_on = threading.Event(), threading.Event()

    def held(folder: Path) -> None:
        begun.set()
        go_on.wait()
        remove(folder)

    monkeypatch.setattr(pgdata, "remove", held)
    replica = following(primary)
    starting = asyncio.ensure_future(replica.start())
    await asyncio.to_thread(begun.wait)
    stopping = asyncio.ensure_future(replica.stop())
    try:
        await asyncio.wait([stopping], timeout=0.1)
        assert not stopping.done()
    finally:
        go_on.set()
        await asyncio.wait([starting, stopping])
    assert sorted(path.name for path in data.iterdir()) == ["db", "r1"]


async def test_a_primary_that_cannot_be_reached_is_named(primary: EmbeddedPostgres) -> None:
    """Without its upstream a new replica cannot be made; nothing is left of the attempt."""
    replica = EmbeddedPostgres("r1", home=primary.home, follows=Upstream("db", 1), durable=False)
    with pytest.raises(RunnerError, match="PostgreSQL db"):
        await replica.start()
    assert sorted(path.name for path in (primary.home / "data").iterdir()) == ["db"]


def test_slots_of_different_nodes_differ() -> None:
    """Whatever nodes are called: a legal name of a slot, and never the same one twice."""
    names = ["db", "DB", "Db", "a-b", "a--b", "replica-1", "x" * 80, "x" * 81, "a_b"]
    slots = [slot_name(name) for name in names]
    assert len(set(slots)) == len(names)
    assert all(
        len(slot) <= 63 and set(slot) <= set("abcdefghijklmnopqrstuvwxyz0123456789_") for slot in slots
    )
    assert slot_name("replica-1") == "springtide_replica_1"


def test_settings_are_quoted(tmp_path: Path) -> None:
    """A folder with quotes, backslashes and blanks, and a node in capitals, come through both levels."""
    data = Path(r"/it's a \ folder")
    text = standby.settings("r1", data, Upstream("db", 5), user="s", root=None, confirming=("R-1", "b"))
    assert """synchronous_standby_names = 'ANY 1 ("R-1", "b")'""" in text
    assert r"passfile=''/it\\''s a \\\\ folder/springtide.pass''" in text
    assert "synchronous_standby_names = ''" in standby.settings("db", tmp_path, None, user="s", root=None)
