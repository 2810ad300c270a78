"""Whether a recovery came to the end of the log, and whether all of the log is at hand.

The end is known from what is there: the backup's own log, the last file that is archived, and where the data
folders of servers that have ended had come to. The last archived file may end within a change that the next
one would have completed, when that one was lost: then the last complete change is the end, provided that the
file can be read up to its last byte.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from pathlib import Path

from springtide.ops.runner import making, processes, standby
from springtide.ops.runner.accounts import Account
from springtide.ops.runner.backups import wal
from springtide.ops.runner.backups.archiving import UNFINISHED
from springtide.ops.runner.backups.choosing import Choice
from springtide.ops.runner.backups.rescuing import unfinished, waiting
from springtide.ops.runner.backups.store import Store
from springtide.ops.runner.installs import Install

__all__ = ["at_hand", "gap", "reached"]

_SEGMENT = re.compile(r"([0-9A-F]{8})[0-9A-F]{16}")


def gap(store: Store, choice: Choice) -> str:
    """The first file that is missing on the way; "" when none is."""
    missing = wal.gaps(store.archived(), choice.branches, choice.backup.begin)
    return f"{missing[0]} is missing in {store.wal}" if missing else ""


async def reached(
    store: Store, install: Install, account: Account, choice: Choice, olds: Sequence[Path], at: int, log: Path
) -> bool:
    """Whether a recovery of everything that came to position `at` has come to the end."""
    if at < await asyncio.to_thread(_known, install, choice, olds):
        return False
    last = await asyncio.to_thread(lambda: wal.newest(store.archived(), choice.branches))
    if last is None or at >= (last.number + 1) * wal.SEGMENT_BYTES:
        return True
    if at // wal.SEGMENT_BYTES != last.number or await asyncio.to_thread(_goes_on, olds, last):
        return False
    command = [
        str(install.program("pg_waldump")),
        "--quiet",
        f"--path={store.wal}",
        f"--timeline={last.timeline}",
        f"--start={wal.printed(last.number * wal.SEGMENT_BYTES)}",
        f"--end={wal.printed((last.number + 1) * wal.SEGMENT_BYTES)}",
    ]
    return await processes.run(command, log=log, env=making.ENVIRONMENT, account=account.switch) == 0


def _known(install: Install, choice: Choice, olds: Sequence[Path]) -> int:
    """A position of which is known that the log had come to it."""
    ends = [choice.backup.end]
    for old in olds:
        said = install.control(old)
        if int(said.get("Latest checkpoint's TimeLineID", "0")) == choice.timeline:
            ends.append(wal.position(said["Latest checkpoint location"]))
    return max(ends)


def _goes_on(olds: Sequence[Path], last: wal.Segment) -> bool:
    """Whether one of `olds` has what was written after `last`."""
    names = (name for old in olds for name in (*waiting(old), *unfinished(old)))
    later = (wal.Segment.named(name) for name in names)
    return any(found and found.timeline == last.timeline and found.number > last.number for found in later)


def at_hand(store: Store, timeline: int, olds: Sequence[Path], at: int) -> bool:
    """Whether nothing was ever written on `timeline` after position `at`, its last that was found.

    So it is where another timeline branched off there, and where the log of who wrote it is at hand: in the
    data folder, or rescued from there.
    """
    folders = (store.wal, *(old / "pg_wal" for old in olds))
    names = {folder: [path.name for path in folder.iterdir()] for folder in folders}
    for folder in folders:
        for child in wal.histories(names[folder]):
            path = wal.history(child, (folder / f"{child:08X}.history").read_text())
            if any((one.timeline, one.end) == (timeline, at) for one in path):
                return True
    begin = f"{timeline:08X}"
    if any(name.startswith(begin) and name.endswith(UNFINISHED) for name in names[store.wal]):
        return True
    return any(_wrote(old) == timeline for old in olds if not standby.is_standby(old))


def _wrote(data: Path) -> int:
    """The timeline that the server of `data` was on."""
    names = (path.name for path in (data / "pg_wal").iterdir())
    return max((int(found[1], 16) for name in names if (found := _SEGMENT.fullmatch(name))), default=0)
