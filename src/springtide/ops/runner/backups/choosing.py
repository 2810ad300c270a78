"""From which backup, and along which history, a moment is restored. Pure: what there is arrives as values.

The database was on one timeline at each moment: the newest that had begun by then. Restored is from the
newest backup that was complete before the moment and lies on that history.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from springtide.errors import RunnerError
from springtide.ops.runner.backups import wal
from springtide.ops.runner.backups.store import Backup
from springtide.ops.runner.backups.wal import Branch

__all__ = ["Choice", "choose", "said"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Restore `backup`, then follow `branches` (the last of them is the timeline)."""

    backup: Backup
    branches: tuple[Branch, ...]

    @property
    def timeline(self) -> int:
        return self.branches[-1].timeline


def said(moment: float) -> str:
    """A moment for people, in UTC, so that it can be given to `--to` again."""
    return datetime.fromtimestamp(moment, UTC).isoformat(sep=" ", timespec="seconds")


def choose(
    backups: Sequence[Backup],
    born: Mapping[int, float],
    branches: Callable[[int], tuple[Branch, ...]],
    *,
    moment: float | None,
    now: float,
    name: str | None = None,
) -> Choice:
    """`moment` None: the newest there is; `name`: from this backup and no other.

    Raises RunnerError, naming what there is, when that cannot be done.
    """
    if not backups:
        raise RunnerError("there is no backup: `springtide backup` takes one")
    if name is not None and name not in {backup.name for backup in backups}:
        raise RunnerError(
            f"there is no backup {name!r}; there are: {', '.join(backup.name for backup in backups)}"
        )
    first = min(backup.ended for backup in backups)
    if moment is not None and moment > now:
        raise RunnerError(
            f"{said(moment)} is in the future: any moment from {said(first)} to {said(now)} may be restored"
        )
    path = branches(wal.live(born, moment))
    fitting = [
        backup
        for backup in backups
        if name in (None, backup.name)
        and (moment is None or backup.ended <= moment)
        and wal.seen(path, backup.timeline, backup.begin, backup.end)
    ]
    if fitting:
        return Choice(backup=max(fitting, key=lambda backup: backup.ended), branches=path)
    if name is not None:
        (asked,) = [backup for backup in backups if backup.name == name]
        if moment is not None and moment < asked.ended:
            raise RunnerError(
                f"{said(moment)} is before backup {name} was complete, at {said(asked.ended)}: no moment "
                "before that can be restored from it"
            )
        raise RunnerError(f"backup {name} is not on the way to that moment: the database was restored since")
    if moment is not None and moment < first:
        raise RunnerError(
            f"{said(moment)} is before the oldest backup was complete: any moment from {said(first)} to "
            f"{said(now)} may be restored"
        )
    raise RunnerError("no backup lies on the way to that moment: see `springtide backup list`")
