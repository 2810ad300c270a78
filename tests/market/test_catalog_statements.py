"""What the catalog asks of the database: by which plans, and how many statements."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.market.catalog import ANNA, BERT, lines, opened
from tests.market.harness import Recorder, topology, uncached
from tests.market.plans import explain, nodes, paged, plan_faults, scaled

from market.catalog import stock, store
from market.catalog.api import Catalog, Line, ListingQuery, NewListing, NewShop
from market.money import Money
from market.platform import modules
from springtide.platform import Platform

SELLER = 5
LISTING = (6000 << 10) + (6000 % 3000 & 1023)
SOME = [(n << 10) + (n % 3000 & 1023) for n in range(40)]
ORDER = (50 << 10) + 50
NOW = datetime(2026, 1, 1, tzinfo=UTC)

SCALE = """
insert into catalog.shop (bucket, seller_id, slug, name, description, currency, created_at, updated_at)
    select n & 1023, n, 's' || n, 'n', 'd', 'EUR', now(), now() from generate_series(0, 2999) n;
insert into catalog.listing
    (bucket, id, seller_id, title, description, amount, currency, category, department, status,
     listed_at, created_at, updated_at)
    select n % 3000 & 1023, (n << 10) + (n % 3000 & 1023), n % 3000, 't' || n, 'd', 100, 'EUR', 'c' || n % 20,
        'd' || n % 5, case when n % 10 = 0 then 'draft' else 'active' end,
        now() - n * interval '1 s', now() - n * interval '1 s', now()
    from generate_series(0, 29999) n;
insert into catalog.stock (bucket, listing_id, on_hand, reserved, movements)
    select bucket, id, 10, 1, 1 from catalog.listing;
insert into catalog.movement (bucket, listing_id, number, kind, change, on_hand, note, created_at)
    select bucket, id, 1, 'adjustment', 10, 10, '', now() from catalog.listing;
insert into catalog.reservation
    (bucket, order_id, state, lines, settled, expires_at, created_at, updated_at)
    select n & 1023, (n << 10) + (n & 1023), case when n % 100 = 0 then 'reserved' else 'committed' end,
        '[]', n % 1000 <> 1, '2027-01-01', now(), now()
    from generate_series(0, 29999) n;
insert into catalog.held
    (bucket, order_id, listing_id, seller_id, title, quantity, amount, currency, state, expires_at)
    select bucket, ((id >> 10) << 10) + ((id >> 10) & 1023), id, seller_id, 't', 1, 100, 'EUR',
        case when (id >> 10) % 100 = 0 then 'held' else 'committed' end, '2027-01-01'
    from catalog.listing;
insert into catalog.category_count (bucket, category, listings)
    select bucket, category, count(*) from catalog.listing where status = 'active' group by 1, 2;
analyze catalog.shop, catalog.listing, catalog.stock, catalog.movement, catalog.reservation, catalog.held,
    catalog.category_count;
"""


OF_SELLER = "listing.bucket = $1::smallint and listing.seller_id = $2"
DEEP = (datetime(2020, 1, 1, tzinfo=UTC), 1)

HOT: dict[str, tuple[str, tuple[Any, ...]]] = {
    "versions": (f"{store.VERSIONS} order by bucket, id limit 100", (500, 1000)),
    "texts": (store.TEXTS, (SOME,)),
    "shop": (store.SHOP, (5, SELLER)),
    "listing": (store.LISTING, (LISTING & 1023, LISTING)),
    "listings": (store.LISTINGS, (SOME,)),
    "newest": paged(store.ON_SALE, store.NEWEST),
    "newest, next page": paged(store.ON_SALE, store.NEWEST, after=DEEP),
    "of a category": paged(store.ON_SALE, store.NEWEST, "c7", only="listing.category = $1"),
    "of a department": paged(store.ON_SALE, store.NEWEST, "d3", only="listing.department = $1"),
    "of a seller": paged(store.ON_SALE, store.NEWEST, 5, SELLER, only=OF_SELLER),
    "own": paged(store.OWN, store.CREATED, 5, SELLER),
    "stock": (store.STOCK, (LISTING & 1023, LISTING)),
    "movements": paged(store.MOVEMENTS, store.LOG, LISTING & 1023, LISTING),
    "adjust": (store.ADJUST, (LISTING & 1023, LISTING, 1, 1000)),
    "lock": (stock.LOCK, (SOME,)),
    "look": (stock.LOOK, (SOME, ORDER)),
    "hold": (stock.HOLD, (SOME, 7, [1] * 40, NOW)),
    "hold stock": (stock.HOLD_STOCK, (SOME, [1] * 40)),
    "held": (stock.HELD, (SOME, ORDER)),
    "settle": (stock.SETTLE, (SOME, ORDER, "released", "held")),
    "settle stock": (stock.SETTLE_STOCK, (SOME, [-1] * 40, [1] * 40)),
    "flip": (stock.FLIP, (SOME, ["sold_out"] * 40)),
    "known": (stock.KNOWN, (ORDER & 1023, ORDER)),
    "decide": (stock.DECIDE, (ORDER & 1023, ORDER, "released", None, NOW, ["reserved"], None)),
    "overdue": (f"{stock.OVERDUE} order by expires_at, order_id limit 100", (NOW,)),
    "unsettled": (f"{stock.UNSETTLED} order by updated_at, order_id limit 100", (NOW,)),
}


@pytest.fixture
def shards() -> int:
    return 1


@pytest.fixture
async def large(urls: list[str]) -> AsyncIterator[asyncpg.Connection]:
    """30,000 listings with what belongs to them, as the planner sees them after ANALYZE."""
    async with scaled(urls[0], SCALE) as connection:
        yield connection


async def test_hot_statements_walk_indexes(large: asyncpg.Connection) -> None:
    """None scans a table, and none looks at many times more rows than it answers."""
    assert not await plan_faults(large, HOT, rows=400)


async def test_listings_are_locked_in_one_order(large: asyncpg.Connection) -> None:
    """Whichever way they are asked for, and where the plan would walk them as asked."""
    for asked in (SOME, SOME[::-1]):
        async with large.transaction():
            assert [row["id"] for row in await large.fetch(stock.LOCK, asked)] == SOME


async def test_counting_reads_counters(large: asyncpg.Connection) -> None:
    """As many rows as there are buckets and categories in use, whatever is on sale."""
    plan = await explain(large, store.CATEGORIES, ())
    assert not {node.get("Relation Name") for node in nodes(plan)} & {"listing", "stock"}


@uncached
async def test_statements_do_not_grow_with_listings(urls: list[str], home: Path) -> None:
    """A page of twenty, twenty by their ids, an order of twenty lines: as many statements as for one."""
    recorder = Recorder()
    platform = Platform(topology(urls), modules=modules(), home=home, sink=recorder)
    async with platform:
        catalog = platform.service(Catalog)
        found = []
        for owner in (ANNA, BERT):
            await catalog.open_shop(owner, NewShop(name=f"Shop {owner}", currency="EUR"))
            for _ in range(10):
                new = NewListing(
                    title="t", price=Money(5, "EUR"), category="prints", stock=50, status="active"
                )
                found.append(await catalog.create(owner, new))

        async def count(call: Any) -> int:
            recorder.statements.clear()
            await call
            return len(recorder.statements)

        order = iter(range(9, 1 << 20, 1 << 10))

        def wanted(number: int) -> list[Line]:
            return lines(*found[:number])

        await count(catalog.reserve(next(order), wanted(20)))
        for call, most in (
            (lambda number: catalog.newest(ListingQuery(limit=number)), 1),
            (lambda number: catalog.listings([one.id for one in found[:number]]), 1),
            (lambda number: catalog.reserve(next(order), wanted(number)), 9),
        ):
            one, many = await count(call(1)), await count(call(20))
            assert one == many <= most


async def test_a_page_shows_what_its_statement_found(urls: list[str], home: Path) -> None:
    """The texts above are those that run: the store adds nothing but order and limit."""
    async with opened(urls, home) as market:
        lamp = await market.listing()
        page = await market.service.newest(ListingQuery(category="lighting", seller_id=ANNA))
        assert [one.id for one in page.items] == [lamp.id]


async def test_the_workers_sweep(urls: list[str], home: Path) -> None:
    """What expires is given back by a platform's background work, without anybody's request."""
    platform = Platform(topology(urls), modules=modules(), home=home)
    assert "catalog.sweep" in {service.name for service in platform.background()}
