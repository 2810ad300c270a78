"""The floor of numbering: whatever transactions do, nothing that was appended is left below it."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from springtide.events._floor import MAX_PENDING, Floor, Look


class Server:
    """Transactions, their numbers, a sequence, and rows that are seen once their transaction has ended."""

    def __init__(self) -> None:
        self.next_number = 100
        self.drawn = 0
        self.ended = 100
        """The highest number that has ended: a snapshot lists what runs below it, and nothing above."""
        self.running: dict[int, list[int]] = {}
        self.waiting: set[int] = set()

    def begin(self) -> int:
        self.next_number += 1
        self.running[self.next_number] = []
        return self.next_number

    def append(self, number: int) -> None:
        self.drawn += 1
        self.running[number].append(self.drawn)

    def end(self, number: int, commit: bool) -> None:
        rows = self.running.pop(number)
        self.ended = max(self.ended, number)
        if commit:
            self.waiting |= set(rows)


class Looking(RuleBasedStateMachine):
    """Several workers look, each with a floor of its own, at a server where transactions come and go. A look
    has three moments, and anything may happen between them: h, the number, the snapshot."""

    def __init__(self) -> None:
        super().__init__()
        self.server = Server()
        self.floors = [Floor(), Floor()]
        self.looks: dict[int, tuple[int, int | None]] = {}
        self.taken: list[int] = []

    @rule()
    def begin_and_append(self) -> None:
        self.server.append(self.server.begin())

    @rule(data=st.data())
    @precondition(lambda self: self.server.running)
    def append_more(self, data: st.DataObject) -> None:
        self.server.append(data.draw(st.sampled_from(sorted(self.server.running))))

    @rule(data=st.data(), commit=st.booleans())
    @precondition(lambda self: self.server.running)
    def end(self, data: st.DataObject, commit: bool) -> None:
        self.server.end(data.draw(st.sampled_from(sorted(self.server.running))), commit)

    @rule(who=st.integers(0, 1))
    def begin_look(self, who: int) -> None:
        if who in self.looks:
            return
        drawn = self.server.drawn
        number = None
        if drawn > self.floors[who].before:
            self.server.next_number += 1
            number = self.server.next_number
        self.looks[who] = (drawn, number)

    @rule(who=st.integers(0, 1), most=st.integers(1, 5))
    def end_look(self, who: int, most: int) -> None:
        if who not in self.looks:
            return
        floor = self.floors[who]
        drawn, number = self.looks.pop(who)
        listed = [x for x in self.server.running if x < self.server.ended]
        news = drawn >= floor.value or any(x not in listed for x in floor.pending)
        if number is None and not news:
            floor.advance(Look(drawn, None, None))
            return
        start = min([floor.value, *(s for x, s in floor.pending.items() if x not in listed)])
        found = sorted(seq for seq in self.server.waiting if seq >= start)[:most]
        self.server.waiting -= set(found)
        self.taken += found
        if number is not None:
            self.server.ended = max(self.server.ended, number)
        full = len(found) == most
        floor.advance(Look(drawn, number, listed, len(found), max(found, default=None), full))

    @invariant()
    def nothing_is_left_below_a_floor(self) -> None:
        for floor in self.floors:
            held = [start for x, start in floor.pending.items() if x not in self.server.running]
            for seq in self.server.waiting:
                assert seq >= min([floor.value, *held]), (seq, floor.value, floor.pending)
            for number, rows in self.server.running.items():
                for seq in rows:
                    assert seq >= floor.value or floor.pending.get(number, seq + 1) <= seq

    @invariant()
    def nothing_is_taken_twice(self) -> None:
        assert len(self.taken) == len(set(self.taken))


TestLooking = Looking.TestCase
TestLooking.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)


def test_a_floor_rises_and_costs_nothing_when_idle() -> None:
    """Two looks after the last event the floor is above it, and a look that finds no news says so."""
    floor = Floor()
    floor.advance(Look(10, 50, [], 10, 10))
    assert floor.value == 0
    floor.advance(Look(10, None, []))
    assert (floor.value, floor.pending, floor.before) == (11, {}, 10)


def test_a_floor_waits_below_a_transaction_only_with_its_own_events() -> None:
    """A transaction held open does not hold the floor down; when it ends, a look goes back once."""
    floor = Floor()
    floor.advance(Look(10, 50, []))
    floor.advance(Look(20, 60, [45]))
    floor.advance(Look(30, 70, [45]))
    assert floor.value == 21 and floor.pending == {45: 0}
    floor.advance(Look(40, 80, []))
    assert floor.value == 31 and floor.pending == {}


def test_a_floor_is_forgotten() -> None:
    """When the sequence went back (another server), and when more is running than it remembers."""
    floor = Floor()
    for drawn, number in ((10, 50), (20, 60), (20, 70)):
        floor.advance(Look(drawn, number, []))
    assert floor.value == 21
    assert floor.advance(Look(5, None, []))
    assert (floor.value, floor.before) == (0, -1)
    for drawn, number in ((30, 5000), (40, 6000)):
        floor.advance(Look(drawn, number, list(range(MAX_PENDING + 1))))
    assert (floor.value, floor.pending) == (0, {})
