"""What may be removed: base backups past the number that is kept, and the log that none of the kept needs.

A backup needs the log from its own beginning on, for ever: what came later is how it reaches any later
moment. So the log goes up to where the *lowest* of the kept begins, whatever its timeline. History files
are tiny and tell which timeline is which: they stay. What is not known by its name stays.
Invariant: nothing that a kept backup needs is removed. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from springtide.ops.runner.backups.wal import PER_LOG, SEGMENT_BYTES

__all__ = ["Kept", "kept", "needless"]

_LOG = re.compile(r"[0-9A-F]{8}([0-9A-F]{8})([0-9A-F]{8})(\.partial|\.unfinished|\.[0-9A-F]{8}\.backup)?")


class Kept(Protocol):
    """A base backup, as far as keeping goes: when it was complete, and the position where its log begins."""

    @property
    def ended(self) -> float: ...

    @property
    def begin(self) -> int: ...


B = TypeVar("B", bound=Kept)


def kept(backups: Iterable[B], number: int) -> list[B]:
    """The newest `number` of the complete backups, oldest first. Raises ValueError when that is none."""
    if number < 1:
        raise ValueError(f"number must be >= 1, got {number}")
    return sorted(backups, key=lambda backup: backup.ended)[-number:]


def needless(names: Iterable[str], backups: Sequence[Kept]) -> list[str]:
    """Archived files that no backup of `backups` needs; none while there is no backup at all."""
    if not backups:
        return []
    lowest = min(backup.begin for backup in backups) // SEGMENT_BYTES
    found = []
    for name in names:
        match = _LOG.fullmatch(name)
        if match is not None and int(match[1], 16) * PER_LOG + int(match[2], 16) < lowest:
            found.append(name)
    return found
