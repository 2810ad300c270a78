"""The tables of the content module: with `lists.py`, the only place with its SQL.

An article, its comments, favourites and tags are in one bucket, its author's. Whoever changes what hangs on
an article locks the article's row first, so that nothing is added to an article that is being deleted, and
two who change it never wait for each other in a circle. Counters come last, always in the same order.
Comments and favourites outlive their article until a job has erased them: who reads them asks for it, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import asyncpg

from market.content.api import Article, ArticleSummary, Comment
from market.content.jobs import ArticleChanged, ArticleRemoved, Commented, EraseArticle
from market.content.lists import COUNT_FEED, FEED, Statement
from market.content.tags import Counted
from market.search.api import Versioned
from springtide.db import ASC, DESC, Consistency, Database, WriteTransaction, bucket_of

__all__ = ["COMMENTS", "TAGS", "ContentStore", "Gone", "Renamed", "Said", "TitleTaken", "comment_of"]

NEWEST_FIRST = [("created_at", DESC), ("id", DESC)]

ERASED = 1000
"""Comments or favourites that one transaction of `erase` deletes."""

COLUMNS = """id, author_id, slug, title, description, body, tags, favorites, version,
    created_at, updated_at"""

FAVORITED = """
exists (
    select 1 from content.favorite as mine
    where mine.bucket = article.bucket and mine.article_id = article.id and mine.user_id = $3
) as favorited
"""

ARTICLE = f"select {COLUMNS}, {FAVORITED} from content.article where bucket = $1 and id = $2"  # noqa: S608

SUMMARIES = """
select article.id, article.author_id, article.slug, article.title, article.description, article.tags,
    article.favorites, article.version, article.created_at, article.updated_at,
    exists (
        select 1 from content.favorite as mine
        where mine.bucket = article.bucket and mine.article_id = article.id and mine.user_id = $2
    ) as favorited
from unnest($1::bigint[]) as wanted (id)
cross join lateral (
    select * from content.article where bucket = (wanted.id & 1023)::smallint and id = wanted.id limit 1
) as article
"""

VERSIONS = """
select bucket, id, version from content.article where (bucket, id) > ($1::smallint, $2::bigint)
"""

TEXTS = """
select article.id, article.version, article.title, article.description, article.body, article.tags
from unnest($1::bigint[]) as wanted (id)
cross join lateral (
    select * from content.article where bucket = (wanted.id & 1023)::smallint and id = wanted.id limit 1
) as article
"""

INSERT = f"""
insert into content.article
    (bucket, id, author_id, slug, title, description, body, tags, favorites, created_at, updated_at)
values ($1, $2, $3, $4, $5, $6, $7, $8, 0, $9, $9)
on conflict (bucket, author_id, md5(lower(title))) do nothing
returning {COLUMNS}, false as favorited
"""  # noqa: S608 - constants only

LOCK = """
select slug, tags, version, created_at from content.article where bucket = $1 and id = $2 for update
"""

HOLD = "select 1 from content.article where bucket = $1 and id = $2 for no key update"

UPDATE = """
update content.article
set slug = coalesce($3, slug),
    title = coalesce($4, title),
    description = coalesce($5, description),
    body = coalesce($6, body),
    tags = coalesce($7::text[], tags),
    version = version + 1,
    updated_at = greatest($8::timestamptz, updated_at + interval '1 millisecond')
where bucket = $1 and id = $2
"""

DELETE = "delete from content.article where bucket = $1 and id = $2"

ADD_TAGS = """
insert into content.article_tag (bucket, article_id, tag, created_at)
select $1, $2, tag, $4 from unnest($3::text[]) as added (tag)
"""

REMOVE_TAGS = """
delete from content.article_tag where bucket = $1 and article_id = $2 and tag = any($3::text[])
"""

BEGIN_ERASING = "insert into content.erasing (bucket, article_id) values ($1, $2)"

END_ERASING = "delete from content.erasing where bucket = $1 and article_id = $2"

# Locked as they are chosen: rows that another run has just deleted are passed over, so fewer than $3 are the
# last ones.
ERASE_COMMENTS = """
delete from content.comment
where bucket = $1 and id = any(array(
    select id from content.comment where bucket = $1 and article_id = $2 limit $3 for update
))
"""

ERASE_FAVORITES = """
delete from content.favorite
where bucket = $1 and article_id = $2 and user_id = any(array(
    select user_id from content.favorite where bucket = $1 and article_id = $2 limit $3 for update
))
"""

FORMER_SLUGS = """
select slug from content.former_slug where bucket = $1 and article_id = $2 order by created_at, slug
"""

ADD_FORMER_SLUG = """
insert into content.former_slug (bucket, article_id, slug, created_at) values ($1, $2, $3, $4)
on conflict (bucket, article_id, slug) do nothing
"""

DROP_FORMER_SLUGS = """
delete from content.former_slug where bucket = $1 and article_id = $2 and slug = any($3::text[])
"""

COUNT_ARTICLES = """
insert into content.article_count (bucket, articles) values ($1, $2)
on conflict (bucket) do update set articles = article_count.articles + excluded.articles
"""

COUNT_AUTHOR = """
insert into content.author_count (bucket, author_id, articles) values ($1, $2, $3)
on conflict (bucket, author_id) do update set articles = author_count.articles + excluded.articles
"""

COUNT_TAGS = """
insert into content.tag_use (bucket, tag, articles)
select $1, used.tag, used.change
from unnest($2::text[], $3::bigint[]) as used (tag, change)
order by used.tag
on conflict (bucket, tag) do update set articles = tag_use.articles + excluded.articles
"""

TAGS = """
select tag, articles, walked from (
    select tag, sum(articles)::bigint as articles, (sum(count(*)) over ())::bigint as walked
    from content.tag_use
    where articles > 0
    group by tag
) as used
"""

TAGS_FROM = """
select tag
from content.tag_use
where articles > 0
group by tag
having sum(articles) >= $1
"""

TAGS_NAMED = """
select tag, sum(articles)::bigint as articles
from content.tag_use
where articles > 0 and tag = any($1::text[])
group by tag
"""

FAVORITE = """
insert into content.favorite (bucket, article_id, user_id, article_created_at)
select bucket, id, $3, created_at from content.article where bucket = $1 and id = $2
on conflict (bucket, article_id, user_id) do nothing
returning 1
"""

UNFAVORITE = """
delete from content.favorite where bucket = $1 and article_id = $2 and user_id = $3 returning 1
"""

COUNT_FAVORITES = "update content.article set favorites = favorites + $3 where bucket = $1 and id = $2"

COMMENT = """
insert into content.comment (bucket, id, article_id, author_id, body, created_at, updated_at)
select bucket, $3, id, $4, $5, $6, $6 from content.article where bucket = $1 and id = $2 for key share
returning id, article_id, author_id, body, created_at, updated_at
"""

COMMENTED = """
select article.author_id as to_whom, article.slug, article.title, comment.author_id as by_whom, comment.body
from content.comment
join content.article on article.bucket = comment.bucket and article.id = comment.article_id
where comment.bucket = $1 and comment.id = $2 and comment.article_id = $3
"""

COMMENTS = """
select id, article_id, author_id, body, created_at, updated_at
from content.comment
where bucket = $1 and article_id = $2
    and exists (select 1 from content.article where bucket = $1 and id = $2)
order by created_at desc, id desc
limit $3
"""

COMMENT_AUTHOR = """
select author_id from content.comment
where bucket = $1 and id = $2 and article_id = $3
    and exists (select 1 from content.article where bucket = $1 and id = $3)
"""

DELETE_COMMENT = """
delete from content.comment where bucket = $1 and id = $2 and article_id = $3 and author_id = $4 returning 1
"""


class Gone(Exception):
    """The article was deleted meanwhile; whatever the transaction did is undone."""


class Renamed(Exception):
    """The article has another slug than when it was read; whatever the transaction did is undone."""


class TitleTaken(Exception):
    """The author has another article of that title; whatever the transaction did is undone."""


class Said(NamedTuple):
    """A comment by `by_whom`, on an article `to_whom`."""

    to_whom: int
    slug: str
    title: str
    by_whom: int
    body: str


class ContentStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    async def new_id(self, author: int) -> int:
        """An id in the author's bucket."""
        return await self._db.ids.take(author)

    async def find(self, slug: str) -> int | None:
        """Whose `slug` it is, or was."""
        return await self._db.lookup("slug", slug)

    async def named(self, slug: str, viewer: int | None) -> Article | None:
        """The article whose `slug` it is, or was."""
        row = await self._db.fetch_held("slug", slug, ARTICLE, viewer)
        return None if row is None else _article(row)

    async def insert(
        self,
        *,
        id: int,
        author: int,
        slug: str,
        title: str,
        description: str,
        body: str,
        tags: Sequence[str],
        at: datetime,
    ) -> Article:
        """Raises AlreadyReserved for the slug, TitleTaken."""
        bucket = bucket_of(id)
        async with self._db.reserving(id, claim={"slug": slug}) as tx:
            row = await tx.fetch_one(
                INSERT, bucket, id, author, slug, title, description, body, list(tags), at
            )
            if row is None:
                raise TitleTaken
            if tags:
                await tx.execute(ADD_TAGS, bucket, id, list(tags), at)
            await _count(tx, author, 1, dict.fromkeys(tags, 1))
            await _tell(tx, id)
            self._stale_article(tx, id)
            self._stale_lists(tx, author, tags)
        return _article(row)

    async def update(
        self,
        known: Article,
        *,
        slug: str | None,
        forget: Sequence[str],
        title: str | None,
        description: str | None,
        body: str | None,
        tags: Sequence[str] | None,
        at: datetime,
    ) -> Article:
        """Change what is given and answer the article as its author sees it.

        `forget` are slugs that it had before and lets go of. A title is only given to the article as it is
        `known`, whose slugs were chosen for it. Raises AlreadyReserved, TitleTaken, Gone, Renamed.
        """
        id, bucket = known.id, bucket_of(known.id)
        names = {"slug": slug} if slug is not None else {}
        block = self._db.reserving(id, claim=names, release={"slug": forget}) if names else self._db.write(id)
        async with block as tx:
            before = await tx.fetch_one(LOCK, bucket, id)
            if before is None:
                raise Gone
            if title is not None and before["slug"] != known.slug:
                raise Renamed
            values = None if tags is None else list(tags)
            try:
                await tx.execute(UPDATE, bucket, id, slug, title, description, body, values, at)
            except asyncpg.UniqueViolationError as error:
                raise TitleTaken from error
            if slug is not None and slug != before["slug"]:
                await tx.execute(DROP_FORMER_SLUGS, bucket, id, [slug, *forget])
                await tx.execute(ADD_FORMER_SLUG, bucket, id, before["slug"], at)
            if tags is not None:
                change = _difference(before["tags"], tags)
                if removed := [tag for tag, by in change.items() if by < 0]:
                    await tx.execute(REMOVE_TAGS, bucket, id, removed)
                if added := [tag for tag, by in change.items() if by > 0]:
                    await tx.execute(ADD_TAGS, bucket, id, added, before["created_at"])
                await _count_tags(tx, bucket, change)
                self._stale_tags(tx, change)
            self._stale_article(tx, id)
            row = await tx.fetch_one(ARTICLE, bucket, id, known.author_id)
            await _tell(tx, id)
        return _article(row)

    async def former_slugs(self, id: int) -> list[str]:
        """The slugs that also lead to the article, the oldest first; as they are now, to be given up."""
        reader = self._db.read(id, consistency=Consistency.STRONG)
        return [row[0] for row in await reader.fetch(FORMER_SLUGS, bucket_of(id), id)]

    async def delete(self, known: Article, former: list[str]) -> None:
        """With its tags and slugs; comments and favourites are left to a job, so that nobody waits for them.

        Raises Gone, also when its slugs are other ones by now.
        """
        id, bucket = known.id, bucket_of(known.id)
        async with self._db.reserving(id, release={"slug": [known.slug, *former]}) as tx:
            before = await tx.fetch_one(LOCK, bucket, id)
            if before is None or before["slug"] != known.slug:
                raise Gone
            if [row[0] for row in await tx.fetch(FORMER_SLUGS, bucket, id)] != former:
                raise Gone
            await tx.execute(REMOVE_TAGS, bucket, id, before["tags"])
            await tx.execute(DROP_FORMER_SLUGS, bucket, id, former)
            await tx.execute(DELETE, bucket, id)
            await tx.execute(BEGIN_ERASING, bucket, id)
            await _count(tx, known.author_id, -1, dict.fromkeys(before["tags"], -1))
            await tx.enqueue_many([ArticleRemoved(id, before["version"] + 1), EraseArticle(id)])
            self._stale_article(tx, id)
            self._stale_lists(tx, known.author_id, before["tags"])
            self._stale_comments(tx, id)

    async def erase(self, id: int) -> None:
        """The comments and favourites of an article that is gone, ERASED at a time."""
        for sql in (ERASE_COMMENTS, ERASE_FAVORITES):
            erased = ERASED
            while erased == ERASED:
                async with self._db.write(id) as tx:
                    done = await tx.execute(sql, bucket_of(id), id, ERASED)
                erased = int(done.rpartition(" ")[2])
        async with self._db.write(id) as tx:
            await tx.execute(END_ERASING, bucket_of(id), id)

    async def favorite(self, id: int, user: int, *, wanted: bool) -> Article:
        """Make `user` a favouriter of the article, or not; answers it as that user sees it. Raises Gone."""
        bucket = bucket_of(id)
        async with self._db.write(id) as tx:
            if await tx.fetch_value(HOLD, bucket, id) is None:
                raise Gone
            changed = await tx.fetch_value(FAVORITE if wanted else UNFAVORITE, bucket, id, user)
            if changed is not None:
                await tx.execute(COUNT_FAVORITES, bucket, id, 1 if wanted else -1)
                self._stale_article(tx, id)
                self._stale_favor(tx, id, user)
            row = await tx.fetch_one(ARTICLE, bucket, id, user)
        return _article(row)

    async def page(self, statement: Statement, limit: int, offset: int) -> list[ArticleSummary]:
        if statement.key is None:
            rows = await self._db.scatter(
                statement.rows, *statement.rows_args, order=NEWEST_FIRST, limit=limit, offset=offset
            )
        else:
            args = statement.rows_args
            part = f"limit ${len(args) + 1} offset ${len(args) + 2}"  # one statement text for all parts
            sql = f"{statement.rows} order by created_at desc, id desc {part}"
            rows = await self._db.read(statement.key).fetch(sql, *args, limit, offset)
        return [_summary(row) for row in rows]

    async def count(self, statement: Statement) -> int:
        if statement.key is None:
            return await self._db.scatter_sum(statement.count, *statement.count_args)
        value: int = await self._db.read(statement.key).fetch_value(statement.count, *statement.count_args)
        return value

    async def summaries(self, ids: Sequence[int], viewer: int | None) -> list[ArticleSummary]:
        """In no order."""
        return [_summary(row) for row in await self._db.fetch_many(SUMMARIES, list(ids), viewer)]

    async def versions(self, after: int | None, limit: int) -> list[Versioned]:
        """Articles behind the id `after` (None: from the first), bucket by bucket."""
        behind = (-1, -1) if after is None else (bucket_of(after), after)
        rows = await self._db.scatter(VERSIONS, *behind, order=[("bucket", ASC), ("id", ASC)], limit=limit)
        return [Versioned(id=row["id"], version=row["version"]) for row in rows]

    async def texts(self, ids: Sequence[int]) -> list[Any]:
        """Rows of id, version, title, description, body and tags, in no order."""
        return await self._db.fetch_many(TEXTS, list(ids))

    async def feed(
        self, authors: Sequence[int], viewer: int, limit: int, offset: int
    ) -> list[ArticleSummary]:
        rows = await self._db.scatter(
            FEED, viewer, list(authors), limit + offset, order=NEWEST_FIRST, limit=limit, offset=offset
        )
        return [_summary(row) for row in rows]

    async def count_feed(self, authors: Sequence[int]) -> int:
        return await self._db.scatter_sum(COUNT_FEED, list(authors))

    async def comment(self, article: int, id: int, author: int, body: str, at: datetime) -> Comment:
        """`id` is in the article's bucket. Raises Gone."""
        async with self._db.write(article) as tx:
            row = await tx.fetch_one(COMMENT, bucket_of(article), article, id, author, body, at)
            if row is None:
                raise Gone
            await tx.enqueue(Commented(article, id))
            self._stale_comments(tx, article)
        return comment_of(row)

    async def commented(self, article: int, id: int) -> Said | None:
        """A comment with its article; None when either is gone."""
        row = await self._db.read(article).fetch_one(COMMENTED, bucket_of(article), id, article)
        return None if row is None else Said(*row)

    async def comments(self, article: int, limit: int) -> list[Comment]:
        rows = await self._db.read(article).fetch(COMMENTS, bucket_of(article), article, limit)
        return [comment_of(row) for row in rows]

    async def comment_author(self, article: int, id: int) -> int | None:
        author: int | None = await self._db.read(article).fetch_value(
            COMMENT_AUTHOR, bucket_of(article), id, article
        )
        return author

    async def delete_comment(self, article: int, id: int, author: int) -> bool:
        """False when there was none of that author's."""
        async with self._db.write(article) as tx:
            deleted = await tx.fetch_value(DELETE_COMMENT, bucket_of(article), id, article, author)
            if deleted is not None:
                self._stale_comments(tx, article)
        return deleted is not None

    async def tags(self, limit: int) -> Counted:
        """The `limit` most used tags, and maybe others, with the articles that have them.

        A tag may be in nobody's best and yet first in the sum of m shards. What is seen of the best gives a
        floor for the sum of number `limit`; whoever reaches it has floor/m on some shard (the threshold
        algorithm TPUT of Cao and Wang, 2004). So: the best, who has floor/m anywhere, their exact sums.
        """
        shards = len(self._db.shards.shards)
        rows = await self._db.scatter(TAGS, order=[("articles", DESC), ("tag", ASC)], limit=limit * shards)
        uses = _added_up(rows)
        walked = shards * max((row["walked"] for row in rows), default=0)
        if shards > 1 and len(rows) == limit * shards:
            floor = sorted(uses.values(), reverse=True)[limit - 1]
            candidates = await self._db.scatter(TAGS_FROM, -(-floor // shards))
            named = list(dict.fromkeys(row["tag"] for row in candidates))
            uses = _added_up(await self._db.scatter(TAGS_NAMED, named))
        return Counted(uses, walked)

    # What a write makes stale; here nothing is kept, so there is nothing to tell (`cached.py`).

    def _stale_article(self, tx: WriteTransaction, id: int) -> None:
        """The article, with and without its body."""

    def _stale_lists(self, tx: WriteTransaction, author: int, tags: Iterable[str]) -> None:
        """The lists that it has entered or left."""

    def _stale_tags(self, tx: WriteTransaction, tags: Iterable[str]) -> None:
        """The lists of these tags, and which are the most used."""

    def _stale_favor(self, tx: WriteTransaction, id: int, user: int) -> None:
        """Whether `user` favours it."""

    def _stale_comments(self, tx: WriteTransaction, id: int) -> None:
        """What is said below it."""


def _added_up(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    uses: dict[str, int] = {}
    for row in rows:
        uses[row["tag"]] = uses.get(row["tag"], 0) + row["articles"]
    return uses


async def _tell(tx: WriteTransaction, id: int) -> None:
    """One job for all changes that it has not begun to tell of."""
    await tx.enqueue(ArticleChanged(id), unique_key=str(id))


async def _count(tx: Any, author: int, by: int, tags: Mapping[str, int]) -> None:
    bucket = bucket_of(author)
    await _count_tags(tx, bucket, tags)
    await tx.execute(COUNT_AUTHOR, bucket, author, by)
    await tx.execute(COUNT_ARTICLES, bucket, by)


async def _count_tags(tx: Any, bucket: int, change: Mapping[str, int]) -> None:
    if change:
        await tx.execute(COUNT_TAGS, bucket, list(change), list(change.values()))


def _difference(before: Sequence[str], after: Sequence[str]) -> dict[str, int]:
    """Tag -> +1 for one that is new, -1 for one that is gone."""
    change = {tag: 1 for tag in after if tag not in before}
    change.update({tag: -1 for tag in before if tag not in after})
    return change


def _article(row: Any) -> Article:
    return Article(
        id=row["id"],
        author_id=row["author_id"],
        slug=row["slug"],
        title=row["title"],
        description=row["description"],
        body=row["body"],
        tags=row["tags"],
        favorites=row["favorites"],
        favorited=row["favorited"],
        version=row["version"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def _summary(row: Any) -> ArticleSummary:
    return ArticleSummary(
        id=row["id"],
        author_id=row["author_id"],
        slug=row["slug"],
        title=row["title"],
        description=row["description"],
        tags=row["tags"],
        favorites=row["favorites"],
        favorited=row["favorited"],
        version=row["version"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )


def comment_of(row: Any) -> Comment:
    return Comment(
        id=row["id"],
        article_id=row["article_id"],
        author_id=row["author_id"],
        body=row["body"],
        created_at=row["created_at"],
        updated_at=row["updated_at"],
    )
