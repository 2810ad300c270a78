"""Hold every order against its payment and its stock. Reads only.

An order is read first and what belongs to it afterwards, so one that moves meanwhile may look wrong: what
looks wrong is read again, and counts only if the order is the same as before.
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

from market.catalog.api import Catalog, Reservation
from market.orders.api import Disagreements
from market.orders.record import Placed
from market.orders.store import OrderStore
from market.payments.api import Charge, Payments

__all__ = ["compare", "faults_of"]

PAGE = 200

Fault = Literal["confirmed_not_paid", "confirmed_not_sold", "ended_still_paid", "ended_still_held"]


def faults_of(order: Placed, charge: Charge | None, reservation: Reservation | None) -> set[Fault]:
    """What is wrong with an order that is at its end. Pure."""
    held = None if reservation is None else reservation.state
    paid = charge is not None and charge.state == "succeeded"
    given_back = charge is not None and charge.refunded == charge.amount
    faults: set[Fault] = set()
    if order.state == "confirmed":
        if charge is None or not paid or charge.amount != order.money or charge.refunded.amount:
            faults.add("confirmed_not_paid")
        if held != "committed":
            faults.add("confirmed_not_sold")
    else:
        if paid and not given_back:
            faults.add("ended_still_paid")
        if held in ("reserving", "reserved", "committed"):
            faults.add("ended_still_held")
    return faults


async def compare(store: OrderStore, catalog: Catalog, payments: Payments) -> Disagreements:
    counts: Counter[str] = Counter()
    after: str | None = None
    while True:
        orders, after = await store.every(after, PAGE)
        counts["checked"] += len(orders)
        counts["open"] += sum(not order.at_end for order in orders)
        suspects = await _look(catalog, payments, [order for order in orders if order.at_end])
        if suspects:
            counts.update(await _again(store, catalog, payments, suspects))
        if after is None:
            break
    names = Disagreements.__struct_fields__
    return Disagreements(**{name: counts[name] for name in names})


async def _again(
    store: OrderStore, catalog: Catalog, payments: Payments, suspects: dict[int, tuple[Placed, set[Fault]]]
) -> Counter[str]:
    found = await _look(catalog, payments, [order for order, _ in suspects.values()])
    counts: Counter[str] = Counter()
    for id, (order, faults) in found.items():
        now = await store.find(id)
        if now is not None and now.version == order.version:
            counts.update(faults & suspects[id][1])
    return counts


async def _look(
    catalog: Catalog, payments: Payments, orders: list[Placed]
) -> dict[int, tuple[Placed, set[Fault]]]:
    """Those that something is wrong with."""
    ids = [order.id for order in orders]
    if not ids:
        return {}
    charges = {charge.order_id: charge for charge in await payments.charges(ids)}
    held = {one.order_id: one for one in await catalog.reservations(ids)}
    looked = [(order, faults_of(order, charges.get(order.id), held.get(order.id))) for order in orders]
    return {order.id: (order, faults) for order, faults in looked if faults}
