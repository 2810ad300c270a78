"""Comments on an article."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from market.faults import Invalid, NotFound
from market.storefront.articles.reading import article_page
from market.storefront.articles.writing import slug_of
from market.storefront.forms import submitted
from market.storefront.rendering import redirect, segment
from market.storefront.rim import store_of
from market.storefront.table import Page, number
from market.storefront.visits import member

__all__ = ["PAGES"]


async def comment(request: Request) -> Response:
    form, viewer, slug = await submitted(request), await member(request), slug_of(request)
    try:
        made = await store_of(request).content.comment(slug, viewer, form.text("body"))
    except Invalid as refused:
        return await article_page(request, slug, 422, form=form, errors=refused.errors)
    return redirect(request, f"/articles/{segment(slug)}?done=commented#comment-{made.id}")


async def delete(request: Request) -> Response:
    await submitted(request)
    slug, id = slug_of(request), number(request)
    if id is None:
        raise NotFound("comment")
    await store_of(request).content.delete_comment(slug, id, await member(request))
    return redirect(request, f"/articles/{segment(slug)}?done=comment-deleted#comments")


PAGES = (
    Page("POST", "/articles/{slug}/comments", comment),
    Page("POST", "/articles/{slug}/comments/{id}/delete", delete),
)
