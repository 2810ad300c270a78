"""What placing an order does, step by step, and how each step is undone.

    reserve   hold the stock of all lines          release it, or bring it back if it was sold after all
    charge    charge the buyer's source, once      cancel the charge: give back, or never charge
    sell      what is held is sold                 bring it back

The stock is held for longer than an order may take to be paid, so nobody else gets it while the buyer is
charged; should it be lost nevertheless, selling is refused and the charge is given back. Every step may be
repeated and may meet another one of its kind, before and after: see `saga.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from market.catalog import api as catalog
from market.faults import Conflict
from market.orders import reasons
from market.orders.api import OrderLine
from market.orders.record import Placed
from market.orders.saga import Done, GaveUp, Outcome, Refused, Step, Waiting
from market.payments.api import Payments

__all__ = ["STEPS", "steps"]

STEPS = ("reserve", "charge", "sell")
"""The names, in their order."""


def steps(
    stock: catalog.Catalog, payments: Payments, *, hold_seconds: float, now: Callable[[], datetime]
) -> list[Step]:
    """`hold_seconds`: how long stock is held, counted from its reservation."""

    async def reserve(order: Placed) -> Outcome:
        if now() >= order.pay_by:
            return GaveUp(reasons.EXPIRED)
        wanted = [
            catalog.Line(listing_id=line.listing_id, quantity=line.quantity, price=line.price)
            for line in order.lines
        ]
        answer = await stock.reserve(order.id, wanted, hold_seconds)
        if isinstance(answer, catalog.NotReserved):
            reason = reasons.not_reserved(answer.faults)
            return GaveUp(reasons.EXPIRED) if reason is None else Refused(reason)
        return Done(
            [
                OrderLine(
                    listing_id=line.listing_id,
                    quantity=line.quantity,
                    price=line.price,
                    seller_id=line.seller_id,
                    title=line.title,
                )
                for line in answer.lines
            ]
        )

    async def release(order: Placed) -> None:
        try:
            await stock.release(order.id)
        except Conflict:  # it is sold: by somebody who was late, before this could keep it from happening
            await stock.restock(order.id)

    async def charge(order: Placed) -> Outcome:
        if now() >= order.pay_by:
            known = await payments.status(order.id)
            paid = known is not None and known.charge.state == "succeeded"
            return Done() if paid else GaveUp(reasons.EXPIRED)
        try:
            made = await payments.charge(order.id, order.money, order.source)
        except Conflict:
            return GaveUp(reasons.PAYMENT_CANCELLED)
        match made.state:
            case "succeeded":
                return Done()
            case "declined":
                return Refused(reasons.declined(made.decline_code))
            case "cancelled":
                return GaveUp(reasons.PAYMENT_CANCELLED)
            case "pending":
                return Waiting()

    async def give_back(order: Placed) -> None:
        await payments.cancel(order.id, f"order {order.id} is off", order.money)

    async def sell(order: Placed) -> Outcome:
        try:
            await stock.commit(order.id)
        except Conflict:
            return Refused(reasons.EXPIRED)
        return Done()

    async def bring_back(order: Placed) -> None:
        with suppress(Conflict):  # never sold: undoing the reservation keeps it from being sold
            await stock.restock(order.id)

    pairs = {"reserve": (reserve, release), "charge": (charge, give_back), "sell": (sell, bring_back)}
    return [Step(name, *pairs[name]) for name in STEPS]
