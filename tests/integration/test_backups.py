"""Backups of a real platform: to any moment, under load, and what is left when something goes wrong."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.integration._platforms import Project, kill, project, until

from springtide.ops.runner.accounts import server_account
from springtide.ops.runner.backups.archiving import SCRIPT
from springtide.testing.history import Write, check

BACKUPS = "[backups]\nkeep = 2\nmax_rate_bytes = 1073741824\n"

QUIET = "every = 1e9\n"
"""No backup but the first one is taken by itself."""


@pytest.fixture(scope="module")
def backed_up(template: Path) -> Iterator[Path]:
    """A home with one backup, stopped."""
    with project() as made:
        made.write(BACKUPS + QUIET).prepare(template)
        made.run("up", "-d")
        until(lambda: noted(made).get("last"), seconds=60)  # taken by itself
        made.run("down")
        yield made.home


@contextmanager
def platform_with(home: Path, more: str = QUIET) -> Iterator[Project]:
    """A running platform that began with the data, and the backups if there are any, of `home`."""
    with project() as made:
        made.write(BACKUPS + more).prepare(home)
        if (home / "backups").is_dir():
            subprocess.run(["cp", "-a", home / "backups", made.home / "backups"], check=True)
        made.run("up", "-d")
        yield made


@pytest.fixture
def platform(backed_up: Path) -> Iterator[Project]:
    with platform_with(backed_up) as made:
        yield made


def url(platform: Project) -> str:
    found = json.loads((platform.home / "run" / "addresses.json").read_text())
    primary: str = found["nodes"][found["clusters"]["main"]["primary"]]
    return primary.rpartition("/")[0] + "/main"


async def query(platform: Project, *statements: str) -> list[list[Any]]:
    """Run statements one after the other; the rows of each."""
    connection = await asyncpg.connect(url(platform))
    try:
        return [[tuple(row) for row in await connection.fetch(statement)] for statement in statements]
    finally:
        await connection.close()


def ask(platform: Project, *statements: str) -> list[list[Any]]:
    return asyncio.run(query(platform, *statements))


def folder(platform: Project) -> Path:
    return (platform.home / "backups" / "main").resolve()


def bases(platform: Project) -> list[str]:
    """Everything that lies where the backups lie."""
    return sorted(path.name for path in (folder(platform) / "base").iterdir())


def noted(platform: Project) -> dict[str, Any]:
    found: dict[str, Any] = platform.status().get("backups", {}).get("main", {})
    return found


def first_backup(platform: Project) -> str:
    (name,) = bases(platform)
    return name


def at(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat()


async def _write(platform: Project, session: int, stop: asyncio.Event, history: list[Write]) -> None:
    connection = await asyncpg.connect(url(platform))
    key, number = f"key{session}", 0
    try:
        while not stop.is_set():
            number += 1
            value = f"{session}-{number}"
            began = time.time()
            version = await connection.fetchval(
                "INSERT INTO written SELECT $1, coalesce(max(version), 0) + 1, $2 FROM written WHERE key = $1"
                " RETURNING version",
                key, value,
            )  # fmt: skip
            history.append(
                Write(
                    session=str(session),
                    key=key,
                    value=value,
                    version=version,
                    began=began,
                    ended=time.time(),
                )
            )
    finally:
        await connection.close()


async def _load(platform: Project, during: Callable[[], None], history: list[Write]) -> None:
    """Four sessions write while `during` runs in a thread."""
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        for session in range(4):
            group.create_task(_write(platform, session, stop, history))
        await asyncio.to_thread(during)
        stop.set()


def _as_of(history: list[Write], moment: float) -> list[Write]:
    """What happened before counts, what began after must not be there, what was under way may be."""
    outcome = {True: "ok", False: "unknown"}
    return [
        Write(
            session=write.session, key=write.key, value=write.value, version=write.version,
            began=write.began, ended=write.ended,
            outcome="failed" if write.began > moment else outcome[write.ended <= moment],  # type: ignore[arg-type]
        )
        for write in history
    ]  # fmt: skip


def _final(platform: Project) -> dict[str, dict[int, str]]:
    final: dict[str, dict[int, str]] = {}
    for key, version, value in ask(platform, "SELECT key, version, value FROM written")[0]:
        final.setdefault(key, {})[version] = value
    return final


def test_restored_is_exactly_what_was_acknowledged_by_then(platform: Project) -> None:
    """Taken and restored under write load: every write acknowledged before the moment, and none begun after.

    Then again, from what was restored: later moments of the new present, and of the one that was given up.
    """
    ask(platform, "CREATE TABLE written (key text, version int, value text, PRIMARY KEY (key, version))")
    history: list[Write] = []
    moments: list[float] = []

    def during() -> None:
        time.sleep(0.3)
        platform.call("backup", "--fast")
        for _ in range(2):
            time.sleep(0.7)
            moments.append(time.time())
        time.sleep(0.5)

    asyncio.run(_load(platform, during, history))
    refused = platform.call("restore", "--latest", code=1)
    assert "a platform already runs" in refused and "springtide down" in refused
    assert "must name its time zone" in platform.call("restore", "--to", "2026-01-01T00:00:00", code=2)
    assert len(history) > 50 and history[-1].ended > moments[1] > moments[0] > history[0].ended
    platform.run("down")

    said = platform.call("restore", "--to", at(moments[0]))
    assert "is kept in" in said and len(list((platform.home / "data").glob("db.before-*"))) == 1
    platform.run("up", "-d")
    assert check(_as_of(history, moments[0]), final=_final(platform)) == []

    later: list[Write] = []
    asyncio.run(_load(platform, lambda: time.sleep(0.3), later))
    platform.run("down")
    platform.call("restore", "--to", at(moments[1]))  # of the present that was given up
    platform.run("up", "-d")
    assert check(_as_of(history, moments[1]), final=_final(platform)) == []


def test_replicas_are_made_anew_from_what_was_restored(backed_up: Path) -> None:
    """They could not follow it; one that becomes primary archives to the same place, and is restored."""
    nodes = '[nodes.db]\nkind = "postgres"\n[nodes.two]\nkind = "postgres"\n'
    nodes += '[clusters.main]\nprimary = "db"\nreplicas = ["two"]\n[databases.default]\nshards = ["main"]\n'
    with platform_with(backed_up, QUIET + nodes) as platform:
        ask(platform, "CREATE TABLE written (n int)", "INSERT INTO written VALUES (1)")
        time.sleep(0.05)
        moment = time.time()
        platform.run("replicas", "promote", "two")
        ask(platform, "INSERT INTO written VALUES (2)", "SELECT pg_switch_wal()")
        platform.run("down")
        platform.call("restore", "--to", at(moment))
        assert len(list((platform.home / "data").glob("*.before-*"))) == 2
        platform.run("up", "-d")
        assert ask(platform, "SELECT n FROM written") == [[(1,)]]
        until(lambda: ask(platform, "SELECT count(*) FROM pg_stat_replication") == [[(1,)]], seconds=60)


def test_everything_but_the_backups_was_lost(platform: Project) -> None:
    """Without data and without its password: restored is what was archived, and the platform can enter it.

    A platform that would begin with an empty database beside such backups does not start.
    """
    ask(platform, "CREATE TABLE written (n int)", "INSERT INTO written VALUES (1)")
    platform.run("down")  # archives the rest
    data = (platform.home / "data" / "db").resolve()
    shutil.rmtree(data)
    refused = platform.run("up", "-d", code=1)
    assert "the backups of another database" in refused and "restore --latest" in refused
    assert not data.exists()  # nothing was begun that would archive among what belongs to another
    (platform.home / "secrets" / "db.password").unlink()
    ended = time.time()
    assert "the log ends before" in platform.call("restore", "--to", at(ended), code=1)
    assert not data.exists()
    platform.call("restore", "--latest")
    platform.run("up", "-d")
    assert ask(platform, "SELECT n FROM written") == [[(1,)]]
    assert noted(platform).get("error") is None


def test_what_is_cut_off_leaves_no_backup_and_harms_no_data(platform: Project) -> None:
    """kill -9 of a backup, of a restore: nothing looks whole that is not, nothing is lost, the next works."""
    ask(platform, "CREATE TABLE written (n int)", "INSERT INTO written VALUES (1)")
    slow = platform.folder / "slow.toml"
    toml = (platform.folder / "springtide.toml").read_text()
    slow.write_text(toml.replace("max_rate_bytes = 1073741824", "max_rate_bytes = 1048576"))
    taking = platform.popen("backup", "--fast", "--file", str(slow))
    until(lambda: any((folder(platform) / "base").glob(".new-*/data/base/*/*")), seconds=60)
    assert "a backup or a restore of cluster main is under way" in platform.call("backup", code=1)
    kill(taking.pid)
    taking.communicate()
    assert len(json.loads(platform.call("backup", "list", "--json"))[0]["backups"]) == 1
    platform.call("backup", "--fast")  # ends what the killed one left, first
    assert len(bases(platform)) == 2 and not any(name.startswith(".") for name in bases(platform))
    platform.run("down")
    for sig in (signal.SIGINT, signal.SIGKILL):
        restoring = platform.popen("restore", "--latest")
        until(lambda: any(platform.home.glob("data/.restore-db-*/data/PG_VERSION")))
        kill(restoring.pid, sig)
        restoring.communicate()
        if sig is signal.SIGINT:
            assert not list(platform.home.glob("data/.restore-*"))
    platform.run("up", "-d")
    assert ask(platform, "SELECT n FROM written") == [[(1,)]]
    platform.run("down")
    ((platform.home / "data" / "db").resolve() / "was there").touch()
    cut = [sys.executable, "-c", CUT_IN_THE_SWAP, "restore", "--latest"]
    assert subprocess.run(cut, cwd=platform.folder, check=False).returncode == -signal.SIGKILL
    platform.call("restore", "--latest")
    assert list(platform.home.glob("data/db.before-*/was there"))
    assert not list(platform.home.glob("data/.restore-*"))


CUT_IN_THE_SWAP = """
import os, signal, sys
def cut(event, arguments):
    if event == "os.rename" and ".before-" in str(arguments[1]):
        os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(cut)
from springtide.ops import cli
cli.main(sys.argv[1:])
"""


def test_backups_come_by_themselves_and_old_ones_go(backed_up: Path) -> None:
    """Every `every` seconds; `keep` stay, and of the log what the oldest of them needs; a gap is told."""
    with platform_with(backed_up, "every = 2\n") as platform:
        first = first_backup(platform)
        until(lambda: first not in bases(platform), seconds=60)
        platform.run("down")
        _kept(platform)


def _kept(platform: Project) -> None:
    listed = json.loads(platform.call("backup", "list", "--json"))[0]
    assert len(listed["backups"]) == 2 == len(bases(platform)) and listed["gap"] is None
    wal = sorted(path.name for path in (folder(platform) / "wal").iterdir())
    oldest = listed["backups"][0]["begin"] // (16 * 2**20)
    assert int(wal[0][16:24], 16) == oldest
    first = next(name for name in wal if re.fullmatch(r"[0-9A-F]{24}", name))
    hidden = (folder(platform) / "wal" / first).rename(platform.folder / first)
    assert f"{first} is missing" in platform.call("backup", "list")
    assert f"has a gap: {first}" in platform.call("backup", "verify", code=1)
    hidden.rename(folder(platform) / "wal" / first)
    for backup in listed["backups"]:
        assert platform.call("backup", "verify", backup["name"]) == f"{backup['name']}: nothing is wrong\n"


def test_a_log_that_cannot_be_archived_is_kept_and_told(platform: Project) -> None:
    """`status` says so while another file is in the way, and nothing is overwritten; then it goes on."""
    (((current,),),) = ask(platform, "SELECT pg_walfile_name(pg_current_wal_lsn())")
    planted = folder(platform) / "wal" / current
    planted.write_bytes(b"another")
    shutil.chown(planted, server_account().uid)
    ask(platform, "CREATE TABLE written (n int)", "SELECT pg_switch_wal()")
    until(lambda: noted(platform).get("archive", {}).get("failing"), seconds=60)
    assert f"{current} cannot be archived" in platform.run("status")
    assert planted.read_bytes() == b"another"
    assert "is there already, with another content" in platform.run("logs", "db", "-n", "200")
    planted.unlink()
    ask(platform, "INSERT INTO written VALUES (1)", "SELECT pg_switch_wal()")  # which wakes the archiver
    until(lambda: not noted(platform)["archive"]["failing"], seconds=90)
    assert planted.stat().st_size == 16 * 2**20
    planted.unlink()
    until(planted.exists, seconds=60)  # a gap, which the primary can still fill
    assert planted.stat().st_size == 16 * 2**20


def test_the_archive_script_keeps_its_promises(tmp_path: Path) -> None:
    """Whole or not at all; the same again is fine; another content, a full disk, no folder: an error."""
    archive, source = tmp_path / "an archive", tmp_path / "000000010000000000000001"
    archive.mkdir()
    source.write_bytes(os.urandom(1024) + bytes(200_000))
    os.utime(source, (0, 1_000_000))

    def call(target: Path = archive) -> subprocess.CompletedProcess[bytes]:
        command = ["/bin/sh", "-c", SCRIPT, "sh", str(source), source.name, str(target)]
        return subprocess.run(command, capture_output=True, check=False)

    assert call().returncode == 0 and (archive / source.name).read_bytes() == source.read_bytes()
    assert (archive / source.name).stat().st_mtime == 1_000_000  # of a history: when its timeline began
    assert call().returncode == 0
    source.write_bytes(b"another")
    refused = call()
    assert refused.returncode == 1 and b"not overwritten" in refused.stderr
    assert (archive / source.name).stat().st_size == 201_024
    assert call(tmp_path / "absent").returncode not in (0, 126, 127) and not (tmp_path / "absent").exists()
    assert [path.name for path in archive.iterdir()] == [source.name]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk, so it needs root")
def test_a_full_disk_costs_no_log(template: Path) -> None:
    """No half file, and no backup without room; when there is room again, all is archived."""
    with project() as platform:
        disk = platform.folder / "disk"
        disk.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m,mode=0777", "tmpfs", disk], check=True)
        try:
            platform.write(f'{BACKUPS}{QUIET}folder = "disk"\n').prepare(template)
            platform.run("up", "-d")
            until(lambda: noted(platform).get("error"), seconds=60)
            assert "no room for a backup" in noted(platform)["error"]
            ask(platform, "CREATE TABLE written (t text)", "ALTER TABLE written ALTER t SET STORAGE EXTERNAL")
            filler = f"INSERT INTO written SELECT '{os.urandom(3000).hex()}' FROM generate_series(1, 3000)"
            ask(platform, filler, filler, filler)
            until(lambda: noted(platform).get("archive", {}).get("failing"), seconds=60)
            sizes = {path.stat().st_size for path in (disk / "main" / "wal").glob("0*")}
            assert sizes <= {16 * 2**20}
            subprocess.run(["mount", "-o", "remount,size=400m", disk], check=True)
            ask(platform, "SELECT pg_switch_wal()")  # which wakes the archiver
            until(lambda: not noted(platform)["archive"]["waiting"], seconds=90)
            assert noted(platform)["failed"] > noted(platform)["noted"] - 3600
            platform.call("backup", "--fast")
            until(lambda: noted(platform)["last"] and noted(platform)["error"] is None, seconds=60)
            platform.run("down")
            owner = disk / "main" / "home"
            assert owner.read_text() == f"{platform.home.resolve()}\n"
            owner.write_text("/srv/the original/.springtide\n")  # as a copy of a project finds it
            assert "destroy each other's log" in platform.run("up", "-d", code=1)
        finally:
            subprocess.run(["umount", "-l", disk], check=True)
