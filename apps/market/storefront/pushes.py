"""Which browser pushes go to: a push endpoint belongs to a browser, not to a session or a person.

The browser says by a cookie who has turned pushes on in it and under which endpoint. So signing out ends
them, also without scripts, and so does somebody else who signs in after a session that ended by itself.
"""

from __future__ import annotations

import base64
import binascii
from contextlib import suppress
from typing import NamedTuple

from starlette.requests import Request

from market.faults import Invalid
from market.notifications.api import ENDPOINT_LENGTH, Subscription
from market.storefront.rim import store_of
from market.storefront.visits import visit_of

__all__ = ["forget", "given_by", "keep", "passes_to"]

LIFETIME = 400 * 86_400
"""Seconds; browsers keep no cookie for longer."""

MAX_DIGITS = 16


class Given(NamedTuple):
    """Pushes for `recipient` go to this browser, at `endpoint`."""

    recipient: int
    endpoint: str


def given_by(request: Request) -> Given | None:
    """What the browser's cookie says; None without one, and for one that no answer of ours has set."""
    id, dot, packed = request.cookies.get(_name(request), "").partition(".")
    if not (dot and id.isascii() and id.isdigit() and len(id) <= MAX_DIGITS):
        return None
    try:
        endpoint = base64.b64decode(packed + "=" * (-len(packed) % 4), b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    return Given(int(id), endpoint) if 0 < len(endpoint) <= ENDPOINT_LENGTH else None


async def keep(request: Request, recipient: int, subscription: Subscription) -> None:
    """Push to this browser, for `recipient` alone. Raises Invalid."""
    await store_of(request).notifications.subscribe(recipient, subscription)
    wanted, before = Given(recipient, subscription.endpoint), given_by(request)
    if before not in (None, wanted):
        await forget(request)
    packed = base64.urlsafe_b64encode(wanted.endpoint.encode()).rstrip(b"=").decode()
    _hand(request, f"{recipient}.{packed}", LIFETIME)


async def forget(request: Request) -> None:
    """No more pushes to this browser, whoever they are for."""
    given = given_by(request)
    if given is not None:
        with suppress(Invalid):
            await store_of(request).notifications.unsubscribe(given.recipient, given.endpoint)
        _hand(request, "", 0)


async def passes_to(request: Request, person: int) -> None:
    """`person` uses this browser now: it gets nobody else's pushes."""
    given = given_by(request)
    if given is not None and given.recipient != person:
        await forget(request)


def _name(request: Request) -> str:
    return "__Host-push" if store_of(request).cookie.secure else "push"


def _hand(request: Request, value: str, max_age: int) -> None:
    secure = "; Secure" if store_of(request).cookie.secure else ""
    cookie = f"{_name(request)}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={max_age}{secure}"
    visit_of(request).cookies.append(cookie)
