# ruff: noqa: S608 - what the statements are put together from are this file's own lists of columns
"""The tables of the payments module: the only place with its SQL. All about an order is on its shard."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from market.money import Money
from market.payments import ledger
from market.payments.api import Balance, Charge, ChargeState, Refund, RefundState
from springtide.db import Consistency, Database, bucket_of
from springtide.db.router import Reader
from springtide.db.scatter import ASC

__all__ = ["ABANDONED", "ChargeRow", "Due", "PaymentStore", "RefundRow"]

_CHARGE = """order_id, attempt, amount, currency, source, state, provider_id, decline_code, abandoned,
    refunded, refunds, created_at, updated_at"""
_REFUND = "order_id, number, key, amount, currency, reason, state, provider_id, created_at, updated_at"

INSERT_CHARGE = f"""
insert into payments.charge
    (bucket, order_id, amount, currency, source, state, ask_at, created_at, updated_at)
values ($1, $2, $3, $4, $5, 'pending', $6, $7, $7)
on conflict (bucket, order_id) do nothing
returning {_CHARGE}
"""

FORBID_CHARGE = """
insert into payments.charge
    (bucket, order_id, amount, currency, source, state, abandoned, ask_at, created_at, updated_at)
values ($1, $2, $3, $4, '', 'cancelled', $5, $6, $7, $7)
on conflict (bucket, order_id) do nothing
"""

RETRY_CHARGE = """
update payments.charge
set attempt = attempt + 1, source = $3, state = 'pending', provider_id = null, decline_code = null,
    asks = 0, ask_at = $5, updated_at = $6
where bucket = $1 and order_id = $2 and attempt = $4 and state = 'declined' and abandoned is null
"""

CHARGE = f"select {_CHARGE} from payments.charge where bucket = $1 and order_id = $2"

CHARGES = f"""
select {_CHARGE} from unnest($1::bigint[]) as wanted (id)
join payments.charge on charge.bucket = (wanted.id & 1023)::smallint and charge.order_id = wanted.id
"""

LOCK_CHARGE = f"select {_CHARGE} from payments.charge where bucket = $1 and order_id = $2 for update"

SETTLE_CHARGE = f"""
update payments.charge
set state = $4, provider_id = $5, decline_code = $6, updated_at = $7
where bucket = $1 and order_id = $2 and attempt = $3 and state = 'pending'
returning {_CHARGE}
"""

ABANDON_CHARGE = f"""
update payments.charge set abandoned = $3, updated_at = $4
where bucket = $1 and order_id = $2 and abandoned is null and state <> 'cancelled'
returning {_CHARGE}
"""

COUNT_REFUND = """
update payments.charge set refunds = refunds + 1, refunded = refunded + $3, updated_at = $4
where bucket = $1 and order_id = $2
returning refunds
"""

UNCOUNT_REFUND = """
update payments.charge set refunded = refunded - $3, updated_at = $4 where bucket = $1 and order_id = $2
"""

INSERT_REFUND = f"""
insert into payments.refund
    (bucket, order_id, number, key, amount, currency, reason, state, ask_at, created_at, updated_at)
values ($1, $2, $3, $4, $5, $6, $7, 'pending', $8, $9, $9)
returning {_REFUND}
"""

REFUND = f"select {_REFUND} from payments.refund where bucket = $1 and order_id = $2 and number = $3"

REFUND_OF_KEY = f"select {_REFUND} from payments.refund where bucket = $1 and order_id = $2 and key = $3"

REFUNDS = f"select {_REFUND} from payments.refund where bucket = $1 and order_id = $2 order by number"

SETTLE_REFUND = f"""
update payments.refund set state = $4, provider_id = $5, updated_at = $6
where bucket = $1 and order_id = $2 and number = $3 and state = 'pending'
returning {_REFUND}
"""

INSERT_EVENT = """
insert into payments.event (bucket, order_id, event_id, kind, received_at)
values ($1, $2, $3, $4, $5)
on conflict (bucket, order_id, event_id) do nothing
returning event_id
"""

INSERT_ENTRIES = """
insert into payments.entry (bucket, order_id, number, account, amount, currency, created_at)
select $1, $2, $3, entry.account, entry.amount, entry.currency, $7
from unnest($4::text[], $5::bigint[], $6::text[]) as entry (account, amount, currency)
"""

DUE_CHARGES = """
select order_id, 0 as number, asks, ask_at from payments.charge where state = 'pending' and ask_at <= $1
"""

DUE_REFUNDS = """
select order_id, number, asks, ask_at from payments.refund where state = 'pending' and ask_at <= $1
"""

CLAIM_CHARGE = """
update payments.charge set asks = asks + 1, ask_at = $4
where bucket = $1 and order_id = $2 and asks = $3 and state = 'pending'
returning order_id
"""

CLAIM_REFUND = """
update payments.refund set asks = asks + 1, ask_at = $5
where bucket = $1 and order_id = $2 and number = $3 and asks = $4 and state = 'pending'
returning order_id
"""

BALANCES = (
    "select account, currency, sum(amount)::bigint as amount from payments.entry group by account, currency"
)


ABANDONED = "(cancelled)"
"""The key of the refund of what was abandoned; no caller may take it."""


class ChargeRow(msgspec.Struct, frozen=True):
    order_id: int
    attempt: int
    amount: int
    currency: str
    source: str
    state: ChargeState
    provider_id: str | None
    decline_code: str | None
    abandoned: str | None
    refunded: int
    refunds: int
    created_at: datetime
    updated_at: datetime

    @property
    def money(self) -> Money:
        return Money(self.amount, self.currency)

    def shown(self) -> Charge:
        return Charge(
            order_id=self.order_id,
            attempt=self.attempt,
            amount=self.money,
            state=self.state,
            decline_code=self.decline_code,
            refunded=Money(self.refunded, self.currency),
            created_at=self.created_at,
            updated_at=self.updated_at,
        )


class RefundRow(msgspec.Struct, frozen=True):
    order_id: int
    number: int
    key: str
    amount: int
    currency: str
    reason: str
    state: RefundState
    provider_id: str | None
    created_at: datetime
    updated_at: datetime

    @property
    def money(self) -> Money:
        return Money(self.amount, self.currency)

    def shown(self) -> Refund:
        return Refund(
            order_id=self.order_id,
            number=self.number,
            amount=self.money,
            reason=self.reason,
            state=self.state,
            created_at=self.created_at,
            updated_at=self.updated_at,
        )


class Due(NamedTuple):
    """Pending and to be asked about; `number` is 0 for the charge. `asks` guards the claim."""

    order_id: int
    number: int
    asks: int


class PaymentStore:
    """One order's money is read as it is now: the provider, workers and the buyer all change it, and what is
    read decides what is asked of the provider. Lists and balances are a session's."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def _now(self, order: int) -> Reader:
        return self._db.read(order, consistency=Consistency.STRONG)

    def write(self, order: int) -> AbstractAsyncContextManager[Any]:
        """Everything in the block is one transaction: this class's methods join it."""
        return self._db.write(order)

    async def insert_charge(
        self, order: int, amount: Money, source: str, *, ask_at: datetime, at: datetime
    ) -> ChargeRow:
        """The order's charge: a new pending one, or the one that there is."""
        async with self._db.write(order) as tx:
            row = await tx.fetch_one(
                INSERT_CHARGE, bucket_of(order), order, amount.amount, amount.currency, source, ask_at, at
            )
        if row is not None:
            return ChargeRow(*row)
        known = await self.charge(order)
        assert known is not None
        return known

    async def retry_charge(self, known: ChargeRow, source: str, *, ask_at: datetime, at: datetime) -> None:
        order = known.order_id
        async with self._db.write(order) as tx:
            await tx.execute(RETRY_CHARGE, bucket_of(order), order, source, known.attempt, ask_at, at)

    async def charge(self, order: int) -> ChargeRow | None:
        row = await self._now(order).fetch_one(CHARGE, bucket_of(order), order)
        return None if row is None else ChargeRow(*row)

    async def lock_charge(self, tx: Any, order: int) -> ChargeRow | None:
        row = await tx.fetch_one(LOCK_CHARGE, bucket_of(order), order)
        return None if row is None else ChargeRow(*row)

    async def settle_charge(
        self,
        order: int,
        attempt: int,
        state: ChargeState,
        *,
        provider_id: str | None = None,
        decline_code: str | None = None,
        at: datetime,
        ask_at: datetime,
    ) -> ChargeRow | None:
        """Write the outcome and book it, in one transaction; None when it was settled already.

        What was abandoned meanwhile is to be given back: that is recorded with it.
        """
        async with self._db.write(order) as tx:
            row = await tx.fetch_one(
                SETTLE_CHARGE, bucket_of(order), order, attempt, state, provider_id, decline_code, at
            )
            if row is None:
                return None
            settled = ChargeRow(*row)
            if state == "succeeded":
                await _book(tx, order, ledger.CHARGE, ledger.charged(settled.money), at)
                await self._give_back(tx, settled, at=at, ask_at=ask_at)
            return settled

    async def abandon_charge(self, order: int, reason: str, *, ask_at: datetime, at: datetime) -> None:
        """It is not wanted any more; if it has succeeded, what it has left is to be given back."""
        async with self._db.write(order) as tx:
            row = await tx.fetch_one(ABANDON_CHARGE, bucket_of(order), order, reason, at)
            if row is not None:
                await self._give_back(tx, ChargeRow(*row), at=at, ask_at=ask_at)

    async def forbid_charge(
        self, order: int, amount: Money, reason: str, *, ask_at: datetime, at: datetime
    ) -> None:
        """If there is no charge: one that is cancelled before it began."""
        bucket = bucket_of(order)
        async with self._db.write(order) as tx:
            await tx.execute(FORBID_CHARGE, bucket, order, amount.amount, amount.currency, reason, ask_at, at)

    async def charges(self, orders: Sequence[int]) -> list[ChargeRow]:
        """In no order."""
        return [ChargeRow(*row) for row in await self._db.fetch_many(CHARGES, list(orders))]

    async def insert_refund(
        self, tx: Any, order: int, amount: Money, reason: str, key: str, *, ask_at: datetime, at: datetime
    ) -> RefundRow:
        """In a transaction that has locked the charge."""
        bucket = bucket_of(order)
        number = await tx.fetch_value(COUNT_REFUND, bucket, order, amount.amount, at)
        row = await tx.fetch_one(
            INSERT_REFUND, bucket, order, number, key, amount.amount, amount.currency, reason, ask_at, at
        )
        return RefundRow(*row)

    async def _give_back(self, tx: Any, charge: ChargeRow, *, ask_at: datetime, at: datetime) -> None:
        left = charge.amount - charge.refunded
        if charge.abandoned is not None and charge.state == "succeeded" and left > 0:
            money, reason = Money(left, charge.currency), charge.abandoned
            await self.insert_refund(tx, charge.order_id, money, reason, ABANDONED, ask_at=ask_at, at=at)

    async def abandoned_refund(self, order: int) -> RefundRow | None:
        return await self.refund_of_key(self._now(order), order, ABANDONED)

    async def refund(self, order: int, number: int) -> RefundRow | None:
        row = await self._now(order).fetch_one(REFUND, bucket_of(order), order, number)
        return None if row is None else RefundRow(*row)

    async def refund_of_key(self, tx: Any, order: int, key: str) -> RefundRow | None:
        row = await tx.fetch_one(REFUND_OF_KEY, bucket_of(order), order, key)
        return None if row is None else RefundRow(*row)

    async def refunds(self, order: int) -> list[RefundRow]:
        rows = await self._now(order).fetch(REFUNDS, bucket_of(order), order)
        return [RefundRow(*row) for row in rows]

    async def settle_refund(
        self, order: int, number: int, state: RefundState, *, provider_id: str | None = None, at: datetime
    ) -> RefundRow | None:
        """As `settle_charge`; a refund that failed is the charge's to give back again."""
        bucket = bucket_of(order)
        async with self._db.write(order) as tx:
            await tx.fetch_one(LOCK_CHARGE, bucket, order)  # always before its refunds, so nobody deadlocks
            row = await tx.fetch_one(SETTLE_REFUND, bucket, order, number, state, provider_id, at)
            if row is None:
                return None
            settled = RefundRow(*row)
            if state == "succeeded":
                await _book(tx, order, number, ledger.refunded(settled.money), at)
            else:
                await tx.execute(UNCOUNT_REFUND, bucket, order, settled.amount, at)
            return settled

    async def remember_event(self, tx: Any, order: int, event: str, kind: str, at: datetime) -> bool:
        """False when the event came before."""
        return await tx.fetch_value(INSERT_EVENT, bucket_of(order), order, event, kind, at) is not None

    async def due(self, now: datetime, limit: int) -> list[Due]:
        """The longest overdue, charges and refunds together."""
        order = [("ask_at", ASC), ("order_id", ASC)]
        found = await self._db.scatter(DUE_CHARGES, now, order=order, limit=limit)
        found += await self._db.scatter(DUE_REFUNDS, now, order=order, limit=limit)
        found.sort(key=lambda row: row["ask_at"])
        return [Due(row["order_id"], row["number"], row["asks"]) for row in found[:limit]]

    async def claim(self, due: Due, again_at: datetime) -> bool:
        """Whether it is the caller's to ask about; nobody else's before `again_at`."""
        order = due.order_id
        async with self._db.write(order) as tx:
            if due.number:
                args = (bucket_of(order), order, due.number, due.asks, again_at)
                return await tx.fetch_value(CLAIM_REFUND, *args) is not None
            return await tx.fetch_value(CLAIM_CHARGE, bucket_of(order), order, due.asks, again_at) is not None

    async def balances(self) -> list[Balance]:
        sums: dict[tuple[str, str], int] = {}
        for account, currency, amount in await self._db.scatter(BALANCES):
            sums[account, currency] = sums.get((account, currency), 0) + amount
        return [
            Balance(account=account, currency=currency, amount=amount)
            for (account, currency), amount in sorted(sums.items())
        ]


async def _book(tx: Any, order: int, number: int, entries: list[ledger.Entry], at: datetime) -> None:
    await tx.execute(
        INSERT_ENTRIES, bucket_of(order), order, number, [entry.account for entry in entries],
        [entry.amount.amount for entry in entries], [entry.amount.currency for entry in entries], at,
    )  # fmt: skip
