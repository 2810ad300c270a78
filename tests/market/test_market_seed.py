"""The seed: the same content for the same seed, consistent with itself, and an application that goes on."""

from __future__ import annotations

import asyncio
import hashlib
import io
import tracemalloc
from array import array
from datetime import date

import asyncpg
import pytest
from tests.market.emptying import empty_servers
from tests.market.harness import Api, Person, settled

import market.seed
from market.catalog import bulk as catalog_bulk
from market.catalog.rules import is_slug
from market.content import bulk as content_bulk
from market.dashboard import bulk as dashboard_bulk
from market.orders import bulk as orders_bulk
from market.payments import bulk as payments_bulk
from market.recommendations import bulk as recommendations_bulk
from market.search import bulk as search_bulk
from market.seed import seed
from market.seeding import buying, people, selling, writing
from market.seeding.chance import Plan
from market.seeding.people import HASHED, PASSWORD, People, username
from market.seeding.selling import Selling
from market.seeding.writing import TAGS
from market.users import bulk as users_bulk
from springtide.errors import LoadError
from springtide.identity.passwords import Passwords
from springtide.ops.load import seeding
from springtide.ops.load.progress import ProgressBar, Silent
from springtide.ops.load.seeding import BulkLoad

CONTENT = {
    "users.account": "username, email, password_hash, bio, created_at",
    "users.follow": "created_at",
    "users._reservation": "kind, value, state, bucket",
    "content.article": "slug, title, description, body, tags, favorites, created_at",
    "content.article_tag": "tag, created_at",
    "content.favorite": "article_created_at",
    "content.comment": "body, created_at",
    "notifications.recipient": "name, email, version",
    "content._reservation": "kind, value, state, bucket",
    "content.tag_use": "bucket, tag, articles",
    "search.document": "bucket, kind, version, title, body, names::text, words::text",
    "catalog.shop": "slug, name, description, currency, version, created_at",
    "catalog.listing": "title, description, amount, currency, category, department, status, listed_at",
    "catalog.stock": "on_hand, reserved, movements",
    "catalog.movement": "number, kind, change, on_hand, note, created_at",
    "catalog.reservation": "state, settled, created_at",
    "catalog.held": "title, quantity, amount, currency, state",
    "catalog.category_count": "bucket, category, listings",
    "orders.placed": "state, reason, amount, currency, source, address, version, created_at",
    "orders.sale": "state, sold_at, shipped_at, version",
    "payments.charge": "amount, currency, source, state, decline_code, refunded, created_at",
    "payments.entry": "number, account, amount, currency, created_at",
    "dashboard.day": "day, orders, items, revenue, refunds",
    "dashboard.listing_day": "day, items, revenue",
    "recommendations.basket": "undone, bought_at",
    "recommendations.follow": "following, version, changed_at",
    "recommendations.also_bought": "version, made_at",
}
"""Everything but ids, which depend on what the database has handed out before."""


BULKS = (
    users_bulk,
    content_bulk,
    search_bulk,
    catalog_bulk,
    orders_bulk,
    payments_bulk,
    dashboard_bulk,
    recommendations_bulk,
)
STREAMING = (market.seed, people, writing, selling, buying, *BULKS, seeding)
"""The files that rows pass through on their way to COPY."""


async def fingerprint(urls: list[str]) -> str:
    rows: list[str] = []
    for url in urls:
        connection = await asyncpg.connect(url)
        for table, columns in CONTENT.items():
            found = await connection.fetch(f"select {columns} from {table}")
            rows += [f"{table} {tuple(row)}" for row in found]
        await connection.close()
    return hashlib.sha256("\n".join(sorted(rows)).encode()).hexdigest()


async def test_the_same_seed_gives_the_same_content(api: Api, urls: list[str]) -> None:
    seen = []
    for number in (1, 1, 2):
        report = await seed(api.platform, users=60, seed=number, progress=Silent())
        assert report.rows["users.account"] == report.rows["content.article"] == 60
        seen.append(await fingerprint(urls))
        await empty_servers(urls)
    assert seen[0] == seen[1] != seen[2]


async def test_what_is_counted_is_there_and_rows_are_where_they_belong(api: Api, urls: list[str]) -> None:
    await seed(api.platform, users=200, seed=1, progress=Silent())
    users, content = api.platform.database("users"), api.platform.database("content")
    wrong = await content.scatter(
        "select a.id from content.article a where a.favorites <>"
        " (select count(*) from content.favorite f where f.bucket = a.bucket and f.article_id = a.id)"
        " or a.bucket <> a.id & 1023 or a.bucket <> a.author_id & 1023"
    )
    assert wrong == []
    assert await content.scatter_sum("select sum(articles) from content.article_count") == 200
    assert await content.scatter_sum("select sum(articles) from content.author_count") == 200
    tags = await content.scatter_sum("select count(*) from content.article_tag")
    assert await content.scatter_sum("select sum(articles) from content.tag_use") == tags
    assert await content.scatter("select id from content.comment where bucket <> article_id & 1023") == []
    assert (
        await users.scatter("select follower_id as id from users.follow where follower_id = followee_id")
        == []
    )
    most = await users.scatter(
        "select followee_id, count(*) as n from users.follow group by followee_id",
        order=[("n", "desc")],
        limit=1,
    )
    assert most[0]["n"] > 10  # popular people are popular
    for shard in content.shards.shards:  # each row on the shard of its bucket
        held = await content.pools[shard].fetch("select distinct bucket from content.article")
        if len(content.shards.shards) > 1:
            assert {row[0] for row in held} <= set(content.shards.buckets_of(shard))


async def test_the_application_goes_on_where_the_seed_ended(api: Api) -> None:
    """Log in as a seeded person, find seeded things by name, register, post: no id or name collides."""
    await seed(api.platform, users=100, seed=1, progress=Silent())
    await settled(api.platform)
    name = username(3, 1)
    body = {"user": {"email": f"{name}@example.com", "password": PASSWORD}}
    user = (await api.call("POST", "/users/login", body, expect=200))["user"]
    assert user["username"] == name
    me = Person(token=user["token"], username=name, email=user["email"])

    page = await api.call("GET", "/articles?limit=20", expect=200)
    assert page["articlesCount"] == 100
    slug = page["articles"][0]["slug"]
    article = (await api.call("GET", f"/articles/{slug}", expect=200))["article"]
    assert len(article["tagList"]) >= 1 and set(article["tagList"]) <= set(TAGS)
    assert len((await api.call("GET", "/tags", expect=200))["tags"]) > 20
    assert (await api.call("GET", f"/profiles/{article['author']['username']}", expect=200))["profile"]

    taken = {"user": {"username": name.upper(), "email": "x@example.com", "password": "long enough"}}
    await api.send("POST", "/users", taken)
    for number in range(30):
        new = {"username": f"new{number}", "email": f"n{number}@example.com", "password": "long enough"}
        if number == 0:
            created = await api.call("POST", "/users", {"user": new}, expect=201)
            assert created["user"]["username"] == "new0"
        post = {
            "article": {
                "title": f"After the seed {number}",
                "description": "d",
                "body": "b",
                "tagList": ["new"],
            }
        }
        posted = await api.call("POST", "/articles", post, by=me, expect=201)
        assert posted["article"]["slug"] == f"after-the-seed-{number}"
    comment = {"comment": {"body": "hello"}}
    assert await api.call("POST", f"/articles/{slug}/comments", comment, by=me)
    again = {"article": {"title": article["title"], "description": "d", "body": "b"}}
    other = await api.call("POST", "/articles", again, by=me)
    assert other is not None and other.get("article", {}).get("slug") != slug
    page = await api.call("GET", "/articles", expect=200)
    assert page["articlesCount"] >= 130


async def test_a_seeded_name_is_taken(api: Api) -> None:
    await seed(api.platform, users=20, seed=1, progress=Silent())
    new = {"username": username(5, 1).upper(), "email": "free@example.com", "password": "long enough"}
    assert (await api.send("POST", "/users", {"user": new})).status_code in (409, 422)


async def test_a_platform_with_data_is_refused_and_left_as_it_is(api: Api, urls: list[str]) -> None:
    await seed(api.platform, users=20, seed=1, progress=Silent())
    before = await fingerprint(urls)
    with pytest.raises(LoadError, match="data already"):
        await seed(api.platform, users=20, seed=2, progress=Silent())
    assert await fingerprint(urls) == before


class _Stop(Exception):
    pass


class _Interrupting:
    """Raises once lists of what was bought together are being copied, which is nearly the end."""

    def advance(self, what: str, count: int) -> None:
        if what == "recommendations.also_bought":
            raise _Stop


async def test_an_interrupted_seeding_leaves_nothing_and_can_be_repeated(api: Api, urls: list[str]) -> None:
    nothing = await fingerprint(urls)
    with pytest.raises(_Stop):
        await seed(api.platform, users=50, seed=1, progress=_Interrupting())
    assert await fingerprint(urls) == nothing
    await seed(api.platform, users=50, seed=1, progress=Silent())


async def test_a_seeding_ended_while_it_counts_leaves_nothing(api: Api, urls: list[str]) -> None:
    """Statistics come before the commit: as long as the command runs, ending it undoes all."""
    nothing = await fingerprint(urls)
    holder = await asyncpg.connect(urls[0])
    async with holder.transaction():
        await holder.execute("lock table users.account in share update exclusive mode")  # ANALYZE waits
        seeding = asyncio.create_task(seed(api.platform, users=20, seed=1, progress=Silent()))
        while not await holder.fetchval("select exists (select from pg_locks where not granted)"):
            assert not seeding.done()
        seeding.cancel()
        await asyncio.wait([seeding])
    await holder.close()
    assert seeding.cancelled()
    assert await fingerprint(urls) == nothing


async def test_the_bar_knows_how_much_there_is_to_do(api: Api) -> None:
    """Within a tenth, so that the time left is worth showing."""
    bar = ProgressBar(io.StringIO(), interval=0.0)
    report = await seed(api.platform, users=400, seed=1, progress=bar)
    assert bar.total == pytest.approx(report.total, rel=0.1)


async def test_two_seedings_at_once_are_refused(api: Api) -> None:
    database = api.platform.database("users")
    async with BulkLoad([database]):
        with pytest.raises(LoadError, match="another seeding"):
            await seed(api.platform, users=20, seed=1, progress=Silent())


async def test_the_hash_that_everybody_has_is_of_the_password_that_is_printed() -> None:
    """And it is as strong as the platform's own, so that a login does not write a new one."""
    passwords = Passwords()
    await passwords.start()
    try:
        assert await passwords.verify(PASSWORD, HASHED) == (True, False)
    finally:
        await passwords.stop()


class _Holding:
    """Measures, now and then, what the seed itself holds: drivers and caches are somebody else's."""

    def __init__(self) -> None:
        self.peak = 0
        self._filters = [tracemalloc.Filter(True, module.__file__) for module in STREAMING]
        self._calls = 0

    def advance(self, what: str, count: int) -> None:
        self._calls += 1
        if self._calls % 150 == 0:
            snapshot = tracemalloc.take_snapshot().filter_traces(self._filters)
            self.peak = max(self.peak, sum(trace.size for trace in snapshot.traces))


@pytest.mark.parametrize("shards", [2], ids=["two-shards"], indirect=True)
async def test_memory_does_not_grow_with_the_rows(
    api: Api, urls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Less than 700 bytes for each further user, whose 80 rows take 20 kB.

    Most are of the counters of buckets that have nobody yet, of which there are 1,024 at most.
    """
    for module in (*BULKS, market.seed):
        monkeypatch.setattr(module, "BATCH", 25)
    monkeypatch.setitem(BulkLoad.__init__.__kwdefaults__, "batch", 25)
    peaks = []
    for users in (40, 340):  # far apart: when one looks makes a difference of 100 kB
        holding = _Holding()
        tracemalloc.start()
        try:
            await seed(api.platform, users=users, seed=1, progress=holding)
        finally:
            tracemalloc.stop()
        peaks.append(holding.peak)
        await empty_servers(urls)
    assert 0 < peaks[1] - peaks[0] < 300 * 700, peaks


def test_names_are_different_for_different_people() -> None:
    """And so are the slugs of their shops, which keep to the rules at any number of people."""
    assert len({username(number, 9) for number in range(30_000)}) == 30_000
    plan = Plan(users=300_000, seed=9, today=date(2025, 1, 1))
    shops = [shop.slug for shop in Selling(People(plan, array("q", range(plan.users)))).opened()]
    assert len(set(shops)) == len(shops) == 30_000 and all(map(is_slug, shops))
