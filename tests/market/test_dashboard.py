"""What sellers have sold: once, exact against the sales, by the day of UTC, in any order of events."""

from __future__ import annotations

import asyncio
import itertools
import random
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.market.harness import Api, one_platform
from tests.market.working import together

from market.dashboard.api import MAX_DAYS, Dashboard, Day, Sale, SaleLine
from market.faults import Conflict, Invalid
from market.money import Money

pytestmark = one_platform

ANNA, BERT = (7 << 10) | 5, (7 << 10) | 1000
"""Two sellers, on two shards where there are two."""

_numbers = itertools.count(1)


def dashboard(api: Api) -> Dashboard:
    return api.service(Dashboard)


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def sale(
    *lines: tuple[int, int, int], seller: int = ANNA, at: datetime | None = None, currency: str = "EUR"
) -> Sale:
    """`lines`: listing, quantity, price of one."""
    return Sale(
        order_id=next(_numbers) << 10 | 900,
        seller=seller,
        at=at or now(),
        lines=[
            SaleLine(listing_id=listing, title=f"L{listing}", quantity=many, price=Money(price, currency))
            for listing, many, price in lines or [(1, 2, 500)]
        ],
    )


async def total(api: Api, seller: int = ANNA) -> tuple[int, ...]:
    days = await dashboard(api).days(seller, MAX_DAYS)
    rows = [
        (day.orders, day.items, day.revenue.amount, day.refunds, day.refunded_items, day.refunded.amount)
        for day in days
    ]
    return tuple(map(sum, zip(*rows, strict=True)))


async def test_a_sale_is_counted_once_with_what_it_says_first(api: Api) -> None:
    one = sale((1, 2, 500), (2, 1, 100))
    await asyncio.gather(*(dashboard(api).sold(one) for _ in range(5)))
    again = Sale(order_id=one.order_id, seller=ANNA, at=one.at, lines=sale((3, 9, 9)).lines)
    await dashboard(api).sold(again)
    assert await total(api) == (1, 3, 1100, 0, 0, 0)
    assert await dashboard(api).days(BERT, 7) == []


async def test_sellers_of_one_order_have_each_their_part(api: Api) -> None:
    one = sale((1, 1, 500))
    other = Sale(order_id=one.order_id, seller=BERT, at=one.at, lines=sale((2, 3, 10)).lines)
    await dashboard(api).sold(one)
    await dashboard(api).sold(other)
    assert await total(api, ANNA) == (1, 1, 500, 0, 0, 0)
    assert await total(api, BERT) == (1, 3, 30, 0, 0, 0)


async def test_what_is_given_back_is_counted_on_its_own_day(api: Api) -> None:
    """The day of the sale stays as it was; told twice, it is counted once, at the first moment told."""
    at = now() - timedelta(days=3)
    one = sale((1, 2, 500), at=at)
    await dashboard(api).sold(one)
    for moment in (at + timedelta(days=2), at + timedelta(days=3)):
        await dashboard(api).undone(one.order_id, ANNA, moment)
    days = {day.day: day for day in await dashboard(api).days(ANNA, 7)}
    assert len(days) == 7
    sold, back = days[at.date()], days[(at + timedelta(days=2)).date()]
    assert (sold.orders, sold.items, sold.revenue, sold.refunds) == (1, 2, Money(1000, "EUR"), 0)
    assert (back.orders, back.refunds, back.refunded_items, back.refunded) == (0, 1, 2, Money(1000, "EUR"))
    assert await total(api) == (1, 2, 1000, 1, 2, 1000)


async def test_events_in_any_order_add_up_to_the_same(api: Api) -> None:
    """Also an end that is heard before its sale; all orders of four events, two of them repeated."""
    first, second = sale((1, 1, 100)), sale((1, 2, 100))
    moment = now()
    events: list[tuple[str, Sale]] = [
        ("sold", first), ("undone", first), ("sold", second), ("undone", first), ("sold", first),
    ]  # fmt: skip
    for number, order in enumerate(set(itertools.permutations(range(5)))):
        if number % 7:  # every seventh of the 120 is enough
            continue
        seller = next(_numbers) << 10 | random.Random(number).randrange(1024)
        for index in order:
            what, one = events[index]
            one = Sale(order_id=one.order_id, seller=seller, at=one.at, lines=one.lines)
            if what == "sold":
                await dashboard(api).sold(one)
            else:
                await dashboard(api).undone(one.order_id, seller, moment)
        assert await total(api, seller) == (2, 3, 300, 1, 1, 100), order
        top = await dashboard(api).top(seller, 7, 10)
        assert [(t.listing_id, t.items, t.revenue.amount) for t in top] == [(1, 2, 200)]


async def test_a_day_ends_at_midnight_of_utc(api: Api) -> None:
    midnight = now().replace(hour=0, minute=0, second=0)
    before = midnight - timedelta(milliseconds=1)
    await dashboard(api).sold(sale((1, 1, 100), at=before))
    await dashboard(api).sold(sale((1, 1, 1000), at=midnight))
    days = {day.day: day.revenue.amount for day in await dashboard(api).days(ANNA, 3)}
    assert (days[before.date()], days[midnight.date()]) == (100, 1000)


async def test_a_window_has_each_of_its_days_once(api: Api) -> None:
    await dashboard(api).sold(sale(at=now() - timedelta(days=400)))
    window: list[Day] = await dashboard(api).days(ANNA, 30)
    assert [day.day for day in window] == sorted({day.day for day in window}) and len(window) == 30
    assert all(day.orders == 0 and day.revenue == Money(0, "EUR") for day in window)


async def test_the_best_listings_of_a_window_are_those_with_most_revenue(api: Api) -> None:
    old = sale((9, 100, 1000), at=now() - timedelta(days=30))
    given = sale((3, 1, 99_999))
    for one in (old, sale((1, 1, 300), (2, 5, 10)), sale((2, 30, 10)), given):
        await dashboard(api).sold(one)
    await dashboard(api).undone(given.order_id, ANNA, now())
    top = await dashboard(api).top(ANNA, 7, 10)
    assert [(t.listing_id, t.items, t.revenue.amount) for t in top] == [(2, 35, 350), (1, 1, 300)]
    assert len(await dashboard(api).top(ANNA, 7, 1)) == 1
    assert (await dashboard(api).top(ANNA, 31, 1))[0].listing_id == 9


async def test_sales_of_one_seller_are_in_one_currency(api: Api) -> None:
    await dashboard(api).sold(sale())
    with pytest.raises(Conflict):
        await dashboard(api).sold(sale(currency="USD"))
    assert await total(api) == (1, 2, 1000, 0, 0, 0)


WRONG: list[Any] = [
    {"lines": []},
    {"order_id": 0},
    {"seller": 1 << 53},
    {"at": datetime(2026, 1, 1)},  # noqa: DTZ001 - that is what is wrong with it
    {"lines": [*sale((1, 1, 1), (1, 1, 1)).lines]},
    {"lines": [*sale((1, 0, 1)).lines]},
    {"lines": [*sale((1, 1, -1)).lines]},
    {"lines": [*sale((1, 1_000_000, 1 << 50)).lines]},
    {"lines": [*sale((1, 1, 1)).lines, *sale((2, 1, 1), currency="USD").lines]},
    {"lines": [SaleLine(listing_id=1, title="a\0b", quantity=1, price=Money(1, "EUR"))]},
    {"lines": [SaleLine(listing_id=1, title="x" * 301, quantity=1, price=Money(1, "EUR"))]},
]


@pytest.mark.parametrize("fields", WRONG, ids=range(len(WRONG)))
async def test_what_cannot_be_a_sale_is_refused(api: Api, fields: dict[str, Any]) -> None:
    one = sale()
    good = {"order_id": one.order_id, "seller": one.seller, "at": one.at, "lines": one.lines}
    with pytest.raises(Invalid):
        await dashboard(api).sold(Sale(**(good | fields)))
    assert await dashboard(api).days(ANNA, 7) == []


async def test_days_and_top_are_what_the_sales_add_up_to(api: Api) -> None:
    """Sixty sales of two sellers and forty ends, told at once and in disorder: the counts are exact."""
    rng = random.Random(4)
    calls: list[Any] = []
    for _ in range(60):
        seller, at = rng.choice((ANNA, BERT)), now() - timedelta(hours=rng.randrange(200))
        lines = [(rng.randrange(1, 9), rng.randrange(1, 5), rng.randrange(1, 999)) for _ in range(3)]
        one = sale(*{line[0]: line for line in lines}.values(), seller=seller, at=at)
        calls.append(dashboard(api).sold(one))
        if rng.random() < 0.66:
            back = min(at + timedelta(hours=rng.randrange(30)), now())
            calls.append(dashboard(api).undone(one.order_id, seller, back))
    rng.shuffle(calls)
    await together(calls)
    db = api.platform.database("dashboard")
    for wrong in (DAY_WRONG, LISTING_WRONG):
        assert await db.scatter(wrong) == []
    assert await db.scatter_sum("select count(*) from dashboard.day") > 10


DAY_WRONG = """
select bucket, seller_id, day from (
    select bucket, seller_id, day, orders, items, revenue, refunds, refunded_items, refunded
    from dashboard.day
    union all
    select s.bucket, s.seller_id, (sold_at at time zone 'UTC')::date,
        -count(distinct order_id), -sum(quantity), -sum(quantity * price), 0, 0, 0
    from dashboard.sale as s join dashboard.sale_line using (bucket, seller_id, order_id)
    where sold_at is not null group by 1, 2, 3
    union all
    select s.bucket, s.seller_id, (undone_at at time zone 'UTC')::date,
        0, 0, 0, -count(distinct order_id), -sum(quantity), -sum(quantity * price)
    from dashboard.sale as s join dashboard.sale_line using (bucket, seller_id, order_id)
    where undone_at is not null group by 1, 2, 3
) as both_sides
group by bucket, seller_id, day
having sum(orders) <> 0 or sum(items) <> 0 or sum(revenue) <> 0 or sum(refunds) <> 0
    or sum(refunded_items) <> 0 or sum(refunded) <> 0
"""

LISTING_WRONG = """
select bucket, seller_id, listing_id from (
    select bucket, seller_id, listing_id, items - refunded_items as items, revenue - refunded as revenue
    from dashboard.listing_day
    union all
    select bucket, seller_id, listing_id, -quantity, -quantity * price
    from dashboard.sale join dashboard.sale_line using (bucket, seller_id, order_id)
    where undone_at is null
) as both_sides
group by bucket, seller_id, listing_id
having sum(items) <> 0 or sum(revenue) <> 0
"""
