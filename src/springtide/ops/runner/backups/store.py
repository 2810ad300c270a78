"""The folder where the backups of one cluster lie.

    <folder>/<cluster>/base/<name>/data/           a base backup, with PostgreSQL's backup_manifest in it
                      /base/<name>/backup.json     written last: a backup without it is none
                      /base/.new-*, .gone-*        being made, being removed: never looked at
                      /wal/                        the archived log
                      /system                      which database this is: the identifier that initdb gave it
                      /home                        which platform archives here, in a folder that was named
                      /lock                        held by whoever makes, removes or restores a backup

A backup is made under a temporary name and renamed when it is complete and verified, so that what is cut off
at any moment never looks like a backup. Synchronous and short; callers run it in a thread.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from springtide.errors import RunnerError
from springtide.ops.runner import pgdata
from springtide.ops.runner.accounts import Account
from springtide.ops.runner.backups import keeping, wal
from springtide.ops.runner.durable import replace_file, sync_folder
from springtide.ops.runner.installs import SHARED

__all__ = ["Backup", "Store", "open_folder"]

MARKER = "backup.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """One complete base backup. Times are seconds since 1970, positions bytes of the log.

    It needs the log from `begin` to `end` to be consistent, and holds that itself. `major` is PostgreSQL's.
    """

    name: str
    cluster: str
    system: str
    major: int
    timeline: int
    begin: int
    end: int
    began: float
    ended: float
    size_bytes: int


def open_folder(
    home: Path, folder: Path | None, *, platform: str, account: Account, shared: Path = SHARED
) -> Path:
    """Make the folder of all backups, which `account` can enter: `folder`, or None for the home's own."""
    if folder is None:
        outside = shared / f"{platform}-{pgdata.home_hash(home)}" / "_backups"  # no node is called like that
        folder = pgdata.place(home / "backups", outside, account=account, shared=shared)
    try:
        if not folder.is_dir():
            folder.mkdir(mode=0o700, parents=True)
            account.own(folder)
    except OSError as error:
        raise pgdata.explain(error, "make the folder of the backups:") from error
    if not account.can_enter(folder):
        raise RunnerError(
            f"{account.name} cannot enter {folder}, where the backups go: let it pass through the folders "
            "above, or name another with backups.folder"
        )
    return folder


class Store:
    """The backups of one cluster; `folder` is that of all backups."""

    def __init__(self, folder: Path, cluster: str) -> None:
        self.cluster = cluster
        self.folder = folder / cluster
        self.base = self.folder / "base"
        self.wal = self.folder / "wal"

    def create(self, account: Account) -> None:
        """Make the folders, `account`'s own. Raises RunnerError when the place cannot be written."""
        try:
            for path in (self.folder, self.base, self.wal):
                if not path.is_dir():
                    path.mkdir(mode=0o700)
                    account.own(path)
        except OSError as error:
            raise pgdata.explain(error, "make the folder of the backups:") from error

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Raises RunnerError when a backup or a restore is under way."""
        try:
            descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise pgdata.explain(error, "lock the folder of the backups:") from error
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RunnerError(
                    f"a backup or a restore of cluster {self.cluster} is under way: wait for its end"
                ) from None
            yield
        finally:
            os.close(descriptor)

    def system(self) -> str | None:
        """The database whose backups these are; None: there are none yet."""
        return _read(self.folder / "system")

    def claim(self, system: str) -> None:
        """Bind the folder to one database. Raises RunnerError when it holds the backups of another."""
        known = self.system()
        if known is None:
            replace_file(self.folder / "system", system + "\n")
        elif known != system:
            raise RunnerError(self.strange())

    def strange(self) -> str:
        """What to say where another database is than the one whose backups these are."""
        return (
            f"{self.folder} holds the backups of another database than the one that cluster "
            f"{self.cluster} has now: bring that one back with `springtide restore --latest --cluster "
            f"{self.cluster}`, or move the folder away to begin anew"
        )

    def elsewhere(self, home: Path) -> str | None:
        """The home of the platform that keeps its backups here, when that is another than `home`."""
        known = _read(self.folder / "home")
        return None if known == str(home) else known

    def belong(self, home: Path) -> None:
        """Bind the folder to the platform of `home`. Raises RunnerError when it is another's.

        A copy of a project has the same database in it: both would archive different files of the same name.
        """
        if (known := self.elsewhere(home)) is not None:
            raise RunnerError(
                f"{self.folder} is where the platform in {known} keeps its backups, and two that archive to "
                "one place destroy each other's log: name another with backups.folder; if that platform is "
                f"gone or was moved here, remove {self.folder / 'home'}"
            )
        replace_file(self.folder / "home", f"{home}\n")

    def backups(self) -> list[Backup]:
        """The complete ones, oldest first."""
        found = []
        with suppress(FileNotFoundError):
            for path in self.base.iterdir():
                if not path.name.startswith("."):
                    with suppress(OSError, ValueError, TypeError):
                        raw = json.loads((path / MARKER).read_text())
                        found.append(Backup(**{**raw, "name": path.name}))
        return sorted(found, key=lambda backup: backup.ended)

    def data(self, backup: Backup) -> Path:
        return self.base / backup.name / "data"

    def archived(self) -> list[str]:
        """Names of the complete files of the log, sorted."""
        try:
            return sorted(path.name for path in self.wal.iterdir() if not path.name.startswith("."))
        except FileNotFoundError:
            return []

    def born(self) -> dict[int, float]:
        """Every timeline that the archive or a backup knows, with the moment when it began."""
        oldest = {backup.timeline: 0.0 for backup in self.backups()}
        names = self.archived()
        oldest |= {s.timeline: 0.0 for name in names if (s := wal.Segment.named(name)) is not None}
        for timeline in wal.histories(names):
            with suppress(FileNotFoundError):
                oldest[timeline] = (self.wal / f"{timeline:08X}.history").stat().st_mtime
        return oldest

    def branches(self, timeline: int) -> tuple[wal.Branch, ...]:
        """The history that leads to `timeline`."""
        try:
            text = (self.wal / f"{timeline:08X}.history").read_text()
        except FileNotFoundError:
            text = None
        return wal.history(timeline, text)

    def present(self) -> list[Backup]:
        """The backups that lie on the way to what the database is now, oldest first.

        Not those of what was given up: by going back, or when a replica took over that had not all of it.
        """
        there = self.backups()
        path = self.branches(max(self.born(), default=1))
        return [one for one in there if wal.seen(path, one.timeline, one.begin, one.end)]

    def gaps(self, backup: Backup, timeline: int | None = None) -> list[str]:
        """Files of the log that are missing after `backup`, on the way to `timeline` (None: the newest)."""
        wanted = max(self.born(), default=backup.timeline) if timeline is None else timeline
        branches = self.branches(wanted)
        if not wal.seen(branches, backup.timeline, backup.begin, backup.end):
            return []
        return wal.gaps(self.archived(), branches, backup.begin)

    def stage(self, account: Account) -> Path:
        """A new folder for a backup, `account`'s own."""
        self.clear()
        folder = self.base / f".new-{os.getpid()}"
        try:
            folder.mkdir(mode=0o700)
            account.own(folder)
        except OSError as error:
            raise pgdata.explain(error, "make the folder of a backup:") from error
        return folder

    def commit(self, staged: Path, backup: Backup) -> Backup:
        """Make what lies in `staged` a backup, durably."""
        name, number = backup.name, 1
        while (self.base / name).exists():
            number += 1
            name = f"{backup.name}-{number}"
        try:
            replace_file(staged / MARKER, json.dumps({**asdict(backup), "name": name}, indent=1))
            staged.rename(self.base / name)
            sync_folder(self.base)
        except OSError as error:
            raise pgdata.explain(error, "finish the backup:") from error
        return Backup(**{**asdict(backup), "name": name})

    def remove(self, backup: Backup) -> None:
        """From the moment of the rename on it is no backup any more, however long the rest takes."""
        gone = self.base / f".gone-{backup.name}"
        (self.base / backup.name).rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def expire(self, keep: int) -> tuple[list[Backup], list[str]]:
        """Remove backups past the newest `keep`, and the log that no kept one needs; what was removed."""
        there = self.backups()
        kept = keeping.kept(there, keep)
        removed = [backup for backup in there if backup not in kept]
        needless = keeping.needless(self.archived(), kept)
        try:
            for backup in removed:
                self.remove(backup)
            for name in needless:
                (self.wal / name).unlink(missing_ok=True)
        except OSError as error:
            raise pgdata.explain(error, "remove an old backup:") from error
        return removed, needless

    def clear(self) -> None:
        """Remove what was not finished; whoever still writes there is ended first. Only under the lock."""
        for left in (*self.base.glob(".new-*"), *self.base.glob(".gone-*")):
            pgdata.remove(left)


def _read(path: Path) -> str | None:
    """What the file says; None when there is none."""
    try:
        return path.read_text().strip() or None
    except FileNotFoundError:
        return None
    except OSError as error:
        raise pgdata.explain(error, "read") from error
