"""What the content module offers to the rest of the application: the only part of it that may be imported.

People are ids here: their names and pictures belong to the users module, and whoever shows an article asks
for them there, all of a page in one call.
"""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

import msgspec
from msgspec import UNSET, UnsetType

from market.faults import Forbidden, Invalid, NotFound, Taken
from springtide.db.idempotency import Once
from springtide.services import raises

__all__ = [
    "BODY_LENGTH",
    "COMMENT_LENGTH",
    "DESCRIPTION_LENGTH",
    "MAX_COMMENTS",
    "MAX_IDS",
    "MAX_LIMIT",
    "MAX_OFFSET",
    "MAX_TAGS",
    "TAG_LENGTH",
    "TITLE_LENGTH",
    "Article",
    "ArticleChanges",
    "ArticlePage",
    "ArticleQuery",
    "ArticleSummary",
    "Comment",
    "Content",
    "NewArticle",
]

TITLE_LENGTH = 255
DESCRIPTION_LENGTH = 1_000
BODY_LENGTH = 200_000
COMMENT_LENGTH = 20_000
TAG_LENGTH = 64
"""The longest of each, in characters."""

MAX_TAGS = 20
"""Tags of one article."""

MAX_LIMIT = 100
MAX_OFFSET = 10_000
"""The longest part of a list that is answered at once, and how deep a list can be read."""

MAX_IDS = 200
"""Articles that are answered at once by their ids."""

MAX_COMMENTS = 1_000
"""Comments of an article that are answered, the newest."""


class ArticleSummary(msgspec.Struct, frozen=True, kw_only=True):
    """An article in a list: without its body. `favorited` is the viewer's, False for an anonymous one.

    `version` counts the author's changes, not favourites.
    """

    id: int
    author_id: int
    slug: str
    title: str
    description: str
    tags: list[str]
    favorites: int
    favorited: bool
    version: int
    created_at: datetime
    updated_at: datetime


class Article(ArticleSummary, frozen=True, kw_only=True):
    body: str


class ArticlePage(msgspec.Struct, frozen=True, kw_only=True):
    """Part of a list, newest first; `count` is the length of the whole list."""

    articles: list[ArticleSummary]
    count: int


class ArticleQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which articles: every filter that is set must hold. `limit` is 1 to 100, `offset` 0 or more."""

    tag: str | None = None
    author_id: int | None = None
    favorited_by: int | None = None
    limit: int = 20
    offset: int = 0


class NewArticle(msgspec.Struct, frozen=True, kw_only=True):
    title: str
    description: str
    body: str
    tags: list[str] = []


class ArticleChanges(msgspec.Struct, frozen=True, kw_only=True):
    """UNSET leaves a field as it is; `tags` replaces all of them."""

    title: str | UnsetType = UNSET
    description: str | UnsetType = UNSET
    body: str | UnsetType = UNSET
    tags: list[str] | UnsetType = UNSET


class Comment(msgspec.Struct, frozen=True, kw_only=True):
    id: int
    article_id: int
    author_id: int
    body: str
    created_at: datetime
    updated_at: datetime


class Content(Protocol):
    """Errors are those of `market.faults`; each method names the ones it raises."""

    @raises(Invalid, Taken)
    async def create(self, author: int, new: NewArticle) -> Article:
        """Raises Invalid, Taken("title") when the author has an article of that title."""

    @raises(NotFound)
    async def article(self, slug: str, viewer: int | None) -> Article:
        """By its slug or one it had before. Raises NotFound."""

    @raises(Invalid, NotFound, Forbidden)
    async def update(self, slug: str, author: int, changes: ArticleChanges) -> Article:
        """A changed title gives a new slug; the old one still leads here.

        Raises Invalid, NotFound, Forbidden.
        """

    @raises(NotFound, Forbidden)
    async def delete(self, slug: str, author: int) -> None:
        """With all that hangs on it, which nobody sees from then on. Raises NotFound, Forbidden."""

    @raises(Invalid)
    async def articles(self, query: ArticleQuery, viewer: int | None) -> ArticlePage:
        """Newest first. Raises Invalid for an offset deeper than lists can be read."""

    @raises(Invalid)
    async def feed(self, authors: list[int], viewer: int, limit: int, offset: int) -> ArticlePage:
        """The newest articles of `authors`. Raises Invalid as `articles` does."""

    @raises(Invalid)
    async def summaries(self, ids: list[int], viewer: int | None) -> list[ArticleSummary]:
        """Many at once, in the order of `ids`; ids of nothing are left out.

        More ids make no more statements. Raises Invalid for more than 200.
        """

    @raises(NotFound)
    async def favorite(self, slug: str, user: int) -> Article:
        """Idempotent. Raises NotFound."""

    @raises(NotFound)
    async def unfavorite(self, slug: str, user: int) -> Article:
        """Idempotent. Raises NotFound."""

    @raises(Invalid, NotFound)
    async def comment(self, slug: str, author: int, body: str, once: Once | None = None) -> Comment:
        """One comment per `once`, however often it is sent: each gets that one. Raises Invalid, NotFound."""

    @raises(NotFound)
    async def comments(self, slug: str) -> list[Comment]:
        """Newest first, at most 1,000. Raises NotFound."""

    @raises(NotFound, Forbidden)
    async def delete_comment(self, slug: str, id: int, author: int) -> None:
        """Raises NotFound for the article or the comment, Forbidden when somebody else wrote it."""

    async def tags(self) -> list[str]:
        """The most used first, at most 100."""
