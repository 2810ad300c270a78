"""What keeps one log in order, every few seconds in every worker: its days, and what is told of it.

Days are made ahead, the first time as soon as the worker begins. A day is dropped when all in it is older
than `keep`, every group has passed it, and the days before it are gone, so positions have no gap. What a
group has not passed is kept for it, and said (`LogKept`, an error in the log): a group that nobody works for
any more has to be removed by hand (`springtide events remove`). With `keep_at_most` a day of that age is
dropped all the same; that is said, too, because events are lost to those groups then.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from springtide.clock import Clock
from springtide.context import Priority, RequestContext, activate
from springtide.events._log import Log
from springtide.lifecycle import Periodic
from springtide.outbox.days import Days
from springtide.signals import GroupMeasured, LogKept, LogMeasured, Sink

__all__ = ["Upkeep"]

_log = logging.getLogger(__name__)

TIMEOUT = 20.0

DAYS = 60.0
"""Seconds between two looks at the partitions of a log."""


class Upkeep:
    """A lifecycle service for `log`; `groups` are those that this worker handles."""

    def __init__(
        self,
        log: Log,
        groups: Sequence[str],
        *,
        keep: float,
        keep_at_most: float | None,
        every: float,
        measure_every: float,
        clock: Clock,
        sink: Sink,
    ) -> None:
        self._store = log
        self._groups = list(groups)
        self._keep = keep
        self._keep_at_most = keep_at_most
        self._measure_every = measure_every
        self._clock = clock
        self._sink = sink
        self._days = Days(log.pool, log.schema, "_event", "at")
        self._kept = self._measured = float("-inf")
        self._known: set[str] = set(groups)
        self._said: dict[str, Sequence[str]] = {}
        self.name = f"events upkeep {log.module} {log.shard}"
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
            if self._passed(self._kept, DAYS):
                await self._tend_days()
                if self._groups:
                    await self._store.seen(self._groups)
                self._kept = self._clock.monotonic()
            if self._passed(self._measured, self._measure_every):
                await self._measure()
                self._measured = self._clock.monotonic()

    def _passed(self, since: float, seconds: float) -> bool:
        return self._clock.monotonic() - since >= seconds

    async def _tend_days(self) -> None:
        await self._days.tend(self._keep, done=self._is_passed)
        await self._store.forget_rest(self._keep)
        if self._keep_at_most is not None:
            await self._days.tend(self._keep_at_most, done=self._is_too_old)

    async def _is_passed(self, tx: Any, partition: str) -> bool:
        behind = await self._store.behind(tx, partition)
        if behind:
            self._say(partition, behind, dropped=False)
        return not behind

    async def _is_too_old(self, tx: Any, partition: str) -> bool:
        if behind := await self._store.behind(tx, partition):
            self._say(partition, behind, dropped=True)
        return True

    def _say(self, partition: str, groups: Sequence[str], *, dropped: bool) -> None:
        what = "is dropped (keep_at_most), and they have lost events" if dropped else "is kept for them"
        names = ", ".join(groups)
        if self._said.get(partition) == groups and not dropped:
            return
        self._said[partition] = groups
        _log.error(
            "groups %s have not passed all of %s on %s; it %s", names, partition, self._store.shard, what
        )
        self._sink.emit(LogKept(self._store.module, self._store.shard, tuple(groups), dropped))

    async def _measure(self) -> None:
        module, shard = self._store.module, self._store.shard
        position, waiting, age = await self._store.depth()
        self._sink.emit(LogMeasured(module, shard, position, waiting, age))
        found = {lag.group: lag for lag in await self._store.measure()}
        self._known |= set(found)
        for name in sorted(self._known):
            lag = found.get(name)
            if lag is None:  # removed
                self._sink.emit(GroupMeasured(module, shard, name, 0, 0.0, 0, 0))
                continue
            self._sink.emit(GroupMeasured(module, shard, name, lag.waiting, lag.age, lag.blocked, lag.dead))
