"""What the payments module offers to the rest of the application: the only part of it that may be imported.

An order is charged once, however often and from however many places `charge` is called:

    charge -> pending -> succeeded -> refund (in parts, up to the whole)
                     |-> declined  -> charge with another source -> pending
                     '-> cancelled

`pending` means that nobody knows yet: the provider was asked, or will be, and the answer comes by the next
call, a webhook or the reconciliation. Whoever gives up on an order calls `cancel`, never forgets about it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, Protocol

import msgspec

from market.faults import Conflict, Forbidden, Invalid, NotFound
from market.money import Money
from springtide.services import raises

__all__ = [
    "KEY_LENGTH",
    "MAX_IDS",
    "REASON_LENGTH",
    "SOURCE_LENGTH",
    "Balance",
    "Charge",
    "ChargeState",
    "Payments",
    "Reconciled",
    "Refund",
    "RefundState",
    "Status",
]

SOURCE_LENGTH = 200
REASON_LENGTH = 500
KEY_LENGTH = 100
"""The longest of each, in characters."""

MAX_IDS = 200
"""Orders whose charges are answered at once."""

ChargeState = Literal["pending", "succeeded", "declined", "cancelled"]
RefundState = Literal["pending", "succeeded", "failed"]


class Charge(msgspec.Struct, frozen=True, kw_only=True):
    """`attempt` counts the sources tried; `refunded` is given back or about to be."""

    order_id: int
    attempt: int
    amount: Money
    state: ChargeState
    decline_code: str | None
    refunded: Money
    created_at: datetime
    updated_at: datetime


class Refund(msgspec.Struct, frozen=True, kw_only=True):
    """`number` counts the refunds of one order from 1."""

    order_id: int
    number: int
    amount: Money
    reason: str
    state: RefundState
    created_at: datetime
    updated_at: datetime


class Status(msgspec.Struct, frozen=True, kw_only=True):
    charge: Charge
    refunds: list[Refund]


class Reconciled(msgspec.Struct, frozen=True, kw_only=True):
    """How many open charges and refunds were asked about and how many have an outcome now."""

    asked: int
    settled: int
    reachable: bool


class Balance(msgspec.Struct, frozen=True, kw_only=True):
    """What an account's entries add up to, in the smallest unit; 0 over all accounts of a currency."""

    account: str
    currency: str
    amount: int


class Payments(Protocol):
    """Errors are those of `market.faults`; each method names the ones it raises.

    Unavailable when no provider is configured.
    """

    @raises(Invalid, Conflict)
    async def charge(self, order_id: int, amount: Money, source: str) -> Charge:
        """Charge `source` (a card token of the provider) for the order, once.

        Returns what is known when the caller's time is used up: look at `state`. A call for an order that is
        charged or pending changes nothing; one for a declined order with another source tries that one.
        Raises Invalid, and Conflict for another amount than before or a charge that was cancelled.
        """

    @raises(Invalid, NotFound, Conflict)
    async def refund(self, order_id: int, amount: Money, reason: str, key: str | None = None) -> Refund:
        """Give back a part of a charge, or all. Once per `key`, which is `reason` when it is None.

        Raises NotFound, Conflict when the charge has not succeeded or has less left, or `key` had another
        amount.
        """

    @raises(Invalid, NotFound)
    async def cancel(self, order_id: int, reason: str, amount: Money | None = None) -> Charge:
        """The order is off: it will not be charged, and what was charged is given back.

        Idempotent. A charge that stays pending is cancelled or given back once the provider can be asked.
        With its `amount` an order that was never charged is put down as cancelled, so that a charge that is
        still on its way finds it so; without, that raises NotFound.
        """

    async def status(self, order_id: int) -> Status | None: ...

    @raises(Invalid)
    async def charges(self, order_ids: list[int]) -> list[Charge]:
        """Of many orders at once, in no order; those never charged are left out.

        Raises Invalid for more than 200.
        """

    @raises(Invalid, Forbidden, NotFound, Conflict)
    async def receive(self, body: bytes, signature: str) -> int | None:
        """A webhook of the provider. Once per event; events may come in any order.

        Returns the order that it is about, also when it came before; None for one that says nothing to us.
        Raises Forbidden for a signature that is not the provider's or too old, Invalid for a body that is no
        event, NotFound for a charge or refund that is not ours, Conflict when it says what cannot be.
        """

    async def reconcile(self, now: datetime | None = None) -> Reconciled:
        """Ask the provider about what is pending longer than it should be. Several may run at once."""

    async def balances(self) -> list[Balance]:
        """The ledger's accounts, by account and currency."""
