"""Before a process says that it is ready, it loads what was asked for most: no first user pays for a start.

    wait until kept values may be trusted -> the most popular keys of each class, from Redis, else from the
    files of the processes of this machine -> read them as any caller does, one batch after the other

What another process has kept in Redis comes from there; what is missing is loaded, at most one batch at a
time, in its turn among all loads. All of it together takes no longer than `seconds`: then the process is
ready as it is. Nothing that goes wrong here keeps it from starting.

Redis knows what the whole fleet was asked for, but a flush takes it away together with the values; the files
know a machine's own processes, and are there in just that case.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from springtide.cache._fence import Refusal
from springtide.cache._popular import MOST, Popular
from springtide.cache._report import merged, read_reports
from springtide.errors import RedisError, RedisUnavailable, SpringtideError
from springtide.lifecycle import StartStop

if TYPE_CHECKING:
    from springtide.cache._class import CacheClass
    from springtide.cache.tiered import Cache

__all__ = ["WarmUp"]

_log = logging.getLogger(__name__)

BATCH = 50
"""Keys that are read at once."""

LOOK_EVERY = 0.05

ROUND = 0.25
"""Seconds between two rounds of the relay."""

OLDEST = 24 * 3600.0
"""Seconds after which a file says nothing about today."""

Keys = list[tuple[int | str, ...]]


class WarmUp:
    """A lifecycle service whose start is the warm-up; started when everything that loaders need is.

    seconds: that it may take. folder: of the reports (`_report`); None: there are none.
    loaded: keys that were read; ended: it came to its end in time.
    """

    def __init__(self, cache: Cache, *, seconds: float, folder: Path | None = None) -> None:
        if not seconds > 0:
            raise ValueError(f"seconds must be > 0, got {seconds}")
        self.name = f"{cache.name}:warm-up"
        self.loaded = 0
        self.ended = False
        self._cache = cache
        self._seconds = seconds
        self._folder = folder
        self._life = StartStop(self.name, self._open, self._close, sink=cache.sink)

    @property
    def state(self) -> str:
        return self._life.state

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    async def _open(self) -> None:
        begun = self._cache.clock.monotonic()
        try:
            async with asyncio.timeout(self._seconds):
                await self._warm()
                self.ended = True
        except TimeoutError:
            _log.info("%s: it was not done in %g s", self.name, self._seconds)
        except Exception:
            _log.exception("%s: it was not done", self.name)
        took = self._cache.clock.monotonic() - begun
        _log.info("%s: %d values in %.1f s", self.name, self.loaded, took)

    async def _close(self) -> None:
        return None

    async def _warm(self) -> None:
        wanted = await self._wanted()
        if not any(wanted.values()):
            return
        await self._proven([self._cache.classes[name] for name, keys in wanted.items() if keys])
        for name, keys in _in_turn(wanted):
            cls = self._cache.classes[name]
            try:
                await self._read(cls, keys)
            except SpringtideError as error:
                _log.warning("%s: %s is not warmed any further: %s", self.name, name, error)
                wanted[name].clear()
            except Exception:
                _log.exception("%s: %s is not warmed any further", self.name, name)
                wanted[name].clear()
            else:
                self.loaded += len(keys)

    async def _read(self, cls: CacheClass[Any], keys: Keys) -> None:
        """Once more while nothing is kept because the relay has not told a new Redis its horizon yet."""
        refused = cls.stats.refused
        while True:
            before = refused[Refusal.HORIZON.value]
            await cls.warm(keys)
            if refused[Refusal.HORIZON.value] == before:
                return
            await self._cache.clock.sleep(ROUND)

    async def _proven(self, classes: Sequence[CacheClass[Any]]) -> None:
        """Until then nothing of what is read would be kept in memory."""
        clock = self._cache.clock
        for cls in classes:
            await cls.learn()
        while not all(cls.proven > 0 for cls in classes):
            await clock.sleep(LOOK_EVERY)

    async def _wanted(self) -> dict[str, Keys]:
        files: dict[str, Any] = {}
        if self._folder is not None:
            reports = await asyncio.to_thread(read_reports, self._folder)
            files = merged(report for report in reports if report.age() < OLDEST)
        popular = None if self._cache.redis is None else Popular(self._cache.redis, self._cache.platform)
        wanted: dict[str, Keys] = {}
        for name, cls in self._cache.classes.items():
            counts = await _top(popular, name) or files.get(name, [])[:MOST]
            wanted[name] = [arguments for arguments, _ in counts if cls.takes(arguments)]
        return wanted


async def _top(popular: Popular | None, name: str) -> Sequence[tuple[tuple[int | str, ...], float]]:
    if popular is None:
        return []
    try:
        return await popular.top(name)
    except (RedisUnavailable, RedisError):
        return []


def _in_turn(wanted: dict[str, Keys]) -> Iterator[tuple[str, Keys]]:
    """The most popular batch of each class, then the next of each. A list may be cleared meanwhile."""
    at = 0
    while any(len(keys) > at for keys in wanted.values()):
        for name, keys in wanted.items():
            if batch := keys[at : at + BATCH]:
                yield name, batch
        at += BATCH
