"""The inbox: what was told, the newest first."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from market.storefront.forms import submitted
from market.storefront.rendering import page, redirect
from market.storefront.rim import store_of
from market.storefront.table import Page
from market.storefront.visits import member

__all__ = ["PAGES"]

LIMIT = 30


async def inbox(request: Request) -> Response:
    after = request.query_params.get("after") or None
    found = await store_of(request).notifications.inbox(await member(request), LIMIT, after)
    return await page(
        request,
        "notices/inbox.html",
        notices=found.items,
        waiting=found.unread,
        next=found.next,
        first=after is None,
    )


async def read(request: Request) -> Response:
    """Up to the newest that the page showed: what came since stays unread."""
    form, viewer = await submitted(request), await member(request)
    await store_of(request).notifications.mark_read(viewer, form.whole("up_to") or 0)
    return redirect(request, "/notifications", done="read")


PAGES = (
    Page("GET", "/notifications", inbox),
    Page("POST", "/notifications/read", read),
)
