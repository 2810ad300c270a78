"""Which statement answers a list of articles, and which one counts it. Pure: text and arguments, no I/O.

Newest first is always an index walk: over the articles themselves, over one author's, over a tag's rows or
over a person's favourites, which carry the article's creation time for that purpose. With several filters
the narrowest leads (favourites, then author, then tag) and the others are tested on the article's row.
Counting reads counters; only favourites and combinations of filters count rows. A favourite outlives its
article until a job has erased it: the articles that wait for that are few, and looked up.
Argument 1 is always the viewer; the caller adds order, limit and offset.
"""

from __future__ import annotations

import msgspec

from market.content.api import ArticleQuery
from springtide.db import bucket_of

__all__ = ["COUNT_ALL", "COUNT_FEED", "COUNT_TAG", "FEED", "Statement", "listing"]

COLUMNS = """{created} as created_at, {id} as id, article.author_id, article.slug, article.title,
    article.description, article.tags, article.favorites, article.version, article.updated_at,
    exists (
        select 1 from content.favorite as mine
        where mine.bucket = article.bucket and mine.article_id = article.id and mine.user_id = $1
    ) as favorited"""

# The planner takes bucket and id for independent and expects next to no row of such a join; it would read all
# of them instead of the first twenty. A subquery of one row cannot be mistaken.
ARTICLE_OF = """(
    select bucket, id, author_id, slug, title, description, tags, favorites, version, updated_at
    from content.article
    where bucket = {row}.bucket and id = {row}.article_id
    limit 1
)"""

PLAIN = COLUMNS.format(created="article.created_at", id="article.id")

FEED = f"""
with newest as (
    select recent.bucket, recent.id
    from unnest($2::bigint[]) as followed (author_id)
    cross join lateral (
        select bucket, id, created_at
        from content.article
        where bucket = (followed.author_id & 1023)::smallint and author_id = followed.author_id
        order by created_at desc, id desc
        limit $3
    ) as recent
    order by recent.created_at desc, recent.id desc
    limit $3
)
select {PLAIN}
from newest
join content.article on article.bucket = newest.bucket and article.id = newest.id
"""  # noqa: S608 - constants only

COUNT_FEED = """
select coalesce(sum(counted.articles), 0)::bigint
from unnest($1::bigint[]) as followed (author_id)
cross join lateral (
    select articles from content.author_count
    where bucket = (followed.author_id & 1023)::smallint and author_id = followed.author_id
    limit 1
) as counted
"""

COUNT_ALL = "select coalesce(sum(articles), 0)::bigint from content.article_count"

COUNT_TAG = "select coalesce(sum(articles), 0)::bigint from content.tag_use where tag = $1"

COUNT_AUTHOR = """
select coalesce(sum(articles), 0)::bigint from content.author_count where bucket = $1 and author_id = $2
"""

COUNT_FAN = """
select (select count(*) from content.favorite where user_id = $1)
    - (select count(*) from content.erasing as gone cross join lateral (
        select 1 from content.favorite as lost
        where lost.bucket = gone.bucket and lost.article_id = gone.article_id and lost.user_id = $1
        offset 0
    ) as lost)
"""


class Statement(msgspec.Struct, frozen=True):
    """`key` is whose bucket holds every row; None when the rows are on all shards. For whom it asks what."""

    query: ArticleQuery
    viewer: int | None
    rows: str
    rows_args: tuple[object, ...]
    count: str
    count_args: tuple[object, ...]
    key: int | None


def listing(query: ArticleQuery, viewer: int | None) -> Statement:
    author, tag, fan = query.author_id, query.tag, query.favorited_by
    created, id = "article.created_at", "article.id"
    source, where = "content.article", []
    args: list[object] = [viewer]

    def bind(value: object) -> str:
        args.append(value)
        return f"${len(args)}"

    if fan is not None:
        created, id = "favorite.article_created_at", "favorite.article_id"
        source = f"content.favorite cross join lateral {ARTICLE_OF.format(row='favorite')} as article"
        where.append(f"favorite.user_id = {bind(fan)}")
    elif author is None and tag is not None:
        created, id = "article_tag.created_at", "article_tag.article_id"
        source = f"content.article_tag cross join lateral {ARTICLE_OF.format(row='article_tag')} as article"
        where.append(f"article_tag.tag = {bind(tag)}")
    if author is not None:
        where.append(f"article.bucket = {bind(bucket_of(author))}::smallint")
        where.append(f"article.author_id = {bind(author)}")
    if tag is not None and (fan is not None or author is not None):
        where.append(f"{bind(tag)} = any(article.tags)")
    condition = f"\nwhere {' and '.join(where)}" if where else ""
    columns = COLUMNS.format(created=created, id=id)
    rows = f"\nselect {columns}\nfrom {source}{condition}\n"
    count, count_args = _counting(query, source, condition, args)
    return Statement(query, viewer, rows, tuple(args), count, count_args, author)


def _counting(
    query: ArticleQuery, source: str, condition: str, args: list[object]
) -> tuple[str, tuple[object, ...]]:
    author, tag, fan = query.author_id, query.tag, query.favorited_by
    if fan is None and author is None:
        return (COUNT_ALL, ()) if tag is None else (COUNT_TAG, (tag,))
    if fan is None and tag is None and author is not None:
        return COUNT_AUTHOR, (bucket_of(author), author)
    if author is None and tag is None:
        return COUNT_FAN, (fan,)
    # $1, the viewer, has no part in the condition, and PostgreSQL wants every argument used
    text = f"\nselect count(*) from {source}{condition} and ($1::bigint is null or true)\n"
    return text, tuple(args)
