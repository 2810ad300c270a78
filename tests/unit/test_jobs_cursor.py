"""Where claims begin: no job that is ready is ever below the floor, whatever commits when."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from springtide.jobs._cursor import EVERYTHING, MARGIN, MAX_PENDING, Cursor, Reading
from springtide.outbox.days import due_days

START = datetime(2026, 1, 1, tzinfo=UTC)


class World:
    """A database: transactions with numbers, rows that they made ready, a clock that only we move."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.next = 10
        self.open: dict[int, list[tuple[int, datetime]]] = {}
        self.ready: list[tuple[int, datetime]] = []
        self.cursor = Cursor()

    def clock(self) -> datetime:
        return START + timedelta(seconds=self.now)

    def begin(self) -> int:
        self.next += 1
        self.open[self.next] = []
        return self.next

    def visible_below(self) -> list[tuple[int, datetime]]:
        return [row for row in self.ready if row[1] < self.cursor.floors[row[0]]]

    def read(self, *, steps: float = 0.0) -> bool:
        """A reading as the statement makes it: snapshot, clock, number."""
        running = sorted(self.open)
        first = [
            min((at for p, at in self.ready if p == priority and at >= floor), default=None)
            for priority, floor in enumerate(self.cursor.floors)
        ]
        clock = self.clock()
        self.next += 1
        return self.cursor.advance(Reading(running, self.next, clock, first, self.now, self.now + steps))


actions = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.floats(0.0, 5.0)),
        st.tuples(st.just("begin"), st.just(0)),
        st.tuples(st.just("write"), st.integers(0, 20), st.integers(0, 2), st.floats(0.0, 3.0)),
        st.tuples(st.just("commit"), st.integers(0, 20)),
        st.tuples(st.just("claim"), st.integers(0, 2)),
        st.tuples(st.just("read"), st.just(0)),
    ),
    min_size=25,
    max_size=120,
)


@settings(max_examples=400, deadline=None)
@given(actions)
def test_two_readings_later_nothing_that_is_ready_lies_below_the_floor(plan: list[tuple[Any, ...]]) -> None:
    """Rows become visible when their transaction commits, in any order and however late. What is below the
    floor then is found by the next reading; and what a reading shows is never below what it makes of it."""
    world = World()
    for action, *arguments in plan:
        if action == "wait":
            world.now += arguments[0]
        elif action == "begin":
            world.begin()
        elif action == "write" and world.open:
            number = sorted(world.open)[arguments[0] % len(world.open)]
            world.open[number].append((arguments[1], world.clock() + timedelta(seconds=arguments[2])))
        elif action == "commit" and world.open:
            number = sorted(world.open)[arguments[0] % len(world.open)]
            world.ready += world.open.pop(number)
        elif action == "claim":
            due = [r for r in world.ready if world.cursor.floors[r[0]] <= r[1] <= world.clock()]
            for row in due[arguments[0] :]:
                world.ready.remove(row)
        elif action == "read":
            world.read()
            assert not world.visible_below(), "a reading leaves a visible row below the floor"
    world.read()
    assert not world.visible_below()


def test_a_held_transaction_does_not_hold_the_floor() -> None:
    """It is remembered, the floor goes on rising, and goes back to its start once it has ended."""
    world = World()
    for _ in range(3):
        world.now += 1
        world.read()
    held, began = world.begin(), world.clock()
    for _ in range(300):
        world.now += 1
        world.read()
    assert world.cursor.floors[1] > began + timedelta(seconds=290)
    assert set(world.cursor.pending) == {held}
    del world.open[held]
    world.now += 1
    assert world.read()
    assert began - timedelta(seconds=3) < world.cursor.floors[1] <= began
    world.now += 1
    assert not world.read() and not world.cursor.pending
    assert world.cursor.floors[1] > began + timedelta(seconds=290)


def test_what_waits_holds_the_floor_of_its_priority_alone() -> None:
    world = World()
    world.ready.append((2, world.clock()))
    waiting = world.clock()
    for _ in range(5):
        world.now += 10
        world.read()
    assert world.cursor.floors[2] == waiting
    assert world.cursor.floors[0] == world.cursor.floors[1] == world.clock() - timedelta(seconds=10) - MARGIN


def test_a_clock_that_goes_back_ends_the_floor() -> None:
    """By more than the margin, measured against our own clock; and there is one again two readings later."""
    cursor = Cursor()

    def reading(number: int, clock: float, sent: float) -> Reading:
        at = START + timedelta(seconds=clock)
        return Reading((), number, at, (None, None, None), sent, sent + 0.01)

    assert not cursor.advance(reading(1, 100.0, 0.0))
    assert not cursor.advance(reading(2, 101.0, 1.0))
    assert cursor.floors[0] == START + timedelta(seconds=100) - MARGIN
    assert not cursor.advance(reading(3, 101.8, 2.0))  # slewed: covered by the margin
    assert cursor.advance(reading(4, 101.9, 3.0))  # 0.9 s lost within a second, though it went on
    assert cursor.floors == [EVERYTHING] * 3
    assert not cursor.advance(reading(5, 102.9, 4.0))
    assert cursor.floors[0] == START + timedelta(seconds=101.9) - MARGIN


def test_more_transactions_than_can_be_remembered_end_the_floor() -> None:
    world = World()
    world.read()
    for _ in range(MAX_PENDING + 1):
        world.begin()
    world.now += 1
    world.read()
    assert world.cursor.floors[0] > EVERYTHING
    world.now += 1
    assert world.read()
    assert world.cursor.floors == [EVERYTHING] * 3 and not world.cursor.pending


def test_a_job_below_the_floor_is_told() -> None:
    cursor = Cursor()
    cursor.floors = [START, EVERYTHING, START]
    assert not cursor.below([None, START, START])
    assert cursor.below([None, None, START - timedelta(seconds=1)])


# -- retention -----------------------------------------------------------------------------------------


def test_partitions_are_made_ahead_and_dropped_when_all_in_them_is_old() -> None:
    """The last moment of a day must be older than what is kept; other tables are let be."""
    now = datetime(2026, 3, 2, 12, 0, tzinfo=UTC)
    names = ["_job_done_20260227", "_job_done_20260228", "_job_done_20260301", "_job_done_20260302"]
    make, drop = due_days("_job_done", [*names, "_job_done_rest"], now, keep=86_400.0)
    assert [f"{day:%m%d}" for day in make] == ["0303", "0304"]
    assert drop == ["_job_done_20260227", "_job_done_20260228"]
    make, drop = due_days("_job_done", names, now, keep=0.0)
    assert drop == names[:3]
    assert due_days("_job_done", names, now, keep=86_400.0 * 9)[1] == []
