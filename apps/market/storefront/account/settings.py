"""What people change about themselves: how others see them, and how they sign in.

Address and password are changed by whoever knows the present password, not by whoever finds an open browser.
Afterwards every other device is signed out, and this one has a new cookie.
"""

from __future__ import annotations

from typing import Any

from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from market.faults import Invalid, Refused, Taken
from market.storefront.account.signing import begin, too_short
from market.storefront.forms import Form, submitted
from market.storefront.rendering import page, redirect
from market.storefront.rim import store_of
from market.storefront.table import Page
from market.storefront.visits import SignInFirst, member, visit_of
from market.users.api import Account, AccountChanges

__all__ = ["PAGES", "account_of", "settings_page"]


async def account_of(request: Request) -> Account:
    """The viewer's own account. Raises SignInFirst."""
    account = await store_of(request).users.account(await member(request))
    if account is None:
        raise SignInFirst
    return account


async def settings(request: Request) -> Response:
    return await settings_page(request, await account_of(request))


async def settings_page(request: Request, account: Account, status: int = 200, **values: Any) -> Response:
    """Both forms; one that was sent shows what was typed, the other what there is."""
    shown = {
        "profile": Form.of({"username": account.username, "bio": account.bio}),
        "access": Form.of({"email": account.email}),
        "errors": {},
    }
    return await page(request, "account/settings.html", status, **shown | values)


async def profile(request: Request) -> Response:
    form, account = await submitted(request), await account_of(request)
    changes = AccountChanges(username=form.text("username"), bio=form.text("bio") or None)
    try:
        await store_of(request).users.update(account.id, changes)
    except (Invalid, Taken) as refused:
        return await settings_page(request, account, _status(refused), profile=form, errors=refused.errors)
    return redirect(request, "/account", done="saved")


async def access(request: Request) -> Response:
    form, account = await submitted(request), await account_of(request)
    store, password = store_of(request), form.text("password")
    errors = too_short(password) if password else {}
    if not errors and not await _knows(request, account, form.text("current")):
        errors = {"current": ["is not your password"]}
    if errors:
        return await settings_page(request, account, 422, access=form, errors=errors)
    changes = AccountChanges(email=form.text("email"), password=password or UNSET)
    try:
        await store.users.update(account.id, changes)
    except (Invalid, Taken) as refused:
        return await settings_page(request, account, _status(refused), access=form, errors=refused.errors)
    found = visit_of(request).presented
    assert found is not None  # a form without a session is refused
    await store.sessions.revoke_all(account.id, keep=found.cookie)
    await begin(request, account.id)
    return redirect(request, "/account", done="password")


async def _knows(request: Request, account: Account, password: str) -> bool:
    try:
        found = await store_of(request).users.authenticate(account.email, password)
    except Invalid:
        return False
    return found is not None and found.id == account.id


def _status(refused: Refused) -> int:
    return 409 if isinstance(refused, Taken) else 422


PAGES = (
    Page("GET", "/account", settings),
    Page("POST", "/account/profile", profile),
    Page("POST", "/account/access", access),
)
