"""Articles by their authors: written, changed, deleted; favourites of everybody."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from market.checks import storable
from market.content.api import Article, ArticleChanges, NewArticle
from market.faults import Forbidden, Invalid, NotFound, Refused, Taken
from market.storefront.forms import Form, local, submitted
from market.storefront.rendering import page, redirect, segment
from market.storefront.rim import store_of
from market.storefront.table import Page
from market.storefront.visits import member

__all__ = ["PAGES", "slug_of"]

TEMPLATE = "articles/editor.html"


def slug_of(request: Request) -> str:
    slug: str = request.path_params["slug"]
    if not storable(slug):
        raise NotFound("article")
    return slug


def address(article: Article) -> str:
    return f"/articles/{segment(article.slug)}"


async def new(request: Request) -> Response:
    await member(request)
    return await page(request, TEMPLATE, article=None)


async def create(request: Request) -> Response:
    form, viewer = await submitted(request), await member(request)
    article = NewArticle(
        title=form.text("title"),
        description=form.text("description"),
        body=form.text("body"),
        tags=_tags(form),
    )
    try:
        made = await store_of(request).content.create(viewer, article)
    except (Invalid, Taken) as refused:
        return await _again(request, form, refused, None)
    return redirect(request, address(made), done="published")


async def edit(request: Request) -> Response:
    article = await _own(request, await member(request))
    values = {
        "title": article.title,
        "description": article.description,
        "body": article.body,
        "tags": ", ".join(article.tags),
    }
    return await page(request, TEMPLATE, article=article, form=Form.of(values))


async def change(request: Request) -> Response:
    form, viewer = await submitted(request), await member(request)
    article = await _own(request, viewer)
    changes = ArticleChanges(
        title=form.text("title"),
        description=form.text("description"),
        body=form.text("body"),
        tags=_tags(form),
    )
    try:
        changed = await store_of(request).content.update(article.slug, viewer, changes)
    except (Invalid, Taken) as refused:
        return await _again(request, form, refused, article)
    return redirect(request, address(changed), done="article-saved")


async def delete(request: Request) -> Response:
    await submitted(request)
    await store_of(request).content.delete(slug_of(request), await member(request))
    return redirect(request, "/articles", done="article-deleted")


async def favorite(request: Request) -> Response:
    form, viewer = await submitted(request), await member(request)
    content, slug = store_of(request).content, slug_of(request)
    mark = content.unfavorite if form.text("undo") else content.favorite
    article = await mark(slug, viewer)
    return redirect(request, local(form.text("back"), address(article)))


async def _own(request: Request, viewer: int) -> Article:
    """The article, for its author. Raises NotFound, Forbidden."""
    article = await store_of(request).content.article(slug_of(request), viewer)
    if article.author_id != viewer:
        raise Forbidden("article")
    return article


async def _again(request: Request, form: Form, refused: Refused, article: Article | None) -> Response:
    status = 409 if isinstance(refused, Taken) else 422
    return await page(request, TEMPLATE, status, article=article, form=form, errors=refused.errors)


def _tags(form: Form) -> list[str]:
    """Written with commas between."""
    return [tag for tag in (part.strip() for part in form.text("tags").split(",")) if tag]


PAGES = (
    Page("GET", "/write", new),
    Page("POST", "/write", create),
    Page("GET", "/articles/{slug}/edit", edit),
    Page("POST", "/articles/{slug}/edit", change),
    Page("POST", "/articles/{slug}/delete", delete),
    Page("POST", "/articles/{slug}/favorite", favorite),
)
