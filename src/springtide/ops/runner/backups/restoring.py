"""Restore one cluster to a moment: beside the data that is there, and swapped with it only when it is proven.

    lock -> choose backup and history -> copy -> recover -> prove that the moment was reached ->
    archive what the data that is there had not -> swap

What was there is kept aside under a name of its own, until the operator removes it. An interruption before
the swap leaves it as it was; the swap is one step of the kernel. The log of the data that is there counts
too, and is archived before the swap, so what a crashed server had not archived yet is not lost.
"Newest" means everything: a gap in the log, or a file that cannot be read, is an error and no early end.
The restored database goes on on a timeline of its own; replicas of what was there must be made anew.
"""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from springtide.errors import RunnerError
from springtide.ops.runner import making, pgdata, standby
from springtide.ops.runner.accounts import Account
from springtide.ops.runner.backups import ending, wal
from springtide.ops.runner.backups.choosing import Choice, choose, said
from springtide.ops.runner.backups.recovering import NotReached, Reached, Recovery
from springtide.ops.runner.backups.rescuing import rescue
from springtide.ops.runner.backups.store import Backup, Store
from springtide.ops.runner.backups.taking import prove
from springtide.ops.runner.installs import Install

__all__ = ["Restored", "Site", "restore"]

ROOM = 128 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """Where a cluster's data goes: the folder of its primary, of its replicas, and what works on them.

    `archives`: what these had not archived may be; False for a copy, which only reads another's backups.
    """

    data: Path
    replicas: tuple[Path, ...]
    account: Account
    install: Install
    password: str
    log: Path
    archives: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Restored:
    """`reached`: when the last transaction committed that is there, None when none came after the backup.
    `aside`: where the data that was there is kept."""

    backup: Backup
    timeline: int
    reached: float | None
    aside: tuple[Path, ...]


async def restore(store: Store, site: Site, *, moment: float | None, name: str | None = None) -> Restored:
    """Restore to `moment` (seconds since 1970; None: the newest there is), from backup `name` (None: any).

    Nothing may run on the data. Raises RunnerError; whatever it raises, the data is what it was.
    """
    with store.lock():
        now = time.time()
        backups = await asyncio.to_thread(store.backups)
        olds = await asyncio.to_thread(_logs, site, backups)
        choice = await asyncio.to_thread(_choose, store, backups, olds, moment, now, name)
        await asyncio.to_thread(_check_room, site, choice.backup)
        programs = site.install.root / "bin"
        await prove(store.data(choice.backup), choice.backup.major, programs, site.account, site.log)
        await asyncio.to_thread(_clear, site.data)
        staging = await making.uncut(_stage, site)
        try:
            await _copy(store.data(choice.backup), staging / "data", site)
            recovery = Recovery(
                staging,
                account=site.account,
                install=site.install,
                archive=store.wal,
                olds=olds,
                log=site.log,
            )
            reached = await _recover(store, site, choice, recovery, olds, moment)
            for old in olds if site.archives else ():
                rest = not await asyncio.to_thread(standby.is_standby, old)
                await rescue(old, store.wal, site.account, site.log, rest=rest)
            aside = await making.uncut(_swap, site, staging / "data")
        finally:
            await asyncio.to_thread(_clear, site.data)
    return Restored(backup=choice.backup, timeline=reached.timeline, reached=reached.last, aside=aside)


async def _recover(
    store: Store, site: Site, choice: Choice, recovery: Recovery, olds: Sequence[Path], moment: float | None
) -> Reached:
    try:
        reached = await recovery.run(timeline=choice.timeline, moment=moment, password=site.password)
        if moment is not None:
            return reached
    except NotReached as error:
        # If the whole log is at hand, nothing committed between the last transaction and the moment.
        reached = await recovery.run(timeline=choice.timeline, moment=None, password=site.password)
        whole = (store, choice.timeline, olds, reached.position)
        if not await asyncio.to_thread(ending.at_hand, *whole):
            last = (
                f"its last transaction committed at {error.last}" if error.last else "it has no transaction"
            )
            gap = await asyncio.to_thread(ending.gap, store, choice)
            raise RunnerError(
                f"the log ends before {said(moment or 0)}: {last}{gap and f', because {gap}'}. Restore to a "
                "moment before that, or the newest there is with --latest"
            ) from None
    if not await ending.reached(store, site.install, site.account, choice, olds, reached.position, site.log):
        gap = await asyncio.to_thread(ending.gap, store, choice)
        gap = gap or f"a file of it cannot be read, see {site.log}"
        raise RunnerError(
            f"the log goes on, but cannot be followed to its end: {gap}. With --to, any moment up to "
            f"{said(reached.last or choice.backup.ended)} may be restored"
        )
    return reached


def _choose(
    store: Store,
    backups: Sequence[Backup],
    olds: Sequence[Path],
    moment: float | None,
    now: float,
    name: str | None,
) -> Choice:
    texts = {}
    born = store.born()
    for folder in (*(old / "pg_wal" for old in olds), store.wal):
        for timeline in wal.histories(path.name for path in folder.iterdir()):
            path = folder / f"{timeline:08X}.history"
            texts[timeline] = path.read_text()
            born[timeline] = min(path.stat().st_mtime, born.get(timeline) or path.stat().st_mtime)
    return choose(
        backups,
        born,
        lambda timeline: wal.history(timeline, texts.get(timeline)),
        moment=moment,
        now=now,
        name=name,
    )


def _logs(site: Site, backups: Sequence[Backup]) -> list[Path]:
    """Data folders of the same database: their log may be newer than what was archived."""
    systems = {backup.system for backup in backups}
    found = []
    for data in (site.data, *site.replicas):
        if (data / "PG_VERSION").exists():
            with suppress(RunnerError):
                if site.install.control(data).get("Database system identifier") in systems:
                    found.append(data)
    return found


def _check_room(site: Site, backup: Backup) -> None:
    free = shutil.disk_usage(site.data.parent).free
    if free < backup.size_bytes + ROOM:
        raise RunnerError(
            f"no room to restore in {site.data.parent}: {free // 2**20} MB are free, "
            f"{(backup.size_bytes + ROOM) // 2**20} MB are needed beside the data that is there"
        )


def _stage(site: Site) -> Path:
    staging = Path(tempfile.mkdtemp(prefix=f".restore-{site.data.name}-", dir=site.data.parent))
    site.account.own(staging)
    return staging


def _clear(data: Path) -> None:
    """Remove what a restore left that was not finished; whoever works in it is ended first."""
    for left in data.parent.glob(f".restore-{data.name}-*"):
        for pid in pgdata.inside(left) + pgdata.servers(left / "data"):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        shutil.rmtree(left, ignore_errors=True)


async def _copy(source: Path, target: Path, site: Site) -> None:
    place = making.Place(
        node=site.data.name,
        data=target,
        account=site.account,
        install=site.install,
        password=site.password,
        log=site.log,
        durable=True,
    )
    copy = ["/usr/bin/env", "cp", "-R", "--preserve=mode,timestamps", "--reflink=auto", "--sparse=auto"]
    await place.run("be copied from its backup", [*copy, str(source), str(target)])
    await asyncio.to_thread(target.chmod, 0o700)


def _swap(site: Site, fresh: Path) -> tuple[Path, ...]:
    """Put `fresh` in the place of the data, and what was there aside."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    kept = []
    for (
        data
    ) in site.replicas:  # first: they cannot follow what comes, and are made anew when they are missing
        if data.exists():
            kept.append(_aside(data, stamp))
            data.rename(kept[-1])
        standby.want_repair(data, None)
    target = _aside(site.data, stamp)
    if not site.data.exists():
        fresh.rename(site.data)
    else:
        fresh.rename(target)  # before the swap: what was there has its last name from the same step on
        try:
            swapped = _exchange(target, site.data)
        except RunnerError:
            target.rename(fresh)
            raise
        if not swapped:
            target.rename(fresh)
            site.data.rename(target)
            fresh.rename(site.data)
        kept.insert(0, target)
    standby.want_repair(site.data, None)
    return tuple(kept)


def _aside(data: Path, stamp: str) -> Path:
    target, number = data.with_name(f"{data.name}.before-{stamp}"), 1
    while target.exists():
        number += 1
        target = data.with_name(f"{data.name}.before-{stamp}-{number}")
    return target


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step; False where the file system cannot."""
    exchange, here = 2, -100  # RENAME_EXCHANGE, AT_FDCWD
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise pgdata.explain(OSError(number, os.strerror(number), str(other)), "swap the data:")
