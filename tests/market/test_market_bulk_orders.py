"""Bulk loading of what follows from orders and follows leaves what telling the modules one by one leaves."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

from tests.market.harness import Api, one_platform
from tests.market.working import work

from market.dashboard import bulk as dashboard_bulk
from market.dashboard.api import Dashboard, Sale, SaleLine
from market.money import Money
from market.recommendations import bulk as recommendations_bulk
from market.recommendations.follows import Follow
from market.recommendations.service import RecommendationService
from springtide.db import Database
from springtide.ops.load.seeding import BulkLoad
from springtide.testing import ManualClock

pytestmark = one_platform

NOW = datetime(2026, 1, 20, 12, tzinfo=UTC)


def id_of(number: int) -> int:
    return number << 10 | number * 389 % 1024


async def emptied(db: Database, tables: dict[str, str]) -> dict[str, list[tuple[Any, ...]]]:
    """What is in the tables (name -> columns), floats to nine digits, and nothing left in them."""
    found = {}
    for table, columns in tables.items():
        rows = await db.scatter(f"select {columns} from {db.schema}.{table}")
        found[table] = sorted(tuple(_rounded(value) for value in row) for row in rows)
        for pool in db.pools.values():
            await pool.execute(f"delete from {db.schema}.{table}")
    return found


def _rounded(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_rounded, value))
    return float(f"{value:.9g}") if isinstance(value, float) else value


RECOMMENDED = {
    "basket": "bucket, order_id, buyer_id, listings, undone, bought_at",
    "purchase": "bucket, listing_id, buyer_id, order_id, others, weight, undone, bought_at",
    "pair": "bucket, listing_id, other_id, buyers, weight",
    "listing": "bucket, listing_id, buyers, weight",
    "also_bought": "bucket, listing_id, others, scores",
    "follow": "bucket, follower_id, followee_id, following, version, changed_at",
    "fan": "bucket, followee_id, follower_id, following, version",
    "popularity": "bucket, person_id, followers",
    "suggestion": "bucket, person_id, changes",
    "chart": "bucket, name, people",
}


async def test_recommendations(api: Api) -> None:
    """Orders of thirty buyers, and who follows whom among them; lists and chart included."""
    rng = random.Random(7)
    orders, follows = [], set()
    for number in range(1, 121):
        listings = [id_of(rng.randrange(1, 30)) for _ in range(rng.randrange(1, 5))]
        at = NOW - timedelta(hours=120 - number)
        buyer = id_of(rng.randrange(1, 31))
        orders.append(recommendations_bulk.BulkOrder(id_of(number), buyer, listings, at))
    while len(follows) < 60:
        one, other = rng.sample(range(1, 31), 2)
        follows.add((id_of(one), id_of(other)))
    db = api.platform.database("recommendations")
    made: RecommendationService = api.platform._registry.implementation("recommendations")
    assert await recommendations_bulk.is_empty(db)

    system = made._clock
    try:
        for order in orders:
            made._clock = ManualClock(now=order.at.timestamp())
            await made.bought(order.id, order.buyer, order.listings)
        for one, other in sorted(follows):
            async with made._purchases.write(one) as tx:
                await made._follows.put(tx, one, other, Follow(True, 1), NOW)
            await made._making.copy_follow(one, other)
        await work(api.platform, {"recommendations"})
        # Each list as of the last order: those that were made before saw lighter neighbours.
        for listing in range(1, 30):
            await made._making.make_list(id_of(listing))
        await made._making.refresh()
    finally:
        made._clock = system
    told = await emptied(db, RECOMMENDED)
    assert len(told["pair"]) > 100 and len(told["chart"]) == 1 and any(row[2] for row in told["also_bought"])

    async with BulkLoad([db]) as load:
        await recommendations_bulk.copy_orders(load, db, orders)
        bulk = (recommendations_bulk.BulkFollow(one, other, NOW) for one, other in sorted(follows))
        await recommendations_bulk.copy_follows(load, db, bulk)
        await recommendations_bulk.copy_lists(load, db, NOW)
    assert not await recommendations_bulk.is_empty(db)
    loaded = await emptied(db, RECOMMENDED)
    for table in RECOMMENDED:
        assert loaded[table] == told[table], table


COUNTED = {
    "seller": "bucket, seller_id, currency",
    "sale": "bucket, seller_id, order_id, sold_at, undone_at",
    "sale_line": "bucket, seller_id, order_id, listing_id, title, quantity, price",
    "day": "bucket, seller_id, day, orders, items, revenue, refunds, refunded_items, refunded",
    "listing_day": "bucket, seller_id, day, listing_id, items, revenue, refunded_items, refunded",
}


async def test_dashboard(api: Api) -> None:
    rng = random.Random(8)
    sales = []
    for number in range(1, 121):
        lines = [
            SaleLine(listing_id=listing, title=f"L{listing}", quantity=rng.randrange(1, 5), price=price)
            for listing, price in ((one, Money(one * 99, "EUR")) for one in rng.sample(range(1, 9), 3))
        ]
        at = NOW - timedelta(hours=rng.randrange(400))
        seller = id_of(rng.randrange(1, 6))
        undone = at + timedelta(hours=rng.randrange(40)) if rng.random() < 0.3 else None
        sale = Sale(order_id=id_of(number), seller=seller, at=at, lines=lines)
        sales.append(dashboard_bulk.BulkSale(sale, undone))
    db = api.platform.database("dashboard")
    assert await dashboard_bulk.is_empty(db)
    dashboard = api.service(Dashboard)
    for sale, undone in sales:
        await dashboard.sold(sale)
        if undone is not None:
            await dashboard.undone(sale.order_id, sale.seller, undone)
    told = await emptied(db, COUNTED)
    async with BulkLoad([db]) as load:
        await dashboard_bulk.copy_sales(load, db, sales)
        await dashboard_bulk.copy_sellers(load, db, {sale.seller: "EUR" for sale, _ in sales}.items())
        await dashboard_bulk.copy_counts(load, db)
    assert not await dashboard_bulk.is_empty(db)
    loaded = await emptied(db, COUNTED)
    for table in COUNTED:
        assert loaded[table] == told[table], table
