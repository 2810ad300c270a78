"""The hottest reads, as plain Starlette endpoints: a request in, msgspec's bytes out, nothing between."""

from __future__ import annotations

import re

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from market.checks import Checks, storable
from market.content.api import MAX_LIMIT, ArticlePage, ArticleQuery
from market.faults import NotFound
from market.realworld import shapes
from market.realworld.answers import answer
from market.realworld.composing import public
from market.realworld.rim import rim_of

__all__ = ["DEFAULT_LIMIT", "get_article", "get_articles", "get_feed", "get_profile", "get_tags"]

DEFAULT_LIMIT = 20

_INTEGER = re.compile(r"-?[0-9]{1,18}")


async def get_articles(request: Request) -> Response:
    rim = rim_of(request)
    viewer = rim.viewers.optional(request)
    limit, offset = _window(request)
    parameters = request.query_params
    # A filter that is there and empty is one that a form did not fill in.
    tag, author, fan = (parameters.get(name) or None for name in ("tag", "author", "favorited"))
    query = ArticleQuery(tag=tag, limit=limit, offset=offset)
    if tag is not None and not storable(tag):
        return answer(shapes.ArticlesAnswer(articles=[], articles_count=0))
    for field, username in (("author_id", author), ("favorited_by", fan)):
        if username is not None:
            person = await rim.users.find(username)
            if person is None:
                return answer(shapes.ArticlesAnswer(articles=[], articles_count=0))
            query = msgspec.structs.replace(query, **{field: person})
    page = await rim.content.articles(query, viewer)
    return answer(await rim.composer.articles(page, viewer))


async def get_feed(request: Request) -> Response:
    rim = rim_of(request)
    viewer = rim.viewers.required(request)
    limit, offset = _window(request)
    authors = await rim.users.following(viewer)
    page = ArticlePage(articles=[], count=0)
    if authors:
        page = await rim.content.feed(authors, viewer, limit, offset)
    return answer(await rim.composer.articles(page, viewer))


async def get_article(request: Request) -> Response:
    rim = rim_of(request)
    viewer = rim.viewers.lenient(request)
    article = await rim.content.article(request.path_params["slug"], viewer)
    return answer(await rim.composer.article(article, viewer))


async def get_tags(request: Request) -> Response:
    return answer(shapes.TagsAnswer(tags=await rim_of(request).content.tags()))


async def get_profile(request: Request) -> Response:
    rim = rim_of(request)
    viewer = rim.viewers.optional(request)
    profile = await rim.users.profile(request.path_params["username"], viewer)
    if profile is None:
        raise NotFound("profile")
    return answer(shapes.ProfileAnswer(profile=public(profile)))


def _window(request: Request) -> tuple[int, int]:
    """limit and offset. A limit above the maximum is cut to it; what is no whole number is refused."""
    checks = Checks()
    limit = _whole(request, checks, "limit", DEFAULT_LIMIT, 1)
    offset = _whole(request, checks, "offset", 0, 0)
    checks.finish()
    return min(limit, MAX_LIMIT), offset


def _whole(request: Request, checks: Checks, name: str, default: int, minimum: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not _INTEGER.fullmatch(text) or int(text) < minimum:
        checks.fault(name, f"must be a whole number, {minimum} or more")
        return default
    return int(text)
