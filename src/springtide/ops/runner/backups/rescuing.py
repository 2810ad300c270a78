"""What a server that has ended could not archive any more is archived for it, from its data folder.

Complete files that wait in it (the archive was not there, or the server was killed meanwhile) would be lost
to the archive for ever: who takes over counts them as archived. The file that it was writing goes under a
name of its own, NAME.unfinished, which only a recovery looks for: where a replica was promoted in it, that
one archives NAME.partial, and the two differ. A timeline has one writer, so a later NAME.unfinished holds
what an earlier one held, and replaces it.
Invariant: the data folder is only read, and nothing that is archived under another name is overwritten.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path

from springtide.ops.runner import processes
from springtide.ops.runner.accounts import Account
from springtide.ops.runner.backups.archiving import SCRIPT, UNFINISHED_SCRIPT
from springtide.ops.runner.backups.wal import SEGMENT_BYTES, Segment

__all__ = ["fill", "rescue", "unfinished", "waiting"]

_log = logging.getLogger(__name__)

_READY = re.compile(r"((?:[0-9A-F]{24})(?:\.partial)?|[0-9A-F]{8}\.history)\.ready")


def waiting(data: Path) -> list[str]:
    """Complete files of the log in `data` that were not archived: histories first, as PostgreSQL does."""
    states = _names(data / "pg_wal" / "archive_status")
    found = [match[1] for name in states if (match := _READY.fullmatch(name)) is not None]
    return sorted(found, key=lambda name: (not name.endswith(".history"), name))


def unfinished(data: Path) -> list[str]:
    """The file that the server of `data` was writing when it ended: begun under its own name, not completed.

    What PostgreSQL keeps ready for later has a name of the future, and begins with another position.
    """
    states, names = _names(data / "pg_wal" / "archive_status"), _names(data / "pg_wal")
    found = []
    for name in names:
        segment = Segment.named(name)
        if segment is not None and not {f"{name}.ready", f"{name}.done"} & set(states):
            with (data / "pg_wal" / name).open("rb") as file:
                begins = int.from_bytes(file.read(16)[8:], "little")
            if begins == segment.number * SEGMENT_BYTES:
                found.append(name)
    return found


def _names(folder: Path) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir())
    except FileNotFoundError:
        return []


async def rescue(data: Path, archive: Path, account: Account, log: Path, *, rest: bool) -> None:
    """Archive what waits in `data`; with `rest`, also what was not complete. Nothing may run on it.

    What cannot be archived is told and stays where it is.
    """
    await _archive(data, await asyncio.to_thread(waiting, data), archive, account, log, SCRIPT)
    if rest:
        names = await asyncio.to_thread(unfinished, data)
        await _archive(data, names, archive, account, log, UNFINISHED_SCRIPT)


async def fill(data: Path, names: Sequence[str], archive: Path, account: Account, log: Path) -> None:
    """Archive those of `names` that are in `data`, where each is known to be complete."""
    there = await asyncio.to_thread(lambda: [name for name in names if (data / "pg_wal" / name).exists()])
    await _archive(data, there, archive, account, log, SCRIPT)


async def _archive(
    data: Path, names: Sequence[str], archive: Path, account: Account, log: Path, script: str
) -> None:
    environment = {"PATH": os.defpath, "LC_ALL": "C"}
    for name in names:
        command = ["/bin/sh", "-c", script, "sh", str(data / "pg_wal" / name), name, str(archive)]
        status = await processes.run(command, log=log, env=environment, account=account.switch)
        level = logging.INFO if status == 0 else logging.WARNING
        done = "archived" if status == 0 else f"not archived, see {log}"
        _log.log(level, "%s of %s, which its server had not archived: %s", name, data, done)
