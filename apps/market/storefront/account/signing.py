"""Signing up, in and out. Each form has a session, a visitor's, so that no other site can send it.

Signing in changes the cookie. The page asks for longer passwords than the API does.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from market.faults import Invalid, Taken
from market.storefront.forms import Form, local, submitted
from market.storefront.pushes import forget, passes_to
from market.storefront.rendering import page, redirect
from market.storefront.rim import store_of
from market.storefront.table import Page
from market.storefront.visits import handed, viewer_of, visit_of, visitor
from market.users.api import NewAccount

__all__ = ["PAGES", "SCOPE", "SHORTEST_PASSWORD", "begin", "too_short"]

SHORTEST_PASSWORD = 8
LIFETIME = 7 * 86_400.0
SCOPE = "pages"

WRONG = "Wrong e-mail address or password"


def too_short(password: str) -> dict[str, list[str]]:
    """What a page says about a password that people choose; empty when it is long enough."""
    if len(password) >= SHORTEST_PASSWORD:
        return {}
    return {"password": [f"must have {SHORTEST_PASSWORD} characters or more"]}


async def begin(request: Request, subject: int) -> None:
    """The visitor's session becomes that of `subject`, under a new cookie."""
    await passes_to(request, subject)
    found = visit_of(request).presented
    opened = await store_of(request).sessions.login(None if found is None else found.cookie, subject, [SCOPE])
    handed(request, opened, max_age=LIFETIME)


async def sign_in(request: Request) -> Response:
    target = local(request.query_params.get("next"))
    if viewer_of(request) is not None:
        return redirect(request, target)
    await visitor(request)
    return await page(request, "account/sign-in.html", target=target)


async def signed_in(request: Request) -> Response:
    form = await submitted(request)
    target = local(form.text("next"))
    try:
        account = await store_of(request).users.authenticate(form.text("email"), form.text("password"))
        errors = {} if account is not None else {"email": [WRONG]}
    except Invalid as refused:
        account, errors = None, refused.errors
    if account is None:
        return await page(request, "account/sign-in.html", 422, target=target, form=form, errors=errors)
    await begin(request, account.id)
    return redirect(request, target, done="signed-in")


async def sign_up(request: Request) -> Response:
    target = local(request.query_params.get("next"))
    if viewer_of(request) is not None:
        return redirect(request, target)
    await visitor(request)
    return await page(request, "account/sign-up.html", target=target)


async def signed_up(request: Request) -> Response:
    form = await submitted(request)
    target, password = local(form.text("next")), form.text("password")
    errors = too_short(password) if password.strip() else {}
    new = NewAccount(username=form.text("username"), email=form.text("email"), password=password)
    if errors:
        return await _again(request, form, target, 422, errors)
    try:
        account = await store_of(request).users.register(new)
    except Invalid as refused:
        return await _again(request, form, target, 422, refused.errors)
    except Taken as refused:
        return await _again(request, form, target, 409, refused.errors)
    await begin(request, account.id)
    return redirect(request, target, done="welcome")


async def sign_out(request: Request) -> Response:
    """The session ends last: when anything fails, it can be sent again."""
    await submitted(request)
    found = visit_of(request).presented
    assert found is not None  # a form without a session is refused
    store = store_of(request)
    await forget(request)
    await store.sessions.revoke(found.cookie)
    store.hub.forget(found.session.handle)
    visit_of(request).cookies.append(store.cookie.clear())
    return redirect(request, "/", done="signed-out")


async def _again(
    request: Request, form: Form, target: str, status: int, errors: dict[str, list[str]]
) -> Response:
    return await page(request, "account/sign-up.html", status, target=target, form=form, errors=errors)


PAGES = (
    Page("GET", "/sign-in", sign_in),
    Page("POST", "/sign-in", signed_in),
    Page("GET", "/sign-up", sign_up),
    Page("POST", "/sign-up", signed_up),
    Page("POST", "/sign-out", sign_out),
)
