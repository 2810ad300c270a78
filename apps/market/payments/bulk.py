"""Bulk loading of the payments module: charges that were settled long ago, and what the ledger says of them.

For seeds and imports, which write by COPY into empty tables; everything else goes through the service.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from market.money import Money
from market.payments import ledger
from springtide.db import Database, bucket_of

if TYPE_CHECKING:
    from springtide.ops.load.seeding import BulkLoad

__all__ = ["BulkCharge", "copy_charges", "is_empty"]

BATCH = 5_000


class BulkCharge(NamedTuple):
    """Succeeded, or declined when there is a `decline_code`; `provider_id` is the provider's name for it."""

    order: int
    amount: Money
    source: str
    provider_id: str | None
    decline_code: str | None
    at: datetime


async def is_empty(db: Database) -> bool:
    """Whether there is no charge on any shard."""
    return not await db.scatter("select order_id from payments.charge", limit=1)


async def copy_charges(load: BulkLoad, db: Database, charges: Iterable[BulkCharge]) -> None:
    """`charges`, one per order, with their entries in the ledger, BATCH at a time."""
    columns = ["bucket", "order_id", "amount", "currency", "source", "state", "provider_id", "decline_code"]
    columns += ["ask_at", "created_at", "updated_at"]
    waiting = iter(charges)
    while batch := list(islice(waiting, BATCH)):
        rows = (
            (
                bucket_of(row.order), row.order, row.amount.amount, row.amount.currency, row.source,
                "succeeded" if row.decline_code is None else "declined", row.provider_id, row.decline_code,
                row.at, row.at, row.at,
            )
            for row in batch
        )  # fmt: skip
        await load.copy(db, "charge", columns, rows)
        entries = (
            (
                bucket_of(row.order), row.order, ledger.CHARGE, entry.account, entry.amount.amount,
                entry.amount.currency, row.at,
            )
            for row in batch
            if row.decline_code is None
            for entry in ledger.charged(row.amount)
        )  # fmt: skip
        names = ["bucket", "order_id", "number", "account", "amount", "currency", "created_at"]
        await load.copy(db, "entry", names, entries)
