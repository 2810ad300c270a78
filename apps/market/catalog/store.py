"""The tables of shops and listings: with `stock.py`, the only place with the catalog's SQL.

A shop, its listings, their stock and its log are in one bucket, the owner's. Whoever changes a listing, its
stock or what is held of it locks the listing's row first, several in the order of their ids; the counters of
categories come last, in their order. So two never wait for each other in a circle.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

from msgspec import UNSET

from market.catalog.api import (
    Listing,
    ListingChanges,
    ListingPage,
    ListingQuery,
    ListingSummary,
    Movement,
    MovementPage,
    NewListing,
    NewShop,
    Shop,
    ShopChanges,
    Stock,
)
from market.catalog.categories import DEPARTMENTS, department_of
from market.catalog.jobs import ListingChanged, MediaChanged
from market.catalog.news import News
from market.catalog.stock import ADD_MOVEMENTS, LOCK, count, flip
from market.money import Money
from market.search.api import Versioned
from springtide.db import ASC, Database, Keyset, Step, WriteTransaction, bucket_of, desc

__all__ = ["CATEGORIES", "NEWEST", "PUBLIC", "SHOP", "CatalogStore", "HasShop", "Locked", "NotEnough"]

PUBLIC = frozenset({"active", "sold_out"})
"""The status of what everybody may see."""

NEWEST = Keyset(desc("listed_at", datetime), desc("id"))
CREATED = Keyset(desc("created_at", datetime), desc("id"))
LOG = Keyset(desc("number"))

SHOP_COLUMNS = "seller_id, slug, name, description, currency, version, created_at, updated_at"

SHOP = f"select {SHOP_COLUMNS} from catalog.shop where bucket = $1 and seller_id = $2"  # noqa: S608

INSERT_SHOP = f"""
insert into catalog.shop
    (bucket, seller_id, slug, name, description, currency, created_at, updated_at)
values ($1, $2, $3, $4, $5, $6, $7, $7)
on conflict (bucket, seller_id) do nothing
returning {SHOP_COLUMNS}
"""  # noqa: S608 - constants only

UPDATE_SHOP = f"""
update catalog.shop
set name = coalesce($3, name),
    description = coalesce($4, description),
    version = version + 1,
    updated_at = greatest($5::timestamptz, updated_at + interval '1 millisecond')
where bucket = $1 and seller_id = $2 and ($6::integer is null or version = $6)
returning {SHOP_COLUMNS}
"""  # noqa: S608 - constants only

# The planner takes bucket and id for independent and expects next to no row of such a join; it would read all
# of them instead of the first twenty. A subquery of one row cannot be mistaken.
SUMMARY = """
    listing.id, listing.seller_id, shop.slug as shop, shop.name as shop_name, listing.title, listing.amount,
    listing.currency, listing.category, listing.status, stock.available, listing.media, listing.version,
    listing.listed_at, listing.created_at, listing.updated_at
"""
JOINED = """
cross join lateral (
    select slug, name from catalog.shop
    where bucket = listing.bucket and seller_id = listing.seller_id
    limit 1
) as shop
cross join lateral (
    select on_hand - reserved as available from catalog.stock
    where bucket = listing.bucket and listing_id = listing.id
    limit 1
) as stock
"""

LISTING = f"""
select {SUMMARY}, listing.description
from catalog.listing
{JOINED}
where listing.bucket = $1 and listing.id = $2
"""  # noqa: S608 - constants only

LISTINGS = f"""
select {SUMMARY}
from unnest($1::bigint[]) as wanted (id)
cross join lateral (
    select * from catalog.listing where bucket = (wanted.id & 1023)::smallint and id = wanted.id limit 1
) as listing
{JOINED}
"""  # noqa: S608 - constants only

ON_SALE = f"""
select {SUMMARY}
from catalog.listing
{JOINED}
where listing.status = 'active' and {{condition}}
"""  # noqa: S608 - constants only

OWN = f"""
select {SUMMARY}
from catalog.listing
{JOINED}
where listing.bucket = $1 and listing.seller_id = $2 and {{condition}}
"""  # noqa: S608 - constants only

VERSIONS = """
select bucket, id, version from catalog.listing
where (bucket, id) > ($1::smallint, $2::bigint) and status in ('active', 'sold_out')
"""

TURNED = "select seller_id, title, status, turns from catalog.listing where bucket = $1 and id = $2"

TEXTS = """
select listing.id, listing.version, listing.title, listing.description, listing.category, listing.status
from unnest($1::bigint[]) as wanted (id)
cross join lateral (
    select * from catalog.listing where bucket = (wanted.id & 1023)::smallint and id = wanted.id limit 1
) as listing
"""

INSERT = """
insert into catalog.listing
    (bucket, id, seller_id, title, description, amount, currency, category, department, status, media,
     listed_at, created_at, updated_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12, $12)
"""

INSERT_STOCK = "insert into catalog.stock (bucket, listing_id, on_hand, movements) values ($1, $2, $3, $4)"

UPDATE = """
update catalog.listing
set title = coalesce($3, title),
    description = coalesce($4, description),
    amount = coalesce($5, amount),
    category = coalesce($6, category),
    department = coalesce($7, department),
    media = coalesce($8::text[], media),
    status = $9,
    listed_at = coalesce($10, listed_at),
    version = version + 1,
    updated_at = greatest($11::timestamptz, updated_at + interval '1 millisecond')
where bucket = $1 and id = $2
"""

STOCK = "select listing_id, on_hand, reserved from catalog.stock where bucket = $1 and listing_id = $2"

ADJUST = """
update catalog.stock
set on_hand = on_hand + $3, movements = movements + 1
where bucket = $1 and listing_id = $2 and on_hand + $3::integer between reserved and $4
returning listing_id, on_hand, reserved, movements
"""

MOVEMENTS = """
select number, kind, change, on_hand, order_id, note, created_at
from catalog.movement
where bucket = $1 and listing_id = $2 and {condition}
"""

CATEGORIES = """
select category, sum(listings)::bigint as listings from catalog.category_count group by category
"""


class HasShop(Exception):
    """The account has a shop already; whatever the transaction did is undone."""


class NotEnough(Exception):
    """The stock cannot be changed by that much; whatever the transaction did is undone."""


class Locked:
    """A listing whose row this transaction has locked, as it is now."""

    __slots__ = ("available", "category", "currency", "id", "seller_id", "status", "tx", "version")

    def __init__(self, tx: Any, row: Any, available: int) -> None:
        self.tx = tx
        self.id: int = row["id"]
        self.seller_id: int = row["seller_id"]
        self.version: int = row["version"]
        self.status: str = row["status"]
        self.category: str = row["category"]
        self.currency: str = row["currency"]
        self.available = available


class CatalogStore:
    def __init__(self, db: Database, news: News | None = None) -> None:
        self._db = db
        self._news = news or News()

    async def find_shop(self, slug: str) -> int | None:
        """Whose shop it is."""
        return await self._db.lookup("slug", slug)

    async def shop(self, owner: int) -> Shop | None:
        """As pages show it."""
        return await self.own_shop(owner)

    async def own_shop(self, owner: int) -> Shop | None:
        """As its owner's writes decide by it."""
        row = await self._db.read(owner).fetch_one(SHOP, bucket_of(owner), owner)
        return None if row is None else Shop(**dict(row))

    async def insert_shop(
        self,
        owner: int,
        slug: str,
        new: NewShop,
        at: datetime,
        finish: Callable[[WriteTransaction, Shop], Awaitable[None]] | None,
    ) -> Shop:
        """`finish` writes what shall commit with the shop. Raises AlreadyReserved for the slug, HasShop."""
        async with self._db.reserving(owner, claim={"slug": slug}) as tx:
            row = await tx.fetch_one(
                INSERT_SHOP, bucket_of(owner), owner, slug, new.name, new.description, new.currency, at
            )
            if row is None:
                raise HasShop
            shop = Shop(**dict(row))
            self._news.shop(tx, owner)
            if finish is not None:
                await finish(tx, shop)
        return shop

    async def update_shop(
        self, owner: int, changes: ShopChanges, version: int | None, at: datetime
    ) -> Shop | None:
        """None when there is no shop of that version."""
        async with self._db.write(owner) as tx:
            row = await tx.fetch_one(
                UPDATE_SHOP, bucket_of(owner), owner, _or_none(changes.name), _or_none(changes.description),
                at, version,
            )  # fmt: skip
            if row is not None:
                self._news.shop(tx, owner)
        return None if row is None else Shop(**dict(row))

    async def counts(self) -> dict[str, int]:
        """Category -> how many listings are on sale; those without any may be missing."""
        counted: dict[str, int] = {}
        for category, listings in await self._db.scatter(CATEGORIES):
            counted[category] = counted.get(category, 0) + listings
        return counted

    async def new_id(self, owner: int) -> int:
        """An id in the owner's bucket."""
        return await self._db.ids.take(owner)

    async def insert(self, id: int, owner: int, new: NewListing, at: datetime) -> None:
        bucket = bucket_of(owner)
        status = "sold_out" if new.status == "active" and new.stock == 0 else new.status
        async with self._db.write(owner) as tx:
            await tx.execute(
                INSERT, bucket, id, owner, new.title, new.description, new.price.amount, new.price.currency,
                new.category, department_of(new.category), status, list(new.media), at,
            )  # fmt: skip
            await tx.execute(INSERT_STOCK, bucket, id, new.stock, 1 if new.stock else 0)
            if new.stock:
                movement = [[id], [1], "adjustment", [new.stock], [new.stock], None, "first stock", at]
                await tx.execute(ADD_MOVEMENTS, *movement)
            if status == "active":
                await count(tx, {(bucket, new.category): 1})
                self._news.on_sale(tx, owner, new.category)
            self._news.listing(tx, id)
            self._news.available(tx, id)
            await _tell(tx, id, public=status in PUBLIC, media=bool(new.media))

    async def listing(self, id: int) -> Listing | None:
        row = await self._db.read(id).fetch_one(LISTING, bucket_of(id), id)
        return None if row is None else Listing(description=row["description"], **_summary(row))

    async def listings(self, ids: Sequence[int]) -> list[ListingSummary]:
        """In no order."""
        return [ListingSummary(**_summary(row)) for row in await self._db.fetch_many(LISTINGS, list(ids))]

    async def versions(self, after: int | None, limit: int) -> list[Versioned]:
        """What everybody may see behind the id `after` (None: from the first), bucket by bucket."""
        behind = (-1, -1) if after is None else (bucket_of(after), after)
        rows = await self._db.scatter(VERSIONS, *behind, order=[("bucket", ASC), ("id", ASC)], limit=limit)
        return [Versioned(id=row["id"], version=row["version"]) for row in rows]

    async def texts(self, ids: Sequence[int]) -> list[Any]:
        """Rows of id, version, title, description, category and status, in no order."""
        return await self._db.fetch_many(TEXTS, list(ids))

    async def turned(self, id: int) -> Any | None:
        """A row of seller_id, title, status and turns."""
        return await self._db.read(id).fetch_one(TURNED, bucket_of(id), id)

    async def on_sale(self, query: ListingQuery) -> ListingPage:
        """Raises InvalidCursor."""
        filters: list[str] = []
        args: list[object] = []
        if query.seller_id is not None:
            filters.append("listing.bucket = $1::smallint and listing.seller_id = $2")
            args += [bucket_of(query.seller_id), query.seller_id]
        if query.category is not None:
            column = "department" if query.category in DEPARTMENTS else "category"
            args.append(query.category)
            filters.append(f"listing.{column} = ${len(args)}")
        step = NEWEST.step(query.after, limit=query.limit, first=len(args) + 1)
        sql = ON_SALE.format(condition=" and ".join([*filters, step.where]))
        if query.seller_id is None:
            rows = await self._db.scatter(sql, *args, *step.args, order=NEWEST.order, limit=step.fetch)
        else:
            rows = await self._part(query.seller_id, sql, args, step)
        return _page(step, rows)

    async def own(self, owner: int, limit: int, after: str | None) -> ListingPage:
        """Raises InvalidCursor."""
        step = CREATED.step(after, limit=limit, first=3)
        sql = OWN.format(condition=step.where)
        return _page(step, await self._part(owner, sql, [bucket_of(owner), owner], step))

    async def movements(self, id: int, limit: int, after: str | None) -> MovementPage:
        """Raises InvalidCursor."""
        step = LOG.step(after, limit=limit, first=3)
        sql = MOVEMENTS.format(condition=step.where)
        page = step.page(await self._part(id, sql, [bucket_of(id), id], step))
        return MovementPage(items=[Movement(**dict(row)) for row in page.items], next=page.next_cursor)

    async def stock(self, id: int) -> Stock | None:
        row = await self._db.read(id).fetch_one(STOCK, bucket_of(id), id)
        return None if row is None else _stock(row)

    def write(self, id: int) -> Any:
        """A transaction for `lock` and what follows it."""
        return self._db.write(id)

    async def lock(self, tx: Any, id: int) -> Locked | None:
        rows = await tx.fetch(LOCK, [id])
        if not rows:
            return None
        stock = await tx.fetch_one(STOCK, bucket_of(id), id)
        return Locked(tx, rows[0], stock["on_hand"] - stock["reserved"])

    async def update(self, locked: Locked, changes: ListingChanges, status: str, at: datetime) -> None:
        id, bucket = locked.id, bucket_of(locked.id)
        price, category = _or_none(changes.price), _or_none(changes.category)
        first = locked.status == "draft" and status != "draft"
        await locked.tx.execute(
            UPDATE, bucket, id, _or_none(changes.title), _or_none(changes.description),
            None if price is None else price.amount, category,
            None if category is None else department_of(category), _or_none(changes.media), status,
            at if first else None, at,
        )  # fmt: skip
        change: dict[tuple[int, str], int] = {}
        if locked.status == "active":
            change[bucket, locked.category] = -1
        if status == "active":
            now = (bucket, category or locked.category)
            change[now] = change.get(now, 0) + 1
        await count(locked.tx, change)
        if changed := [name for (_, name), by in change.items() if by]:
            self._news.on_sale(locked.tx, locked.seller_id, *changed)
        self._news.listing(locked.tx, id)
        public = locked.status in PUBLIC or status in PUBLIC
        await _tell(locked.tx, id, public=public, media=changes.media is not UNSET)

    async def adjust(self, locked: Locked, change: int, note: str, most: int, at: datetime) -> Stock:
        """Raises NotEnough when it would leave less than what is reserved, or more than `most`."""
        row = await locked.tx.fetch_one(ADJUST, bucket_of(locked.id), locked.id, change, most)
        if row is None:
            raise NotEnough
        await locked.tx.execute(
            ADD_MOVEMENTS, [locked.id], [row["movements"]], "adjustment", [change], [row["on_hand"]], None,
            note, at,
        )  # fmt: skip
        await flip(locked.tx, [{"id": locked.id, "status": locked.status}], [row], self._news)
        return _stock(row)

    async def _part(self, key: int, sql: str, args: Sequence[object], step: Step) -> list[Any]:
        number = len(args) + len(step.args) + 1
        text = f"{sql} order by {step.order_by} limit ${number}"
        return await self._db.read(key).fetch(text, *args, *step.args, step.fetch)


async def _tell(tx: WriteTransaction, id: int, *, public: bool, media: bool) -> None:
    """One job of a kind for all changes that it has not begun to tell of."""
    if public:
        await tx.enqueue(ListingChanged(id), unique_key=str(id))
    if media:
        await tx.enqueue(MediaChanged(id), unique_key=str(id))


def _or_none(value: Any) -> Any:
    return None if value is UNSET else value


def _summary(row: Any) -> dict[str, Any]:
    fields = {name: row[name] for name in ListingSummary.__struct_fields__ if name != "price"}
    return {**fields, "price": Money(row["amount"], row["currency"])}


def _page(step: Step, rows: Sequence[Any]) -> ListingPage:
    page = step.page(rows)
    items = [ListingSummary(**_summary(row)) for row in page.items]
    return ListingPage(items=items, next=page.next_cursor)


def _stock(row: Any) -> Stock:
    on_hand, reserved = row["on_hand"], row["reserved"]
    return Stock(
        listing_id=row["listing_id"], on_hand=on_hand, reserved=reserved, available=on_hand - reserved
    )
