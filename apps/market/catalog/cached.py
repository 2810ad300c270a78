"""The catalog's reads over the cache: what a page of a shop is made of, each part once.

    shop-slug:{slug}          whose shop it is; a shop keeps its slug for ever
    shop:{owner}              a shop
    listing, offer:{id}       a listing, with and without its description, but for what is left of it
    available:{id}            what is left of it: never in a process's memory
    on-sale:{category}        the newest listings on sale there, on every shard
    sold-by:{seller}:{category}  the same of one seller
    on-sale-counts            how many there are by category, on every shard

Lists hold ids, so that who changes a listing makes no list stale but those that it enters or leaves. Of a
list its first page is kept; what follows, a seller's own lists, and all that a write decides by, are the
database's.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import msgspec

from market.catalog.api import MAX_LIMIT, Listing, ListingPage, ListingQuery, ListingSummary, Shop, Status
from market.catalog.categories import DEPARTMENTS, department_of
from market.catalog.news import News
from market.catalog.store import CATEGORIES, NEWEST, SHOP, CatalogStore
from market.money import Money
from springtide.cache import EACH, FORBIDDEN, Cache
from springtide.db import Database, Queries, bucket_of

__all__ = ["CachedCatalog", "Kept"]

EVERYWHERE = ""
"""Stands for all categories in a key."""

OFFERS = """
select listing.id, listing.seller_id, shop.slug as shop, shop.name as shop_name, listing.title,
    listing.amount, listing.currency, listing.category, listing.status, listing.media, listing.version,
    listing.listed_at, listing.created_at, listing.updated_at, {description} as description
from unnest($1::bigint[]) as wanted (id)
cross join lateral (
    select * from catalog.listing where bucket = (wanted.id & 1023)::smallint and id = wanted.id limit 1
) as listing
cross join lateral (
    select slug, name from catalog.shop
    where bucket = listing.bucket and seller_id = listing.seller_id
    limit 1
) as shop
"""

AVAILABLE = """
select stock.listing_id, stock.on_hand - stock.reserved as available
from unnest($1::bigint[]) as wanted (id)
cross join lateral (
    select listing_id, on_hand, reserved from catalog.stock
    where bucket = (wanted.id & 1023)::smallint and listing_id = wanted.id
    limit 1
) as stock
"""

ON_SALE = """
select listed_at, id from catalog.listing
where status = 'active' and {condition}
order by listed_at desc, id desc
limit $1
"""


class _Offer(msgspec.Struct, frozen=True):
    """A listing but for its stock; `description` is empty in the one that lists are made of."""

    id: int
    seller_id: int
    shop: str
    shop_name: str
    title: str
    price: Money
    category: str
    status: Status
    media: tuple[str, ...]
    version: int
    listed_at: datetime
    created_at: datetime
    updated_at: datetime
    description: str


class _Head(msgspec.Struct, frozen=True):
    """The newest of a list, as (when, id): one more than a page can have."""

    newest: tuple[tuple[datetime, int], ...]


class _Counts(msgspec.Struct, frozen=True):
    of: tuple[tuple[str, int], ...]


class Kept(News):
    """The classes of the module's values."""

    def __init__(self, db: Database, cache: Cache) -> None:
        shown: tuple[str, ...] = ("shop:{seller_id}",)
        define = cache.define
        self.shops = define("shop:{owner:int}", Shop, database=db, load=_load_shop)
        self.listings = define("listing:{id:int}", _Offer, database=db, load_many=_load_listings, tags=shown)
        self.offers = define("offer:{id:int}", _Offer, database=db, load_many=_load_offers, tags=shown)
        self.stock = define("available:{id:int}", int, database=db, load_many=_load_available, l1=FORBIDDEN)
        self.lists = define("on-sale:{category:str}", _Head, database=db, load=_load_on_sale, key=EACH)
        self.own_lists = define(
            "sold-by:{seller:int}:{category:str}",
            _Head,
            database=db,
            load=_load_sold_by,
            key=lambda seller, _: seller,
        )
        self.counts = define("on-sale-counts", _Counts, database=db, load=_load_counts, key=EACH)

    def shop(self, tx: Any, owner: int) -> None:
        tx.invalidate(self.shops, owner)
        tag = [f"shop:{owner}"]
        tx.invalidate(self.listings, tags=tag)
        tx.invalidate(self.offers, tags=tag)

    def listing(self, tx: Any, id: int) -> None:
        tx.invalidate(self.listings, id)
        tx.invalidate(self.offers, id)

    def available(self, tx: Any, id: int) -> None:
        tx.invalidate(self.stock, id)

    def on_sale(self, tx: Any, seller: int, *categories: str) -> None:
        above = [department for one in categories if (department := department_of(one)) is not None]
        for category in dict.fromkeys((EVERYWHERE, *categories, *above)):
            tx.invalidate(self.lists, category)
            tx.invalidate(self.own_lists, seller, category)
        tx.invalidate(self.counts)


class CachedCatalog(CatalogStore):
    """`CatalogStore` with a cache before its reads."""

    def __init__(self, db: Database, cache: Cache, kept: Kept) -> None:
        super().__init__(db, kept)
        self._kept = kept
        self._hints = cache.define("shop-slug:{slug:str}", int, load=super().find_shop, negative=None)

    async def find_shop(self, slug: str) -> int | None:
        known = await self._hints.get(slug)
        return known if known is not None else await super().find_shop(slug)

    async def shop(self, owner: int) -> Shop | None:
        return await self._kept.shops.get(owner)

    async def counts(self) -> dict[str, int]:
        counted: dict[str, int] = {}
        for counts in await self._kept.counts.get_each():
            for category, listings in counts.of if counts is not None else ():
                counted[category] = counted.get(category, 0) + listings
        return counted

    async def listing(self, id: int) -> Listing | None:
        offer = await self._kept.listings.get(id)
        if offer is None:
            return None
        available = await self._kept.stock.get(id)
        return Listing(description=offer.description, **_shown(offer, available or 0))

    async def listings(self, ids: Sequence[int]) -> list[ListingSummary]:
        offers = await self._kept.offers.get_many(ids)
        available = await self._kept.stock.get_many(offers)
        return [ListingSummary(**_shown(offer, available.get(id, 0))) for id, offer in offers.items()]

    async def on_sale(self, query: ListingQuery) -> ListingPage:
        if query.after is not None:
            return await super().on_sale(query)
        category = query.category or EVERYWHERE
        if query.seller_id is None:
            heads = await self._kept.lists.get_each(category)
        else:
            heads = [await self._kept.own_lists.get(query.seller_id, category)]
        rows = _merged(head for head in heads if head is not None)
        page = NEWEST.step(None, limit=query.limit).page(rows)
        found = {item.id: item for item in await self.listings([row["id"] for row in page.items])}
        items = [found[row["id"]] for row in page.items if row["id"] in found]
        return ListingPage(items=[item for item in items if item.status == "active"], next=page.next_cursor)


def _merged(heads: Iterable[_Head]) -> list[dict[str, Any]]:
    newest = sorted((row for head in heads for row in head.newest), reverse=True)
    return [{"listed_at": at, "id": id} for at, id in newest]


def _shown(offer: _Offer, available: int) -> dict[str, Any]:
    fields = {name: getattr(offer, name) for name in _Offer.__struct_fields__ if name != "description"}
    return {**fields, "media": list(offer.media), "available": available}


async def _load_shop(source: Queries, owner: int) -> Shop | None:
    row = await source.fetch_one(SHOP, bucket_of(owner), owner)
    return None if row is None else Shop(**dict(row))


async def _load_listings(source: Queries, ids: Sequence[int]) -> dict[int, _Offer]:
    return _offers(await source.fetch(OFFERS.format(description="listing.description"), list(ids)))


async def _load_offers(source: Queries, ids: Sequence[int]) -> dict[int, _Offer]:
    return _offers(await source.fetch(OFFERS.format(description="''"), list(ids)))


def _offers(rows: Iterable[Any]) -> dict[int, _Offer]:
    made = ("price", "media")
    plain = [name for name in _Offer.__struct_fields__ if name not in made]
    return {
        row["id"]: _Offer(
            **{name: row[name] for name in plain},
            price=Money(row["amount"], row["currency"]),
            media=tuple(row["media"]),
        )
        for row in rows
    }


async def _load_available(source: Queries, ids: Sequence[int]) -> dict[int, int]:
    return {row["listing_id"]: row["available"] for row in await source.fetch(AVAILABLE, list(ids))}


async def _load_on_sale(source: Queries, category: str) -> _Head:
    condition, args = _in(category, 2)
    return await _head(source, condition, *args)


async def _load_sold_by(source: Queries, seller: int, category: str) -> _Head:
    condition, args = _in(category, 4)
    whose = f"bucket = $2::smallint and seller_id = $3 and {condition}"
    return await _head(source, whose, bucket_of(seller), seller, *args)


def _in(category: str, number: int) -> tuple[str, list[object]]:
    if category == EVERYWHERE:
        return "true", []
    column = "department" if category in DEPARTMENTS else "category"
    return f"{column} = ${number}", [category]


async def _head(source: Queries, condition: str, *args: object) -> _Head:
    rows = await source.fetch(ON_SALE.format(condition=condition), MAX_LIMIT + 1, *args)
    return _Head(tuple((row["listed_at"], row["id"]) for row in rows))


async def _load_counts(source: Queries) -> _Counts:
    return _Counts(tuple((row["category"], row["listings"]) for row in await source.fetch(CATEGORIES)))
