"""How many jobs a worker claims ahead, and when it hands those back that found no slot."""

from __future__ import annotations

import asyncio
import time
from typing import Any, ClassVar

import pytest

from springtide.clock import SystemClock
from springtide.jobs import _room
from springtide.jobs._room import Room


class Pace:
    """Of a worker's hands what its room looks at."""

    def __init__(self, pace: float, busy: int = 0) -> None:
        self.pace = pace
        self.busy = busy
        self.unwritten = 0
        self.begun: list[Any] = []
        self.returned: list[Any] = []

    def take(self, jobs: list[Any], finisher: Any, asked: float, *, back: bool = False) -> None:
        (self.returned if back else self.begun).extend(job for job, _ in jobs)
        self.busy += 0 if back else len(jobs)


class Job:
    kind, version = "deed.do", 1


class Line:
    routes: ClassVar = {"deed.do/1": None}
    finisher = None


def room(hands: Any, *, slots: int = 10, limited: bool = False) -> Room:
    return Room(slots, hands, limited=limited, freed=lambda: None, clock=SystemClock())


@pytest.mark.parametrize(
    ("pace", "slots", "most", "least"),
    [
        (1e6, 10, 500, 125),
        (10_000.0, 10, 400, 100),
        (2500.0, 10, 100, 25),
        (530.0, 10, 21, 5),
        (470.0, 10, 10, 1),
        (0.0, 10, 10, 1),
        (1e6, 400, 800, 200),
        (70.0, 1, 2, 1),
    ],
)
def test_how_many_are_ahead_follows_the_pace(pace: float, slots: int, most: int, least: int) -> None:
    """At so many jobs a second none is claimed that would wait for long."""
    made = room(Pace(pace), slots=slots)
    assert (made.ahead, made.least) == (most, least)
    assert room(Pace(pace), slots=slots, limited=True).ahead == slots


def test_a_full_room_asks_for_nothing() -> None:
    """Not even where few are worth a claim."""
    made = room(Pace(70.0, busy=1), slots=1)
    made.reserve(1)
    assert made.ahead == 0 < made.least
    made.retire()
    assert made.ahead == 0 < made.least


async def test_a_loop_that_stood_still_hands_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was claimed ahead waited for the loop, not for jobs that are long: it has a moment to begin."""
    monkeypatch.setattr(_room, "KEPT", 10.1)
    monkeypatch.setattr(_room, "CHANCE", 10.0)
    hands = Pace(10_000.0, busy=10)
    made, jobs = room(hands), [Job() for _ in range(20)]
    made.take(Line(), jobs, 0.0)  # type: ignore[arg-type]
    time.sleep(0.2)
    for _ in range(3):  # turns of the loop: more than one is needed for what became free meanwhile
        await asyncio.sleep(0)
    hands.busy = 0
    made.begin()
    assert len(hands.begun) == 10 and not hands.returned and made.ahead == 400 - 10 - 10


async def test_what_finds_no_slot_for_long_goes_back() -> None:
    """And nothing is claimed ahead for a while."""
    hands = Pace(10_000.0, busy=10)
    made, jobs = room(hands), [Job() for _ in range(20)]
    made.take(Line(), jobs, 0.0)  # type: ignore[arg-type]
    async with asyncio.timeout(30.0):
        while not hands.returned:
            await asyncio.sleep(0.01)
    assert hands.returned == jobs and not made.kept and not made.reserved
    hands.busy = 0
    assert made.ahead == 10
