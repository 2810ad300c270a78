"""What a schedule is: a job that is enqueued at certain times, once each, by whichever worker is there.

    Module(..., jobs=[Handler(Report, Office.report)],
           schedules=[Schedule("nightly", Report(), cron="30 3 * * *", tz="Europe/Berlin")])

A declaration is a value: nothing is registered by import, a module lists its schedules. How the slots lie is
`_slots.py`'s, how each is run once `scheduler.py`'s.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta, tzinfo
from hashlib import blake2b
from typing import Any, Literal
from zoneinfo import ZoneInfo

import msgspec

from springtide.errors import JobError
from springtide.jobs._slots import CATCH_UP, Cron, Every, Timing
from springtide.jobs.job import kind_of
from springtide.outbox.kinds import is_named, is_number

__all__ = ["CatchUp", "Schedule"]

CatchUp = Literal["one", "none", "all"]

LONGEST = 366 * 86_400.0

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,47}")


@dataclass(frozen=True, slots=True)
class Schedule:
    """`job` is enqueued at each slot. It is a job, or a function that makes one of the slot (a UTC time); it
    must give the same each time and is called once here, to see what it makes.

    name:     of the schedule in the module; keep it, it says what has been run.
    cron:     minute, hour, day, month, weekday as cron has them, in the time zone `tz`; see `_slots.py` for
              what becomes of times that a day has twice or not at all.
    every:    seconds from slot to slot, at least 1 and at most a year, instead of `cron`. Where they lie
              depends on the name, so that not everything comes at the full minute.
    tz:       name of a time zone, such as Europe/Berlin.
    catch_up: what becomes of slots that nobody was there for. "one": the newest is run; "all": each, at most
              the newest 100; "none": none that is more than a minute late.

    Raises JobError.
    """

    name: str
    job: msgspec.Struct | Callable[[datetime], Any]
    cron: str | None = field(default=None, kw_only=True)
    every: float | None = field(default=None, kw_only=True)
    tz: str = field(default="UTC", kw_only=True)
    catch_up: CatchUp = field(default="one", kw_only=True)
    _zone: tzinfo = field(init=False, repr=False, compare=False, default=UTC)

    def __post_init__(self) -> None:
        if not is_named(_NAME, self.name):
            raise JobError(
                "a schedule's name must be lower-case letters, digits, _ and -, at most 48, a letter first,"
                f" got {self.name!r}"
            )
        where = f"schedule {self.name!r}"
        if (self.cron is None) == (self.every is None):
            raise JobError(f"{where}: give either cron or every, got {self.cron!r} and {self.every!r}")
        if self.cron is not None and not isinstance(self.cron, str):
            raise JobError(f"{where}: cron must be a string, such as '30 3 * * *', got {self.cron!r}")
        if self.every is not None and not (is_number(self.every) and 1 <= self.every <= LONGEST):
            raise JobError(f"{where}: every must be >= 1 second and at most a year, got {self.every!r}")
        if self.every is not None and self.tz != "UTC":
            raise JobError(f"{where}: tz is for cron, an interval has no use for {self.tz!r}")
        if self.catch_up not in CATCH_UP:
            raise JobError(f"{where}: catch_up must be one of {', '.join(CATCH_UP)}, got {self.catch_up!r}")
        try:
            object.__setattr__(
                self, "_zone", _zone(self.tz)
            )  # a zone is a file: read it here and not in a loop
            timing = self.timing("")
            self.make(timing.after(datetime(2026, 1, 1, tzinfo=UTC)))
        except JobError as error:
            raise JobError(f"{where}: {error}") from error

    @property
    def when(self) -> str:
        """For people, and to see whether the times have changed: `30 3 * * * Europe/Berlin`, `every 60 s`."""
        return (
            f"{' '.join(self.cron.split())} {self.tz}" if self.cron is not None else f"every {self.every:g} s"
        )

    def timing(self, module: str) -> Timing:
        """Its slots in `module`."""
        if self.cron is not None:
            return Cron(self.cron, self._zone)
        assert self.every is not None
        step = timedelta(seconds=self.every)
        digest = blake2b(f"{module}.{self.name}".encode(), digest_size=8).digest()
        return Every(step, int.from_bytes(digest, "big") * timedelta(microseconds=1) % step)

    def make(self, slot: datetime) -> Any:
        """The job of a slot. Raises JobError."""
        if isinstance(self.job, type):
            raise JobError(f"job must be a value, such as {self.job.__name__}(), got the class")
        if callable(self.job) and not hasattr(self.job, "__qualname__"):  # `spec` goes by it
            raise JobError(f"job must be a job, or a function with a name (def), got {self.job!r}")
        if not callable(self.job):
            kind_of(self.job)
            return self.job
        try:
            made = self.job(slot)
            msgspec.json.encode(made)  # what cannot be stored is its own fault, and no other schedule's
        except Exception as error:
            raise JobError(f"no job could be made of the slot {slot.isoformat()}: {error!r}") from error
        kind_of(made)
        return made

    @property
    def kind(self) -> str:
        """Kind and version of its jobs."""
        return kind_of(self.make(self.timing("").after(datetime(2026, 1, 1, tzinfo=UTC)))).name

    @property
    def spec(self) -> str:
        """A name for all that is declared: two releases have the same if they mean the same."""
        made: Any = self.job.__qualname__ if callable(self.job) else msgspec.json.encode(self.job).decode()
        told = msgspec.json.encode([self.when, self.catch_up, self.kind, str(made)])
        return blake2b(told, digest_size=12).hexdigest()


def _zone(name: str) -> tzinfo:
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (OSError, TypeError, ValueError, LookupError) as error:  # a folder: OSError, ../x: ValueError
        raise JobError(
            f"tz must be a time zone that this machine knows, such as Europe/Berlin, got {name!r}"
        ) from error
