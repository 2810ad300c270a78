"""Orders that the release before has begun get a workflow, or are told; goes with the release after this one.

That one kept `due_at` where something was left to do or to tell, and it may run beside this one: whatever it
does, it does by the same steps, and each of them may be repeated and may meet what undoes it.

placing, awaiting_payment   its stock is reserved here, and its workflow begins with the charge; where that
                            cannot be, more may be done than is recorded: all steps are undone
cancelling                  all steps are undone
at its end                  everybody is told; one that its buyer cancels gets its workflow then

All steps are undone by a workflow that begins at its last step and is cancelled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import UUID

from market.orders import reasons
from market.orders.record import Placed
from market.orders.steps import PLACE, Placing, reserve
from market.orders.store import OrderStore
from springtide.errors import StepRefused, Unavailable
from springtide.flows import Flows

if TYPE_CHECKING:
    from market.orders.service import OrderService

__all__ = ["ADOPT_EVERY", "adopt", "adopt_due", "begin_last"]

ADOPT_EVERY = 5.0
"""Seconds between two looks for orders that are due."""

BATCH = 100

RESERVED, LAST = "charge", "shipped"
"""The steps at which an order is whose stock is reserved, and one that is paid and sold."""


async def adopt_due(orders: OrderService, store: OrderStore, flows: Flows) -> None:
    for id in await store.due(BATCH):
        await adopt(orders, store, flows, id)


async def adopt(orders: OrderService, store: OrderStore, flows: Flows, id: int) -> None:
    """If somebody else moves it meanwhile, it is left to the next look."""
    order = await store.find(id)
    if order is None:
        return
    placing, off = _placing(order), order.state == "cancelling"
    if order.flow is None and not order.at_end and not off:
        placing, off = await _reserved(orders, placing)
    why = (placing.reason or reasons.BUYER).says
    async with store.write(id) as tx:
        if order.flow is not None and off:
            await flows.cancel(tx, order.flow, why)
        now = await store.find_in(tx, id, lock=True)
        if now is None or now.version != order.version:
            return
        flow = order.flow
        if order.at_end:
            await store.tell(tx, id)
        elif flow is None:
            flow = await _begin(flows, tx, placing, at=LAST if off else RESERVED)
        await store.adopted(tx, id, flow)
        if order.flow is None and flow is not None and off:
            await flows.cancel(tx, flow, why)


async def begin_last(store: OrderStore, flows: Flows, tx: Any, id: int) -> UUID:
    """The workflow of an order without one that its buyer cancels. Raises Unavailable when it has one."""
    order = await store.find_in(tx, id, lock=True)
    if order is None or order.flow is not None:
        raise Unavailable("the order's workflow begins just now: try again", retry_after=1.0)
    flow = await _begin(flows, tx, _placing(order), at=LAST)
    await store.adopted(tx, id, flow)
    return flow


async def _reserved(orders: OrderService, placing: Placing) -> tuple[Placing, bool]:
    """Whether it is off comes with it."""
    try:
        return await reserve(orders, placing), False
    except StepRefused as refusal:
        assert isinstance(refusal.data, Placing)
        return refusal.data, True


async def _begin(flows: Flows, tx: Any, placing: Placing, *, at: str) -> UUID:
    """`tx` has locked the order."""
    return await flows.start(tx, PLACE, placing, key=str(placing.id), at=at)


def _placing(order: Placed) -> Placing:
    return Placing(
        id=order.id, lines=order.lines, total=order.money, source=order.source, placed_at=order.created_at,
        pay_by=order.pay_by, reason=order.reason,
    )  # fmt: skip
