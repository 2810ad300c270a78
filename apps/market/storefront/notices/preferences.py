"""Which notices also go out by mail. The inbox gets them all."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from market.notifications.api import KIND_NAMES, KINDS, Preference
from market.storefront.forms import submitted
from market.storefront.rendering import page, redirect
from market.storefront.rim import store_of
from market.storefront.table import Page
from market.storefront.visits import member

__all__ = ["PAGES"]


async def preferences(request: Request) -> Response:
    found = await store_of(request).notifications.preferences(await member(request))
    return await page(request, "notices/preferences.html", found=found, names=KIND_NAMES)


async def prefer(request: Request) -> Response:
    """The whole form counts: a box that is not ticked is not sent. Pushes stay as they are."""
    form, viewer = await submitted(request), await member(request)
    notifications = store_of(request).notifications
    before = {one.kind: one.push for one in (await notifications.preferences(viewer)).items}
    mails = set(form.all("mail"))
    wanted = [Preference(kind=kind, mail=kind in mails, push=before.get(kind, True)) for kind in KINDS]
    await notifications.prefer(viewer, wanted)
    return redirect(request, "/account/notices", done="preferences")


PAGES = (
    Page("GET", "/account/notices", preferences),
    Page("POST", "/account/notices", prefer),
)
