"""What keeps one line in order, every few seconds in every worker.

Rescue: jobs whose lease has expired are ready again, or dead when they have no attempts left.
Recall: jobs that were sent by a transport and not claimed in time are ready again; also in workers that have
no transport, for whoever had one before.
Park: jobs that nobody here knows and nobody took for `park_after` seconds are set aside, visible; whichever
worker knows their kind and version makes them ready again. So a rolling deploy loses nothing in either
direction. Pause: kinds that operators have paused are claimed no more and set aside (`_pausing.py`).
History: its partitions are made ahead, the first time as soon as the worker begins, before there is much in
the default one that has to move; they are dropped when all in them is older than `keep_done` seconds. What
the inbox has known for long is forgotten. Measure: depth, age, and how much work the kinds bring
(`_loads.py`).
Every statement skips rows that another worker has, so any number of workers may do this at once.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable

from springtide.clock import Clock
from springtide.context import Ledger, Priority, RequestContext, activate
from springtide.jobs._ages import Ages
from springtide.jobs._inbox import KEPT
from springtide.jobs._line import Line
from springtide.jobs._loads import Loads, Spent
from springtide.jobs._pausing import paused_kinds
from springtide.jobs._sent import Sending
from springtide.jobs._store import BATCH
from springtide.lifecycle import Periodic
from springtide.outbox.days import Days
from springtide.signals import JobFinished, JobsMeasured, Sink

__all__ = ["Upkeep"]

_log = logging.getLogger(__name__)

TIMEOUT = 10.0
MAX_SWEEPS = 20
"""Batches that one call moves at most."""

RESCUE_ALL = 600.0
"""Seconds between two rescues that look at every lease, however long ago it passed."""

FREE = 30.0
"""Seconds between two looks for held jobs that nothing holds any more (somebody deleted a row)."""

LOAD = 2.5
"""Seconds between two measurements of the load, over all workers."""

HISTORY = 60.0
"""Seconds between two looks at the partitions of the history."""


class Upkeep:
    """A lifecycle service for `line`; `ring` is called when it made jobs ready. `carried`: by a transport."""

    def __init__(
        self,
        line: Line,
        *,
        every: float,
        measure_every: float,
        park_after: float,
        keep_done: float,
        ring: Callable[[str, str | None], None],
        carried: bool = False,
        clock: Clock,
        sink: Sink,
    ) -> None:
        self._line = line
        self._store = line.store
        self._measure_every = measure_every
        self._park_after = park_after
        self._keep_done = keep_done
        self._ring = ring
        self._recall_every = 0.0 if carried else FREE
        self._sending = Sending(line.store)
        self._clock = clock
        self._sink = sink
        self._measured = self._rescued = self._kept = self._freed = self._recalled = float("-inf")
        self._loaded = float("-inf")
        self._begun = False
        self._paused: set[str] | None = set()
        self._ages = Ages(self._store.schema)
        self._loads = Loads(self._store.schema)
        kinds = [route.kind for route in line.routes.values()]
        self._guarded = sorted({kind.kind for kind in kinds if kind.max_age is not None})
        self._history = Days(self._store.pool, self._store.schema, "_job_done", "finished_at")
        self._kinds = {route.kind.kind for route in line.routes.values()}
        self.name = f"jobs upkeep {self._store.module} {self._store.shard}"
        self._task = Periodic(self.name, self._tend, every=every, at_once=True, clock=clock, sink=sink)

    @property
    def state(self) -> str:
        return self._task.state

    async def start(self) -> None:
        await self._task.start()

    async def stop(self) -> None:
        await self._task.stop()

    async def _tend(self) -> None:
        deadline = self._clock.monotonic() + TIMEOUT
        with activate(RequestContext(deadline=deadline, priority=Priority.CRITICAL)):
            if not self._begun:
                self._begun = True
                await self._history.tend(self._keep_done)
                return
            await self._pause()
            await self._rescue()
            if self._passed(self._recalled, self._recall_every):
                await self._recall()
                self._recalled = self._clock.monotonic()
            await self._park()
            if self._guarded:
                await self._tell_ages()
            await self._tell_load()
            if self._passed(self._kept, min(HISTORY, self._keep_done)):
                await self._keep()
            if self._passed(self._measured, self._measure_every):
                await self._measure()
                self._measured = self._clock.monotonic()

    async def _pause(self) -> None:
        pool, pausing = self._store.pool, self._store.pausing
        pauses = await pausing.look(pool)
        self._paused = paused_kinds(pauses)
        changed = self._line.pause(self._paused)
        if changed:
            what = "everything" if self._paused is None else ", ".join(sorted(self._paused)) or "nothing"
            _log.info("%s on %s: paused is %s", self._store.module, self._store.shard, what)
        back = 0
        for _ in range(MAX_SWEEPS):
            aside = await pausing.set_aside(pool) if pauses else 0
            moved = await pausing.put_back(pool)
            back += moved
            if max(aside, moved) < BATCH:
                break
        if changed or back:
            self._ring(self._store.shard, self._store.schema)

    async def _tell_ages(self) -> None:
        """Producers of some kinds want to know how old the queue is."""
        if await self._ages.turn(self._store.pool):
            found = {entry.kind: entry for entry in await self._store.measure(waiting=True)}
            waiting = {kind: entry.age for kind, entry in found.items() if entry.ready or entry.sent}
            ages = {kind: waiting.get(kind) for kind in self._guarded}
            await self._ages.write(self._store.pool, ages)

    async def _tell_load(self) -> None:
        """What runs took, and, when it is this worker's turn, what waits."""
        pool, now, kinds = self._store.pool, self._clock.monotonic(), dict[str, Spent]()
        routes = self._line.routes.values()
        telling = [(route, spent) for route in routes if (spent := route.tally.spent(now))]
        for route, spent in telling:
            kind = route.kind.kind
            kinds[kind] = spent.also(kinds[kind]) if kind in kinds else spent
        if kinds:
            await self._loads.spend(pool, kinds.items())
            for route, spent in telling:
                route.tally.told(spent)
        if self._passed(self._loaded, LOAD):
            self._loaded = self._clock.monotonic()
            if await self._loads.turn(pool, LOAD * 0.9):
                await self._loads.measure(pool, self._store.cursor.floors)

    def _passed(self, since: float, seconds: float) -> bool:
        return self._clock.monotonic() - since >= seconds

    async def _keep(self) -> None:
        await self._store.keep_room()
        for _ in range(MAX_SWEEPS):
            if await self._store.sweep() < BATCH:
                break
        for _ in range(MAX_SWEEPS):
            if await self._store.forget(KEPT) < BATCH:
                break
        await self._history.tend(self._keep_done)
        self._kept = self._clock.monotonic()

    async def _rescue(self) -> None:
        whole = self._passed(self._rescued, RESCUE_ALL)
        rescued = await self._store.rescue(whole=whole)
        if whole:
            self._rescued = self._clock.monotonic()
        for row in rescued:
            dead = row["state"] == "dead"
            text = "its worker stopped renewing the lease"
            name = f"{row['kind']}/{row['version']} {row['id']}"
            if dead:
                _log.error("job %s is a dead letter after run %d: %s", name, row["attempt"], text)
            else:
                _log.warning("job %s is ready again after run %d: %s", name, row["attempt"], text)
            self._sink.emit(
                JobFinished(
                    self._store.module,
                    row["kind"],
                    row["version"],
                    str(row["id"]),
                    row["attempt"],
                    "dead" if dead else "expired",
                    0.0,
                    0.0,
                    "",
                    None,
                    Ledger(),
                    text,
                )
            )
        freed = 0
        if rescued or self._passed(self._freed, FREE):
            freed = await self._store.free(self._line.kinds, self._line.limits)
            self._freed = self._clock.monotonic()
        if rescued or freed:
            self._ring(self._store.shard, self._store.schema)

    async def _recall(self) -> None:
        recalled = await self._sending.recall()
        if recalled:
            where = f"{self._store.module} on {self._store.shard}"
            _log.info("%d jobs of %s were sent and not claimed in time: ready again", recalled, where)
            self._ring(self._store.shard, self._store.schema)

    async def _park(self) -> None:
        names = self._line.names
        for name, count in Counter(await self._store.park(names, self._park_after)).items():
            _log.error("%d jobs of kind %s are parked: no handler in %s", count, name, self._store.module)
        if released := await self._store.release(names):
            _log.info("%d parked jobs of %s are ready again", released, self._store.module)
            self._ring(self._store.shard, self._store.schema)

    async def _measure(self) -> None:
        found = {entry.kind: entry for entry in await self._store.measure()}
        self._kinds |= set(found)
        for kind in sorted(self._kinds):
            entry = found.get(kind)
            counts = (entry.ready, entry.running, entry.parked, entry.dead) if entry else (0, 0, 0, 0)
            age, held = (entry.age, entry.held) if entry else (0.0, 0)
            sent, aside = (entry.sent, entry.paused) if entry else (0, 0)
            paused = self._paused is None or kind in self._paused
            self._sink.emit(
                JobsMeasured(
                    self._store.module, self._store.shard, kind, *counts, age, held, sent, aside, paused
                )
            )
