"""The workflow of an order: what placing it does, step by step, and how each step is undone.

    reserve   hold the stock of all lines          release it, or bring it back if it was sold after all
    charge    charge the buyer's source, once      cancel the charge: give back, or never charge
    sell      what is held is sold                 bring it back
    shipped   wait for the first seller who sends something: until then the buyer may cancel

While nobody knows whether the source was charged, it is asked again, until the order has to be paid. The
stock is held for longer than an order may take to be paid, so nobody else gets it while the buyer is charged;
should it be lost nevertheless, selling is refused and the charge is given back. Every step may be repeated
and may meet what undoes it, before and after.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from market.catalog import api as catalog
from market.faults import Conflict
from market.money import Money
from market.orders import reasons
from market.orders.api import OrderLine, Reason
from market.orders.store import follow
from springtide.context import Priority
from springtide.errors import StepLater, StepRefused
from springtide.flows import Step, StepRun, WaitFor, Workflow

if TYPE_CHECKING:
    from market.orders.service import OrderService

__all__ = ["PLACE", "SHIPPED", "Placing", "reserve"]

SHIPPED = "orders.shipped"
"""The event, with the order's id as its key."""

SOONEST, LATEST = 1.0, 60.0
"""Seconds between two questions what became of a charge; between these, half of what it has taken so far."""


class Placing(msgspec.Struct, frozen=True, kw_only=True):
    """What the steps know of an order. `reason`: why it is off, when a step says so. `source` is stored under
    a name by which who shows a workflow hides it."""

    id: int
    lines: list[OrderLine]
    total: Money
    source: str = msgspec.field(name="source_token")
    placed_at: datetime
    pay_by: datetime
    reason: Reason | None = None


async def reserve(orders: OrderService, order: Placing, run: StepRun | None = None) -> Placing:
    if orders.now() >= order.pay_by:
        raise _off(order, reasons.EXPIRED, undo=True)
    wanted = [
        catalog.Line(listing_id=line.listing_id, quantity=line.quantity, price=line.price)
        for line in order.lines
    ]
    answer = await orders.catalog.reserve(order.id, wanted, orders.hold_seconds)
    if isinstance(answer, catalog.NotReserved):
        reason = reasons.not_reserved(answer.faults)
        raise _off(order, reason or reasons.EXPIRED, undo=reason is None)
    lines = [
        OrderLine(
            listing_id=line.listing_id,
            quantity=line.quantity,
            price=line.price,
            seller_id=line.seller_id,
            title=line.title,
        )
        for line in answer.lines
    ]
    return msgspec.structs.replace(order, lines=lines)


async def release(orders: OrderService, order: Placing, run: StepRun) -> None:
    try:
        await orders.catalog.release(order.id)
    except Conflict:  # it is sold: by somebody who was late, before this could keep it from happening
        await orders.catalog.restock(order.id)


async def charge(orders: OrderService, order: Placing, run: StepRun) -> None:
    now = orders.now()
    if now >= order.pay_by:
        known = await orders.payments.status(order.id)
        if known is not None and known.charge.state == "succeeded":
            return
        raise _off(order, reasons.EXPIRED, undo=True)
    try:
        made = await orders.payments.charge(order.id, order.total, order.source)
    except Conflict:
        raise _off(order, reasons.PAYMENT_CANCELLED, undo=True) from None
    match made.state:
        case "succeeded":
            return
        case "declined":
            raise _off(order, reasons.declined(made.decline_code), undo=False)
        case "cancelled":
            raise _off(order, reasons.PAYMENT_CANCELLED, undo=True)
        case "pending":
            taken, left = now - order.placed_at, order.pay_by - now
            raise StepLater(max(SOONEST, min(taken.total_seconds() / 2, left.total_seconds(), LATEST)))


async def give_back(orders: OrderService, order: Placing, run: StepRun) -> None:
    await orders.payments.cancel(order.id, f"order {order.id} is off", order.total)


async def sell(orders: OrderService, order: Placing, run: StepRun) -> None:
    try:
        await orders.catalog.commit(order.id)
    except Conflict:
        raise _off(order, reasons.EXPIRED, undo=False) from None


async def bring_back(orders: OrderService, order: Placing, run: StepRun) -> None:
    with suppress(Conflict):  # never sold: undoing the reservation keeps it from being sold
        await orders.catalog.restock(order.id)


def _off(order: Placing, reason: Reason, *, undo: bool) -> StepRefused:
    """`undo`: nobody knows how far the step got."""
    return StepRefused(reason.says, undo=undo, data=msgspec.structs.replace(order, reason=reason))


TRIED: dict[str, Any] = {"max_run": 30.0, "max_backoff": 60.0, "max_attempts": 500, "undo_attempts": 5000}
"""For as long as an order may take to be paid; and undone for days."""

PLACE = Workflow(
    "orders.place",
    Placing,
    [
        Step("reserve", reserve, undo=release, **TRIED),
        Step("charge", charge, undo=give_back, **TRIED),
        Step("sell", sell, undo=bring_back, **TRIED),
        WaitFor("shipped", event=SHIPPED, key=lambda order: str(order.id), timeout=None),
    ],
    priority=Priority.CRITICAL,
    follow=follow,
    follows=("waiting", "undoing", "undone"),
)
