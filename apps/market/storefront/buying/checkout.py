"""Paying for the cart, once: for a double click, a second tab, the back button, and a form sent again.

Each rendered form has a key of its own, and says which version of the cart it shows; one version makes one
order. A second sending that comes while the first is at work waits for it and leads to the same order. Who
pays waits at most `PATIENCE` seconds for the provider: the page of the order then says that it is pending.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from market.faults import Conflict, Invalid, Stale
from market.orders.api import Address, Cart, NewOrder, Order
from market.storefront.forms import Form, submitted
from market.storefront.rendering import page, redirect
from market.storefront.rim import store_of
from market.storefront.table import Page
from market.storefront.twice import with_the_first
from market.storefront.visits import member
from springtide.context import activate, current
from springtide.errors import IdempotencyInFlight, IdempotencyKeyReused

__all__ = ["PAGES"]

PATIENCE = 8.0

TEST_CARDS = (
    ("card_visa", "Test card that pays"),
    ("card_declined", "Test card that is declined"),
    ("card_no_funds", "Test card without funds"),
)
"""What the provider of development takes as sources."""

FIELDS = ("name", "street", "extra", "postal_code", "city", "country", "source")


async def checkout(request: Request) -> Response:
    cart = await store_of(request).orders.cart(await member(request))
    if not cart.orderable:  # the cart's page says why
        return redirect(request, "/cart")
    source = TEST_CARDS[0][0] if store_of(request).development else ""
    return await _form(request, cart, Form.of({"source": source}))


async def place(request: Request) -> Response:
    form, viewer = await submitted(request), await member(request)
    address = Address(
        name=form.text("name"),
        street=form.text("street"),
        city=form.text("city"),
        postal_code=form.text("postal_code"),
        country=form.text("country").strip().upper(),
        extra=form.text("extra"),
    )
    new = NewOrder(source=form.text("source"), address=address, cart_version=form.whole("cart_version"))
    try:
        with _patience():
            order = await _once(request, form, viewer, new)
    except Invalid as refused:
        cart = await store_of(request).orders.cart(viewer)
        errors = {name.removeprefix("address."): said for name, said in refused.errors.items()}
        return await _form(request, cart, form, 422, errors=errors)
    except Stale:
        return redirect(request, "/cart", done="cart-stale")
    except Conflict:
        return redirect(request, "/cart", done="cart-empty")
    except IdempotencyInFlight:
        return redirect(request, "/orders", done="placing")
    return redirect(request, f"/orders/{order.id}")


async def _once(request: Request, form: Form, viewer: int, new: NewOrder) -> Order:
    """Raises IdempotencyInFlight when the first sending takes longer than anybody waits."""
    orders, once = store_of(request).orders, form.once(request, viewer)
    try:
        return await with_the_first(lambda: orders.place(viewer, new, once), PATIENCE)
    except IdempotencyKeyReused:
        # Another address or card under the same key: the version of the cart still makes one order.
        return await orders.place(viewer, new)


async def _form(request: Request, cart: Cart, form: Form, status: int = 200, **values: Any) -> Response:
    development = store_of(request).development
    return await page(
        request,
        "buying/checkout.html",
        status,
        cart=cart,
        form=form,
        cards=TEST_CARDS if development else (),
        **values,
    )


@contextmanager
def _patience() -> Iterator[None]:
    """Less time for what is called than the request has."""
    context = current()
    if context is None:
        yield
        return
    soon = asyncio.get_running_loop().time() + PATIENCE
    deadline = soon if context.deadline is None else min(context.deadline, soon)
    with activate(replace(context, deadline=deadline)):
        yield


PAGES = (
    Page("GET", "/checkout", checkout),
    Page("POST", "/checkout", place),
)
