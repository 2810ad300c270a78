"""Shops, listings, stock and reservations, over the module's own tables."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeVar

import msgspec
from msgspec import UNSET

from market.catalog import rules
from market.catalog.api import (
    HOLD_SECONDS,
    MAX_STOCK,
    Category,
    Line,
    Listing,
    ListingChanges,
    ListingPage,
    ListingQuery,
    ListingSummary,
    MovementPage,
    NewListing,
    NewShop,
    NotReserved,
    Reservation,
    Reserved,
    Shop,
    ShopChanges,
    Stock,
)
from market.catalog.categories import DEPARTMENTS, TREE
from market.catalog.indexing import document
from market.catalog.jobs import ListingChanged, MediaChanged, StockTurned
from market.catalog.reservations import Reservations
from market.catalog.stock import StockStore
from market.catalog.store import PUBLIC, CatalogStore, HasShop, Locked, NotEnough
from market.faults import Conflict, Forbidden, Invalid, NotFound, Stale, Taken
from market.indexing import Sweep
from market.media.api import Media, media_ids
from market.moments import moment
from market.search.api import Document, Search
from market.webhooks.api import News, TurnedListing, Webhooks
from springtide.clock import Clock
from springtide.db import WriteTransaction
from springtide.db.idempotency import Answer, Claim, Idempotency, Once
from springtide.errors import AlreadyReserved, InvalidCursor
from springtide.jobs import Run
from springtide.services import ModuleContext

__all__ = ["SWEEP_EVERY", "CatalogService", "build"]

T = TypeVar("T")

MAX_ANSWER_BYTES = 262_144
"""A listing with the longest description, in the widest characters and escaped."""

SWEEP_EVERY = 5.0
"""Seconds between two looks for reservations that have expired."""

KNOWN_CATEGORIES = frozenset(node.slug for node in TREE)

NO_CURSOR = "is no cursor of this list"

HIDDEN = frozenset({"draft", "withdrawn"})


def build(context: ModuleContext) -> CatalogService:
    store, news = CatalogStore(context.db), None
    if context.cached:
        from market.catalog.cached import CachedCatalog, Kept

        news = Kept(context.db, context.cache)
        store = CachedCatalog(context.db, context.cache, news)
    reservations = Reservations(StockStore(context.db, news), clock=context.clock)
    keys = Idempotency(context.db, max_answer_bytes=MAX_ANSWER_BYTES, sink=context.sink)
    return CatalogService(
        store,
        reservations,
        keys=keys,
        clock=context.clock,
        search=context.service(Search),
        media=context.service(Media),
        webhooks=context.service(Webhooks),
    )


class CatalogService:
    """Implements `market.catalog.api.Catalog`."""

    def __init__(
        self,
        store: CatalogStore,
        reservations: Reservations,
        *,
        keys: Idempotency,
        clock: Clock,
        search: Search,
        media: Media,
        webhooks: Webhooks,
    ) -> None:
        self._store = store
        self._reservations = reservations
        self._keys = keys
        self._clock = clock
        self._search = search
        self._media = media
        self._webhooks = webhooks
        self._index = Sweep(search, "listing", page=store.versions, documents=self._documents)

    async def open_shop(self, owner: int, new: NewShop, once: Once | None = None) -> Shop:
        new = rules.check_shop(new)
        if once is None:
            return await self._open_shop(owner, new)
        async with self._keys.claim(once, home=owner) as claim:
            if claim.answer is not None:
                return msgspec.json.decode(claim.answer.body, type=Shop)
            return await self._open_shop(owner, new, claim)

    async def _open_shop(self, owner: int, new: NewShop, claim: Claim | None = None) -> Shop:
        async def finish(tx: WriteTransaction, shop: Shop) -> None:
            if claim is not None:
                await claim.finish(tx, Answer(201, body=msgspec.json.encode(shop)))

        reserved: AlreadyReserved | None = None
        for slug in rules.slugs(new.name, owner) if new.slug is None else [new.slug]:
            try:
                return await self._store.insert_shop(owner, slug, new, moment(self._clock), finish)
            except AlreadyReserved as error:
                reserved = error
            except HasShop:
                raise Taken("shop") from None
        raise Taken("slug") from reserved

    async def shop(self, slug: str) -> Shop | None:
        owner = await self._store.find_shop(slug) if rules.is_slug(slug) else None
        return None if owner is None else await self._store.shop(owner)

    async def shop_of(self, owner: int) -> Shop | None:
        return await self._store.shop(owner)

    async def update_shop(
        self, owner: int, changes: ShopChanges, version: int | None, once: Once | None = None
    ) -> Shop:
        changes = rules.check_shop_changes(changes)

        async def effect() -> Shop:
            shop = await self._store.update_shop(owner, changes, version, moment(self._clock))
            if shop is not None:
                return shop
            if await self._store.own_shop(owner) is None:
                raise NotFound("shop")
            raise Stale("shop")

        return await self._once(once, owner, Shop, effect)

    async def categories(self) -> list[Category]:
        counts = await self._store.counts()
        for department, under in DEPARTMENTS.items():
            counts[department] = sum(counts.get(slug, 0) for slug in under)
        return [
            Category(slug=node.slug, name=node.name, parent=node.parent, listings=counts.get(node.slug, 0))
            for node in TREE
        ]

    async def create(self, owner: int, new: NewListing, once: Once | None = None) -> Listing:
        shop = await self._store.own_shop(owner)
        if shop is None:
            raise NotFound("shop")
        checked = rules.check_new(new, shop.currency)
        id = await self._store.new_id(owner)

        async def effect() -> Listing:
            await self._store.insert(id, owner, checked, moment(self._clock))
            return await self._must_show(id)

        return await self._once(once, owner, Listing, effect)

    async def update(
        self, id: int, owner: int, changes: ListingChanges, version: int | None, once: Once | None = None
    ) -> Listing:
        _check_id(id)

        async def effect() -> Listing:
            async with self._store.write(id) as tx:
                locked = _owned(await self._store.lock(tx, id), owner)
                if version not in (None, locked.version):
                    raise Stale("listing")
                checked = rules.check_changes(changes, locked.currency)
                await self._store.update(locked, checked, _status(locked, checked), moment(self._clock))
                return await self._must_show(id)

        return await self._once(once, id, Listing, effect)

    async def listing(self, id: int, viewer: int | None) -> Listing:
        _check_id(id)
        listing = await self._must_show(id)
        if listing.status in HIDDEN and listing.seller_id != viewer:
            raise NotFound("listing")
        return listing

    async def listings(self, ids: list[int]) -> list[ListingSummary]:
        rules.check_ids(ids)
        wanted = [id for id in dict.fromkeys(ids) if rules.is_id(id)]
        found = {listing.id: listing for listing in await self._store.listings(wanted)} if wanted else {}
        return [found[id] for id in wanted if id in found]

    async def newest(self, query: ListingQuery) -> ListingPage:
        rules.check_limit(query.limit)
        if query.category is not None and query.category not in KNOWN_CATEGORIES:
            raise Invalid({"category": ["does not exist"]})
        if query.seller_id is not None and not rules.is_id(query.seller_id):
            return ListingPage(items=[], next=None)
        try:
            return await self._store.on_sale(query)
        except InvalidCursor as error:
            raise Invalid({"after": [NO_CURSOR]}) from error

    async def own(self, owner: int, limit: int, after: str | None) -> ListingPage:
        rules.check_limit(limit)
        try:
            return await self._store.own(owner, limit, after)
        except InvalidCursor as error:
            raise Invalid({"after": [NO_CURSOR]}) from error

    async def adjust(self, id: int, owner: int, change: int, note: str, once: Once | None = None) -> Stock:
        _check_id(id)
        rules.check_adjustment(change, note)

        async def effect() -> Stock:
            async with self._store.write(id) as tx:
                locked = _owned(await self._store.lock(tx, id), owner)
                try:
                    return await self._store.adjust(locked, change, note, MAX_STOCK, moment(self._clock))
                except NotEnough:
                    raise Conflict(
                        "stock", f"has {locked.available} to take away, and holds {MAX_STOCK} at most"
                    ) from None

        return await self._once(once, id, Stock, effect)

    async def stock(self, id: int, owner: int) -> Stock:
        await self._must_own(id, owner)
        stock = await self._store.stock(id)
        if stock is None:
            raise NotFound("listing")
        return stock

    async def movements(self, id: int, owner: int, limit: int, after: str | None) -> MovementPage:
        rules.check_limit(limit)
        await self._must_own(id, owner)
        try:
            return await self._store.movements(id, limit, after)
        except InvalidCursor as error:
            raise Invalid({"after": [NO_CURSOR]}) from error

    async def reserve(
        self, order_id: int, lines: list[Line], hold_seconds: float = HOLD_SECONDS
    ) -> Reserved | NotReserved:
        lines = rules.check_lines(order_id, lines, hold_seconds)
        expires_at = moment(self._clock) + timedelta(seconds=hold_seconds)
        return await self._reservations.reserve(order_id, lines, expires_at)

    async def commit(self, order_id: int) -> None:
        await self._reservations.commit(order_id)

    async def release(self, order_id: int) -> None:
        await self._reservations.release(order_id)

    async def restock(self, order_id: int) -> None:
        await self._reservations.restock(order_id)

    async def reservations(self, order_ids: list[int]) -> list[Reservation]:
        rules.check_ids(order_ids)
        return await self._reservations.states(order_ids)

    async def sweep(self) -> None:
        """For the workers, periodically."""
        await self._reservations.sweep()

    async def changed(self, job: ListingChanged, run: Run) -> None:
        """A job's handler."""
        for row in await self._store.texts([job.listing_id]):
            if row["status"] in PUBLIC:
                await self._search.put([_document(row)])
            else:
                await self._search.remove("listing", row["id"], row["version"])

    async def attach(self, job: MediaChanged, run: Run) -> None:
        """A job's handler. What is not the seller's is not attached, and what is no id means nothing."""
        listing = await self._must_show(job.listing_id)
        ids = media_ids(listing.media)
        await self._media.attach(listing.seller_id, f"listing:{listing.id}", ids, listing.version)

    async def tell_turned(self, job: StockTurned, run: Run) -> None:
        """A job's handler. Of two turns in one moment the seller may hear of the later one alone."""
        id, row = job.listing_id, await self._store.turned(job.listing_id)
        if row is None or row["status"] not in PUBLIC:
            return
        news = News(
            type="listing.available" if row["status"] == "active" else "listing.sold_out",
            subject=f"listing {id}",
            number=row["turns"],
            at=moment(self._clock),
            data=TurnedListing(listing_id=id, title=row["title"], turn=row["turns"]),
        )
        await self._webhooks.tell(row["seller_id"], [news])

    async def index(self) -> None:
        """For the workers, periodically."""
        await self._index.round()

    async def _documents(self, ids: list[int]) -> list[Document]:
        return [_document(row) for row in await self._store.texts(ids) if row["status"] in PUBLIC]

    async def _once(
        self, once: Once | None, home: int, shape: type[T], effect: Callable[[], Awaitable[T]]
    ) -> T:
        """What `effect` answers, or answered when this request came before; its writes join the record's."""
        if once is None:
            return await effect()

        async def kept(tx: WriteTransaction) -> Answer:
            return Answer(200, body=msgspec.json.encode(await effect()))

        outcome = await self._keys.run(once, kept, home=home)
        return msgspec.json.decode(outcome.answer.body, type=shape)

    async def _must_show(self, id: int) -> Listing:
        listing = await self._store.listing(id)
        if listing is None:
            raise NotFound("listing")
        return listing

    async def _must_own(self, id: int, owner: int) -> None:
        listing = await self.listing(id, owner)
        if listing.seller_id != owner:
            raise Forbidden("listing")


def _document(row: Any) -> Document:
    return document(row["id"], row["version"], row["title"], row["description"], row["category"])


def _check_id(id: int) -> None:
    if not rules.is_id(id):
        raise NotFound("listing")


def _owned(locked: Locked | None, owner: int) -> Locked:
    """What was locked, if it may be changed. A draft of somebody else does not exist."""
    if locked is None or (locked.status in HIDDEN and locked.seller_id != owner):
        raise NotFound("listing")
    if locked.seller_id != owner:
        raise Forbidden("listing")
    return locked


def _status(locked: Locked, changes: ListingChanges) -> str:
    if changes.status is UNSET:
        return locked.status
    if changes.status == "active":
        return "active" if locked.available > 0 else "sold_out"
    if locked.status == "draft":
        raise Conflict("listing", "is a draft, which is not on sale")
    return "withdrawn"
