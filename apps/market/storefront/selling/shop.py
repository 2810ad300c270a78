"""A seller's shop: opened once, described anew whenever its owner likes. Its address and currency stay."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from market.catalog.api import NewShop, Shop, ShopChanges
from market.faults import Invalid, Taken
from market.money import CURRENCIES
from market.storefront.forms import Form, submitted
from market.storefront.rendering import page, redirect
from market.storefront.rim import store_of
from market.storefront.table import Page
from market.storefront.visits import member

__all__ = ["PAGES", "ShopFirst", "seller", "shop_first"]

USUAL = "EUR"


class ShopFirst(Exception):
    """The page is for people who have a shop."""


async def seller(request: Request) -> Shop:
    """The viewer's shop. Raises SignInFirst, ShopFirst."""
    shop = await store_of(request).catalog.shop_of(await member(request))
    if shop is None:
        raise ShopFirst
    return shop


async def new(request: Request) -> Response:
    if await store_of(request).catalog.shop_of(await member(request)) is not None:
        return redirect(request, "/selling")
    return await _opening(request, Form.of({"currency": USUAL}))


async def create(request: Request) -> Response:
    form, viewer = await submitted(request), await member(request)
    currency = form.text("currency")
    try:
        shop = NewShop(name=form.text("name"), currency=currency, description=form.text("description"))
        await store_of(request).catalog.open_shop(viewer, shop, form.once(request, viewer))
    except Invalid as refused:
        return await _opening(request, form, 422, errors=refused.errors)
    except Taken as refused:
        if "shop" in refused.errors:
            return redirect(request, "/selling")
        errors = {"name": ["is too much like another shop's: choose another one"]}
        return await _opening(request, form, 409, errors=errors)
    return redirect(request, "/selling/listings", done="shop-opened")


async def _opening(request: Request, form: Form, status: int = 200, **values: Any) -> Response:
    return await page(
        request, "selling/open.html", status, form=form, currencies=sorted(CURRENCIES), **values
    )


async def edit(request: Request) -> Response:
    shop = await seller(request)
    values = {"name": shop.name, "description": shop.description, "version": shop.version}
    return await page(request, "selling/shop.html", shop=shop, form=Form.of(values))


async def change(request: Request) -> Response:
    form, shop = await submitted(request), await seller(request)
    changes = ShopChanges(name=form.text("name"), description=form.text("description"))
    try:
        await store_of(request).catalog.update_shop(shop.seller_id, changes, form.whole("version"))
    except Invalid as refused:
        return await page(request, "selling/shop.html", 422, shop=shop, form=form, errors=refused.errors)
    return redirect(request, "/selling/shop", done="saved")


async def shop_first(request: Request, error: Exception) -> Response:
    """The answer to ShopFirst: the form that opens one."""
    return redirect(request, "/selling/open")


PAGES = (
    Page("GET", "/selling/open", new),
    Page("POST", "/selling/open", create),
    Page("GET", "/selling/shop", edit),
    Page("POST", "/selling/shop", change),
)
