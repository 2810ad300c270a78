"""Lists of articles, and one article with its comments."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from market.checks import storable
from market.content.api import MAX_OFFSET, ArticlePage, ArticleQuery
from market.faults import NotFound
from market.storefront.forms import Form
from market.storefront.rendering import page, redirect, segment
from market.storefront.rim import store_of
from market.storefront.table import Page
from market.storefront.visits import member, people, viewer_of

__all__ = ["PAGES", "article_page", "articles_page", "window"]

LIMIT = 10


def window(request: Request) -> int:
    """The page of a list that is asked for, from 1; what is no number is the first."""
    text = request.query_params.get("page", "1")
    asked = int(text) if text.isascii() and text.isdigit() and len(text) <= 6 else 1
    return min(max(asked, 1), MAX_OFFSET // LIMIT)


async def articles(request: Request) -> Response:
    store, number = store_of(request), window(request)
    tag = request.query_params.get("tag") or None
    if tag is not None and not storable(tag):
        raise NotFound("tag")
    query = ArticleQuery(tag=tag, limit=LIMIT, offset=(number - 1) * LIMIT)
    found = await store.content.articles(query, viewer_of(request))
    tags = await store.content.tags() if tag is None and number == 1 else []
    return await articles_page(
        request, "articles/list.html", found, number, tag=tag, tags=tags[:24], feed=False
    )


async def feed(request: Request) -> Response:
    """What the people write whom the reader follows."""
    store, number, viewer = store_of(request), window(request), await member(request)
    authors = await store.users.following(viewer)
    found = await store.content.feed(authors, viewer, LIMIT, (number - 1) * LIMIT)
    return await articles_page(
        request, "articles/list.html", found, number, tag=None, tags=[], feed=True, follows=len(authors)
    )


async def articles_page(
    request: Request, template: str, found: ArticlePage, number: int, **values: Any
) -> Response:
    """A list of articles with their authors, `number`-th part of it."""
    known = await people(request, [article.author_id for article in found.articles])
    last = min(-(-found.count // LIMIT), MAX_OFFSET // LIMIT)
    return await page(
        request,
        template,
        articles=found.articles,
        people=known,
        total=found.count,
        number=number,
        last=last,
        **values,
    )


async def article(request: Request) -> Response:
    return await article_page(request, request.path_params["slug"])


async def article_page(request: Request, slug: str, status: int = 200, **values: Any) -> Response:
    """The article; an address that it had before leads to the one that it has."""
    store, viewer = store_of(request), viewer_of(request)
    if not storable(slug):
        raise NotFound("article")
    found = await store.content.article(slug, viewer)
    if found.slug != slug and request.method in ("GET", "HEAD"):
        return redirect(request, f"/articles/{segment(found.slug)}")
    comments = await store.content.comments(found.slug)
    known = await people(request, [found.author_id, *(comment.author_id for comment in comments)])
    return await page(
        request,
        "articles/article.html",
        status,
        article=found,
        text=await store.markdown.html(found.body),
        comments=[(comment, await store.markdown.html(comment.body)) for comment in comments],
        people=known,
        author=known.get(found.author_id),
        **{"form": Form(), "errors": {}} | values,
    )


PAGES = (
    Page("GET", "/articles", articles),
    Page("GET", "/feed", feed),
    Page("GET", "/articles/{slug}", article),
)
