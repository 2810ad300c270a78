"""The content module's reads over the cache: what an answer is made of, each part once.

    slug:{slug}               whose it is: a hint, judged by the article that it leads to
    article, summary:{id}     an article, with and without its body, as somebody sees it who is not signed in
    favored:{article}:{user}  whether that user favours it
    comments:{id}             what is shown below an article
    newest, tagged:{tag}      how long a list is and its first articles, on every shard
    authored:{author}         the same of one author
    tags                      the most used ones

Lists hold ids: who changes an article makes two values stale, and no list. What is kept of a list ends after
`HEAD` articles; deeper parts, and lists by several filters, are the database's. A hint needs no invalidation:
an article's row says which slugs lead to it, and that value is stale with the commit that changes them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec

from market.content.api import MAX_COMMENTS, Article, ArticleSummary, Comment
from market.content.lists import COUNT_ALL, COUNT_TAG, Statement
from market.content.store import COMMENTS, TAGS, ContentStore, comment_of
from market.content.tags import MAX_TAGS, Counted
from springtide.cache import EACH, Cache
from springtide.db import Database, Queries, WriteTransaction, bucket_of

__all__ = ["HEAD", "CachedContent"]

HEAD = 100
"""Articles that are kept of a list."""

ARTICLES = """
select article.id, article.author_id, article.slug, article.title, article.description, {body}
    article.tags, article.favorites, article.version, article.created_at, article.updated_at
from unnest($1::bigint[]) as wanted (id)
cross join lateral (
    select * from content.article where bucket = (wanted.id & 1023)::smallint and id = wanted.id limit 1
) as article
"""

FORMER = """
array(
    select former.slug from content.former_slug as former
    where former.bucket = article.bucket and former.article_id = article.id
) as former, article.body,
"""

FAVORED = """
select wanted.article_id, wanted.user_id, exists (
    select 1 from content.favorite as mine
    where mine.bucket = (wanted.article_id & 1023)::smallint and mine.article_id = wanted.article_id
        and mine.user_id = wanted.user_id
) as favored
from unnest($1::bigint[], $2::bigint[]) as wanted (article_id, user_id)
"""

NEWEST = f"""
select ({COUNT_ALL}) as count, head.created_at, head.id
from (select 1) as one
left join lateral (
    select created_at, id from content.article order by created_at desc, id desc limit $1
) as head on true
order by head.created_at desc, head.id desc
"""  # noqa: S608 - constants only

TAGGED = f"""
select ({COUNT_TAG}) as count, head.created_at, head.id
from (select 1) as one
left join lateral (
    select created_at, article_id as id from content.article_tag where tag = $1
    order by created_at desc, article_id desc limit $2
) as head on true
order by head.created_at desc, head.id desc
"""  # noqa: S608 - constants only

AUTHORED = """
select author.id as author_id, coalesce(counted.articles, 0) as count, head.created_at, head.id
from unnest($1::bigint[]) as author (id)
left join lateral (
    select articles from content.author_count
    where bucket = (author.id & 1023)::smallint and author_id = author.id limit 1
) as counted on true
left join lateral (
    select created_at, id from content.article
    where bucket = (author.id & 1023)::smallint and author_id = author.id
    order by created_at desc, id desc limit $2
) as head on true
order by head.created_at desc, head.id desc
"""

MAX_FEED = 200
"""Followed authors whose lists are merged here; with more, one statement of the database does it."""


class _Summary(msgspec.Struct, frozen=True):
    id: int
    author_id: int
    slug: str
    title: str
    description: str
    tags: tuple[str, ...]
    favorites: int
    version: int
    created_at: datetime
    updated_at: datetime


class _Article(_Summary, frozen=True):
    body: str
    former: tuple[str, ...]


class _Head(msgspec.Struct, frozen=True):
    """`count` articles, the newest of them as (when, id), at most HEAD."""

    count: int
    newest: tuple[tuple[datetime, int], ...]

    @property
    def whole(self) -> bool:
        return len(self.newest) < HEAD


class _Used(msgspec.Struct, frozen=True):
    """Tags with the number of their articles, and how many rows were added up for it."""

    uses: tuple[tuple[str, int], ...]
    rows: int


class CachedContent(ContentStore):
    """`ContentStore` with a cache before its reads; writes say what they make stale."""

    def __init__(self, db: Database, cache: Cache) -> None:
        super().__init__(db)
        define = cache.define
        self._hints = define("slug:{slug:str}", int, load=super().find, negative=None)
        self._articles = define("article:{id:int}", _Article, database=db, load_many=_load_articles)
        self._summaries = define("summary:{id:int}", _Summary, database=db, load_many=_load_summaries)
        self._favored = define(
            "favored:{article:int}:{user:int}",
            bool,
            database=db,
            load_many=_load_favored,
            key=lambda article, _: article,
            l1=0,
            ttl=60.0,
        )
        self._comments = define(
            "comments:{article:int}", tuple[Comment, ...], database=db, load=_load_comments
        )
        self._newest = define("newest", _Head, database=db, load=_load_newest, key=EACH)
        self._tagged = define("tagged:{tag:str}", _Head, database=db, load=_load_tagged, key=EACH)
        self._authored = define("authored:{author:int}", _Head, database=db, load_many=_load_authored)
        self._used = define("tags", _Used, database=db, load=_load_used, key=EACH)

    # -- reads -----------------------------------------------------------------------------------------

    async def find(self, slug: str) -> int | None:
        article = await self._led_to(slug)
        return await super().find(slug) if article is None else article.id

    async def named(self, slug: str, viewer: int | None) -> Article | None:
        article = await self._led_to(slug)
        if article is None:
            return await super().named(slug, viewer)
        seen = viewer is not None and await self._favored.get(article.id, viewer)
        return Article(
            id=article.id,
            author_id=article.author_id,
            slug=article.slug,
            title=article.title,
            description=article.description,
            body=article.body,
            tags=list(article.tags),
            favorites=article.favorites,
            favorited=bool(seen),
            version=article.version,
            created_at=article.created_at,
            updated_at=article.updated_at,
        )

    async def summaries(self, ids: Sequence[int], viewer: int | None) -> list[ArticleSummary]:
        found = await self._summaries.get_many(ids)
        favored: Mapping[Any, bool] = {}
        if viewer is not None:
            favored = await self._favored.get_many([(id, viewer) for id in found])
        return [
            ArticleSummary(
                id=id,
                author_id=one.author_id,
                slug=one.slug,
                title=one.title,
                description=one.description,
                tags=list(one.tags),
                favorites=one.favorites,
                favorited=favored.get((id, viewer), False),
                version=one.version,
                created_at=one.created_at,
                updated_at=one.updated_at,
            )
            for id, one in found.items()
        ]

    async def page(self, statement: Statement, limit: int, offset: int) -> list[ArticleSummary]:
        heads = await self._heads(statement)
        ids = None if heads is None else _part(heads, limit, offset)
        if ids is None:
            return await super().page(statement, limit, offset)
        return await self.summaries(ids, statement.viewer)

    async def count(self, statement: Statement) -> int:
        heads = await self._heads(statement)
        return await super().count(statement) if heads is None else sum(head.count for head in heads)

    async def feed(
        self, authors: Sequence[int], viewer: int, limit: int, offset: int
    ) -> list[ArticleSummary]:
        ids = None
        if len(authors) <= MAX_FEED:
            ids = _part((await self._authored.get_many(authors)).values(), limit, offset)
        if ids is None:
            return await super().feed(authors, viewer, limit, offset)
        return await self.summaries(ids, viewer)

    async def count_feed(self, authors: Sequence[int]) -> int:
        if len(authors) > MAX_FEED:
            return await super().count_feed(authors)
        return sum(head.count for head in (await self._authored.get_many(authors)).values())

    async def comments(self, article: int, limit: int) -> list[Comment]:
        return list(await self._comments.get(article) or ())[:limit]

    async def tags(self, limit: int) -> Counted:
        """Of one shard; with several, a tag's place needs all of them (see `ContentStore.tags`)."""
        if len(self._db.shards.shards) > 1:
            return await super().tags(limit)
        (used,) = await self._used.get_each()
        return Counted({}, 0) if used is None else Counted(dict(used.uses[:limit]), used.rows)

    async def _led_to(self, slug: str) -> _Article | None:
        """The article that the hint of `slug` leads to, if its slug it is or was; None says nothing."""
        id = await self._hints.get(slug)
        article = None if id is None else await self._articles.get(id)
        return article if article is not None and slug in (article.slug, *article.former) else None

    async def _heads(self, statement: Statement) -> list[_Head] | None:
        """The heads of the list on every shard; None for a list that is not kept."""
        query = statement.query
        if query.favorited_by is not None or (query.author_id is not None and query.tag is not None):
            return None
        if query.author_id is not None:
            head = await self._authored.get(query.author_id)
            return [] if head is None else [head]
        heads = await (self._newest.get_each() if query.tag is None else self._tagged.get_each(query.tag))
        return [head for head in heads if head is not None]

    # -- what writes make stale ------------------------------------------------------------------------

    def _stale_article(self, tx: WriteTransaction, id: int) -> None:
        tx.invalidate(self._articles, id)
        tx.invalidate(self._summaries, id)

    def _stale_lists(self, tx: WriteTransaction, author: int, tags: Iterable[str]) -> None:
        tx.invalidate(self._newest)
        tx.invalidate(self._authored, author)
        self._stale_tags(tx, tags)

    def _stale_tags(self, tx: WriteTransaction, tags: Iterable[str]) -> None:
        changed = list(tags)
        for tag in changed:
            tx.invalidate(self._tagged, tag)
        if changed:
            tx.invalidate(self._used)

    def _stale_favor(self, tx: WriteTransaction, id: int, user: int) -> None:
        tx.invalidate(self._favored, id, user)

    def _stale_comments(self, tx: WriteTransaction, id: int) -> None:
        tx.invalidate(self._comments, id)


def _part(heads: Iterable[_Head], limit: int, offset: int) -> list[int] | None:
    """The ids of a part of the merged list; None when it may go on behind what is kept of one."""
    kept = list(heads)
    merged = sorted((row for head in kept for row in head.newest), reverse=True)
    # behind the last row of a head that was cut, another row of its list could come first
    floor = max((head.newest[-1] for head in kept if not head.whole), default=None)
    part = merged[offset : offset + limit]
    complete = floor is None or (len(part) == limit and part[-1] >= floor)
    return [id for _, id in part] if complete else None


async def _load_articles(source: Queries, ids: Sequence[int]) -> dict[int, _Article]:
    rows = await source.fetch(ARTICLES.format(body=FORMER), list(ids))
    return {
        row["id"]: _Article(**_fields(row), body=row["body"], former=tuple(row["former"])) for row in rows
    }


async def _load_summaries(source: Queries, ids: Sequence[int]) -> dict[int, _Summary]:
    rows = await source.fetch(ARTICLES.format(body=""), list(ids))
    return {row["id"]: _Summary(**_fields(row)) for row in rows}


def _fields(row: Any) -> dict[str, Any]:
    return {name: row[name] for name in _Summary.__struct_fields__ if name != "tags"} | {
        "tags": tuple(row["tags"])
    }


async def _load_favored(source: Queries, keys: Sequence[tuple[int, int]]) -> dict[tuple[int, int], bool]:
    rows = await source.fetch(FAVORED, [article for article, _ in keys], [user for _, user in keys])
    return {(row["article_id"], row["user_id"]): row["favored"] for row in rows}


async def _load_comments(source: Queries, article: int) -> tuple[Comment, ...]:
    rows = await source.fetch(COMMENTS, bucket_of(article), article, MAX_COMMENTS)
    return tuple(comment_of(row) for row in rows)


async def _load_newest(source: Queries) -> _Head:
    return _head(await source.fetch(NEWEST, HEAD))


async def _load_tagged(source: Queries, tag: str) -> _Head:
    return _head(await source.fetch(TAGGED, tag, HEAD))


async def _load_authored(source: Queries, authors: Sequence[int]) -> dict[int, _Head]:
    rows: dict[int, list[Any]] = {}
    for row in await source.fetch(AUTHORED, list(authors), HEAD):
        rows.setdefault(row["author_id"], []).append(row)
    return {author: _head(found) for author, found in rows.items()}


def _head(rows: Sequence[Any]) -> _Head:
    """Of one list: a row at least, without an article where there is none."""
    return _Head(
        rows[0]["count"], tuple((row["created_at"], row["id"]) for row in rows if row["id"] is not None)
    )


async def _load_used(source: Queries) -> _Used:
    rows = await source.fetch(f"{TAGS} order by articles desc, tag limit {MAX_TAGS}")
    return _Used(
        tuple((row["tag"], row["articles"]) for row in rows), max((row["walked"] for row in rows), default=0)
    )
