"""Enqueue the jobs of a module's schedules: each slot once, however many processes do this at once.

    planned -> due -> enqueued, and planned for the next slot      one transaction, guarded by the slot itself
                   -> passed over (`catch_up`)                     likewise, without a job

Whoever moves a schedule from the slot to the next one has it: the others find it moved. What has been run
lies before `next_at` for good, so a clock that is set back makes slots late and runs none twice; who is
killed in the middle has done nothing. Nobody is elected. A process sleeps until the next slot, at most LOOK
seconds, and asks by one statement.

Of two releases that declare a schedule differently the later one runs it (`_schedules.py`). When its times
have changed, a slot that is due is run still, and the next one is reckoned from then on.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from springtide.clock import Clock, SystemClock
from springtide.context import Priority, RequestContext, activate
from springtide.db import Bucket, Database
from springtide.errors import JobError, SpringtideError
from springtide.jobs import _schedules, _slots
from springtide.jobs.schedule import Schedule
from springtide.lifecycle import Supervised
from springtide.signals import NullSink, ScheduleFired, Sink

__all__ = ["Scheduled", "Scheduler", "scheduled"]

_log = logging.getLogger(__name__)

LOOK = 10.0
"""Seconds between two looks at most: a new declaration, a clock that was set forward."""

SPREAD = 0.1
"""Seconds over which the processes are spread that wake for a slot."""

TIMEOUT = 10.0

FORGET_EVERY = 3600.0


class Scheduler:
    """A lifecycle service for the schedules of the module whose database this is.

    Raises JobError when two of them have one name.
    """

    def __init__(
        self,
        database: Database,
        schedules: Sequence[Schedule],
        *,
        clock: Clock | None = None,
        sink: Sink | None = None,
    ) -> None:
        self._schedules = {schedule.name: schedule for schedule in schedules}
        if len(self._schedules) < len(schedules):
            raise JobError(f"database {database.name!r} has two schedules of one name")
        self._database = database
        self._specs = {name: schedule.spec for name, schedule in self._schedules.items()}
        self._timings = {name: schedule.timing(database.name) for name, schedule in self._schedules.items()}
        self._pool = database.pools[database.shards.shard_of(Bucket(_schedules.BUCKET))]
        self._clock = clock or SystemClock()
        self._sink = sink or NullSink()
        self._declared = self._forgot = float("-inf")
        self.name = f"schedules of {database.name}"
        self._task = Supervised(
            self.name, self._run, backoff=0.5, max_backoff=5.0, clock=self._clock, sink=sink
        )

    @property
    def state(self) -> str:
        return self._task.state

    async def start(self) -> None:
        await self._task.start()

    async def stop(self) -> None:
        await self._task.stop()

    async def _run(self) -> None:
        self._declared = float("-inf")
        while True:
            with activate(
                RequestContext(deadline=self._clock.monotonic() + TIMEOUT, priority=Priority.CRITICAL)
            ):
                seconds = await self.look()
            await self._clock.sleep(seconds)

    async def look(self) -> float:
        """Run what is due; how many seconds may pass until the next look."""
        names = list(self._schedules)
        if self._passed(self._declared, _schedules.SEEN):
            await self._pool.execute(self._text(_schedules.DECLARE), names, list(self._specs.values()))
            self._declared = self._clock.monotonic()
        if self._passed(self._forgot, FORGET_EVERY):
            await self._pool.execute(self._text(_schedules.FORGET))
            self._forgot = self._clock.monotonic()
        pause = LOOK * random.uniform(0.8, 1.0)  # noqa: S311 - spreads looks
        for row in await self._pool.fetch(self._text(_schedules.READ), names):
            wait = await self._tend(self._schedules[row["name"]], row)
            pause = min(pause, wait + random.uniform(0.0, SPREAD))  # noqa: S311 - see above
        return pause

    async def _tend(self, schedule: Schedule, row: Any) -> float:
        """What is to be done about one of them; how long until it is due."""
        name, now, slot = schedule.name, row["now"], row["next_at"]
        timing = self._timings[name]
        if slot is None:
            slot = timing.after(now)
            await self._pool.execute(self._text(_schedules.PLAN), name, schedule.when, slot)
        elif row["leader"] != self._specs[name]:
            return LOOK
        elif slot <= now:
            try:
                slot = await self._fire(schedule, row)
            except SpringtideError as error:  # its own fault, or the database's: the others have their turn
                _log.error("schedule %s of %s is late: %s", name, self._database.name, error)
                return LOOK
        elif row["timing"] != schedule.when:
            before, slot = slot, timing.after(max(now, row["last_at"] or now))
            await self._pool.execute(
                self._text(_schedules.ADJUST), name, row["timing"], before, schedule.when, slot
            )
        return float(max((slot - now).total_seconds(), 0.0))

    async def _fire(self, schedule: Schedule, row: Any) -> datetime:
        """The slot is run or passed over, by us or by somebody else; the next one."""
        name, now, slot = schedule.name, row["now"], row["next_at"]
        timing = self._timings[name]
        changed = row["timing"] != schedule.when
        found = _slots.due(timing, schedule.catch_up, slot, now, changed=changed)
        jobs = [schedule.make(one) for one in found.run]
        async with self._database.write(Bucket(_schedules.BUCKET)) as tx:
            moved = await tx.fetch_value(
                self._text(_schedules.FIRE), name, row["timing"], slot, schedule.when, found.next,
                found.run[-1] if found.run else None, len(found.run), found.skipped,
            )  # fmt: skip
            if moved is None:
                return found.next
            if jobs:
                await tx.enqueue_many(jobs)
        late = (now - (found.run[-1] if found.run else slot)).total_seconds()
        self._sink.emit(
            ScheduleFired(self._database.name, name, len(found.run), found.skipped, max(late, 0.0))
        )
        if found.skipped:
            _log.warning(
                "schedule %s of %s: %d slots since %s were not run (catch_up %r)",
                name, self._database.name, found.skipped, slot.isoformat(), schedule.catch_up,
            )  # fmt: skip
        return found.next

    def _passed(self, since: float, seconds: float) -> bool:
        return self._clock.monotonic() - since >= seconds

    def _text(self, sql: str) -> str:
        return sql.format(schema=self._database.schema)


@dataclass(frozen=True, slots=True)
class Scheduled:
    """A schedule as the database knows it. `declared`: some running release has it; the others never run."""

    name: str
    timing: str
    next_at: datetime
    last_at: datetime | None
    runs: int
    skipped: int
    due_in: float
    declared: bool


async def scheduled(database: Database) -> list[Scheduled]:
    """The schedules of a module, by name."""
    pool = database.pools[database.shards.shard_of(Bucket(_schedules.BUCKET))]
    rows = await pool.fetch(_schedules.LIST.format(schema=database.schema))
    return [Scheduled(**row) for row in rows]
