"""Comments on an article. A form is one comment, however often it is sent; with another text another one."""

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
from market.storefront.twice import with_the_first
from market.storefront.visits import member
from springtide.errors import IdempotencyInFlight

__all__ = ["PAGES"]

PATIENCE = 4.0
"""Seconds that a second sending waits for the first; then it leads to the article as it is."""


async def comment(request: Request) -> Response:
    form, viewer, slug = await submitted(request), await member(request), slug_of(request)
    content, body = store_of(request).content, form.text("body")
    once = form.once(request, viewer, apart=body)
    try:
        made = await with_the_first(lambda: content.comment(slug, viewer, body, once), PATIENCE)
    except Invalid as refused:
        return await article_page(request, slug, 422, form=form, errors=refused.errors)
    except IdempotencyInFlight:
        return redirect(request, f"/articles/{segment(slug)}#comments")
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
