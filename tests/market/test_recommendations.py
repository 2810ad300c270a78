"""What is bought together, and whom one may want to follow: told in any order, twice, over two shards."""

from __future__ import annotations

import asyncio
import itertools
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.market.harness import Api, one_platform
from tests.market.working import together, work

from market.faults import Invalid
from market.recommendations.api import MAX_BASKET, MAX_LIMIT, MAX_LISTINGS, Recommendations
from market.recommendations.service import RecommendationService
from springtide.testing import ManualClock

pytestmark = one_platform

A, B, C, D = ((number << 10) | bucket for number, bucket in ((7, 5), (8, 1000), (9, 6), (10, 900)))
"""Four listings (or people), two on each of two shards."""

_numbers = itertools.count(100)


def fresh(bucket: int | None = None) -> int:
    number = next(_numbers)
    return number << 10 | (number * 389 % 1024 if bucket is None else bucket)


def service(api: Api) -> Recommendations:
    return api.service(Recommendations)


async def settle(api: Api) -> None:
    await work(api.platform, {"recommendations"})


async def buy(api: Api, *listings: int, times: int = 2) -> list[int]:
    """As many orders, each of another buyer."""
    orders = [fresh() for _ in range(times)]
    for order in orders:
        await service(api).bought(order, fresh(), list(listings))
    return orders


async def counts(api: Api) -> dict[str, list[tuple[Any, ...]]]:
    """Everything that is counted, weights to nine digits."""
    db = api.platform.database("recommendations")
    pairs = await db.scatter("select listing_id, other_id, buyers, weight from recommendations.pair")
    listings = await db.scatter(
        "select listing_id, buyers, weight from recommendations.listing where buyers > 0"
    )
    return {
        "pairs": sorted((*row[:3], float(f"{row[3]:.9g}")) for row in map(tuple, pairs)),
        "listings": sorted((*row[:2], float(f"{row[2]:.9g}")) for row in map(tuple, listings)),
    }


async def test_what_is_bought_together_is_recommended_in_both_directions(api: Api) -> None:
    await buy(api, A, B)
    await settle(api)
    assert await service(api).also_bought([A], 10) == [B]
    assert await service(api).also_bought([B], 10) == [A]
    assert await service(api).also_bought([C], 10) == []


async def test_one_buyer_is_no_recommendation_however_often_they_buy(api: Api) -> None:
    buyer = fresh()
    for _ in range(5):
        await service(api).bought(fresh(), buyer, [A, B])
    await settle(api)
    assert await service(api).also_bought([A], 10) == []
    await service(api).bought(fresh(), fresh(), [A, B])
    await settle(api)
    assert await service(api).also_bought([A], 10) == [B]


async def test_an_order_counts_once_however_often_it_is_told_and_tallied(api: Api) -> None:
    order, buyer = fresh(), fresh()
    made: RecommendationService = api.platform._registry.implementation("recommendations")
    await asyncio.gather(*(service(api).bought(order, buyer, [A, B, C]) for _ in range(5)))
    await settle(api)
    once = await counts(api)
    assert [row[:3] for row in once["pairs"]] == sorted(
        (one, other, 1) for one in (A, B, C) for other in (A, B, C) if one != other
    )
    await service(api).bought(order, buyer, [A, D])
    await asyncio.gather(*(made._making.tally(order) for _ in range(3)))
    assert await counts(api) == once


async def test_an_order_that_is_undone_counts_no_more(api: Api) -> None:
    orders = await buy(api, A, B, times=3)
    await settle(api)
    before = await counts(api)
    undone = (await buy(api, A, B, C, times=1))[0]
    await settle(api)
    assert await counts(api) != before
    await service(api).undone(undone)
    await service(api).undone(undone)
    await settle(api)
    assert await counts(api) == before
    for order in orders:
        await service(api).undone(order)
    await settle(api)
    assert await counts(api) == {"pairs": [], "listings": []}
    assert await service(api).also_bought([A, B], 10) == []


async def test_an_end_that_is_heard_first_keeps_the_order_out(api: Api) -> None:
    order, buyer = fresh(), fresh()
    await service(api).undone(order)
    await service(api).bought(order, buyer, [A, B])
    await settle(api)
    assert await counts(api) == {"pairs": [], "listings": []}


async def test_a_tally_that_looked_before_the_end_does_not_bring_the_order_back(api: Api) -> None:
    """The run that counts may have read the order long before it writes."""
    made: RecommendationService = api.platform._registry.implementation("recommendations")
    order, buyer = fresh(), fresh()
    await service(api).bought(order, buyer, [A, B])
    seen = await made._purchases.basket(order)
    assert seen is not None and not seen.undone
    await service(api).undone(order)
    await settle(api)
    for listing in (A, B):
        await made._making._count(order, listing, buyer, seen)
    assert await counts(api) == {"pairs": [], "listings": []}


EVENTS = st.lists(
    st.tuples(st.integers(0, 5), st.sampled_from(["bought", "undone", "tally"])), min_size=1, max_size=14
)
ORDERS = {
    0: (0, [A, B]), 1: (0, [A, B, C]), 2: (1, [B, A]), 3: (1, [C]), 4: (2, [A, B, C, D]), 5: (2, [B]),
}  # fmt: skip


async def test_counts_are_what_the_orders_that_count_add_up_to_in_any_order_of_events(api: Api) -> None:
    """Whatever is told and tallied, in which order and how often: as if only the end had ever been told."""
    examples: list[list[tuple[int, str]]] = []

    @settings(max_examples=15, deadline=None, database=None)
    @given(events=EVENTS)
    def draw(events: list[tuple[int, str]]) -> None:
        examples.append(events)

    draw()  # hypothesis cannot await: what it draws is tried below
    for events in examples:
        await check_events(api, events)


async def check_events(api: Api, events: list[tuple[int, str]]) -> None:
    made: RecommendationService = api.platform._registry.implementation("recommendations")
    ids, buyers = {one: fresh() for one in ORDERS}, [fresh() for _ in range(3)]
    listings = {old: fresh(old & 1023) for old in (A, B, C, D)}
    first: dict[int, str] = {}
    undone: set[int] = set()
    for one, what in events:
        buyer, chosen = ORDERS[one]
        if what == "tally":
            await made._making.tally(ids[one])
            continue
        first.setdefault(one, what)
        if what == "bought":
            await service(api).bought(ids[one], buyers[buyer], [listings[id] for id in chosen])
        else:
            undone.add(one)
            await service(api).undone(ids[one])
    await settle(api)
    expected: dict[tuple[int, ...], set[int]] = {}
    for one, what in first.items():
        buyer, chosen = ORDERS[one]
        if what == "bought" and one not in undone:
            for pair in itertools.permutations(chosen, 2):
                expected.setdefault(tuple(listings[id] for id in pair), set()).add(buyer)
    among = set(listings.values())
    found = {row[:2]: row[2] for row in (await counts(api))["pairs"] if row[0] in among}
    assert found == {pair: len(who) for pair, who in expected.items()}, events


async def test_follows_may_come_in_any_order_and_the_newest_wins(api: Api) -> None:
    """All orders of three pieces of news, with a repetition; in both buckets and in the count."""
    db = api.platform.database("recommendations")
    news = [(True, 1), (False, 2), (True, 3)]
    for order in itertools.permutations(news):
        one, other = fresh(5), fresh(1000)
        for following, version in (*order, order[0]):
            await service(api).followed(one, other, following, version)
            await settle(api)
        for sql, column in (
            ("select following, version from recommendations.follow where follower_id = $1", one),
            ("select following, version from recommendations.fan where followee_id = $1", other),
        ):
            assert [tuple(row) for row in await db.scatter(sql, column)] == [(True, 3)]
        assert [row[0] for row in await db.scatter(
            "select followers from recommendations.popularity where person_id = $1", other
        )] == [1]  # fmt: skip


async def test_many_orders_at_once_make_one_list_and_lose_no_count(api: Api) -> None:
    """Ten of one buyer and ten of others, tallied together; a listing's list waits to be made as one job."""
    made: RecommendationService = api.platform._registry.implementation("recommendations")
    orders, one = [fresh() for _ in range(20)], fresh()
    buyers = [one if number % 2 else fresh() for number in range(20)]
    told = zip(orders, buyers, strict=True)
    await together(service(api).bought(order, buyer, [A, B, C]) for order, buyer in told)
    await together(made._making.tally(order) for order in orders)
    found = (await counts(api))["pairs"]
    assert [row[2] for row in found] == [11] * 6
    waiting = await api.platform.database("recommendations").scatter_sum(
        "select count(*) from recommendations._job"
        " where kind = 'recommendations.make_list' and state = 'ready'"
    )
    assert waiting == 3


async def test_a_list_made_from_older_counts_does_not_replace_a_newer_one(api: Api) -> None:
    made: RecommendationService = api.platform._registry.implementation("recommendations")
    await buy(api, A, B)
    await settle(api)
    old = await made._purchases.listed(A)
    assert old is not None
    await buy(api, A, C, times=3)
    await settle(api)
    newer = await service(api).also_bought([A], 10)
    assert sorted(newer) == sorted([B, C])
    await made._purchases.put_list(A, [(B, 0.5)], old.version, datetime.now(UTC))
    assert await service(api).also_bought([A], 10) == newer


async def test_authors_made_from_older_news_do_not_replace_newer_ones(api: Api) -> None:
    made: RecommendationService = api.platform._registry.implementation("recommendations")
    await service(api).followed(A, B, True, 1)
    await service(api).followed(B, C, True, 1)
    await service(api).followed(B, D, True, 1)
    await settle(api)
    assert sorted(await service(api).authors(A, 10)) == sorted([C, D])
    await made._follows.put_authors(A, [C], 0, datetime.now(UTC))
    assert sorted(await service(api).authors(A, 10)) == sorted([C, D])


async def test_what_is_older_than_a_year_is_forgotten_and_counts_no_more(api: Api) -> None:
    """Purchases, pairs and orders go; what was bought since stays, to the last digit."""
    made: RecommendationService = api.platform._registry.implementation("recommendations")
    system = made._clock
    long_ago = datetime.now(UTC) - timedelta(days=366)
    try:
        made._clock = ManualClock(now=long_ago.timestamp())
        await buy(api, A, B, C, times=3)
    finally:
        made._clock = system
    await settle(api)
    before = await counts(api)
    assert len(before["pairs"]) == 6
    kept = fresh()
    await service(api).bought(kept, fresh(), [A, B])
    await settle(api)
    await made.refresh()
    left = await counts(api)
    assert [row[:3] for row in left["pairs"]] == sorted([(A, B, 1), (B, A, 1)])
    db = api.platform.database("recommendations")
    assert await db.scatter_sum("select count(*) from recommendations.purchase") == 2
    assert [row[0] for row in await db.scatter("select order_id from recommendations.basket")] == [kept]
    await made.refresh()
    assert await counts(api) == left


async def test_what_is_a_day_old_is_made_anew(api: Api) -> None:
    """Lists whose listing nobody buys, but whose neighbours changed; suggestions of those who do nothing."""
    made: RecommendationService = api.platform._registry.implementation("recommendations")
    await buy(api, A, B)
    await buy(api, A, C)
    await service(api).followed(A, B, True, 1)
    await settle(api)
    assert sorted(await service(api).also_bought([A], 10)) == sorted([B, C])
    await buy(api, B, D, times=30)  # now B is less near to A
    await service(api).followed(B, C, True, 1)
    await settle(api)
    assert await service(api).authors(A, 10) == []
    system = made._clock
    try:
        made._making._clock = ManualClock(now=(datetime.now(UTC) + timedelta(days=2)).timestamp())
        await made.refresh()
    finally:
        made._making._clock = system
    assert await service(api).also_bought([A], 10) == [C, B]
    assert (await service(api).authors(A, 10))[0] == C


async def test_of_a_wholesale_order_a_part_is_counted(api: Api) -> None:
    await service(api).bought(fresh(), fresh(), [fresh() for _ in range(MAX_BASKET + 30)])
    await settle(api)
    assert len((await counts(api))["pairs"]) == MAX_BASKET * (MAX_BASKET - 1)


async def test_questions_and_news_have_bounds(api: Api) -> None:
    """Wrong ids and limits are refused; what nobody knows is nothing, not an error."""
    for call in (
        service(api).bought(0, 1, [1]), service(api).bought(1, 1, []), service(api).bought(1, 1, [1, -1]),
        service(api).bought(1, 1 << 53, [1]), service(api).undone(0), service(api).followed(1, 1, True, 1),
        service(api).followed(1, 2, True, 0), service(api).followed(0, 2, True, 1),
        service(api).also_bought([1], 0), service(api).also_bought([1], MAX_LIMIT + 1),
        service(api).also_bought(list(range(MAX_LISTINGS + 1)), 1), service(api).authors(1, 0),
    ):  # fmt: skip
        with pytest.raises(Invalid):
            await call
    assert await service(api).also_bought([0, -5, 1 << 60, 12345], 10) == []
    assert await service(api).also_bought([], 10) == []
    assert await service(api).authors(1 << 60, 10) == []
