"""Bulk loading of the recommendations module, for seeds and imports: as if each order and follow was told.

The caller brings confirmed orders, each once, and follows, each pair once, into empty tables, and calls
`copy_lists` after the last of both. A buyer may have a listing in `scoring.REPEATS` orders at most. Lists of
listings are made here; suggestions of authors are left to the workers, which find all of them due.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from heapq import nlargest
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from market.recommendations import scoring
from market.recommendations.follows import CHART_HOME, MOST_FOLLOWED
from market.recommendations.making import KEPT
from market.recommendations.rules import check_bought
from market.recommendations.scoring import MIN_SUPPORT, Counted
from market.recommendations.store import CANDIDATES
from springtide.db import BUCKETS, Bucket, Database, bucket_of

if TYPE_CHECKING:
    from springtide.ops.load.seeding import BulkLoad

__all__ = ["BulkFollow", "BulkOrder", "copy_follows", "copy_lists", "copy_orders", "is_empty"]

BATCH = 5_000

LISTINGS = """
insert into recommendations.listing (bucket, listing_id, buyers, weight, version)
select bucket, listing_id, count(*), sum(weight), 1
from (
    select bucket, listing_id, buyer_id, max(weight) as weight
    from recommendations.purchase group by bucket, listing_id, buyer_id
) as bought
group by bucket, listing_id
"""

PAIRS = """
insert into recommendations.pair (bucket, listing_id, other_id, buyers, weight)
select bucket, listing_id, other_id, count(*), sum(weight)
from (
    select bucket, listing_id, buyer_id, other_id, max(weight) as weight
    from recommendations.purchase cross join unnest(others) as other (other_id)
    group by bucket, listing_id, buyer_id, other_id
) as bought
group by bucket, listing_id, other_id
"""

POPULARITY = """
insert into recommendations.popularity (bucket, person_id, followers)
select bucket, followee_id, count(*) from recommendations.fan group by bucket, followee_id
"""

SUGGESTIONS = """
insert into recommendations.suggestion (bucket, person_id, changes, made_at)
select bucket, follower_id, count(*), '1970-01-01Z' from recommendations.follow group by bucket, follower_id
"""

WEIGHTS = "select listing_id, weight from recommendations.listing where bucket = $1"

BEST_PAIRS = f"""
select listing.listing_id, pair.other_id, pair.buyers, pair.weight
from recommendations.listing
left join lateral (
    select other_id, buyers, weight from recommendations.pair
    where bucket = $1 and listing_id = listing.listing_id and buyers >= {MIN_SUPPORT}
    order by weight desc
    limit $2
) as pair on true
where bucket = $1
order by listing.listing_id
"""  # noqa: S608 - a constant

POPULAR = """
select person_id, followers from recommendations.popularity where bucket = $1 order by followers desc limit $2
"""

# A worker may have made one already, of nobody.
PUT_CHART = """
insert into recommendations.chart (bucket, name, people, made_at) values ($1, $2, $3, $4)
on conflict (bucket, name) do update set people = excluded.people, made_at = excluded.made_at
returning name
"""


class BulkOrder(NamedTuple):
    id: int
    buyer: int
    listings: list[int]
    at: datetime


class BulkFollow(NamedTuple):
    follower: int
    followee: int
    at: datetime


async def is_empty(db: Database) -> bool:
    """Whether nothing was ever told, on any shard."""
    baskets = await db.scatter("select order_id from recommendations.basket", limit=1)
    return not baskets and not await db.scatter("select follower_id from recommendations.follow", limit=1)


async def copy_orders(load: BulkLoad, db: Database, orders: Iterable[BulkOrder]) -> None:
    """Orders and their purchases, BATCH at a time. Raises Invalid as `bought` does."""
    waiting = (order._replace(listings=check_bought(*order[:3])) for order in orders)
    while batch := list(islice(waiting, BATCH)):
        baskets = ((bucket_of(one.id), one.id, one.buyer, one.listings, False, one.at) for one in batch)
        columns = ["bucket", "order_id", "buyer_id", "listings", "undone", "bought_at"]
        await load.copy(db, "basket", columns, baskets)
        columns = ["bucket", "listing_id", "buyer_id", "order_id", "others", "weight", "undone", "bought_at"]
        await load.copy(db, "purchase", columns, _purchases(batch))


async def copy_follows(load: BulkLoad, db: Database, follows: Iterable[BulkFollow]) -> None:
    """Follows, in both buckets of each, BATCH at a time; of version 1, as `users` loads them."""
    waiting = iter(follows)
    while batch := list(islice(waiting, BATCH)):
        rows = ((bucket_of(one.follower), one.follower, one.followee, True, 1, one.at) for one in batch)
        columns = ["bucket", "follower_id", "followee_id", "following", "version", "changed_at"]
        await load.copy(db, "follow", columns, rows)
        fans = ((bucket_of(one.followee), one.followee, one.follower, True, 1) for one in batch)
        columns = ["bucket", "followee_id", "follower_id", "following", "version"]
        await load.copy(db, "fan", columns, fans)


async def copy_lists(load: BulkLoad, db: Database, at: datetime) -> None:
    """Counts, lists and the chart, from what was copied; `at` is when the lists were made."""
    for table, sql in (
        ("listing", LISTINGS), ("pair", PAIRS), ("popularity", POPULARITY), ("suggestion", SUGGESTIONS),
    ):  # fmt: skip
        await load.execute(db, table, sql)
    weights: dict[int, float] = {}
    people: list[Any] = []
    for bucket in range(BUCKETS):
        weights.update(map(tuple, await load.fetch(db, Bucket(bucket), WEIGHTS, bucket)))
        people += await load.fetch(db, Bucket(bucket), POPULAR, bucket, KEPT)
    columns = ["bucket", "listing_id", "others", "scores", "version", "made_at"]
    for bucket in sorted({bucket_of(listing) for listing in weights}):
        rows = await load.fetch(db, Bucket(bucket), BEST_PAIRS, bucket, CANDIDATES)
        await load.copy(db, "also_bought", columns, _lists(bucket, rows, weights, at))
    most = nlargest(KEPT, people, key=lambda row: (row["followers"], row["person_id"]))
    chart = (CHART_HOME.number, MOST_FOLLOWED, [row["person_id"] for row in most], at)
    await load.fetch(db, CHART_HOME, PUT_CHART, *chart)


def _purchases(orders: Iterable[BulkOrder]) -> Iterator[tuple[Any, ...]]:
    for order in orders:
        weight = scoring.weigh(order.at)
        for listing in order.listings:
            others = [other for other in order.listings if other != listing]
            yield bucket_of(listing), listing, order.buyer, order.id, others, weight, False, order.at


def _lists(
    bucket: int, pairs: Iterable[Any], weights: dict[int, float], at: datetime
) -> Iterator[tuple[Any, ...]]:
    """One for each listing, empty where nothing has support: then it is made anew like the others."""
    scores: dict[int, list[tuple[int, float]]] = {}
    for listing, other, *counted in pairs:
        found = scores.setdefault(listing, [])
        if other is not None:
            score = scoring.near(Counted(*counted), weights[listing], weights.get(other, 0.0))
            found.append((other, score))
    for listing, found in scores.items():
        best = scoring.best(found, KEPT)
        yield bucket, listing, [other for other, _ in best], [score for _, score in best], 1, at
