"""Take one base backup: copy the running server, prove the copy, keep it, let old ones go.

    lock -> is there room? -> pg_basebackup -> verify -> marker and rename -> remove what is old

The copy is as fast as `max_rate_bytes` allows, and its processes are nice to the others, so that the
application does not feel it. It holds the log that it needs to be consistent; PostgreSQL streams that beside
it. Verified is every file against PostgreSQL's manifest, and that this log can be read: by pg_verifybackup
of the same version, or as it would where there is none that starts.
What fails, is cut off or killed at any moment leaves no backup.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from springtide.errors import RunnerError
from springtide.ops.runner import logs, processes
from springtide.ops.runner.accounts import Account
from springtide.ops.runner.backups import manifest, wal
from springtide.ops.runner.backups.server import Facts, Server
from springtide.ops.runner.backups.store import Backup, Store

__all__ = ["Taken", "prove", "take", "verify"]

ROOM = 64 * 2**20
"""What must be left beside the copy: the log of the time that copying takes."""

NICE = ["/usr/bin/env", "nice", "-n", "10"]
PATIENCE = 3600.0
"""A backup may take this long, and four times what its size takes at its rate; then it has hung."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The new backup, and what was removed to make room: older backups, files of the log."""

    backup: Backup
    removed: list[Backup]
    needless: list[str]


async def take(
    store: Store, server: Server, *, keep: int, max_rate_bytes: int, log: Path, fast: bool = False
) -> Taken:
    """Take a backup of `server` into `store`, then remove those past the newest `keep`.

    fast: begin with an immediate checkpoint instead of one that is spread over minutes.
    The store's folders must be there: made here, they would hide that a disk is not mounted.
    Raises RunnerError; whatever it raises, there are the backups of before.
    """
    with store.lock():
        facts = await server.facts()
        await asyncio.to_thread(store.claim, facts.system)
        await asyncio.to_thread(_check_room, store, facts)
        staged = await asyncio.to_thread(store.stage, server.account)
        limit = PATIENCE + 4 * facts.size_bytes / max_rate_bytes
        try:
            copying = _copy(server, staged / "data", max_rate_bytes=max_rate_bytes, log=log, fast=fast)
            async with asyncio.timeout(limit):
                await copying
            ended = (await server.facts()).now
            proving = prove(staged / "data", facts.major, server.programs, server.account, log)
            async with asyncio.timeout(limit):
                found = await proving
            described = _described(store, found, facts, ended)
            backup = await asyncio.to_thread(store.commit, staged, described)
        except TimeoutError:
            raise RunnerError(f"the backup of {server.where} did not end within {limit:.0f} s") from None
        finally:
            await asyncio.to_thread(store.clear)
        removed, needless = await asyncio.to_thread(store.expire, keep)
    return Taken(backup, removed, needless)


async def verify(store: Store, backup: Backup, programs: Path, account: Account, *, log: Path) -> list[str]:
    """What is wrong with `backup` and the log after it, one sentence each; empty when nothing is."""
    problems = []
    try:
        await prove(store.data(backup), backup.major, programs, account, log)
    except RunnerError as error:
        problems.append(str(error))
    if missing := await asyncio.to_thread(store.gaps, backup):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        problems.append(
            f"the log after backup {backup.name} has a gap: {missing[0]}{more} missing in {store.wal}"
        )
    return problems


def _check_room(store: Store, facts: Facts) -> None:
    if facts.tablespaces:
        raise RunnerError(
            f"the server has {facts.tablespaces} tablespaces outside its data folder, which are not backed "
            "up here: use a tool for that, such as pgBackRest"
        )
    free = shutil.disk_usage(store.base).free
    needed = facts.size_bytes + ROOM
    if free < needed:
        raise RunnerError(
            f"no room for a backup in {store.base}: {free // 2**20} MB are free, {needed // 2**20} MB are "
            "needed; free some, lower backups.keep, or name another place with backups.folder"
        )


async def _copy(server: Server, target: Path, *, max_rate_bytes: int, log: Path, fast: bool) -> None:
    arguments = [
        *NICE,
        str(server.programs / "pg_basebackup"),
        f"--pgdata={target}",
        f"--checkpoint={'fast' if fast else 'spread'}",
        "--wal-method=stream",
        f"--max-rate={max_rate_bytes // 1024}k",
        "--label=springtide",
        "--manifest-checksums=SHA256",
        "--no-password",
        f"--dbname={server.reach}",
    ]
    what = f"PostgreSQL at {server.where} could not be copied"
    await _run(arguments, server.environment, server.account, log, what)


async def prove(data: Path, major: int, programs: Path, account: Account, log: Path) -> manifest.Manifest:
    """Hold a backup to its manifest; read the log in it. Raises RunnerError for one that is damaged."""
    what = f"the backup in {data} is damaged"
    env = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}
    try:
        found = await asyncio.to_thread(manifest.read, data)
    except (OSError, ValueError, KeyError) as error:
        raise RunnerError(f"{what}: {error}") from error
    own = await asyncio.to_thread(_version, programs / "pg_verifybackup") == major
    if own:
        command = [*NICE, str(programs / "pg_verifybackup"), "--quiet", "--exit-on-error", str(data)]
        await _run(command, env, account, log, what)
        return found
    if fault := await asyncio.to_thread(lambda: next(manifest.faults(data, found), None)):
        raise RunnerError(f"{what}: {fault}")
    if await asyncio.to_thread(_version, programs / "pg_waldump") == major:
        for part in found.log:
            bounds = [f"--start={wal.printed(part.begin)}", f"--end={wal.printed(part.end)}"]
            command = [*NICE, str(programs / "pg_waldump"), "--quiet", f"--path={data / 'pg_wal'}"]
            await _run([*command, f"--timeline={part.timeline}", *bounds], env, account, log, what)
    return found


def _version(program: Path) -> int | None:
    """The major version of one of PostgreSQL's programs; None for one that does not start."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    version = re.search(r"\) (\d+)", done.stdout.decode(errors="replace"))
    return None if version is None else int(version[1])


async def _run(arguments: list[str], env: Mapping[str, str], account: Account, log: Path, what: str) -> None:
    begin = await asyncio.to_thread(lambda: log.stat().st_size if log.exists() else 0)
    status = await processes.run(arguments, log=log, env=env, account=account.switch)
    if status == 0:
        return
    text = await asyncio.to_thread(logs.tail, log, 10, begin=begin)
    advice = ""
    if "No space left on device" in text:
        advice = ": the disk is full, free some space"
    elif "replication" in text and ("pg_hba.conf" in text or "permission denied" in text or "role" in text):
        advice = (
            ": its user needs the attribute REPLICATION, and pg_hba.conf a line for `replication`; of a "
            "managed server, leave backups to its provider (backups = false)"
        )
    elif "max_wal_senders" in text:
        advice = ": raise its max_wal_senders"
    raise RunnerError(f"{what}{advice} (exit status {status})\n{text}")


def _described(store: Store, found: manifest.Manifest, facts: Facts, ended: float) -> Backup:
    return Backup(
        name=datetime.fromtimestamp(facts.now, UTC).strftime("%Y%m%dT%H%M%SZ"),
        cluster=store.cluster,
        system=facts.system,
        major=facts.major,
        timeline=found.log[-1].timeline,
        begin=min(part.begin for part in found.log),
        end=max(part.end for part in found.log),
        began=facts.now,
        ended=max(ended, facts.now),
        size_bytes=found.size_bytes,
    )
