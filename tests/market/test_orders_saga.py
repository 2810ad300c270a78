"""The runner of steps, without a database: whoever crashes when, all is done or all is undone. Pure."""

from __future__ import annotations

from collections.abc import Coroutine, Generator, Iterator
from datetime import UTC, datetime
from typing import Any, Literal

from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec import structs
from tests.market.ordering import HOME
from tests.market.paying import CARD, euros

from market.orders import reasons
from market.orders.api import OrderLine
from market.orders.record import Placed
from market.orders.saga import Done, GaveUp, Move, Outcome, Refused, Step, Waiting, run, turn

NOW = datetime(2026, 1, 1, tzinfo=UTC)

STEPS = 3

Drawn = Literal["done", "waiting", "refused", "gave up"]
Act = Literal["first", "second", "crash first", "crash second", "the buyer cancels", "the database crashes"]

ACTS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["first", "second"]), st.integers(1, 12)),
        st.tuples(
            st.sampled_from(["crash first", "crash second", "the buyer cancels", "the database crashes"]),
            st.just(1),
        ),
    ),
    max_size=20,
)
"""Who goes on by how many pauses, and what happens in between."""

OUTCOMES = st.lists(st.sampled_from(["done"] * 6 + ["waiting", "refused", "gave up"]), max_size=12)

TOO_LATE: list[Drawn] = ["done", "done", "gave up"]
"""Two steps are done, then nobody knows of either, and it is too late to go on."""

GIVEN_TWICE: list[tuple[Act, int]] = [
    ("first", 6), ("the database crashes", 1), ("the buyer cancels", 1), ("first", 9)
]  # fmt: skip
"""A runner holds a version that the database has lost, and given to the cancellation."""

PLACED = Placed(
    id=1, buyer_id=1, state="placing", step=0, reason=None,
    lines=[OrderLine(listing_id=1, quantity=1, price=euros(100))], amount=100, currency="EUR", source=CARD,
    address=HOME, cart_version=None, version=1, tries=0, pay_by=NOW, due_at=NOW, confirmed_at=None,
    created_at=NOW, updated_at=NOW,
)  # fmt: skip


class Pause:
    """A point at which somebody else may run, or this one die."""

    def __await__(self) -> Generator[None, None, None]:
        yield


class Effect:
    """What one step does in the world: done, and for ever undone or refused."""

    def __init__(self, outcomes: Iterator[Drawn]) -> None:
        self.done = False
        self.over = False
        self._outcomes = outcomes

    async def do(self, order: Placed) -> Outcome:
        await Pause()
        outcome = self._act()
        await Pause()
        return outcome

    async def undo(self, order: Placed) -> None:
        await Pause()
        self.done, self.over = False, True
        await Pause()

    def _act(self) -> Outcome:
        drawn = next(self._outcomes, "done")
        if self.over or drawn == "gave up":
            return GaveUp(reasons.EXPIRED)
        if self.done:
            return Done()
        if drawn == "waiting":
            return Waiting()
        if drawn == "refused":
            self.over = True
            return Refused(reasons.declined(None))
        self.done = True
        return Done()


class Ledger:
    """The record as the store keeps it: `lasting` is what a crash of the database leaves of it."""

    def __init__(self) -> None:
        self.now = self.lasting = PLACED
        self.states: list[str] = []

    async def move(self, order: Placed, move: Move) -> Placed:
        await Pause()
        if (self.now.version, self.now.state, self.now.step) == (order.version, order.state, order.step):
            self.turn(move)
        moved = self.now
        await Pause()
        return moved

    def turn(self, move: Move) -> None:
        self.now = structs.replace(
            self.now, version=self.now.version + 1, state=move.state, step=move.step,
            reason=move.reason or self.now.reason,
        )  # fmt: skip
        self.states.append(move.state)
        if not move.passing:
            self.lasting = self.now

    def crash(self) -> None:
        self.now = self.lasting


class Run:
    """One who runs the steps, from pause to pause."""

    def __init__(self, steps: list[Step], ledger: Ledger) -> None:
        self._steps, self._ledger = steps, ledger
        self._running: Coroutine[Any, Any, Placed] | None = None

    def go(self, pauses: int) -> None:
        """So far, or to its end."""
        while pauses and self.step():
            pauses -= 1

    def step(self) -> bool:
        """To the next pause; whether there is one."""
        if self._running is None:
            self._running = run(self._steps, self._ledger.now, self._ledger, lambda: True)
        try:
            self._running.send(None)
        except StopIteration:
            self._running = None
        return self._running is not None

    def die(self) -> None:
        if self._running is not None:
            self._running.close()
        self._running = None


@settings(max_examples=300, deadline=None)
@given(acts=ACTS, outcomes=OUTCOMES)
@example(acts=[("first", 9), ("the database crashes", 1), ("crash first", 1)], outcomes=TOO_LATE)
@example(acts=GIVEN_TWICE, outcomes=[])
def test_all_steps_are_done_or_all_are_undone(acts: list[tuple[Act, int]], outcomes: list[Drawn]) -> None:
    """Two runners interleaved, with crashes between doing and recording, of either and of the database;
    and the record turns backward for good."""
    drawn = iter(outcomes)
    effects, ledger = [Effect(drawn) for _ in range(STEPS)], Ledger()
    steps = [Step(str(number), effect.do, effect.undo) for number, effect in enumerate(effects)]
    first, second = Run(steps, ledger), Run(steps, ledger)
    for act, pauses in acts:
        match act:
            case "first":
                first.go(pauses)
            case "second":
                second.go(pauses)
            case "crash first":
                first.die()
            case "crash second":
                second.die()
            case "the buyer cancels":
                if ledger.now.state not in ("cancelling", "cancelled", "failed"):
                    ledger.turn(turn(reasons.BUYER, STEPS))
            case "the database crashes":
                ledger.crash()
    for runner in (first, second, Run(steps, ledger)):
        runner.go(-1)
    # One that ended because it had to wait has left the rest to whoever looks again.
    again = Run(steps, ledger)
    while not ledger.now.at_end:
        again.step()
    done = [effect.done for effect in effects]
    assert done == [ledger.now.state == "confirmed"] * STEPS
    assert ledger.lasting == ledger.now
    if "cancelling" in ledger.states:
        back = ledger.states[ledger.states.index("cancelling") :]
        assert set(back) <= {"cancelling", "cancelled", "failed"}
