"""Keep producers back when a queue is behind: refuse them, or slow them down, as each kind has declared.

    @job(kind="mail.digest", max_age=60.0, overload="refuse")     QueueOverloaded, and 503 with Retry-After
    @job(kind="search.index", max_age=60.0, overload="slow")      the write returns up to MAX_PAUSE later

Judged is the age of the oldest due job of the kind, on the shard of the write. Ages are read once a second
per process, so an enqueue costs a look-up in a dictionary and no query. What is judged is at most some
seconds old; while a reading fails it goes on growing with the clock for KEPT seconds, then nothing is known,
and what is not known keeps nobody back.

A refusal is raised before the statement, so the caller's transaction may go on without the job. A slowed
producer waits *after* its commit: it holds no lock and no connection then, and nothing of the request's last
half second is taken. Jobs that are enqueued for later are judged as all others.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import asyncpg

from springtide.clock import Clock, SystemClock
from springtide.context import RequestContext, activate, current
from springtide.errors import QueueOverloaded, Unavailable
from springtide.jobs._ages import Ages
from springtide.jobs.job import JobKind
from springtide.lifecycle import Periodic
from springtide.signals import NullSink, Sink

if TYPE_CHECKING:
    from springtide.db import Database, WriteTransaction

__all__ = ["MAX_PAUSE", "Pressure", "Verdict", "judge"]

READ_EVERY = 1.0
READ_TIMEOUT = 2.0

KEPT = 60.0
"""Seconds for which the last reading is believed while no other succeeds."""

MAX_PAUSE = 1.0
"""Seconds that a producer is slowed down at most, at twice the age that was allowed or more."""

LEFT = 0.5
"""Seconds of a request's time that slowing down leaves alone."""

LEAST_RETRY, MOST_RETRY = 1.0, 60.0


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a producer: refused until `retry_after` seconds have passed, or slowed by `pause`."""

    retry_after: float | None = None
    pause: float = 0.0


FREE = Verdict()


def judge(spec: JobKind, age: float) -> Verdict:
    """For a job of this kind whose oldest waits for `age` seconds; pure.

    It is refused until the queue, draining as fast as the clock runs, would be young enough again.
    """
    limit = spec.max_age
    if limit is None or age <= limit:
        return FREE
    if spec.overload == "refuse":
        return Verdict(retry_after=min(max(age - limit, LEAST_RETRY), MOST_RETRY))
    return Verdict(pause=MAX_PAUSE * min(age / limit - 1.0, 1.0))


@dataclass(slots=True)
class _Reading:
    at: float = float("-inf")
    ages: Mapping[str, float] = field(default_factory=dict)


class Pressure:
    """A lifecycle service; `watch` before the start."""

    def __init__(self, *, clock: Clock | None = None, sink: Sink | None = None) -> None:
        self.name = "jobs pressure"
        self._clock = clock or SystemClock()
        self._databases: list[Database] = []
        self._readings: dict[tuple[str, str], _Reading] = {}
        self._task = Periodic(
            self.name, self._read, every=READ_EVERY, clock=self._clock, sink=sink or NullSink()
        )

    @property
    def state(self) -> str:
        return self._task.state

    @property
    def needed(self) -> bool:
        """Whether any kind keeps its producers back."""
        return bool(self._databases)

    def watch(self, database: Database, kinds: Collection[JobKind]) -> None:
        """Read the ages of this database's kinds, if one of them keeps its producers back."""
        if any(kind.max_age is not None for kind in kinds):
            self._databases.append(database)
            self._readings |= {(database.name, shard): _Reading() for shard in database.pools}

    async def start(self) -> None:
        await self._task.start()

    async def stop(self) -> None:
        await self._task.stop()

    def age(self, database: str, shard: str, kind: str) -> float:
        """Seconds that the oldest due job of the kind waits, as far as it is known; 0 when nothing is."""
        reading = self._readings.get((database, shard))
        if reading is None or (age := reading.ages.get(kind)) is None:
            return 0.0
        since = self._clock.monotonic() - reading.at
        return age + since if since <= KEPT else 0.0

    def admit(self, tx: WriteTransaction, spec: JobKind) -> None:
        """Raises QueueOverloaded, or slows the caller down after the commit of `tx`."""
        if spec.max_age is None:
            return
        age = self.age(tx.database.name, tx.shard, spec.kind)
        verdict = judge(spec, age)
        if verdict.retry_after is not None:
            raise QueueOverloaded(spec.kind, age=age, limit=spec.max_age, retry_after=verdict.retry_after)
        if verdict.pause > 0:
            context = current()
            deadline = None if context is None else context.deadline
            tx.on_commit(lambda: self._slow(verdict.pause, deadline))

    async def _slow(self, seconds: float, deadline: float | None) -> None:
        if deadline is not None:
            seconds = min(seconds, deadline - self._clock.monotonic() - LEFT)
        if seconds > 0:
            await self._clock.sleep(seconds * random.uniform(0.8, 1.0))  # noqa: S311 - spreads producers

    async def _read(self) -> None:
        with activate(RequestContext(deadline=self._clock.monotonic() + READ_TIMEOUT)):
            await asyncio.gather(
                *(self._ask(database, shard) for database in self._databases for shard in database.pools)
            )

    async def _ask(self, database: Database, shard: str) -> None:
        try:
            ages = await Ages(database.schema).read(database.pools[shard])
        except (Unavailable, asyncpg.PostgresError):
            return  # the last reading is believed for a while
        self._readings[database.name, shard] = _Reading(self._clock.monotonic(), ages)
