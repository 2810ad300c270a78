"""Where somebody is signed in, and the way to end that."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from market.storefront.forms import submitted
from market.storefront.rendering import page, redirect
from market.storefront.rim import store_of
from market.storefront.table import Page
from market.storefront.visits import member, visit_of

__all__ = ["PAGES"]

SHOWN = 50


async def devices(request: Request) -> Response:
    viewer = await member(request)
    found = visit_of(request).presented
    sessions = await store_of(request).sessions.list_of(viewer)
    here = found.session.handle if found is not None else ""
    return await page(
        request,
        "account/devices.html",
        sessions=sorted(sessions, key=lambda one: one.handle != here)[:SHOWN],
        total=len(sessions),
        this=here,
    )


async def revoke(request: Request) -> Response:
    form, viewer = await submitted(request), await member(request)
    store, handle = store_of(request), form.text("handle")
    if await store.sessions.revoke_handle(viewer, handle):
        store.hub.forget(handle)
    return redirect(request, "/account/devices", done="revoked")


async def revoke_others(request: Request) -> Response:
    await submitted(request)
    viewer, found = await member(request), visit_of(request).presented
    await store_of(request).sessions.revoke_all(viewer, keep=found.cookie if found is not None else None)
    return redirect(request, "/account/devices", done="revoked-all")


PAGES = (
    Page("GET", "/account/devices", devices),
    Page("POST", "/account/devices/revoke", revoke),
    Page("POST", "/account/devices/revoke-others", revoke_others),
)
