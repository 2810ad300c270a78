"""Which notices also go out by mail and push, and whether to this browser. The inbox gets them all."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from market.notifications.api import KIND_NAMES, KINDS, Preference
from market.storefront.forms import submitted
from market.storefront.pushes import given_by
from market.storefront.rendering import page, redirect
from market.storefront.rim import store_of
from market.storefront.table import Page
from market.storefront.visits import member

__all__ = ["PAGES", "preferences_page"]


async def preferences(request: Request) -> Response:
    return await preferences_page(request, await member(request))


async def preferences_page(request: Request, viewer: int, status: int = 200, **values: Any) -> Response:
    notifications, given = store_of(request).notifications, given_by(request)
    return await page(
        request,
        "notices/preferences.html",
        status,
        found=await notifications.preferences(viewer),
        names=KIND_NAMES,
        push_key=await notifications.push_key(),
        endpoint=given.endpoint if given is not None and given.recipient == viewer else "",
        **values,
    )


async def prefer(request: Request) -> Response:
    """The whole form counts: a box that is not ticked is not sent."""
    form, viewer = await submitted(request), await member(request)
    mails, pushes = set(form.all("mail")), set(form.all("push"))
    wanted = [Preference(kind=kind, mail=kind in mails, push=kind in pushes) for kind in KINDS]
    await store_of(request).notifications.prefer(viewer, wanted)
    return redirect(request, "/account/notices", done="preferences")


PAGES = (
    Page("GET", "/account/notices", preferences),
    Page("POST", "/account/notices", prefer),
)
