"""What requests ask of the database: how many statements, and by which plans."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from tests.market.harness import Api, one_platform, uncached
from tests.market.plans import explain, nodes, plan_faults, scaled

from market.content import lists
from market.content import store as content
from market.content.api import ArticleQuery
from market.users import store as users
from springtide.db._reservation_sql import Sql, joined
from springtide.db.scatter import compose

pytestmark = one_platform

AUTHOR, FAN = 5, 6


@pytest.mark.parametrize("viewer", [False, True], ids=["anonymous", "signed in"])
async def test_statements_do_not_grow_with_articles(api: Api, viewer: bool) -> None:
    """A list of 20 articles by 20 authors takes as many statements as one of 1 article."""
    reader = await api.person("Reader")
    by = reader if viewer else None
    people = [await api.person() for _ in range(20)]
    for person in people:
        await api.article(person, tagList=["t"])
        await api.call("POST", f"/profiles/{person.username}/follow", by=reader, expect=200)
    paths = ["/articles?limit={}", "/articles?tag=t&limit={}"]
    paths += ["/articles/feed?limit={}"] if viewer else []
    for path in paths:
        await api.statements("GET", path.format(20), by=by)  # whatever the first request alone needs
        counts = [await api.statements("GET", path.format(limit), by=by) for limit in (20, 20)]
        shards = len(api.platform.database("content").shards.shards)
        # The page and its count on every shard, people on every shard, follows, whom one follows.
        assert max(counts) <= 3 * shards + 2, path
        if shards == 1:
            one = await api.statements("GET", path.format(1), by=by)
            assert {one} == set(counts), path


async def test_statements_do_not_grow_with_comments(api: Api) -> None:
    reader = await api.person("Reader")
    slug = (await api.article(reader))["slug"]
    path = f"/articles/{slug}/comments"
    people = [await api.person() for _ in range(10)]
    await api.comment(people[0], slug)
    await api.statements("GET", path, by=reader)
    one = await api.statements("GET", path, by=reader)
    for person in people:
        await api.comment(person, slug)
    many = await api.statements("GET", path, by=reader)
    assert many <= one + len(api.platform.database("users").shards.shards) - 1


@uncached
async def test_one_article_takes_three_statements(api: Api) -> None:
    """Its slug with itself, its author, whether the viewer follows them."""
    jake, anna = await api.person(), await api.person()
    slug = (await api.article(jake))["slug"]
    await api.statements("GET", f"/articles/{slug}", by=anna)
    apart = len(api.platform.database("content").shards.shards) > 1  # the slug may be elsewhere
    assert await api.statements("GET", f"/articles/{slug}", by=anna) <= 3 + apart
    assert await api.statements("GET", f"/articles/{slug}") <= 2 + apart


async def test_past_the_end_only_the_count_is_asked_for(api: Api) -> None:
    jake = await api.person()
    await api.article(jake)
    assert await api.statements("GET", "/articles?offset=1") == 1
    assert await api.statements("GET", "/articles?offset=0") > 1


SCALE = """
insert into users.account (bucket, id, username, email, password_hash, created_at, updated_at)
    select n & 1023, n, 'u' || n, n || '@e', '', now(), now() from generate_series(0, 29999) n;
insert into users.follow (bucket, follower_id, followee_id, created_at)
    select n % 3000 & 1023, n % 3000, n, now() from generate_series(0, 29999) n;
insert into content.article
    (bucket, id, author_id, slug, title, description, body, tags, created_at, updated_at)
    select n % 3000 & 1023, (n << 10) + (n % 3000 & 1023), n % 3000, 's' || n, 't' || n, 'd', 'b',
        array['tag' || n % 50], now() - n * interval '1 s', now()
    from generate_series(0, 29999) n;
insert into content._reservation (bucket, kind, value, owner_id, claim_id, state, claimed_at)
    select n & 1023, 'slug', 's' || n, (n << 10) + (n % 3000 & 1023), gen_random_uuid(), 'confirmed', now()
    from generate_series(0, 29999) n;
insert into content.article_tag (bucket, article_id, tag, created_at)
    select bucket, id, tags[1], created_at from content.article;
insert into content.favorite (bucket, article_id, user_id, article_created_at)
    select bucket, id, (id >> 10) % 997, created_at from content.article;
insert into content.comment (bucket, id, article_id, author_id, body, created_at, updated_at)
    select bucket, (((id >> 10) * 3 + n) << 10) + bucket, id, n, 'b', now(), now()
    from content.article, generate_series(0, 1) n;
insert into content.author_count (bucket, author_id, articles)
    select bucket, author_id, count(*) from content.article group by 1, 2;
insert into content.tag_use (bucket, tag, articles)
    select bucket, tag, count(*) from content.article_tag group by 1, 2;
analyze users.account, users.follow, content._reservation, content.article, content.article_tag,
    content.favorite, content.comment, content.author_count, content.tag_use;
"""


@pytest.fixture
def shards() -> int:
    return 1


@pytest_asyncio.fixture(loop_scope="module")
async def large(urls: list[str]) -> AsyncIterator[asyncpg.Connection]:
    """30,000 accounts and articles, with what belongs to them, as the planner sees them after ANALYZE."""
    async with scaled(urls[0], SCALE) as connection:
        yield connection


def newest(sql: str, *args: Any) -> tuple[str, tuple[Any, ...]]:
    """The first part of a list as one shard is asked for it, limit and offset as arguments."""
    order = tuple(content.NEWEST_FIRST)
    return compose(sql, order=order, arguments=len(args), limited=True, skipping=True), (*args, 20, 0)


def listing(**filters: Any) -> tuple[str, tuple[Any, ...]]:
    statement = lists.listing(ArticleQuery(**filters), FAN)
    return newest(statement.rows, *statement.rows_args)


def counting(**filters: Any) -> tuple[str, tuple[Any, ...]]:
    statement = lists.listing(ArticleQuery(**filters), FAN)
    return statement.count, statement.count_args


ARTICLE = (7 << 10) + 7


def walked(sql: str) -> tuple[str, tuple[Any, ...]]:
    """A part of the walk by which the search index is kept up to date."""
    order: tuple[Any, ...] = (("bucket", "asc"), ("id", "asc"))
    return compose(sql, order=order, arguments=2, limited=True), (500, 1000, 500)


HOT: dict[str, tuple[str, tuple[Any, ...]]] = {
    "versions of people": walked(users.VERSIONS),
    "versions of articles": walked(content.VERSIONS),
    "texts": (content.TEXTS, ([(n << 10) + n for n in range(25)],)),
    "account": (users.ACCOUNT, (5, AUTHOR)),
    "people": (users.PEOPLE, ([1, 2, 3, 4, 5, 6, 7, 8, 9, 10],)),
    "followed": (users.FOLLOWED, (5, AUTHOR, [1, 2, 3])),
    "following": (users.FOLLOWING, (5, AUTHOR, 5000)),
    "article": (content.ARTICLE, (7, ARTICLE, FAN)),
    "article of a slug": (joined(Sql("content").held, content.ARTICLE), (7, "slug", "s7", FAN)),
    "summaries": (content.SUMMARIES, ([(n << 10) + n for n in range(40)], FAN)),
    "comments": (content.COMMENTS, (7, ARTICLE, 1000)),
    "newest": listing(),
    "by author": listing(author_id=AUTHOR),
    "by tag": listing(tag="tag7"),
    "favourites": listing(favorited_by=FAN),
    "favourites of an author": listing(favorited_by=FAN, author_id=AUTHOR),
    "favourites with a tag": listing(favorited_by=FAN, tag="tag7"),
    "feed": newest(lists.FEED, FAN, list(range(100, 120)), 20),
    "count of an author": counting(author_id=AUTHOR),
    "count of a tag": counting(tag="tag7"),
    "count of a combination": counting(favorited_by=FAN, tag="tag7"),
    "count of a feed": (lists.COUNT_FEED, (list(range(100, 120)),)),
    "lock": (content.LOCK, (7, ARTICLE)),
    "comment's author": (content.COMMENT_AUTHOR, (7, 1 << 10, ARTICLE)),
    "erase comments": (content.ERASE_COMMENTS, (7, ARTICLE, 1000)),
    "erase favourites": (content.ERASE_FAVORITES, (7, ARTICLE, 1000)),
}


async def test_hot_statements_walk_indexes(large: asyncpg.Connection) -> None:
    """No hot statement scans a table, and none looks at many times more rows than it answers."""
    assert not await plan_faults(large, HOT, rows=1100)


async def test_favourites_are_counted_by_their_index(large: asyncpg.Connection) -> None:
    """Without their articles; those that are being erased, a few, are looked up one by one."""
    await large.execute("insert into content.erasing select bucket, id from content.article limit 3")
    found = list(nodes(await explain(large, *counting(favorited_by=FAN))))
    relations = {(node["Relation Name"], node["Node Type"]) for node in found if "Relation Name" in node}
    assert {name for name, _ in relations} == {"favorite", "erasing"}
    assert ("favorite", "Seq Scan") not in relations
    looked = {node["Index Name"]: node["Actual Loops"] for node in found if "Index Name" in node}
    assert looked == {"favorite_of_user": 1, "favorite_pkey": 3}
