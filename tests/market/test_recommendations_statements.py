"""What recommendations and the dashboard ask of the database: by which plans, and how many statements."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from typing import Any

import asyncpg
import pytest
from tests.market.harness import Api, uncached
from tests.market.plans import plan_faults, scaled

from market.dashboard import lists
from market.dashboard import store as dashboard
from market.dashboard.api import Dashboard
from market.recommendations import follows, store
from market.recommendations.api import Recommendations

LISTING = (700 << 10) + 700
OTHERS = [(n << 10) + (n & 1023) for n in range(40)]
PERSON = (500 << 10) + 500
BUYER = (3 << 10) + 3
SELLER = (2 << 10) + 2
ORDER = (2002 << 10) + (2002 & 1023)
OLD, NOW = datetime(2020, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)

SCALE = """
insert into recommendations.listing (bucket, listing_id, buyers, weight, version)
    select n & 1023, (n << 10) + (n & 1023), 10, 10, 1 from generate_series(0, 1999) n;
insert into recommendations.pair (bucket, listing_id, other_id, buyers, weight)
    select n & 1023, (n << 10) + (n & 1023), (m << 10) + (m & 1023), case when m % 10 = 0 then 3 else 1 end, m
    from generate_series(0, 1999) n, generate_series(2000, 2049) m;
insert into recommendations.pair (bucket, listing_id, other_id, buyers, weight)
    select 700, (700 << 10) + 700, (m << 10) + (m & 1023), 1, m from generate_series(3000, 12999) m;
insert into recommendations.also_bought (bucket, listing_id, others, scores, version, made_at)
    select bucket, listing_id, array[1], array[0.5], 1, now() from recommendations.listing;
insert into recommendations.basket (bucket, order_id, buyer_id, listings, undone, bought_at)
    select n & 1023, (n << 10) + (n & 1023), 1, array[1, 2], false, now() from generate_series(0, 19999) n;
insert into recommendations.purchase
    (bucket, listing_id, buyer_id, order_id, others, weight, undone, bought_at)
    select n % 2000 & 1023, (n % 2000 << 10) + (n % 2000 & 1023), (n % 97 << 10) + (n % 97), n, array[1, 2],
        n, false, now()
    from generate_series(0, 39999) n;
insert into recommendations.follow (bucket, follower_id, followee_id, following, version, changed_at)
    select n & 1023, (n << 10) + (n & 1023), (m << 10) + (m & 1023), m % 5 <> 0, 1, now()
    from generate_series(0, 1999) n, generate_series(1, 20) m;
insert into recommendations.fan (bucket, followee_id, follower_id, following, version)
    select followee_id & 1023, followee_id, follower_id, following, version from recommendations.follow;
insert into recommendations.popularity (bucket, person_id, followers)
    select n & 1023, (n << 10) + (n & 1023), n from generate_series(0, 19999) n;
insert into recommendations.suggestion (bucket, person_id, changes, authors, made_at)
    select n & 1023, (n << 10) + (n & 1023), 1, array[1, 2], now() from generate_series(0, 19999) n;
insert into dashboard.seller (bucket, seller_id, currency)
    select n & 1023, (n << 10) + (n & 1023), 'EUR' from generate_series(0, 999) n;
insert into dashboard.sale (bucket, seller_id, order_id, sold_at, undone_at)
    select n % 1000, (n % 1000 << 10) + n % 1000, (n << 10) + (n & 1023),
        '2025-12-01'::timestamptz + n * interval '1 minute',
        case when n % 9 = 0 then '2025-12-20'::timestamptz + n * interval '1 minute' end
    from generate_series(0, 19999) n;
insert into dashboard.sale_line (bucket, seller_id, order_id, listing_id, title, quantity, price)
    select bucket, seller_id, order_id, m, 't', 1, 100 from dashboard.sale, generate_series(1, 2) m;
insert into dashboard.day
    (bucket, seller_id, day, orders, items, revenue, refunds, refunded_items, refunded)
    select bucket, seller_id, '2025-01-01'::date + m, 1, 1, 1, 0, 0, 0
    from dashboard.seller, generate_series(0, 29) m;
insert into dashboard.listing_day
    (bucket, seller_id, day, listing_id, items, revenue, refunded_items, refunded)
    select bucket, seller_id, day, 1, 1, 1, 0, 0 from dashboard.day;
insert into dashboard.report (bucket, seller_id, id, first, last, state, requested_at, expires_at)
    select n % 1000, (n % 1000 << 10) + n % 1000, n, '2025-01-01', '2025-01-02', 'failed', now(), '2027-01-01'
    from generate_series(0, 9999) n;
analyze recommendations.listing, recommendations.pair, recommendations.also_bought, recommendations.basket,
    recommendations.purchase, recommendations.follow, recommendations.fan, recommendations.popularity,
    recommendations.suggestion, dashboard.seller, dashboard.sale, dashboard.sale_line, dashboard.day,
    dashboard.listing_day, dashboard.report;
"""

AT = (LISTING & 1023, LISTING)
OF = (SELLER & 1023, SELLER)

HOT: dict[str, tuple[str, tuple[Any, ...]]] = {
    "lists of a cart": (store.LISTS, (OTHERS,)),
    "basket": (store.BASKET, (ORDER & 1023, ORDER)),
    "lock": (store.LOCK, AT),
    "known": (store.KNOWN, (*AT, BUYER, ORDER)),
    "purchases of a buyer": (store.PURCHASES, (*AT, BUYER, 21)),
    "add to pairs": (store.ADD_PAIRS, (*AT, OTHERS, [1] * 40, [1.0] * 40)),
    "drop pairs": (store.DROP_PAIRS, (*AT, OTHERS)),
    "count a listing": (store.COUNT_LISTING, (*AT, 1, 1.0)),
    "candidates among ten thousand": (store.CANDIDATE_PAIRS, (*AT, 200)),
    "weights": (store.WEIGHTS, (OTHERS,)),
    "old lists": (f"{store.OLD_LISTS} order by made_at limit 100", (OLD,)),
    "old purchases": (f"{store.OLD_PURCHASES} order by bought_at limit 100", (OLD,)),
    "old baskets": (f"{store.OLD_BASKETS} order by bought_at limit 100", (OLD,)),
    "authors": (follows.AUTHORS, (PERSON & 1023, PERSON)),
    "follows": (follows.FOLLOWS, (PERSON & 1023, PERSON, 5000)),
    "followed among": (follows.FOLLOWED, (PERSON & 1023, PERSON, OTHERS)),
    "following": (follows.FOLLOWING, (OTHERS[:9], 10)),
    "fan": (follows.FAN, (5, (5 << 10) + 5, PERSON)),
    "most followed": (f"{follows.POPULAR} order by followers desc, person_id desc limit 60", ()),
    "old authors": (f"{follows.OLD_AUTHORS} order by made_at limit 100", (OLD,)),
    "sold": (dashboard.PUT_SOLD, (*OF, ORDER, NOW)),
    "undone": (dashboard.PUT_UNDONE, (*OF, ORDER, NOW)),
    "lines": (dashboard.LINES, (*OF, ORDER)),
    "days": (dashboard.DAYS, (*OF, date(2025, 1, 1), date(2025, 1, 30))),
    "top": (dashboard.TOP, (*OF, date(2025, 1, 1), date(2025, 1, 30), 20)),
    "a page of sales": (lists.SOLD, (*OF, OLD, NOW, 0, 50)),
    "a page of refunds": (lists.GIVEN_BACK, (*OF, OLD, NOW, 0, 50)),
    "open reports": (lists.OPEN, OF),
    "reports": (f"{lists.REPORTS.format(condition='true')} order by id desc limit 21", (*OF, OLD)),
    "expired": (f"{lists.EXPIRED} order by expires_at limit 100", (OLD,)),
}


@pytest.fixture
def shards() -> int:
    return 1


@pytest.fixture
async def large(urls: list[str]) -> AsyncIterator[asyncpg.Connection]:
    """110,000 pairs, 40,000 purchases and follows, 20,000 sales, as the planner sees them after ANALYZE."""
    async with scaled(urls[0], SCALE) as connection:
        yield connection


async def test_hot_statements_walk_indexes(large: asyncpg.Connection) -> None:
    """None scans a table, and none looks at many times more rows than it answers."""
    assert not await plan_faults(large, HOT, rows=250)


@uncached
async def test_questions_take_few_statements_however_much_they_ask(api: Api) -> None:
    """One per shard for a cart of forty, three at most for authors, two and a snapshot for figures."""
    recommendations, figures = api.service(Recommendations), api.service(Dashboard)
    for most, question in (
        (1, recommendations.also_bought(OTHERS, 20)),
        (3, recommendations.authors(PERSON, 20)),
        (4, figures.days(SELLER, 366)),
        (4, figures.top(SELLER, 366, 100)),
    ):
        api.recorder.statements.clear()
        await question
        assert len(api.recorder.statements) <= most, [s.statement for s in api.recorder.statements]
