"""GET /api/articles, /api/articles/feed and /api/articles/{slug}.

One statement for the rows with their authors joined, one for the count; what the viewer likes and follows is
asked in two more, for the whole page at once. Bodies are not loaded for lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel
from sqlalchemy import bindparam, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer, joinedload

from bench.twin.auth import Anybody, Somebody
from bench.twin.database import Reading
from bench.twin.errors import Refusal
from bench.twin.tables import Article, Favorite, Follow, User

__all__ = ["router"]

router = APIRouter(prefix="/api")

Limit = Annotated[int, Query(ge=1)]
Offset = Annotated[int, Query(ge=0, le=10_000)]
MAX_LIMIT = 100


class Shape(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class Profile(Shape):
    username: str
    bio: str | None
    image: str | None
    following: bool


class Summary(Shape):
    slug: str
    title: str
    description: str
    tag_list: list[str]
    created_at: datetime
    updated_at: datetime
    favorited: bool
    favorites_count: int
    author: Profile


class Full(Summary):
    body: str


class Page(Shape):
    articles: list[Summary]
    articles_count: int


class One(Shape):
    article: Full


NEWEST = (Article.created_at.desc(), Article.id.desc())
ROWS = (
    select(Article).options(joinedload(Article.author, innerjoin=True), defer(Article.body)).order_by(*NEWEST)
)
COUNT = select(func.count()).select_from(Article)
OF_FOLLOWED = Article.author_id.in_(
    select(Follow.followee_id).where(Follow.follower_id == bindparam("viewer"))
)
LIST = ROWS.limit(bindparam("limit")).offset(bindparam("offset"))
FEED, COUNT_FEED = LIST.where(OF_FOLLOWED), COUNT.where(OF_FOLLOWED)
ONE = (
    select(Article)
    .options(joinedload(Article.author, innerjoin=True))
    .where(Article.slug == bindparam("slug"))
)
LIKED = select(Favorite.article_id).where(
    Favorite.user_id == bindparam("viewer"), Favorite.article_id.in_(bindparam("ids", expanding=True))
)
FOLLOWED = select(Follow.followee_id).where(
    Follow.follower_id == bindparam("viewer"), Follow.followee_id.in_(bindparam("ids", expanding=True))
)


@router.get("/articles")
async def articles(session: Reading, viewer: Anybody, limit: Limit = 20, offset: Offset = 0) -> Page:
    count = (await session.execute(COUNT)).scalar_one()
    rows = (await session.scalars(LIST, {"limit": min(limit, MAX_LIMIT), "offset": offset})).all()
    liked, followed = await _liked(session, rows, viewer), await _followed(session, rows, viewer)
    summaries = [Summary(**_fields(row, row.id in liked, row.author_id in followed)) for row in rows]
    return Page(articles=summaries, articles_count=count)


@router.get("/articles/feed")
async def feed(session: Reading, viewer: Somebody, limit: Limit = 20, offset: Offset = 0) -> Page:
    count = (await session.execute(COUNT_FEED, {"viewer": viewer})).scalar_one()
    values = {"viewer": viewer, "limit": min(limit, MAX_LIMIT), "offset": offset}
    rows = (await session.scalars(FEED, values)).all()
    liked = await _liked(session, rows, viewer)
    summaries = [Summary(**_fields(row, row.id in liked, True)) for row in rows]
    return Page(articles=summaries, articles_count=count)


@router.get("/articles/{slug}")
async def article(session: Reading, viewer: Anybody, slug: str) -> One:
    row = (await session.scalars(ONE, {"slug": slug})).one_or_none()
    if row is None:
        raise Refusal(404, {"article": ["not found"]})
    liked, followed = await _liked(session, [row], viewer), await _followed(session, [row], viewer)
    fields = _fields(row, row.id in liked, row.author_id in followed)
    return One(article=Full(**fields, body=row.body))


async def _liked(session: AsyncSession, rows: Sequence[Article], viewer: int | None) -> set[int]:
    if viewer is None or not rows:
        return set()
    values = {"viewer": viewer, "ids": [row.id for row in rows]}
    return set((await session.scalars(LIKED, values)).all())


async def _followed(session: AsyncSession, rows: Sequence[Article], viewer: int | None) -> set[int]:
    if viewer is None or not rows:
        return set()
    values = {"viewer": viewer, "ids": list({row.author_id for row in rows})}
    return set((await session.scalars(FOLLOWED, values)).all())


def _fields(article: Article, favorited: bool, following: bool) -> dict[str, object]:
    author: User = article.author
    return {
        "slug": article.slug,
        "title": article.title,
        "description": article.description,
        "tag_list": article.tags,
        "created_at": article.created_at,
        "updated_at": article.updated_at,
        "favorited": favorited,
        "favorites_count": article.favorites,
        "author": Profile(username=author.username, bio=author.bio, image=author.image, following=following),
    }
