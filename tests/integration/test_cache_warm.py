"""Hot keys, warm-up and the watch over hit rates, of caches over a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests._redis import RedisServer

from springtide.cache import Cache, CacheClass
from springtide.cache._memory import HELD_USES
from springtide.cache._popular import Popular
from springtide.cache._report import read_reports
from springtide.cache.warm import BATCH, WarmUp
from springtide.cache.watch import Watch
from springtide.errors import SpringtideError
from springtide.redis import Redis
from springtide.signals import CacheHitRateChanged, Signal
from springtide.testing import ManualClock

pytestmark = pytest.mark.needs("redis-server")

LONG = 60.0
"""Seconds that only tell ending from hanging."""


class Process:
    """What is a process elsewhere: a cache with a class of its own, and what looks after it."""

    def __init__(self, url: str | None, folder: Path, *, node: str = "app-1", **options: Any) -> None:
        self.loads: list[int] = []
        self.heard: list[Signal] = []
        self.failing = False
        self.gate: asyncio.Event | None = None
        self.redis = client(url) if url is not None else None
        self.cache = Cache("shop", redis=self.redis, sink=self, **options)
        self.users: CacheClass[str] = self.cache.define("user:{id}", str, load=self._load)
        self.posts: CacheClass[str] = self.cache.define("post:{id}", str, load_many=self._many)
        self.watch = Watch(self.cache, folder=folder, node=node, wanted_hit_rate=0.8)
        self._folder = folder

    def emit(self, signal: Signal) -> None:
        self.heard.append(signal)

    async def _load(self, id: int | str) -> str:
        if self.gate is not None:
            await self.gate.wait()
        if self.failing:
            raise SpringtideError("the loader is broken")
        self.loads.append(int(id))
        return f"user {id}"

    async def _many(self, ids: list[int | str]) -> dict[int | str, str]:
        return {id: f"post {id}" for id in ids}

    def warm_up(self, seconds: float = LONG) -> WarmUp:
        return WarmUp(self.cache, seconds=seconds, folder=self._folder)


@asynccontextmanager
async def running(process: Process) -> AsyncIterator[Process]:
    try:
        if process.redis is not None:
            await process.redis.start()
        async with process.cache:
            yield process
    finally:
        if process.redis is not None:
            await process.redis.stop()


def client(url: str) -> Redis:
    """One that waits for a machine that is busy."""
    return Redis(url, name="cache", timeout=LONG / 3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "cache"


async def proven(process: Process) -> None:
    async with asyncio.timeout(LONG):
        while min(process.users.proven, process.posts.proven) <= 0:
            await asyncio.sleep(0.02)


async def busy(process: Process, keys: range, times: int = 3) -> None:
    await proven(process)
    for _ in range(times):
        for key in keys:
            await process.users.get(key)
            await process.posts.get(key)


async def test_a_new_process_has_what_was_asked_for_before_it_is_ready(
    redis_server: RedisServer, folder: Path
) -> None:
    """It reads the fleet's keys from the second level, loads nothing, and then answers from its memory."""
    async with running(Process(redis_server.url, folder)) as old:
        await busy(old, range(2 * BATCH))
        await old.watch.look()
    async with running(Process(redis_server.url, folder, node="app-2")) as new:
        warm = new.warm_up()
        await warm.start()
        assert warm.ended and warm.loaded == 4 * BATCH
        assert new.loads == []
        before = new.users.stats.l1_hits
        assert [await new.users.get(key) for key in range(2 * BATCH)] == [
            f"user {key}" for key in range(2 * BATCH)
        ]
        assert new.users.stats.l1_hits == before + 2 * BATCH
        assert new.loads == []
        await warm.stop()


async def test_after_a_flush_the_files_of_this_machine_know_it(
    redis_server: RedisServer, folder: Path
) -> None:
    """Redis has neither values nor the list any more: what this machine's processes wrote down is loaded."""
    async with running(Process(redis_server.url, folder)) as old:
        await busy(old, range(30))
        await old.watch.look()
    await asyncio.to_thread(redis_server.flush)
    async with running(Process(redis_server.url, folder, node="app-2")) as new:
        await new.warm_up().start()
        assert sorted(new.loads) == list(range(30))
        assert await new.users.get(7) == "user 7"
        assert len(new.loads) == 30


async def test_without_anything_known_there_is_nothing_to_do(redis_server: RedisServer, folder: Path) -> None:
    async with running(Process(redis_server.url, folder)) as new:
        warm = new.warm_up()
        await warm.start()
        assert (warm.ended, warm.loaded) == (True, 0)


async def test_it_takes_no_longer_than_it_may_whatever_hangs(redis_server: RedisServer, folder: Path) -> None:
    """A loader that does not come back, and a Redis that is not there: the start goes on all the same, and
    leaves no load behind."""
    async with running(Process(redis_server.url, folder)) as old:
        await busy(old, range(9))
        await old.watch.look()
    await asyncio.to_thread(redis_server.flush)
    async with running(Process(redis_server.url, folder)) as new:
        new.gate = asyncio.Event()
        warm = new.warm_up(0.5)
        async with asyncio.timeout(LONG):
            await warm.start()
            assert not warm.ended
            while new.cache.admission.running:
                await asyncio.sleep(0.02)
        assert new.loads == []
    away = Process("redis://127.0.0.1:1", folder)
    async with running(away), asyncio.timeout(LONG):
        warm = away.warm_up(0.5)
        await warm.start()
        assert (warm.ended, warm.loaded) == (False, 0)


async def test_a_class_that_cannot_be_loaded_does_not_keep_the_others(
    redis_server: RedisServer, folder: Path
) -> None:
    """Its loader raises: the start is well, the other class is warm."""
    async with running(Process(redis_server.url, folder)) as old:
        await busy(old, range(2 * BATCH))
        await old.watch.look()
    await asyncio.to_thread(redis_server.flush)
    async with running(Process(redis_server.url, folder)) as new:
        new.failing = True
        warm = new.warm_up()
        await warm.start()
        assert (warm.ended, warm.loaded) == (True, 2 * BATCH)


async def test_keys_of_yesterday_s_pattern_are_passed_over(redis_server: RedisServer, folder: Path) -> None:
    """The class takes other arguments in this version: what is no key of it is not asked for, the rest is."""
    redis = client(redis_server.url)
    cache = Cache("shop", redis=redis)
    asked: list[str] = []

    async def load(name: str) -> str:
        asked.append(name)
        return "x"

    cache.define("user:{name:str}", str, load=load)
    await redis.start()
    try:
        await Popular(redis, "shop").add("user", [((7,), 9.0), (("de", 7), 8.0), (("ann",), 1.0)])
        async with cache:
            warm = WarmUp(cache, seconds=LONG, folder=folder)
            await warm.start()
            assert (warm.ended, warm.loaded, asked) == (True, 1, ["ann"])
    finally:
        await redis.stop()


async def test_what_is_hot_is_held_in_memory(redis_server: RedisServer, folder: Path) -> None:
    """The key with most of the reads stays through a scan that is larger than the memory; so it does when
    its value is put there anew."""
    async with running(Process(redis_server.url, folder, l1_bytes=1 << 16)) as process:
        await proven(process)
        for _ in range(200):
            await process.users.get(7)
        await process.watch.look()
        assert process.users.tally.hot == {7}
        view = process.users.view
        assert view is not None
        assert view.entries[7].uses == HELD_USES
        for begin in range(100, 1100, BATCH):
            await process.users.get_many(range(begin, begin + BATCH))
        assert 7 in view.entries and len(view) < 200
        await process.users.invalidate(7)
        await process.users.get(7)
        assert view.entries[7].uses == HELD_USES


async def test_the_report_says_what_this_process_saw(redis_server: RedisServer, folder: Path) -> None:
    """Counts as the class has them, and its keys by arguments, hottest first; written at the end, too."""
    async with running(Process(redis_server.url, folder)) as process:
        await process.watch.start()
        await proven(process)
        for key in (1, 2, 2, 2):
            await process.users.get(key)
        await process.watch.stop()
    (report,) = await asyncio.to_thread(read_reports, folder)
    found = report.classes["user"]
    assert report.node == "app-1"
    assert (found.counts["l1_hits"], found.counts["loads"], found.entries) == (2, 2, 2)
    assert found.hot[0] == ((2,), pytest.approx(3.0, rel=0.01))


async def test_a_hit_rate_that_falls_is_told_and_told_again_when_it_is_back(folder: Path) -> None:
    """Without a level every read is a load: after a minute the class is reported, once. The other class,
    which nobody reads, is not."""
    clock = ManualClock()
    process = Process(None, folder, clock=clock)
    told: Callable[[], list[Signal]] = lambda: [  # noqa: E731
        signal for signal in process.heard if isinstance(signal, CacheHitRateChanged)
    ]
    async with running(process):
        await process.watch.look()
        for minute in range(3):
            for key in range(150):
                await process.users.get(key)
            await clock.advance(61.0)
            await process.watch.look()
            assert told() == [CacheHitRateChanged("user", 0.0, 0.8, True)], minute
        process.users.stats.l1_hits += 10_000
        await clock.advance(61.0)
        await process.watch.look()
        assert told()[1:] == [CacheHitRateChanged("user", 1.0, 0.8, False)]


def test_options_that_cannot_work_are_refused() -> None:
    cache = Cache("shop")
    with pytest.raises(ValueError, match="seconds must be > 0"):
        WarmUp(cache, seconds=0)
    with pytest.raises(ValueError, match="wanted must be between 0 and 1"):
        Watch(cache, wanted_hit_rate=2)
