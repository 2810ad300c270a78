"""What a session asks of a cache after writes of its own: marks, one per slot (a class on one database).

    Mark(scope, sequence)   the first level of a process may answer once it has heard the slot's invalidations
                            up to `sequence`, counted in the same `scope` (of one run of one server); where
                            values are kept in another scope, nobody was told: neither level may answer there
    SECOND                  the first level may not answer: which sequence it takes is not known
    NEITHER                 neither level may: the invalidation did not reach the second one

Until `until`, whole seconds since 1970; by then every process has heard of the write or answers from nothing
that is kept, by whatever clock, so a mark says nothing any more.

Marks merge: of one scope the later sequence, of two scopes NEITHER, and always the later end. Past
`MAX_MARKS` slots there is one for `ALL`, which is no less strict than any that it stands for.
As text, a mark is a part of a causality token that begins with `~`. Pure.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

__all__ = [
    "ALL",
    "MAX_MARKS",
    "NEITHER",
    "NO_CACHE",
    "SECOND",
    "Mark",
    "encode_marks",
    "mark_in",
    "mark_of",
    "mark_until",
    "merge_mark",
]

ALL = "*"
"""The slot of a mark that counts for every slot."""

SECOND = "-"
"""The scope of a mark that no first level meets."""

NEITHER = "?"
"""The scope of a mark that no level meets."""

MAX_MARKS = 8

LEAST = 30.0
"""Seconds that a mark lasts at least: more than the clocks of two servers may differ, and a budget."""

_PART = re.compile(r"~([A-Za-z0-9_.@#/-]{1,128}|\*):([0-9a-f]{1,16}|[?-]):([0-9a-f]{1,16}):([0-9a-f]{1,12})")


class Mark(NamedTuple):
    """See the module. `scope` is hexadecimal, SECOND or NEITHER."""

    scope: str
    sequence: int
    until: int

    def allows(self, scope: str) -> bool:
        """Whether the second level may answer with what it keeps in `scope`."""
        return self.scope in (scope, SECOND)

    def is_met(self, scope: str, position: int) -> bool:
        """Whether who has heard all of `scope` up to `position` may answer from the first level."""
        return scope == self.scope and position >= self.sequence


NO_CACHE = f"~{ALL}:{NEITHER}:0:ffffffff"
"""The text of a mark of which nobody knows what it was and when it ends."""


def mark_until(now: float, budget: float) -> int:
    """When a mark of a class ends whose values may be `budget` seconds old; `now` is since 1970."""
    return math.ceil(now + max(10 * budget, LEAST))


def mark_of(marks: Mapping[str, Mark], slot: str) -> Mark | None:
    """What counts for the slot: its own mark, or that of all."""
    return marks.get(slot) or marks.get(ALL)


def merge_mark(marks: dict[str, Mark], slot: str, mark: Mark) -> bool:
    """Add a mark; whether that changed anything."""
    if ALL in marks and slot != ALL:
        slot, mark = ALL, _wide(mark)
    known = marks.get(slot)
    merged = mark if known is None else _merged(known, mark)
    if merged == known:
        return False
    marks[slot] = merged
    if len(marks) > MAX_MARKS or slot == ALL:
        wide = _wide(merged)
        for other in marks.values():
            wide = _merged(wide, _wide(other))
        marks.clear()
        marks[ALL] = wide
    return True


def encode_marks(marks: Mapping[str, Mark]) -> Iterator[str]:
    for slot, (scope, sequence, until) in sorted(marks.items()):
        yield f"~{slot}:{scope}:{sequence:x}:{until:x}"


def mark_in(part: str) -> tuple[str, Mark]:
    """The inverse of one of `encode_marks`: slot and mark. Raises ValueError."""
    found = _PART.fullmatch(part)
    if found is None:
        raise ValueError(f"a mark is ~slot:scope:sequence:until, got {part!r}")
    return found[1], Mark(found[2], int(found[3], 16), int(found[4], 16))


def _wide(mark: Mark) -> Mark:
    """The mark for all slots that is as strict: no scope is that of all."""
    return Mark(NEITHER, 0, mark.until)


def _merged(one: Mark, other: Mark) -> Mark:
    until = max(one.until, other.until)
    if one.scope != other.scope:
        return Mark(NEITHER, 0, until)
    return Mark(one.scope, max(one.sequence, other.sequence), until)
