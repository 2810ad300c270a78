"""The same data for market and its twin: market's own seed and listings, copied table by table into the twin.

Market is filled first, by its seed and by COPY; what its tables hold is then copied into the twin's, ids
included, so that the two answer the same. Everybody's password is the seed's.
"""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta

import asyncpg
from sqlalchemy.ext.asyncio import create_async_engine

from bench.twin.tables import Base
from market.catalog.categories import DEPARTMENTS
from market.search.api import Document
from market.search.bulk import copy_documents
from market.seed import seed
from market.seeding.words import NOUNS, QUALITIES, SENTENCES
from springtide.db import bucket_of
from springtide.ops.load.progress import Silent
from springtide.ops.load.seeding import BulkLoad
from springtide.platform import Platform

__all__ = ["STOCK", "Sample", "create_twin", "fill_market", "fill_twin", "sample"]

TODAY = date(2025, 1, 1)
NOW = datetime(2025, 1, 1, tzinfo=UTC)
"""Fixed, so that every run has the same data."""

STOCK = 1_000_000
"""On hand of every listing that is asked for: a benchmark never sells one out."""

COPIES = (
    (
        "users",
        "id username username_key email email_key password_hash bio image created_at updated_at",
        """
        select a.id, a.username, u.value, a.email, e.value, a.password_hash, a.bio, a.image,
            a.created_at, a.updated_at
        from users.account a
        join users._reservation u on u.owner_id = a.id and u.kind = 'username'
        join users._reservation e on e.owner_id = a.id and e.kind = 'email'
        """,
    ),
    (
        "follows",
        "follower_id followee_id created_at",
        "select follower_id, followee_id, created_at from users.follow",
    ),
    (
        "articles",
        "id author_id slug title description body tags favorites created_at updated_at",
        """
        select id, author_id, slug, title, description, body, tags, favorites, created_at, updated_at
        from content.article
        """,
    ),
    ("favorites", "user_id article_id", "select user_id, article_id from content.favorite"),
    ("shops", "seller_id slug name currency", "select seller_id, slug, name, currency from catalog.shop"),
    (
        "listings",
        "id seller_id title description amount currency category status media version listed_at"
        " created_at updated_at",
        """
        select id, seller_id, title, description, amount, currency, category, status, media, version,
            listed_at, created_at, updated_at
        from catalog.listing
        """,
    ),
    (
        "stocks",
        "listing_id on_hand reserved",
        "select listing_id, on_hand, reserved from catalog.stock",
    ),
    (
        "movements",
        "listing_id change created_at",
        "select listing_id, change, created_at from catalog.movement",
    ),
)


@dataclass
class Sample:
    """What a benchmark asks for."""

    slugs: list[str] = field(default_factory=list)
    readers: list[int] = field(default_factory=list)
    """People who follow somebody."""
    words: list[str] = field(default_factory=list)
    listings: list[tuple[int, int, str]] = field(default_factory=list)
    """id, price, currency"""


SHOPS = "select seller_id from catalog.shop"


async def fill_market(platform: Platform, *, users: int, listings: int, stock: int = STOCK) -> None:
    """What the seed makes of `users` people, and `listings` more by people without a shop."""
    await seed(platform, users=users, seed=1, progress=Silent(), today=TODAY)
    shops = {row["seller_id"] for row in await platform.database("catalog").scatter(SHOPS)}
    people = await platform.database("users").scatter(
        "select id, username from users.account", order=[("id", "asc")], limit=users
    )
    free = [(row["id"], row["username"]) for row in people if row["id"] not in shops]
    await _listings(platform, free[: max(listings // 25, 1)], listings, stock)


async def _listings(platform: Platform, sellers: Sequence[tuple[int, str]], count: int, stock: int) -> None:
    database = platform.database("catalog")
    rng, at = random.Random(1), NOW - timedelta(days=100)
    kinds = [(category, department) for department, under in DEPARTMENTS.items() for category in under]
    rows = []
    for number in range(count):
        seller, _ = sellers[number % len(sellers)]
        id = await database.ids.take(seller)
        category, department = rng.choice(kinds)
        title = f"{rng.choice(QUALITIES)} {rng.choice(NOUNS)} {number}".capitalize()
        text = " ".join(rng.choices(SENTENCES, k=3))
        at += timedelta(minutes=7)
        rows.append(
            (bucket_of(seller), id, seller, title, text, rng.randrange(100, 50_000), category, department, at)
        )
    index = platform.database("search")
    async with BulkLoad([database, index]) as load:
        await load.copy(
            database,
            "shop",
            ["bucket", "seller_id", "slug", "name", "description", "currency", "created_at", "updated_at"],
            (
                (bucket_of(id), id, f"shop-{id}", f"{name}'s shop", "", "EUR", NOW, NOW)
                for id, name in sellers
            ),
        )
        await load.copy(
            database,
            "listing",
            ["bucket", "id", "seller_id", "title", "description", "amount", "currency", "category",
             "department", "status", "listed_at", "created_at", "updated_at"],
            (
                (bucket, id, seller, title, text, amount, "EUR", category, department, "active", at, at, at)
                for bucket, id, seller, title, text, amount, category, department, at in rows
            ),
        )  # fmt: skip
        await load.copy(
            database,
            "stock",
            ["bucket", "listing_id", "on_hand", "reserved", "movements"],
            ((row[0], row[1], stock, 0, 1) for row in rows),
        )
        await load.copy(
            database,
            "movement",
            ["bucket", "listing_id", "number", "kind", "change", "on_hand", "note", "created_at"],
            ((row[0], row[1], 1, "adjustment", stock, stock, "", row[8]) for row in rows),
        )
        await load.execute(
            database,
            "category_count",
            "insert into catalog.category_count (bucket, category, listings)"
            " select bucket, category, count(*) from catalog.listing where status = 'active'"
            " group by bucket, category"
            " on conflict (bucket, category) do update set listings = excluded.listings",
        )
        await copy_documents(
            load,
            index,
            (
                Document(kind="listing", id=row[1], version=1, title=row[3], text=row[4], tags=[row[6]])
                for row in rows
            ),
        )


async def create_twin(url: str) -> None:
    """The twin's tables, empty."""
    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"))
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    await engine.dispose()


async def fill_twin(market_url: str, twin_url: str) -> None:
    """Into the twin's empty tables what market has."""
    market, twin = await asyncpg.connect(market_url), await asyncpg.connect(twin_url)
    try:
        for table, columns, query in COPIES:
            rows = io.BytesIO()
            await market.copy_from_query(query, output=rows, format="binary")
            rows.seek(0)
            await twin.copy_to_table(table, source=rows, columns=columns.split(), format="binary")
            if columns.startswith("id "):
                await twin.execute(f"select setval('{table}_id_seq', (select max(id) from {table}))")
        for connection in (market, twin):
            await connection.execute("vacuum analyze")
    finally:
        await market.close()
        await twin.close()


async def sample(market_url: str, count: int) -> Sample:
    """`count` of each kind, spread over all there are."""
    market = await asyncpg.connect(market_url)

    async def column(query: str) -> list:
        return [tuple(row) for row in await market.fetch(query, count)]

    try:
        return Sample(
            slugs=[
                row[0] for row in await column("select slug from content.article order by md5(slug) limit $1")
            ],
            readers=[
                row[0]
                for row in await column(
                    "select follower_id from (select distinct follower_id from users.follow) f"
                    " order by md5(follower_id::text) limit $1"
                )
            ],
            words=list(NOUNS),
            listings=await column(
                "select id, amount, listing.currency from catalog.listing"
                " join catalog.shop using (bucket, seller_id)"
                " where slug = 'shop-' || seller_id order by md5(id::text) limit $1"
            ),
        )
    finally:
        await market.close()
