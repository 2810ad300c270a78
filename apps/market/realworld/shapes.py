"""What the API answers, exactly as RealWorld names it. Frozen values, encoded by msgspec as they are."""

from __future__ import annotations

from typing import Annotated

import msgspec

__all__ = [
    "Article",
    "ArticleAnswer",
    "ArticleSummary",
    "ArticlesAnswer",
    "Comment",
    "CommentAnswer",
    "CommentsAnswer",
    "Errors",
    "Profile",
    "ProfileAnswer",
    "TagsAnswer",
    "User",
    "UserAnswer",
]

Moment = Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]
"""ISO 8601 in UTC with milliseconds and Z."""


class Shape(msgspec.Struct, frozen=True, rename="camel"):
    pass


class User(Shape, frozen=True):
    """The signed-in person."""

    email: str
    token: str
    username: str
    bio: str | None
    image: str | None


class Profile(Shape, frozen=True):
    """A person as others see them."""

    username: str
    bio: str | None
    image: str | None
    following: bool


class ArticleSummary(Shape, frozen=True):
    """An article in a list: without its body."""

    slug: str
    title: str
    description: str
    tag_list: list[str]
    created_at: Moment
    updated_at: Moment
    favorited: bool
    favorites_count: int
    author: Profile


class Article(Shape, frozen=True):
    """One article."""

    slug: str
    title: str
    description: str
    body: str
    tag_list: list[str]
    created_at: Moment
    updated_at: Moment
    favorited: bool
    favorites_count: int
    author: Profile


class Comment(Shape, frozen=True):
    """One comment; its id is an integer below 2**53."""

    id: int
    created_at: Moment
    updated_at: Moment
    body: str
    author: Profile


class UserAnswer(Shape, frozen=True):
    user: User


class ProfileAnswer(Shape, frozen=True):
    profile: Profile


class ArticleAnswer(Shape, frozen=True):
    article: Article


class ArticlesAnswer(Shape, frozen=True):
    """Part of a list, newest first; `articlesCount` is the length of the whole list."""

    articles: list[ArticleSummary]
    articles_count: int


class CommentAnswer(Shape, frozen=True):
    comment: Comment


class CommentsAnswer(Shape, frozen=True):
    """The comments of an article, newest first."""

    comments: list[Comment]


class TagsAnswer(Shape, frozen=True):
    """The most used tags first."""

    tags: list[str]


class Errors(Shape, frozen=True):
    """What is wrong: a field or a kind of thing -> sentences about it."""

    errors: dict[str, list[str]]
