"""Bulk loading of the notifications module: many recipients at once, by COPY, for seeds and imports."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from springtide.db import Database, bucket_of

if TYPE_CHECKING:
    from springtide.ops.load.seeding import BulkLoad

__all__ = ["BulkRecipient", "copy_recipients", "is_empty"]


class BulkRecipient(NamedTuple):
    """`version` is the account's, so that later changes of it are newer."""

    id: int
    name: str
    email: str
    version: int


async def is_empty(db: Database) -> bool:
    """Whether there is no recipient on any shard."""
    return not await db.scatter("select id from notifications.recipient", limit=1)


async def copy_recipients(load: BulkLoad, db: Database, recipients: Iterable[BulkRecipient]) -> None:
    """`recipients`, each at most once."""
    columns = ["bucket", "id", "name", "email", "version"]
    await load.copy(db, "recipient", columns, ((bucket_of(row.id), *row) for row in recipients))
