"""What a restore brings back, and refuses: one server and its archive, without a supervisor."""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.integration._platforms import until
from tests.servers import scratch

from springtide.errors import RunnerError
from springtide.ops.runner import pgdata
from springtide.ops.runner.accounts import server_account
from springtide.ops.runner.backups.archiving import Archiving, restore_script
from springtide.ops.runner.backups.restoring import Restored, Site, restore
from springtide.ops.runner.backups.server import embedded
from springtide.ops.runner.backups.store import Store, open_folder
from springtide.ops.runner.backups.taking import take, verify
from springtide.ops.runner.installs import Install, find_install, reachable_install
from springtide.ops.runner.postgres import EmbeddedPostgres
from springtide.ops.runner.standby import Upstream

SEGMENT = re.compile(r"[0-9A-F]{24}")


class World:
    """One server that archives, its backups, and how they are restored."""

    def __init__(self, home: Path, runner: asyncio.Runner) -> None:
        self.home = home
        self.run = runner.run
        self.account = server_account()
        home.mkdir(mode=0o755, exist_ok=True)
        folder = open_folder(home, home / "backups", platform="test", account=self.account)
        self.store = Store(folder, "main")
        self.store.create(self.account)
        self.server = self.make("db")

    def make(self, node: str, follows: Upstream | None = None) -> EmbeddedPostgres:
        archiving = Archiving(folder=self.store.wal, timeout=300.0)
        return EmbeddedPostgres(node, home=self.home, durable=False, archiving=archiving, follows=follows)

    def backup(self) -> None:
        server = embedded(self.server.url(), self.server.data)
        rate, log = 2**30, self.home / "logs" / "backups.log"
        self.run(take(self.store, server, keep=7, max_rate_bytes=rate, log=log, fast=True))

    def restore(self, moment: float | None = None) -> Restored:
        data = self.home / "data" / "db"
        site = Site(
            data=data,
            replicas=(),
            account=self.account,
            install=self.install(),
            password=pgdata.secret(self.home / "secrets" / "db.password", data),
            log=self.home / "logs" / "backups.log",
        )
        return self.run(restore(self.store, site, moment=moment))

    def up(self, server: EmbeddedPostgres | None = None) -> None:
        self.server = server or self.make("db")
        self.run(self.server.start())

    def promote(self) -> EmbeddedPostgres:
        """Kill the primary and let a replica that has everything take over; the one that was replaced."""
        old, new = self.server, self.make("two", Upstream("db", self.server.port))
        self.run(new.start())
        try:
            self.run(old.kill())
            self.run(old.fence())
            self.run(old.stop())
            self.run(new.promote())
        finally:
            self.server = new
        return old

    def down(self) -> None:
        self.run(self.server.stop())

    def crash(self) -> None:
        self.run(self.server.kill())
        self.down()

    def ask(self, sql: str) -> str:
        return self.run(self.server.query(sql))

    def write(self, number: int) -> None:
        """In a file of the log that is complete thereby."""
        self.ask(f"INSERT INTO written VALUES ({number})")
        self.ask("SELECT pg_switch_wal()")

    def verify(self) -> list[str]:
        """What is wrong with the only backup."""
        (backup,) = self.store.backups()
        install, log = self.install(), self.home / "logs" / "backups.log"
        return self.run(verify(self.store, backup, install.root / "bin", self.account, log=log))

    def install(self) -> Install:
        return reachable_install(find_install(), self.account)

    def now(self) -> float:
        """A moment after everything that was done, and before everything that comes."""
        moment = time.time() + 0.001
        until(lambda: time.time() > moment)
        return moment

    def rows(self) -> str:
        return self.ask("SELECT string_agg(DISTINCT n::text, ' ' ORDER BY n::text) FROM written")

    def segments(self) -> list[str]:
        return [name for name in self.store.archived() if SEGMENT.fullmatch(name)]

    def obstruct(self) -> None:
        """Nothing can be archived any more."""
        self.store.wal.rename(self.store.wal.with_name("wal.away"))

    def clear(self) -> None:
        self.store.wal.with_name("wal.away").rename(self.store.wal)


@contextmanager
def made(template: Path | None = None) -> Iterator[World]:
    """A world that runs: a new one, or one that begins with the data and the backups of another."""
    folder = scratch("springtide-disaster-")
    try:
        if template is not None:
            subprocess.run(["cp", "-a", template, folder / "home"], check=True)
        with asyncio.Runner() as runner:
            world = World(folder / "home", runner)
            try:
                world.up()
                yield world
            finally:
                world.down()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def backed_up() -> Iterator[Path]:
    """A home with an empty table and one backup, stopped."""
    with made() as world:
        world.ask("CREATE TABLE written (n int, filler text)")
        world.backup()
        world.down()
        yield world.home


@pytest.fixture
def world(backed_up: Path) -> Iterator[World]:
    with made(backed_up) as world:
        yield world


def test_the_newest_moment_has_the_last_commit_before_a_crash(world: World) -> None:
    """What a killed server had not archived is taken from its log; nothing that was acknowledged is lost."""
    world.ask("INSERT INTO written VALUES (1)")
    world.crash()
    with pytest.raises(RunnerError, match="in the future: any moment from"):
        world.restore(time.time() + 60)
    (aside,) = world.restore().aside
    shutil.rmtree(aside)
    world.up()
    assert world.rows() == "1"


def test_a_moment_after_the_last_commit_is_the_last_commit(world: World) -> None:
    """Nothing happened between it and the moment; a moment before the first backup is refused, by name."""
    world.ask("INSERT INTO written VALUES (1)")
    moment = world.now()
    world.down()
    with pytest.raises(RunnerError, match=r"the oldest backup was complete: any moment from \S+ \S+ to"):
        world.restore(1_000_000_000.0)
    world.restore(moment)
    world.up()
    assert world.rows() == "1"


def test_a_damaged_backup_is_refused(world: World) -> None:
    """One byte of a file, its size, a file too many or too few: named, and the data stays what it is."""
    assert world.verify() == []
    data = world.store.data(world.store.backups()[0])
    victim, extra = data / "global" / "pg_control", data / "base" / "extra"
    whole = victim.read_bytes()

    def damaged(change: Callable[[], object], mend: Callable[[], object], says: str) -> None:
        change()
        (said,) = world.verify()
        assert "is damaged" in said and says in said
        mend()

    flipped = whole[:100] + bytes([whole[100] ^ 1]) + whole[101:]
    mend = lambda: victim.write_bytes(whole)  # noqa: E731
    damaged(lambda: victim.write_bytes(flipped), mend, "global/pg_control")
    damaged(lambda: victim.write_bytes(whole[:-1]), mend, "global/pg_control")
    damaged(victim.unlink, mend, "global/pg_control")
    damaged(extra.touch, extra.unlink, "base/extra")
    manifest = data / "backup_manifest"
    text = manifest.read_bytes()
    damaged(
        lambda: manifest.write_bytes(text.replace(b'"Size": 8192', b'"Size": 8193', 1)),
        lambda: manifest.write_bytes(text),
        "backup_manifest",
    )
    log = next((data / "pg_wal").glob("0000*"))
    content = log.read_bytes()
    damaged(lambda: log.write_bytes(b"\0" * len(content)), lambda: log.write_bytes(content), "damaged")
    assert world.verify() == []

    victim.write_bytes(flipped)
    world.down()
    with pytest.raises(RunnerError, match="is damaged"):
        world.restore()
    world.up()
    assert world.ask("SELECT count(*) FROM written") == "0"


def test_a_gap_in_the_log_is_named(world: World) -> None:
    """The newest moment is not silently an older one; a moment before the gap can still be had."""
    world.write(1)
    before = world.now()
    for number in (2, 3, 4):
        world.write(number)
    world.down()
    missing = world.store.wal / world.segments()[-2]
    whole = missing.read_bytes()
    missing.unlink()
    shutil.rmtree(world.server.data)
    (problem,) = world.verify()
    assert f"has a gap: {missing.name}" in problem
    with pytest.raises(RunnerError, match=missing.name):
        world.restore()
    missing.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunnerError, match=f"{missing.name} is not whole"):
        world.restore()
    missing.unlink()
    with pytest.raises(RunnerError, match=f"its last transaction committed at .*{missing.name}"):
        world.restore(time.time())
    world.restore(before)
    world.up()
    assert world.rows() == "1"
    until(lambda: (world.store.wal / "00000002.history").exists())
    assert world.store.gaps(world.store.backups()[0]) == []  # of what is the present now


def test_the_disk_was_lost_in_the_middle_of_a_record(world: World) -> None:
    """The archive ends within a change that its next file would have completed: that is its end, no fault."""
    world.ask("ALTER TABLE written ALTER filler SET STORAGE EXTERNAL")
    world.ask("INSERT INTO written VALUES (0)")
    before = len(world.segments())

    def archived() -> bool:
        world.ask("INSERT INTO written SELECT 1, repeat(md5(n::text), 2000) FROM generate_series(1, 40) n")
        return len(world.segments()) > before + 1

    until(archived, seconds=60)
    world.crash()
    shutil.rmtree(world.server.data)
    world.restore()
    world.up()
    assert world.rows() == "0 1"


def test_what_a_crashed_server_had_not_archived_is_archived_before_it_is_given_up(world: World) -> None:
    """Going back after a crash loses no moment: complete files and the one that was being written are kept.

    Also when the data that was set aside is removed. A moment that nothing is known of is refused.
    """
    world.ask("INSERT INTO written VALUES (1)")
    early = world.now()
    world.obstruct()
    world.write(2)
    world.ask("INSERT INTO written VALUES (3)")
    world.crash()
    late = time.time()
    world.clear()
    restored = world.restore(early)
    world.up()
    assert world.rows() == "1"
    assert world.store.gaps(world.store.backups()[0]) == []  # on the way to the present
    world.down()
    (aside,) = restored.aside
    shutil.rmtree(aside)
    world.restore(late)
    world.up()
    assert world.rows() == "1 2 3"

    world.down()
    for left in world.store.wal.glob("00000001*.unfinished"):
        left.unlink()
    with pytest.raises(RunnerError, match="the log ends before"):
        world.restore(late)


def test_what_a_replaced_primary_had_not_archived_is_archived_when_it_is_rewound(world: World) -> None:
    """Whoever takes over counts what it was sent as archived; no moment around a failover is lost."""
    world.obstruct()
    for number in (1, 2):
        world.write(number)
    old = world.promote()
    world.clear()
    world.ask("SELECT pg_switch_wal()")
    (backup,) = world.store.backups()
    until(lambda: world.store.gaps(backup), seconds=60)  # the new primary archives what it wrote itself
    old.follows = Upstream("two", world.server.port)
    try:
        world.run(old.start())
        assert world.store.gaps(backup) == []
    finally:
        world.run(old.stop())


def test_a_disk_that_is_not_mounted_is_no_empty_one(world: World) -> None:
    """While the folder is away nothing is made in its place, and a recovery does not end there."""
    world.store.folder.rename(away := world.store.folder.with_name("away"))
    with pytest.raises(RunnerError, match="lock the folder of the backups"):
        world.backup()
    assert not world.store.folder.exists()
    away.rename(world.store.folder)
    script = restore_script(world.store.wal, [])
    fetch = ["/bin/sh", "-c", script, "sh", world.segments()[0], str(world.home / "fetched")]
    assert subprocess.run(fetch, check=False).returncode == 0
    world.obstruct()
    assert subprocess.run(fetch, check=False).returncode > 125
    world.clear()
