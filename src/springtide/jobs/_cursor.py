"""Where a claim begins to look for ready jobs, so that it passes nothing that was claimed long ago.

While any transaction of the server is open, PostgreSQL keeps what was deleted or changed since it began, in
indexes too. A claim that reads ready jobs from the oldest on would pass all of that again, every time. So a
worker remembers for each priority a *floor*: a time of the database's clock below which no job is ready.

The proof needs an order: whoever makes a row ready takes a transaction number first and reads the clock for
`run_at` after that, and `run_at` is never earlier than that reading (`MARKED_NOW` in `_statements.py`).

A *reading* k is one statement: a snapshot S_k, then the clock c_k, then a transaction number n_k of its own;
and first_k, the earliest `run_at` at or above the floor that S_k shows as ready. A transaction numbered above
n_k reads the clock after c_k. One below n_(k-1) that S_k does not show as running has ended, and S_k shows
its rows. So every row that S_k does not show and whose `run_at` is below c_(k-1) is of a transaction in

    pending_k = {x in running(S_k): x < n_(k-1)}

and the floor may rise to min(first_k, c_(k-1) - MARGIN): what becomes ready below it is of one of those. A
transaction that was not pending one reading earlier has a number above n_(k-2), so all of its rows are at or
above c_(k-2): once it has ended, the floor goes back to there. It stays in pending while it runs, however
long, and costs nothing: that is what a held transaction does.

    no floor -> rising <-> back to the start of a transaction that ended
    any -> no floor: the clock went back, more than MAX_PENDING are running, the server may be another, or
                     something was found below the floor (a row written by hand: once a minute somebody looks)

MARGIN covers the steps of a clock that are too small to be noticed between two readings. Pure: no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

__all__ = ["EVERYTHING", "Cursor", "Reading"]

EVERYTHING = datetime(1970, 1, 1, tzinfo=UTC)
"""Below every job: no floor."""

PRIORITIES = 3

MAX_PENDING = 200
"""Running transactions that a cursor remembers; with more there is no floor."""

MARGIN = timedelta(seconds=0.25)


@dataclass(frozen=True, slots=True)
class Reading:
    """What one statement saw. `sent` and `received` are this process's monotonic seconds around it.

    first: per priority the earliest ready job at or above the floor, None when there is none.
    """

    running: Sequence[int]
    number: int
    clock: datetime
    first: Sequence[datetime | None]
    sent: float
    received: float


class Cursor:
    """`floors` per priority, to be given to the next claim and to the next reading."""

    def __init__(self) -> None:
        self.floors: list[datetime] = [EVERYTHING] * PRIORITIES
        self.pending: dict[int, datetime] = {}
        """Running transactions that may have jobs below the floors, and where those can begin."""
        self._last: Reading | None = None
        self._before: Reading | None = None

    @property
    def read(self) -> bool:
        """Whether there were two readings, from which it begins at a floor."""
        return self._before is not None

    def forget(self) -> None:
        """Claim without a floor until two readings have set one."""
        self.floors = [EVERYTHING] * PRIORITIES
        self.pending.clear()
        self._last = self._before = None

    def below(self, first: Sequence[datetime | None]) -> bool:
        """Whether one of these earliest ready jobs per priority lies below its floor."""
        return any(
            found is not None and found < floor for found, floor in zip(first, self.floors, strict=True)
        )

    def advance(self, reading: Reading) -> bool:
        """Take in a reading that was made with the present floors; whether a floor went down."""
        last, before = self._last, self._before
        if last is not None and _went_back(last, reading):
            self.forget()
            self._last = reading
            return True
        self._before, self._last = last, reading
        if last is None:
            return False
        running = {number for number in reading.running if number < last.number}
        ended = [start for number, start in self.pending.items() if number not in running]
        start = EVERYTHING if before is None else before.clock - MARGIN
        self.pending = {number: self.pending.get(number, start) for number in running}
        if len(running) > MAX_PENDING:
            self.forget()
            return True
        if ended:
            # what it left lies below the floor that `first` was looked for from: the next reading finds it
            back = min(ended)
            self.floors = [min(floor, back) for floor in self.floors]
            return True
        limit = last.clock - MARGIN
        self.floors = [
            max(floor, limit if first is None else min(first, limit))
            for floor, first in zip(self.floors, reading.first, strict=True)
        ]
        return False


def _went_back(last: Reading, reading: Reading) -> bool:
    """Whether the database's clock lost more than MARGIN against ours between two readings."""
    least = max(reading.sent - last.received, 0.0)
    return reading.clock - last.clock < timedelta(seconds=least) - MARGIN
