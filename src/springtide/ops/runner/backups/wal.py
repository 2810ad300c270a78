"""Files of PostgreSQL's log by name: which follow each other, which are missing, which history they tell.

A segment is named by its timeline and its number; a position (LSN) divided by the size of a segment is the
number. A timeline branches off its parent at a position, which its history file tells; the segment in which
it branched belongs to the child, who begins it with a copy of what the parent had written.
Pure: names and texts arrive as values. Segments have PostgreSQL's usual size, that of every embedded server.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

__all__ = [
    "SEGMENT_BYTES",
    "Branch",
    "Segment",
    "gaps",
    "histories",
    "history",
    "live",
    "newest",
    "owner",
    "position",
    "printed",
    "seen",
]

SEGMENT_BYTES = 16 * 2**20
PER_LOG = 2**32 // SEGMENT_BYTES

_SEGMENT = re.compile(r"([0-9A-F]{8})([0-9A-F]{8})([0-9A-F]{8})(\.partial)?")
_HISTORY = re.compile(r"([0-9A-F]{8})\.history")


def position(text: str) -> int:
    """An LSN as PostgreSQL prints it, as a number of bytes. Raises ValueError for anything else."""
    high, slash, low = text.partition("/")
    if not slash:
        raise ValueError(f"a position looks like 0/3000028, got {text!r}")
    return int(high, 16) << 32 | int(low, 16)


def printed(at: int) -> str:
    """A position as PostgreSQL prints it."""
    return f"{at >> 32:X}/{at & 0xFFFFFFFF:X}"


@dataclass(frozen=True, slots=True, order=True)
class Segment:
    """One file of the log. `number` counts from the beginning of all, over every timeline."""

    timeline: int
    number: int

    @classmethod
    def named(cls, name: str) -> Segment | None:
        """That of a complete file; None for anything else (a partial one as well)."""
        found = _SEGMENT.fullmatch(name)
        if found is None or found[4]:
            return None
        return cls(int(found[1], 16), int(found[2], 16) * PER_LOG + int(found[3], 16))

    @property
    def name(self) -> str:
        log, part = divmod(self.number, PER_LOG)
        return f"{self.timeline:08X}{log:08X}{part:08X}"


@dataclass(frozen=True, slots=True)
class Branch:
    """A stretch of one history: `timeline` wrote it from `begin` up to `end`, None = to this day."""

    timeline: int
    begin: int
    end: int | None


def history(timeline: int, text: str | None) -> tuple[Branch, ...]:
    """The branches that lead to `timeline`, oldest first; `text` is its history file (None: it has none)."""
    branches: list[Branch] = []
    begin = 0
    for line in (text or "").splitlines():
        fields = line.split("\t", 2) if "\t" in line else line.split(None, 2)
        if len(fields) >= 2 and fields[0].strip().isdigit():
            end = position(fields[1].strip())
            branches.append(Branch(int(fields[0]), begin, end))
            begin = end
    return (*branches, Branch(timeline, begin, None))


def histories(names: Iterable[str]) -> list[int]:
    """The timelines that have a history file among `names`, ascending."""
    return sorted(int(found[1], 16) for name in names if (found := _HISTORY.fullmatch(name)))


def live(born: Mapping[int, float], moment: float | None) -> int:
    """The timeline on which the database was at `moment` (None: now). `born`: timeline -> when it began.

    A database has one present: the newest timeline that had begun by then.
    """
    begun = [timeline for timeline, at in born.items() if moment is None or at <= moment]
    return max(begun, default=min(born))


def owner(branches: Iterable[Branch], number: int) -> int:
    """The timeline under which segment `number` of this history is archived."""
    found = [branch.timeline for branch in branches if branch.begin // SEGMENT_BYTES <= number]
    return found[-1]


def seen(branches: Iterable[Branch], timeline: int, begin: int, end: int) -> bool:
    """Whether what `timeline` wrote from `begin` to `end` is part of this history."""
    return any(
        branch.timeline == timeline and (branch.end is None or end <= branch.end) and begin >= branch.begin
        for branch in branches
    )


def newest(names: Iterable[str], branches: Iterable[Branch]) -> Segment | None:
    """The last archived segment of this history; None when there is none."""
    path = tuple(branches)
    found = [segment for name in names if (segment := Segment.named(name)) is not None]
    return max(
        (segment for segment in found if owner(path, segment.number) == segment.timeline),
        key=lambda segment: segment.number,
        default=None,
    )


def gaps(names: Iterable[str], branches: Iterable[Branch], begin: int) -> list[str]:
    """Segments of this history that are missing between position `begin` and its newest archived one."""
    there, path = frozenset(names), tuple(branches)
    last = newest(there, path)
    if last is None:
        return []
    wanted = (Segment(owner(path, number), number) for number in range(begin // SEGMENT_BYTES, last.number))
    return [segment.name for segment in wanted if segment.name not in there]
