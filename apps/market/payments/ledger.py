"""Double entry: money never appears or disappears, it moves between accounts.

    provider   what the provider holds for us     grows (+) by charges, falls by refunds
    orders     what customers have paid for       falls (-) by charges, grows by refunds

A transaction is all entries of one order and number: 0 is the charge, n the n-th refund; the primary key
keeps it from being booked twice. It balances by construction here and by a deferred trigger in the database,
where entries can be added and neither changed nor deleted. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass

from market.money import Money

__all__ = ["CHARGE", "ORDERS", "PROVIDER", "Entry", "charged", "refunded"]

PROVIDER = "provider"
ORDERS = "orders"

CHARGE = 0
"""The number of the transaction that books an order's charge."""


@dataclass(frozen=True, slots=True)
class Entry:
    account: str
    amount: Money


def charged(amount: Money) -> list[Entry]:
    return _move(amount, source=ORDERS, target=PROVIDER)


def refunded(amount: Money) -> list[Entry]:
    return _move(amount, source=PROVIDER, target=ORDERS)


def _move(amount: Money, *, source: str, target: str) -> list[Entry]:
    if amount.amount <= 0:
        raise ValueError(f"only more than nothing can move, got {amount}")
    return [Entry(target, amount), Entry(source, -amount)]
