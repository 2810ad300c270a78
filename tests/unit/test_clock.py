"""Time: the system's, and the one that tests move."""

from __future__ import annotations

import asyncio

import pytest

from springtide.clock import Clock, SystemClock
from springtide.testing import ManualClock


async def test_a_system_clock_does_not_sleep_backwards() -> None:
    """Seconds <= 0 return at once; monotonic time goes forward."""
    clock: Clock = SystemClock()
    before = clock.monotonic()
    await clock.sleep(-5)
    assert clock.monotonic() >= before
    assert abs(clock.now() - SystemClock().now()) < 60


async def test_manual_time_stands_still_until_it_is_moved() -> None:
    """Sleepers wake in the order of their times, each at its own time."""
    clock = ManualClock()
    woken: list[tuple[str, float]] = []

    async def sleeper(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append((name, clock.monotonic() - 1000.0))

    async with asyncio.TaskGroup() as group:
        for name, seconds in (("late", 3.0), ("soon", 1.0), ("next", 2.0)):
            group.create_task(sleeper(name, seconds))
        await clock.until_sleeping(3)
        assert woken == []
        await clock.advance(2.5)
        assert woken == [("soon", 1.0), ("next", 2.0)]
        await clock.advance(0.5)
    assert woken[-1] == ("late", 3.0)


async def test_a_sleeper_that_sleeps_again_is_woken_within_one_advance() -> None:
    """A loop that sleeps a second at a time runs ten times in ten seconds."""
    clock = ManualClock()
    ticks: list[float] = []

    async def ticker() -> None:
        while True:
            await clock.sleep(1.0)
            ticks.append(clock.monotonic())

    task = asyncio.create_task(ticker())
    await clock.advance(10.0)
    task.cancel()
    assert ticks == [1000.0 + n for n in range(1, 11)]


async def test_a_cancelled_sleeper_is_forgotten() -> None:
    """It neither counts nor wakes."""
    clock = ManualClock()
    task = asyncio.create_task(clock.sleep(1.0))
    await clock.until_sleeping()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert clock.sleepers == 0
    await clock.advance(2.0)


async def test_overlapping_advances_never_move_time_back() -> None:
    """Monotonic means monotonic for tests too."""
    clock = ManualClock()
    far = asyncio.create_task(clock.advance(10.0))
    near = asyncio.create_task(clock.advance(1.0))
    await asyncio.gather(near, far)
    assert clock.monotonic() == 1010.0


async def test_the_wall_clock_can_jump_alone() -> None:
    """An operator sets it back; deadlines do not move."""
    clock = ManualClock(monotonic=5.0, now=100.0)
    clock.step(-50.0)
    assert (clock.monotonic(), clock.now()) == (5.0, 50.0)
    with pytest.raises(ValueError, match="got -1"):
        await clock.advance(-1)
