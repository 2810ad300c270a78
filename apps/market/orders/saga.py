"""Run the steps of an order, or undo them in reverse, by what its record says; however many do so at once.

Forward, `step` counts the steps that are done; backward (`cancelling`) those still to be undone:

    Done      on to the next step; after the last one the order is confirmed
    Waiting   nobody knows yet: the order awaits its payment, whoever looks again asks again
    Refused   the step has no effect and never will: the ones before it are undone
    GaveUp    nobody knows how far it got: every step is undone, also those that the record does not know

Each step is done or undone first and recorded then, so a crash repeats it: `do` bears that, and `undo` also
bears that `do` never was, and keeps it from ever being afterwards. The record moves by compare and set: of
two who run the same step one records it, the other goes on from there. A crash of the database may lose the
last moves forward, those that are `passing`, and so more steps may be done than the record says; it loses no
other. The record turns from forward to backward once, and never back; the turn is recorded before anything is
undone. Steps write nothing into the record, and the runner knows nothing of what steps do, so that another
runner (a workflow engine) can take the same list.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from market.orders.api import OrderLine, OrderState, Reason
from market.orders.record import Placed

__all__ = ["Done", "GaveUp", "Move", "Outcome", "Records", "Refused", "Step", "Waiting", "run", "turn"]


@dataclass(frozen=True, slots=True)
class Done:
    """`lines` replace those of the order, when the step has learnt more about them."""

    lines: list[OrderLine] | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    pass


@dataclass(frozen=True, slots=True)
class Refused:
    reason: Reason


@dataclass(frozen=True, slots=True)
class GaveUp:
    reason: Reason


Outcome = Done | Waiting | Refused | GaveUp


@dataclass(frozen=True, slots=True)
class Step:
    name: str
    do: Callable[[Placed], Awaitable[Outcome]]
    undo: Callable[[Placed], Awaitable[None]]


class Move(NamedTuple):
    """What the record becomes. `passing`: losing it in a crash costs repetitions and nothing else."""

    state: OrderState
    step: int
    reason: Reason | None = None
    lines: list[OrderLine] | None = None
    passing: bool = False


class Records(Protocol):
    async def move(self, order: Placed, move: Move) -> Placed:
        """The record after the move, or as somebody else has moved it before.

        It moves only if version, state and step are those of `order`: a version alone may have been given
        twice, when a passing move was lost.
        """


async def run(steps: Sequence[Step], order: Placed, records: Records, more: Callable[[], bool]) -> Placed:
    """Go on with `order` until it is at its end, has to wait, or `more()` says that time is up."""
    while not order.at_end and more():
        if order.state == "cancelling":
            await steps[order.step - 1].undo(order)
            move = _back(order.step - 1, order.reason)
        else:
            outcome = await steps[order.step].do(order)
            if isinstance(outcome, Waiting) and order.state == "awaiting_payment":
                return order
            move = _after(order, outcome, len(steps))
        moved = await records.move(order, move)
        if move.state == moved.state == "awaiting_payment":
            return moved
        order = moved
    return order


def turn(reason: Reason, steps: int) -> Move:
    """Backward from wherever it is: over all steps, for more may be done than is recorded."""
    return Move("cancelling", steps, reason)


def _after(order: Placed, outcome: Outcome, steps: int) -> Move:
    match outcome:
        case Done(lines):
            step = order.step + 1
            if step == steps:
                return Move("confirmed", step, lines=lines)
            return Move("placing", step, lines=lines, passing=True)
        case Waiting():
            return Move("awaiting_payment", order.step)
        case Refused(reason):
            return _back(order.step, reason)
        case GaveUp(reason):
            return turn(reason, steps)


def _back(step: int, reason: Reason | None) -> Move:
    if step > 0:
        return Move("cancelling", step, reason)
    wanted = reason is not None and reason.code == "buyer"
    return Move("cancelled" if wanted else "failed", 0, reason)
