"""When a schedule's slots are, and which of those that are due are run. Pure.

A slot is a moment (UTC). Cron: five fields in a time zone, as Debian's cron reads them where clocks change: a
fixed time that a day leaves out comes right after the gap (02:30 -> 03:00), once; one that a day has twice
comes the first time only; what comes each hour or each few minutes follows real time.
Intervals: slots are n * every + offset since 1970, the same for everybody who asks, whenever they began.

Slots only follow each other: `after(moment)` is always later than `moment`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import islice
from typing import Protocol

from cronsim import CronSim, CronSimError

from springtide.errors import JobError

__all__ = ["COUNTED", "CATCH_UP", "Cron", "Due", "Every", "MOST", "Timing", "due"]

CATCH_UP = ("one", "none", "all")

MOST = 100
"""Slots of one schedule that are caught up on at most; the newest."""

COUNTED = 1000
"""Slots of a cron line that were missed are counted up to here."""

ON_TIME = timedelta(seconds=60)
"""How late a slot may be that `catch_up="none"` still runs: nobody looks at the very moment."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WINDOW = timedelta(hours=1)


class Timing(Protocol):
    def after(self, moment: datetime) -> datetime:
        """The first slot later than `moment`."""

    def missed(self, first: datetime, until: datetime) -> tuple[list[datetime], int]:
        """The last MOST slots from `first`, which counts as one, to `until`; and how many there are."""


@dataclass(frozen=True, slots=True)
class Every:
    """A slot each `step`; `offset` moves all of them."""

    step: timedelta
    offset: timedelta

    def after(self, moment: datetime) -> datetime:
        turns = (moment - self.offset - _EPOCH) // self.step
        return _EPOCH + self.offset + (turns + 1) * self.step

    def missed(self, first: datetime, until: datetime) -> tuple[list[datetime], int]:
        second = self.after(first)
        more = (until - second) // self.step + 1 if second <= until else 0
        last = [second + number * self.step for number in range(max(more - MOST, 0), more)]
        return [first, *last][-MOST:], more + 1


@dataclass(frozen=True, slots=True)
class Cron:
    """The slots of a cron line in a time zone. Raises JobError, which says what is wrong with the line."""

    line: str
    zone: tzinfo

    def __post_init__(self) -> None:
        if len(self.line.split()) != 5:
            raise JobError(
                f"cron must have five fields (minute hour day month weekday), such as '30 3 * * *',"
                f" got {self.line!r}"
            )
        try:
            CronSim(self.line, _EPOCH)
        except CronSimError as error:
            raise JobError(f"cron {self.line!r} cannot be read: {error}") from error
        if next(self._from(datetime(2026, 1, 1, tzinfo=UTC)), None) is None:
            raise JobError(f"cron {self.line!r} never comes")

    def after(self, moment: datetime) -> datetime:
        return next(self._from(moment))

    def missed(self, first: datetime, until: datetime) -> tuple[list[datetime], int]:
        known = [first, *islice(self._between(first, until), COUNTED - 1)]
        if len(known) < COUNTED:
            return known[-MOST:], len(known)
        window = _WINDOW
        while True:  # the last ones are near the end: look at twice as much until they are enough
            begin = max(first, until - window)
            last = list(self._between(begin, until))
            if len(last) >= MOST or begin == first:
                return last[-MOST:], COUNTED
            window *= 2

    def _between(self, moment: datetime, until: datetime) -> Iterator[datetime]:
        for slot in self._from(moment):
            if slot > until:
                return
            yield slot

    def _from(self, moment: datetime) -> Iterator[datetime]:
        """In order and each once: a line may name two times that a change of the clocks makes one, and
        seen from the second of two equal hours the next time may lie in the first."""
        last = moment
        for found in CronSim(self.line, moment.astimezone(self.zone)):
            slot = found.astimezone(UTC)
            if slot > last:
                last = slot
                yield slot


@dataclass(frozen=True, slots=True)
class Due:
    """What a look at a schedule found: these slots are run, so many are not, and the next one comes then."""

    run: list[datetime]
    skipped: int
    next: datetime


def due(timing: Timing, catch_up: str, slot: datetime, now: datetime, *, changed: bool = False) -> Due:
    """`slot`, the next one, has come: it is not later than `now`. `changed`: it is one of other times, and
    those of `timing` begin after now.

    "one": the newest, "none": the newest unless it is more than a minute late, "all": the newest 100.
    """
    slots, count = ([slot], 1) if changed else timing.missed(slot, now)
    if catch_up != "all":
        slots = slots[-1:]
    if catch_up == "none" and now - slots[-1] > ON_TIME:
        slots = []
    return Due(slots, count - len(slots), timing.after(now))
