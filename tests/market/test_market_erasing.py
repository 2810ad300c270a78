"""What hangs on a deleted article: nobody sees it from then on, and a job deletes it, some at a time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from tests import jobs_support
from tests.market.harness import Api, one_platform, settled
from tests.market.test_market_store import known, lock_waits
from tests.market.test_search_index import implementation
from tests.market.working import work

from market.content import store as content
from market.content.api import Article, Content
from market.content.store import ContentStore
from springtide.db import Consistency

pytestmark = one_platform

HUNG = (7, 7)
"""Comments and favourites of the article; three batches each."""


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content, "ERASED", 3)


async def loaded(api: Api) -> tuple[ContentStore, Article]:
    """An article with what `HUNG` says, and another one, with a comment and a favourite, that stays."""
    store, article = await known(api, "One")
    _, other = await known(api, "Other")
    for user in range(HUNG[0]):
        await store.comment(article.id, await store.new_id(article.id), user, "x", article.updated_at)
        await store.favorite(article.id, user, wanted=True)
    await store.comment(other.id, await store.new_id(other.id), other.author_id, "x", other.updated_at)
    await store.favorite(other.id, 0, wanted=True)
    return store, article


async def left(api: Api, article: Article) -> tuple[int, int]:
    db = api.platform.database("content")
    comments, favorites = [
        await db.scatter_sum(
            f"select count(*) from content.{table} where article_id = $1",
            article.id,
            consistency=Consistency.STRONG,
        )
        for table in ("comment", "favorite")
    ]
    return comments, favorites


async def erasing(api: Api) -> int:
    db = api.platform.database("content")
    return await db.scatter_sum("select count(*) from content.erasing", consistency=Consistency.STRONG)


async def others(api: Api, article: Article) -> int:
    db = api.platform.database("content")
    sql = "select (select count(*) from content.comment where article_id <> $1)"
    sql += " + (select count(*) from content.favorite where article_id <> $1)"
    return await db.scatter_sum(sql, article.id, consistency=Consistency.STRONG)


@asynccontextmanager
async def somebody(api: Api, article: Article) -> AsyncIterator[asyncpg.Connection]:
    """In a transaction on the article's shard, which commits with the block."""
    shard = api.platform.database("content").shards.shard_of(article.id)
    connection = await asyncpg.connect(api.platform.topology.cluster_url(shard))
    try:
        async with connection.transaction():
            yield connection
    finally:
        await connection.close()


async def meets(api: Api, article: Article, task: asyncio.Task[Any]) -> None:
    """Return when `task` waits for a row."""
    while not await lock_waits(api, article):
        assert not task.done(), "it did not wait"


async def test_a_deletion_leaves_what_hangs_on_the_article_to_a_job(api: Api) -> None:
    """Which deletes it in batches, each a transaction, and nothing of other articles."""
    store, article = await loaded(api)
    await store.delete(article, [])
    assert await left(api, article) == HUNG
    api.recorder.statements.clear()
    await work(api.platform, ["content"])
    assert (await left(api, article), await others(api, article)) == ((0, 0), 2)
    ran = [one.statement.split() for one in api.recorder.statements]
    for table, times in (("content.comment", 3), ("content.favorite", 3), ("content.erasing", 1)):
        assert sum(words[:3] == ["delete", "from", table] for words in ran) == times


async def test_what_has_lost_its_article_is_not_seen(api: Api) -> None:
    """Neither in lists and their counts, nor by whoever found the article just before."""
    jake, anna = await api.person(), await api.person("Anna")
    await api.article(jake, "One")
    comment = await api.comment(anna, "one")
    await api.call("POST", "/articles/one/favorite", by=anna, expect=200)
    await api.article(jake, "Other")
    await api.call("POST", "/articles/other/favorite", by=anna, expect=200)
    assert await api.titles("/articles", favorited="Anna") == (["Other", "One"], 2)
    article = await api.service(Content).article("one", None)
    await api.call("DELETE", "/articles/one", by=jake, expect=204)
    assert await left(api, article) == (1, 1)
    assert await api.titles("/articles", favorited="Anna") == (["Other"], 1)
    await api.call("GET", "/articles/one/comments", expect=404)
    await api.call("DELETE", f"/articles/one/comments/{comment['id']}", by=anna, expect=404)
    await settled(api.platform)
    store = implementation(api.platform, "content")._store
    assert await store.comments(article.id, 10) == []
    assert await store.comment_author(article.id, comment["id"]) is None
    await work(api.platform, ["content"])
    assert await left(api, article) == (0, 0)
    assert await api.titles("/articles", favorited="Anna") == (["Other"], 1)


@pytest.mark.parametrize("adding", ["comment", "favorite"])
async def test_a_deletion_waits_for_whoever_adds_to_the_article(api: Api, adding: str) -> None:
    """So the job finds what was added while the article was being deleted."""
    store, article = await known(api, "One")
    id, place = await store.new_id(article.id), (article.id & 1023, article.id)
    async with somebody(api, article) as adder:
        if adding == "comment":
            await adder.execute(content.COMMENT, *place, id, 1, "x", article.updated_at)
        else:
            await adder.execute(content.HOLD, *place)
            await adder.execute(content.FAVORITE, *place, 1)
        deleting = asyncio.create_task(store.delete(article, []))
        await meets(api, article, deleting)
    await deleting
    assert sum(await left(api, article)) == 1
    await work(api.platform, ["content"])
    assert await left(api, article) == (0, 0)


async def test_an_erasure_goes_on_where_another_was_cut_off(api: Api) -> None:
    """And finds nothing to do when it is run once more."""
    store, article = await loaded(api)
    await store.delete(article, [])
    async with somebody(api, article) as holder:
        await holder.execute("select from content.favorite where article_id = $1 for update", article.id)
        erasure = asyncio.create_task(store.erase(article.id))
        await meets(api, article, erasure)
        erasure.cancel()
        with pytest.raises(asyncio.CancelledError):
            await erasure
    assert (await left(api, article), await erasing(api)) == ((0, HUNG[1]), 1)
    await work(api.platform, ["content"])
    assert (await left(api, article), await erasing(api)) == ((0, 0), 0)
    for pool in api.platform.database("content").pools.values():
        await pool.execute(jobs_support.again("content", "kind = 'content.erase'"))
    assert await work(api.platform, ["content"]) == 1
    assert (await left(api, article), await others(api, article)) == ((0, 0), 2)


@pytest.mark.parametrize(
    "sql", [content.ERASE_COMMENTS, content.ERASE_FAVORITES], ids=["comments", "favourites"]
)
async def test_an_erasure_that_meets_another_is_not_over_before_all_is_gone(api: Api, sql: str) -> None:
    """What it waited for is gone when it comes to it, and is not taken for the end."""
    store, article = await loaded(api)
    await store.delete(article, [])
    async with somebody(api, article) as other:
        await other.execute(sql, article.id & 1023, article.id, 3)
        erasure = asyncio.create_task(store.erase(article.id))
        await meets(api, article, erasure)
    await erasure
    assert await left(api, article) == (0, 0)
