"""Steps of a promotion: each ends at its bound, and one that is late is told."""

from __future__ import annotations

import asyncio

import pytest

from springtide.errors import RunnerError
from springtide.ops.runner import steps
from springtide.ops.runner.steps import Steps


async def test_a_step_ends_at_its_bound_and_is_named() -> None:
    """What it waits for never comes: whoever runs it goes on, with an error that says what hung."""
    with pytest.raises(RunnerError, match=r"cluster main could not promote r1 within 0.01 s"):
        async with Steps("main", say=lambda notice: None)("promote r1", 0.01):
            await asyncio.Event().wait()


async def test_a_late_step_is_told_while_it_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not at its end: when it is late. One that ends in time says nothing."""
    monkeypatch.setattr(steps, "LATE", 0.01)
    told: asyncio.Queue[str] = asyncio.Queue()
    step = Steps("main", say=told.put_nowait)
    async with step("promote r1", 60.0):
        assert "promote r1, at most 60 s" in await told.get()
    async with step("fence db", 60.0):
        pass
    async with step("make slots", 60.0):
        assert "make slots" in await told.get()


async def test_an_error_of_a_step_stays_what_it_is() -> None:
    """A bound that was not reached hides nothing, and a cancelled caller is cancelled."""
    step = Steps("main", say=lambda notice: None)
    with pytest.raises(KeyError):
        async with step("promote r1", 60.0):
            raise KeyError("x")
    with pytest.raises(asyncio.CancelledError):
        async with step("promote r1", 60.0):
            raise asyncio.CancelledError
