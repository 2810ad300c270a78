"""What the content store promises to a caller whose knowledge is old: it says so and changes nothing."""

from __future__ import annotations

import asyncio
from typing import Any

import asyncpg
import pytest
from tests.market.harness import Api, one_platform

from market.content.api import Article, ArticleChanges, Content
from market.content.store import DELETE, ContentStore, Gone, Renamed
from springtide.db import Database

pytestmark = one_platform


async def known(api: Api, title: str) -> tuple[ContentStore, Article]:
    author = await api.person()
    slug = (await api.article(author, title, tagList=["t"]))["slug"]
    store = ContentStore(api.platform.database("content"))
    article = await store.named(slug, None)
    assert article is not None
    return store, article


def change(article: Article, **changes: Any) -> dict[str, Any]:
    nothing = dict.fromkeys(("slug", "title", "description", "body", "tags"))
    return {**nothing, "forget": (), "at": article.updated_at, **changes}


async def lock_waits(api: Api, article: Article) -> int:
    """How many wait for a lock on the article's shard."""
    db = api.platform.database("content")
    sql = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'"
    sql += " and datname = current_database()"
    return int(await db.pools[db.shards.shard_of(article.id)].fetch_value(sql))


async def test_an_article_is_not_deleted_with_slugs_that_are_not_its_own_any_more(api: Api) -> None:
    """Otherwise a slug would stay reserved for an article that does not exist."""
    store, article = await known(api, "One")
    renamed = await store.update(article, **change(article, slug="two", title="Two"))
    with pytest.raises(Gone):
        await store.delete(article, [])
    await store.update(renamed, **change(article, slug="one", title="One"))
    with pytest.raises(Gone):
        await store.delete(article, [])
    assert await store.find("one") == await store.find("two") == article.id
    await store.delete(article, await store.former_slugs(article.id))
    assert await store.find("one") is await store.find("two") is None
    with pytest.raises(Gone):
        await store.delete(article, [])


async def test_a_title_goes_to_the_article_that_it_was_meant_for(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Renamed meanwhile, an article would get a title without its slug, or let its own slug go."""
    store, article = await known(api, "One")
    await store.update(article, **change(article, slug="two", title="Two"))
    for stale in ({"title": "One"}, {"title": "Three", "slug": "three", "forget": ["two"]}):
        with pytest.raises(Renamed):
            await store.update(article, **change(article, **stale))
    assert await store.find("three") is None
    await store.update(article, **change(article, body="Other"))
    look = ContentStore.named

    async def overtaken(self: ContentStore, slug: str, viewer: int | None) -> Article | None:
        """What was true before somebody else renamed it; the truth from then on."""
        monkeypatch.setattr(ContentStore, "named", look)
        return article

    monkeypatch.setattr(ContentStore, "named", overtaken)
    changed = await api.service(Content).update("two", article.author_id, ArticleChanges(title="One"))
    assert (changed.slug, changed.title, changed.body) == ("one", "One", "Other")
    assert await store.find("one") == await store.find("two") == article.id


async def test_a_refused_update_claims_nothing(api: Api) -> None:
    store, article = await known(api, "One")
    await store.delete(article, [])
    with pytest.raises(Gone):
        await store.update(article, **change(article, slug="two", title="Two"))
    assert await store.find("two") is None


async def test_every_change_moves_updated_at_on(api: Api) -> None:
    """Also when two come within a millisecond, or the clock was set back."""
    store, article = await known(api, "One")
    seen = [article.updated_at]
    for body in ("a", "b", "c"):
        seen.append((await store.update(article, **change(article, body=body))).updated_at)
    assert seen == sorted(set(seen))


async def test_who_adds_to_an_article_waits_for_its_deletion(api: Api) -> None:
    """A comment and a favourite that meet a deletion in progress find the article gone, and leave nothing."""
    store, article = await known(api, "One")
    ids = [await store.new_id(article.id) for _ in range(2)]
    db = api.platform.database("content")
    bucket, at = article.id & 1023, article.updated_at

    deleting = await asyncpg.connect(api.platform.topology.cluster_url(db.shards.shard_of(article.id)))
    try:
        async with deleting.transaction():
            await deleting.execute(DELETE, bucket, article.id)
            tasks = [
                asyncio.create_task(store.comment(article.id, ids[0], 1 << 10, "x", at)),
                asyncio.create_task(store.favorite(article.id, 1 << 10, wanted=True)),
            ]
            while await lock_waits(api, article) < 2:
                assert not any(task.done() for task in tasks), "it did not wait"
    finally:
        await deleting.close()
    for result in await asyncio.gather(*tasks, return_exceptions=True):
        assert isinstance(result, Gone)
    for table in ("comment", "favorite"):
        assert await db.scatter_sum(f"select count(*) from content.{table}") == 0


async def test_the_most_used_tags_are_exact_over_shards(api: Api) -> None:
    """A tag that no shard has among its most used may be the most used of all; and one that a shard has
    there counts with its articles on the others too."""
    database = api.platform.database("content")
    store = ContentStore(database)
    shards = database.shards.shards
    for number, shard in enumerate(shards):
        buckets = database.shards.buckets_of(shard)
        uses = {f"only {number} {n}": 10 + n for n in range(5)} | {"everywhere": 9, "often": 9, "rare": 1}
        await database.pools[shard].execute(
            "insert into content.tag_use (bucket, tag, articles)"
            " select b, tag, n from unnest($1::int[]) b, unnest($2::text[], $3::bigint[]) u (tag, n)",
            buckets[:2],
            list(uses),
            list(uses.values()),
        )
    for limit in (1, 2, 3, 4, 12, 99):
        exact = await _all_tags(database)
        counted = await store.tags(limit)
        uses = counted.uses
        assert counted.rows == 2 * 8 * len(shards)
        assert sorted(uses.items(), key=_ranked)[:limit] == sorted(exact.items(), key=_ranked)[:limit]


def _ranked(use: tuple[str, int]) -> tuple[int, str]:
    return -use[1], use[0]


async def _all_tags(database: Database) -> dict[str, int]:
    uses: dict[str, int] = {}
    for row in await database.scatter("select tag, articles from content.tag_use"):
        uses[row["tag"]] = uses.get(row["tag"], 0) + row["articles"]
    return uses
