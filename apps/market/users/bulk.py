"""Bulk loading of the users module: which columns its tables have and what else a row entails.

For seeds and imports, which write by COPY; everything else goes through the service. Names must follow
`market.users.rules`; of what must be unique only that is checked, by the reservations' primary key.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from market.search.api import Document
from market.users.indexing import document
from market.users.rules import fold
from springtide.db import Database, bucket_of

if TYPE_CHECKING:
    from springtide.ops.load.seeding import BulkLoad

__all__ = ["BulkAccount", "BulkFollow", "copy_accounts", "copy_follows", "document_of", "is_empty"]

BATCH = 10_000


class BulkAccount(NamedTuple):
    id: int
    username: str
    email: str
    password_hash: str
    bio: str | None
    image: str | None
    at: datetime


class BulkFollow(NamedTuple):
    follower: int
    followee: int
    at: datetime


def document_of(row: BulkAccount) -> Document:
    """What of it is to be found."""
    return document(row.id, 1, row.username, row.bio)


async def is_empty(db: Database) -> bool:
    """Whether there is no account on any shard."""
    return not await db.scatter("select id from users.account", limit=1)


async def copy_accounts(load: BulkLoad, db: Database, accounts: Iterable[BulkAccount]) -> None:
    """`accounts` with the reservations of their names, BATCH at a time."""
    columns = [
        "bucket",
        "id",
        "username",
        "email",
        "password_hash",
        "bio",
        "image",
        "created_at",
        "updated_at",
    ]
    waiting = iter(accounts)
    while batch := list(islice(waiting, BATCH)):
        await load.copy(db, "account", columns, ((bucket_of(row.id), *row, row.at) for row in batch))
        await load.reserve(db, "username", ((fold(row.username), row.id) for row in batch))
        await load.reserve(db, "email", ((fold(row.email), row.id) for row in batch))


async def copy_follows(load: BulkLoad, db: Database, follows: Iterable[BulkFollow]) -> None:
    """`follows`, each pair of people at most once."""
    columns = ["bucket", "follower_id", "followee_id", "created_at"]
    await load.copy(db, "follow", columns, ((bucket_of(row.follower), *row) for row in follows))
