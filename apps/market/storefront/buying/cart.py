"""The cart: what is in it at the prices that the buyer has seen, and what is true now.

A form says how many of a listing are wanted from now on, so sending it twice changes nothing.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from market.faults import Conflict, Invalid, NotFound
from market.money import Money
from market.orders.api import Cart
from market.storefront.forms import Form, submitted
from market.storefront.photos import photos_of
from market.storefront.rendering import page, redirect
from market.storefront.rim import store_of
from market.storefront.table import Page
from market.storefront.visits import member

__all__ = ["PAGES", "cart_page"]


async def cart(request: Request) -> Response:
    return await cart_page(request, await store_of(request).orders.cart(await member(request)))


async def cart_page(
    request: Request, cart: Cart, status: int = 200, *, errors: dict[str, list[str]] | None = None
) -> Response:
    listings = await store_of(request).catalog.listings([line.listing_id for line in cart.lines])
    return await page(
        request,
        "buying/cart.html",
        status,
        cart=cart,
        listings={listing.id: listing for listing in listings},
        photos=await photos_of(request, listings),
        errors=errors or {},
    )


async def add(request: Request) -> Response:
    return await _put(request, done="in-cart")


async def change(request: Request) -> Response:
    return await _put(request, done="cart-changed")


async def _put(request: Request, *, done: str) -> Response:
    form, viewer = await submitted(request), await member(request)
    orders, listing = store_of(request).orders, form.whole("listing")
    quantity = 0 if form.text("remove") else form.whole("quantity")
    if listing is None:
        raise NotFound("listing")
    try:
        if quantity is None:
            raise Invalid({"quantity": ["must be a whole number"]})
        await orders.put(viewer, listing, quantity, _seen(form))
    except (Invalid, Conflict) as refused:
        status = 422 if isinstance(refused, Invalid) else 409
        return await cart_page(request, await orders.cart(viewer), status, errors=refused.errors)
    return redirect(request, "/cart", done=done)


def _seen(form: Form) -> Money | None:
    """The price that was beside the button; the cart remembers it. Raises Invalid."""
    amount = form.whole("amount")
    if amount is None:
        return None
    try:
        return Money(amount, form.text("currency"))
    except ValueError:
        raise Invalid({"price": ["is no price of a listing"]}) from None


PAGES = (
    Page("GET", "/cart", cart),
    Page("POST", "/cart", change),
    Page("POST", "/cart/add", add),
)
