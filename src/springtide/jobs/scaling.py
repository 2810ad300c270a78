"""How many workers the jobs need: enough for what comes, and to drain what waits in the time that is wanted.

By Little's law (L = lambda W; J. D. C. Little, Operations Research 9, 1961), jobs that come at a rate of
`arrival` and have a slot for `service` seconds each take arrival * service slots for good. Those that wait
take waiting * service slot seconds; spread over `time_to_drain` that are so many slots more. Of all kinds:

    slots   = sum(service * (arrival + waiting / time_to_drain))
    workers = ceil(slots / slots of a worker), at least as many as have room for what runs now; within the
              bounds

Jobs that wait for others of their key, are paused or parked do not count: more workers would not run them.
Whoever scales decides how fast (the runner, Kubernetes by KEDA): this is what is wanted now, and no more.

unknown -> known <-> unknown (nothing was read for KEPT seconds). What is not known changes no number.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import asyncpg

from springtide.clock import Clock, SystemClock
from springtide.context import RequestContext, activate
from springtide.errors import JobError, SpringtideError
from springtide.jobs._loads import Loads
from springtide.lifecycle import Periodic
from springtide.signals import LoadMeasured, NullSink, Sink, WorkersWanted

if TYPE_CHECKING:
    from springtide.db import Database

__all__ = ["Bounds", "Load", "Scaling", "Wanted", "loads", "wanted"]

READ_EVERY = 2.0
READ_TIMEOUT = 5.0

KEPT = 30.0
"""Seconds for which the last reading is believed while no other succeeds."""

STALE = 15.0
"""Seconds since the last measurement after which a reader measures itself: no worker lives."""

ASSUMED = 1.0
"""Seconds that a job of a kind of which nothing has run yet is taken to need."""

SLACK = 0.01
"""Of a worker: so little more than whole workers can do asks for no other one."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """`slots` of one worker; `least` and `most` workers; seconds in which what waits is to be done.

    Raises JobError for what cannot be.
    """

    slots: int
    least: int = 1
    most: int = 10
    time_to_drain: float = 60.0

    def __post_init__(self) -> None:
        if self.slots < 1:
            raise JobError(f"slots must be >= 1, got {self.slots}")
        if not 1 <= self.least <= self.most:
            raise JobError(f"least must be >= 1 and <= most, got {self.least} and {self.most}")
        if not self.time_to_drain > 0:
            raise JobError(f"time_to_drain must be > 0 seconds, got {self.time_to_drain}")


@dataclass(frozen=True, slots=True)
class Load:
    """One kind on one shard: jobs that are due now or soon, and that run; per second that come; seconds that
    one needs, None when nothing of the kind has run yet."""

    module: str
    shard: str
    kind: str
    waiting: int
    running: int
    arrival: float
    service: float | None

    def slots(self, time_to_drain: float) -> float:
        """How many it needs."""
        service = ASSUMED if self.service is None else self.service
        return service * (self.arrival + self.waiting / time_to_drain)


@dataclass(frozen=True, slots=True)
class Wanted:
    """The answer, and what it is made of."""

    workers: int
    slots: float
    bounds: Bounds
    loads: tuple[Load, ...]

    def page(self) -> dict[str, object]:
        """As the page /scaling shows it."""
        bounds = self.bounds
        return {
            "workers": self.workers,
            "slots": round(self.slots, 3),
            "slots_per_worker": bounds.slots,
            "time_to_drain": bounds.time_to_drain,
            "min": bounds.least,
            "max": bounds.most,
            "kinds": [
                {
                    "module": load.module,
                    "shard": load.shard,
                    "kind": load.kind,
                    "waiting": load.waiting,
                    "running": load.running,
                    "arrival": round(load.arrival, 3),
                    "service": None if load.service is None else round(load.service, 6),
                    "slots": round(load.slots(bounds.time_to_drain), 3),
                }
                for load in self.loads
            ],
        }


def wanted(loads: Iterable[Load], bounds: Bounds) -> Wanted:
    """How many workers these loads need; pure."""
    loads = tuple(loads)
    slots = sum(load.slots(bounds.time_to_drain) for load in loads)
    running = sum(load.running for load in loads)
    workers = max(
        math.ceil(min(slots / bounds.slots, bounds.most) - SLACK),
        math.ceil(running / bounds.slots),
    )
    return Wanted(min(max(workers, bounds.least), bounds.most), slots, bounds, loads)


async def loads(databases: Sequence[Database]) -> list[Load]:
    """What the databases' jobs ask of workers, on every shard; measured now where nobody does.

    Raises SpringtideError, or what PostgreSQL refuses.
    """
    asked = [_ask(database, shard) for database in databases for shard in database.pools]
    return [load for found in await asyncio.gather(*asked) for load in found]


async def _ask(database: Database, shard: str) -> list[Load]:
    statements, pool = Loads(database.schema), database.pools[shard]
    rows, age = await statements.read(pool)
    if (age is None or not 0 <= age <= STALE) and await statements.turn(pool, STALE):
        await statements.measure(pool)
        rows, _ = await statements.read(pool)
    return [Load(database.name, shard, *row) for row in rows]


class Scaling:
    """A lifecycle service that knows how many workers are wanted, for /scaling and the metrics."""

    def __init__(
        self,
        databases: Sequence[Database],
        bounds: Bounds,
        *,
        clock: Clock | None = None,
        sink: Sink | None = None,
    ) -> None:
        self.name = "jobs scaling"
        self._databases = list(databases)
        self._bounds = bounds
        self._clock = clock or SystemClock()
        self._sink = sink or NullSink()
        self._known: tuple[float, Wanted] | None = None
        self._task = Periodic(self.name, self._read, every=READ_EVERY, clock=self._clock, sink=self._sink)

    @property
    def state(self) -> str:
        return self._task.state

    @property
    def wanted(self) -> Wanted | None:
        """None while it is not known."""
        if self._known is None or self._clock.monotonic() - self._known[0] > KEPT:
            return None
        return self._known[1]

    def page(self) -> dict[str, object] | None:
        """`wanted` as the page /scaling shows it."""
        found = self.wanted
        return None if found is None else found.page()

    async def start(self) -> None:
        await self._task.start()

    async def stop(self) -> None:
        await self._task.stop()

    async def _read(self) -> None:
        try:
            with activate(RequestContext(deadline=self._clock.monotonic() + READ_TIMEOUT)):
                found = wanted(await loads(self._databases), self._bounds)
        except (SpringtideError, asyncpg.PostgresError):
            return  # the last reading is believed for a while
        self._known = self._clock.monotonic(), found
        self._sink.emit(WorkersWanted(found.workers, found.slots))
        for one in found.loads:
            self._sink.emit(
                LoadMeasured(one.module, one.shard, one.kind, one.waiting, one.arrival, one.service)
            )
