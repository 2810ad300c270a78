"""Bulk loading of the catalog: shops, listings with their stock, its log, and what orders have taken of it.

For seeds and imports, which write by COPY into empty tables; everything else goes through the service. The
caller brings listings whose `on_hand` is the sum of their movements, and movements that are numbered from 1
per listing; each reservation's lines belong to one order. `copy_counts` comes after the last listing.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Literal, NamedTuple

from market.catalog.api import ReservedLine
from market.catalog.categories import department_of
from market.catalog.indexing import document
from market.money import Money
from market.search.api import Document
from springtide.db import Database, bucket_of

if TYPE_CHECKING:
    from springtide.ops.load.seeding import BulkLoad

__all__ = [
    "BulkListing",
    "BulkMovement",
    "BulkReservation",
    "BulkShop",
    "copy_counts",
    "copy_listings",
    "copy_movements",
    "copy_reservations",
    "copy_shops",
    "document_of",
    "is_empty",
]

BATCH = 5_000

COUNTS = """
insert into catalog.category_count (bucket, category, listings)
select bucket, category, count(*) from catalog.listing where status = 'active' group by bucket, category
"""


class BulkShop(NamedTuple):
    """Its slug keeps to `market.catalog.rules`, and no other shop has it."""

    owner: int
    slug: str
    name: str
    description: str
    currency: str
    at: datetime


class BulkListing(NamedTuple):
    """On sale, or sold out when nothing is on hand; nothing of it is reserved."""

    id: int
    seller: int
    title: str
    description: str
    price: Money
    category: str
    media: list[str]
    on_hand: int
    movements: int
    at: datetime


class BulkMovement(NamedTuple):
    listing: int
    number: int
    kind: Literal["adjustment", "sale", "return"]
    change: int
    on_hand: int
    order: int | None
    note: str
    at: datetime


class BulkReservation(NamedTuple):
    """What an order took, settled long ago: it was sold, or else given back."""

    order: int
    lines: list[ReservedLine]
    sold: bool
    at: datetime


def document_of(row: BulkListing) -> Document:
    """What of it is to be found."""
    return document(row.id, 1, row.title, row.description, row.category)


async def is_empty(db: Database) -> bool:
    """Whether there is no shop on any shard."""
    return not await db.scatter("select seller_id from catalog.shop", limit=1)


async def copy_shops(load: BulkLoad, db: Database, shops: Iterable[BulkShop]) -> None:
    """`shops` with the reservations of their slugs, BATCH at a time."""
    columns = ["bucket", "seller_id", "slug", "name", "description", "currency", "created_at", "updated_at"]
    waiting = iter(shops)
    while batch := list(islice(waiting, BATCH)):
        await load.copy(db, "shop", columns, ((bucket_of(row.owner), *row, row.at) for row in batch))
        await load.reserve(db, "slug", ((row.slug, row.owner) for row in batch))


async def copy_listings(load: BulkLoad, db: Database, listings: Iterable[BulkListing]) -> None:
    """`listings` with their stock, BATCH at a time."""
    columns = ["bucket", "id", "seller_id", "title", "description", "amount", "currency", "category"]
    columns += ["department", "status", "media", "listed_at", "created_at", "updated_at"]
    waiting = iter(listings)
    while batch := list(islice(waiting, BATCH)):
        rows = (
            (
                bucket_of(row.id), row.id, row.seller, row.title, row.description, row.price.amount,
                row.price.currency, row.category, department_of(row.category),
                "active" if row.on_hand else "sold_out", row.media, row.at, row.at, row.at,
            )
            for row in batch
        )  # fmt: skip
        await load.copy(db, "listing", columns, rows)
        stock = ((bucket_of(row.id), row.id, row.on_hand, row.movements) for row in batch)
        await load.copy(db, "stock", ["bucket", "listing_id", "on_hand", "movements"], stock)


async def copy_movements(load: BulkLoad, db: Database, movements: Iterable[BulkMovement]) -> None:
    columns = [
        "bucket",
        "listing_id",
        "number",
        "kind",
        "change",
        "on_hand",
        "order_id",
        "note",
        "created_at",
    ]
    await load.copy(db, "movement", columns, ((bucket_of(row.listing), *row) for row in movements))


async def copy_reservations(load: BulkLoad, db: Database, reservations: Iterable[BulkReservation]) -> None:
    """`reservations` with what was held of each listing, BATCH at a time."""
    waiting = iter(reservations)
    while batch := list(islice(waiting, BATCH)):
        rows = (
            (
                bucket_of(row.order), row.order, "committed" if row.sold else "released",
                [[one.listing_id, one.quantity, one.price.amount, one.price.currency] for one in row.lines],
                True, row.at, row.at, row.at,
            )
            for row in batch
        )  # fmt: skip
        columns = [
            "bucket",
            "order_id",
            "state",
            "lines",
            "settled",
            "expires_at",
            "created_at",
            "updated_at",
        ]
        await load.copy(db, "reservation", columns, rows)
        held = (
            (
                bucket_of(line.listing_id), row.order, line.listing_id, line.seller_id, line.title,
                line.quantity, line.price.amount, line.price.currency,
                "committed" if row.sold else "released", row.at,
            )
            for row in batch
            for line in row.lines
        )  # fmt: skip
        columns = ["bucket", "order_id", "listing_id", "seller_id", "title", "quantity", "amount", "currency"]
        await load.copy(db, "held", [*columns, "state", "expires_at"], held)


async def copy_counts(load: BulkLoad, db: Database) -> None:
    """What is on sale in each category, from the listings that the load has copied into empty tables."""
    await load.execute(db, "category_count", COUNTS)
