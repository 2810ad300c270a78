"""Bulk loading of the content module: which columns its tables have and what else a row entails.

For seeds and imports, which write by COPY; everything else goes through the service. The caller brings ids
in the right buckets (an article's is its author's, a comment's the article's), `favorites` that equals the
number of favourites it will copy, and calls `copy_counts` after the last article.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

from market.content import rules
from market.content.indexing import document
from market.search.api import Document
from springtide.db import Database, bucket_of

if TYPE_CHECKING:
    from springtide.ops.load.seeding import BulkLoad

__all__ = [
    "BulkArticle",
    "BulkComment",
    "BulkFavorite",
    "copy_articles",
    "copy_comments",
    "copy_counts",
    "copy_favorites",
    "document_of",
    "is_empty",
]

BATCH = 5_000

COUNTS = {
    "article_count": """
insert into content.article_count (bucket, articles)
select bucket, count(*) from content.article group by bucket
""",
    "author_count": """
insert into content.author_count (bucket, author_id, articles)
select bucket, author_id, count(*) from content.article group by bucket, author_id
""",
    "tag_use": """
insert into content.tag_use (bucket, tag, articles)
select bucket, tag, count(*) from content.article_tag group by bucket, tag
""",
}


class BulkArticle(NamedTuple):
    """Its slug is the first that its title gives: titles of one load must differ in more than punctuation."""

    id: int
    author: int
    title: str
    description: str
    body: str
    tags: list[str]
    favorites: int
    at: datetime


class BulkFavorite(NamedTuple):
    article: int
    user: int
    article_at: datetime


class BulkComment(NamedTuple):
    id: int
    article: int
    author: int
    body: str
    at: datetime


def document_of(row: BulkArticle) -> Document:
    """What of it is to be found."""
    return document(row.id, 1, row.title, row.description, row.body, row.tags)


async def is_empty(db: Database) -> bool:
    """Whether there is no article on any shard."""
    return not await db.scatter("select id from content.article", limit=1)


async def copy_articles(load: BulkLoad, db: Database, articles: Iterable[BulkArticle]) -> None:
    """`articles` with their tags and the reservations of their slugs, BATCH at a time."""
    columns = ["bucket", "id", "author_id", "slug", "title", "description", "body", "tags", "favorites"]
    waiting = iter(articles)
    while batch := list(islice(waiting, BATCH)):
        slugs = [rules.slugs(row.title, row.id)[0] for row in batch]
        rows = (
            (bucket_of(row.id), row.id, row.author, slug, *row[2:], row.at)
            for row, slug in zip(batch, slugs, strict=True)
        )
        await load.copy(db, "article", [*columns, "created_at", "updated_at"], rows)
        tags = ((bucket_of(row.id), row.id, tag, row.at) for row in batch for tag in row.tags)
        await load.copy(db, "article_tag", ["bucket", "article_id", "tag", "created_at"], tags)
        reserved = ((slug, row.id) for row, slug in zip(batch, slugs, strict=True))
        await load.reserve(db, "slug", reserved)


async def copy_favorites(load: BulkLoad, db: Database, favorites: Iterable[BulkFavorite]) -> None:
    """`favorites`, each pair of article and user at most once."""
    columns = ["bucket", "article_id", "user_id", "article_created_at"]
    await load.copy(db, "favorite", columns, ((bucket_of(row.article), *row) for row in favorites))


async def copy_comments(load: BulkLoad, db: Database, comments: Iterable[BulkComment]) -> None:
    columns = ["bucket", "id", "article_id", "author_id", "body", "created_at", "updated_at"]
    await load.copy(db, "comment", columns, ((bucket_of(row.article), *row, row.at) for row in comments))


async def copy_counts(load: BulkLoad, db: Database) -> None:
    """What the module counts as it goes, from the articles that the load has copied into empty tables."""
    for table, sql in COUNTS.items():
        await load.execute(db, table, sql)
