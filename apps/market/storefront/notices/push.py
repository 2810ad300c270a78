"""Pushes to the browser that somebody sits at: turned on by its script, turned off by a plain form."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from market.faults import Invalid
from market.notifications.api import Subscription
from market.storefront.files import content_of
from market.storefront.forms import submitted
from market.storefront.notices.preferences import preferences_page
from market.storefront.pushes import forget, keep
from market.storefront.rendering import redirect
from market.storefront.table import Page
from market.storefront.visits import member

__all__ = ["PAGES", "WORKER_PATH", "worker"]

WORKER_PATH = "/push-worker.js"
"""At the root: a worker is responsible for what is below its address. It has one address for ever."""

WORKER = content_of("push-worker.js")
HEADERS = {
    "Cache-Control": "no-cache",
    "Service-Worker-Allowed": "/",
    "Content-Security-Policy": "default-src 'none'",
}


async def worker(request: Request) -> Response:
    """The program that shows what is pushed; it loads nothing."""
    return Response(WORKER, 200, HEADERS, media_type="text/javascript")


async def turn_on(request: Request) -> Response:
    """With what the browser's PushSubscription holds."""
    form, viewer = await submitted(request), await member(request)
    given = Subscription(endpoint=form.text("endpoint"), p256dh=form.text("p256dh"), auth=form.text("auth"))
    try:
        await keep(request, viewer, given)
    except Invalid as refused:
        return await preferences_page(request, viewer, 422, errors=refused.errors)
    return redirect(request, "/account/notices", done="push-on")


async def turn_off(request: Request) -> Response:
    await submitted(request)
    await member(request)
    await forget(request)
    return redirect(request, "/account/notices", done="push-off")


PAGES = (
    Page("POST", "/account/push", turn_on),
    Page("POST", "/account/push/remove", turn_off),
)
