"""Seeded trade: stock, money, orders and figures agree with each other, and can be worked with."""

from __future__ import annotations

from tests.market.harness import Api, settled

from market.catalog.api import Catalog, ListingQuery
from market.dashboard.api import Dashboard
from market.orders.api import Orders
from market.payments.api import Payments
from market.recommendations.api import Recommendations
from market.search.api import Search, SearchQuery
from market.seed import seed
from market.seeding.people import username
from springtide.ops.load.progress import Silent

WRONG_STOCK = """
select listing_id from catalog.stock
join (
    select bucket, listing_id, count(*) as n, max(number) as last, sum(change) as total, min(on_hand) as least
    from catalog.movement group by bucket, listing_id
) as log using (bucket, listing_id)
where n <> movements or last <> movements or total <> on_hand or least < 0 or reserved <> 0
"""

WRONG_LOG = """
select listing_id from (
    select listing_id, on_hand, sum(change) over (partition by bucket, listing_id order by number) as total
    from catalog.movement
) as log
where total <> on_hand
"""

WRONG_STATUS = """
select id from catalog.listing
join catalog.stock on stock.bucket = listing.bucket and listing_id = id
where (status = 'sold_out') <> (on_hand = 0) or listing.bucket <> seller_id & 1023
"""


async def test_stock_is_what_its_log_says(api: Api) -> None:
    """Movements are numbered without a gap and add up, never below nothing."""
    await seed(api.platform, users=200, seed=1, progress=Silent())
    await settled(api.platform)
    catalog, orders = api.platform.database("catalog"), api.platform.database("orders")
    for question in (WRONG_STOCK, WRONG_LOG, WRONG_STATUS):
        assert await catalog.scatter(question) == []
    sold = await catalog.scatter_sum("select -sum(change) from catalog.movement where kind = 'sale'")
    held = await catalog.scatter_sum("select sum(quantity) from catalog.held where state = 'committed'")
    confirmed = "select sum((line->>'quantity')::int) from orders.placed, jsonb_array_elements(lines) as line"
    assert sold == held == await orders.scatter_sum(f"{confirmed} where state = 'confirmed'") > 0
    on_sale = await catalog.scatter_sum("select count(*) from catalog.listing where status = 'active'")
    assert await catalog.scatter_sum("select sum(listings) from catalog.category_count") == on_sale


async def test_money_is_booked_and_orders_agree_with_it(api: Api) -> None:
    """The comparison that operators run finds nothing wrong; the ledger adds up to the confirmed orders."""
    await seed(api.platform, users=200, seed=1, progress=Silent())
    await settled(api.platform)
    found = await api.service(Orders).reconcile()
    assert found.checked > 250 and found.open == found.confirmed_not_paid == found.confirmed_not_sold == 0
    assert found.ended_still_paid == found.ended_still_held == 0
    balances = await api.service(Payments).balances()
    booked = {(one.account, one.currency): one.amount for one in balances}
    orders = api.platform.database("orders")
    for currency in ("EUR", "USD"):
        total = await orders.scatter_sum(
            f"select sum(amount) from orders.placed where state = 'confirmed' and currency = '{currency}'"
        )
        assert booked["provider", currency] == total == -booked["orders", currency] > 0
    assert await orders.scatter_sum("select count(*) from orders.placed where state = 'failed'") > 0
    days = await api.platform.database("dashboard").scatter_sum("select sum(revenue) from dashboard.day")
    assert days == booked["provider", "EUR"] + booked["provider", "USD"]
    analytics = api.platform.database("analytics")
    for what, condition in {
        "placed": "true",
        "confirmed": "state = 'confirmed'",
        "failed:declined": "reason ->> 'code' = 'declined'",
    }.items():
        counted = await analytics.scatter_sum(f"select sum(orders) from analytics.day where what = '{what}'")
        made = await orders.scatter_sum(f"select count(*) from orders.placed where {condition}")
        assert counted == made > 0, what


async def test_what_modules_tell_each_other_is_told(api: Api) -> None:
    """Everything is found by its words, sellers see their days, and there are things to recommend."""
    report = await seed(api.platform, users=200, seed=1, progress=Silent())
    await settled(api.platform)
    catalog, search = api.service(Catalog), api.service(Search)
    (listing,) = (await catalog.newest(ListingQuery(limit=1))).items
    hits = (await search.find(SearchQuery(text=listing.title, kind="listing", limit=50))).items
    assert listing.title in {hit.title for hit in hits}
    assert (await search.find(SearchQuery(text=username(3, 1), kind="person"))).items
    assert report.rows["search.document"] == 600
    shop = await api.platform.database("dashboard").scatter("select seller_id from dashboard.seller", limit=1)
    days = await api.service(Dashboard).days(shop[0]["seller_id"], 365)
    assert sum(day.orders for day in days) > 0
    lists = api.platform.database("recommendations")
    wares = await lists.scatter("select listing_id from recommendations.also_bought", limit=5)
    recommended = api.service(Recommendations)
    assert wares and await recommended.also_bought([row["listing_id"] for row in wares], 5)
    people = api.platform.database("users")
    assert await people.scatter_sum("select count(*) from users.follow") == await lists.scatter_sum(
        "select count(*) from recommendations.follow"
    )


async def test_workers_that_ran_before_do_not_stand_in_the_way(api: Api) -> None:
    """Their periodic work on an empty platform leaves nothing that stops a seed or hides what it made."""
    for module in api.platform.modules:
        made = api.platform._registry.implementation(module.name)
        for task in module.background:
            await task.method(made)
    await seed(api.platform, users=20, seed=1, progress=Silent())
    await settled(api.platform)
    chart = await api.platform.database("recommendations").scatter("select people from recommendations.chart")
    assert len(chart) == 1 and len(chart[0]["people"]) > 3


async def test_a_seller_of_the_notes_can_log_in_and_go_on_selling(api: Api) -> None:
    """The notes name somebody with a shop and sales; what they do next collides with nothing."""
    report = await seed(api.platform, users=50, seed=1, progress=Silent())
    await settled(api.platform)
    email, password = report.notes[0].partition("e-mail ")[2].split(", password ")
    body = {"user": {"email": email, "password": password}}
    token = (await api.call("POST", "/users/login", body, expect=200))["user"]["token"]
    headers = {"Authorization": f"Bearer {token}"}
    shop = (await api.client.get("/market/shop", headers=headers)).json()
    assert shop["name"] and (await api.client.get("/market/sales", headers=headers)).json()["items"]
    for number in range(10):
        new = {
            "title": f"After the seed {number}",
            "price": {"amount": 500, "currency": shop["currency"]},
            "category": "tools",
            "stock": 3,
            "status": "active",
        }
        made = await api.client.post("/market/listings", json=new, headers=headers)
        assert made.status_code == 201, made.text
        line = {"quantity": 1}
        cart = await api.client.put(f"/market/cart/{made.json()['id']}", json=line, headers=headers)
        assert cart.status_code == 200, cart.text
