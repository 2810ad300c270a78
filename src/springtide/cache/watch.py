"""What looks after a running cache, every few seconds: hot keys are held, counts told, hit rates judged.

    age the tallies -> hold what is hot in memory -> tell Redis what was asked for -> judge the hit rates
    -> write this process's report

None of it is in the way of a read. When Redis cannot be told, what was counted since is not told later: it
only decides an order.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from springtide.cache._popular import Popular
from springtide.cache._rates import HitRate
from springtide.cache._report import ClassReport, Report, write_report
from springtide.lifecycle import Periodic, StartStop
from springtide.signals import CacheHitRateChanged

if TYPE_CHECKING:
    from springtide.cache._class import CacheClass
    from springtide.cache.tiered import Cache

__all__ = ["Watch"]

EVERY = 5.0
TOLD = 100
"""Keys of a class that one process tells of at once."""

REPORTED = 100


class Watch:
    """A lifecycle service. folder: where the report goes, as `<node>.json`; None: nowhere.

    wanted_hit_rate: of every class; below it a signal tells.
    """

    def __init__(
        self,
        cache: Cache,
        *,
        folder: Path | None = None,
        node: str | None = None,
        wanted_hit_rate: float = 0.0,
    ) -> None:
        self.name = f"{cache.name}:watch"
        self._cache = cache
        self._folder = folder
        self._node = node or f"process-{os.getpid()}"
        self._popular = None if cache.redis is None else Popular(cache.redis, cache.platform)
        self._rates: dict[str, HitRate] = {}
        self._wanted = wanted_hit_rate
        self._since = time.time()
        self._ticked = 0.0
        self._ticks = Periodic(self.name, self.look, every=EVERY, clock=cache.clock, sink=cache.sink)
        self._life = StartStop(self.name, self._open, self._close, sink=cache.sink)
        HitRate(wanted_hit_rate)  # refused now, if it has to be

    @property
    def state(self) -> str:
        return self._life.state

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    async def _open(self) -> None:
        self._ticked = self._cache.clock.monotonic()
        await self._ticks.start()

    async def _close(self) -> None:
        await self._ticks.stop()
        await self.look()

    async def look(self) -> None:
        """Once through all of it."""
        now = self._cache.clock.monotonic()
        seconds, self._ticked = now - self._ticked, now
        classes = list(self._cache.classes.values())
        telling = [self._tally(cls, seconds) for cls in classes]
        for cls in classes:
            self._judge(cls, now)
        for cls, news in zip(classes, telling, strict=True):
            if news and self._popular is not None and not await self._popular.add(cls.name, news):
                break
        if self._folder is not None:
            await asyncio.to_thread(write_report, self._folder, self.report())

    def _tally(self, cls: CacheClass[Any], seconds: float) -> list[tuple[tuple[Any, ...], float]]:
        news = cls.tally.tick(cls.stats.l1_hits, seconds, most=TOLD)
        if cls.view is not None:
            for key in cls.tally.hot:
                cls.view.hold(key)
        return _by_arguments(cls, news)

    def _judge(self, cls: CacheClass[Any], now: float) -> None:
        rate = self._rates.get(cls.name)
        if rate is None:
            rate = self._rates[cls.name] = HitRate(self._wanted)
        if rate.look(cls.stats, now):
            assert rate.rate is not None
            self._cache.sink.emit(CacheHitRateChanged(cls.name, rate.rate, self._wanted, rate.low))

    def report(self) -> Report:
        """What this process has seen until now."""
        return Report(
            node=self._node,
            pid=os.getpid(),
            since=self._since,
            written=time.time(),
            classes={name: _reported(cls) for name, cls in self._cache.classes.items()},
        )


def _reported(cls: CacheClass[Any]) -> ClassReport:
    counts: dict[str, int | float] = {}
    reasons: dict[str, dict[str, int]] = {}
    for name in cls.stats.__slots__:
        value = getattr(cls.stats, name)
        if isinstance(value, Counter):
            reasons[name] = dict(value)
        else:
            counts[name] = value
    return ClassReport(
        counts=counts,
        reasons=reasons,
        entries=len(cls.view) if cls.view is not None else 0,
        bytes=cls.view.bytes if cls.view is not None else 0,
        reads=cls.tally.recent.total,
        hot=_by_arguments(cls, cls.tally.recent.top(REPORTED)),
    )


def _by_arguments(
    cls: CacheClass[Any], counts: Iterable[tuple[Hashable, float]]
) -> list[tuple[tuple[Any, ...], float]]:
    """What the class calls its keys, as the arguments of its calls: of EACH the shards are added up."""
    added: dict[tuple[Any, ...], float] = {}
    for name, count in counts:
        arguments = cls.arguments_of(name)
        added[arguments] = added.get(arguments, 0.0) + count
    return list(added.items())
