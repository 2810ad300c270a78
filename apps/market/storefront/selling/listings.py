"""A seller's listings: all of them, a new one, changes, on sale and off."""

from __future__ import annotations

from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import Response

from market.catalog.api import Listing, ListingChanges, NewListing, Shop
from market.checks import Checks
from market.faults import Conflict, Forbidden, Invalid, NotFound, Refused, Stale
from market.media.api import media_ids
from market.money import Money
from market.storefront.forms import Form, submitted
from market.storefront.rendering import page, redirect
from market.storefront.rim import store_of
from market.storefront.selling.shop import seller
from market.storefront.table import Page, number

__all__ = ["PAGES", "editor", "own_listing"]

LIMIT = 50
MOVEMENTS = 10


async def listings(request: Request) -> Response:
    shop = await seller(request)
    after = request.query_params.get("after") or None
    found = await store_of(request).catalog.own(shop.seller_id, LIMIT, after)
    return await page(
        request,
        "selling/listings.html",
        shop=shop,
        listings=found.items,
        next=found.next,
        first=after is None,
    )


async def new(request: Request) -> Response:
    shop = await seller(request)
    return await editor(request, shop, None, Form.of({"stock": 1, "status": "active"}))


async def create(request: Request) -> Response:
    form, shop = await submitted(request), await seller(request)
    checks = Checks()
    price, stock = _price(checks, form, shop), _stock(checks, form)
    try:
        checks.finish()
        listing = NewListing(
            title=form.text("title"),
            price=price,
            category=form.text("category"),
            description=form.text("description"),
            stock=stock,
            status="active" if form.text("status") == "active" else "draft",
        )
        made = await store_of(request).catalog.create(
            shop.seller_id, listing, form.once(request, shop.seller_id)
        )
    except Invalid as refused:
        return await editor(request, shop, None, form, 422, errors=refused.errors)
    return redirect(request, f"/selling/listings/{made.id}", done="listing-created")


async def edit(request: Request) -> Response:
    shop = await seller(request)
    listing = await own_listing(request, shop)
    return await editor(request, shop, listing, shown(listing))


async def change(request: Request) -> Response:
    """Fields of a listing that has changed since the form was made are not overwritten."""
    form, shop = await submitted(request), await seller(request)
    listing = await own_listing(request, shop)
    checks = Checks()
    price = _price(checks, form, shop)
    try:
        checks.finish()
        changes = ListingChanges(
            title=form.text("title"),
            price=price,
            category=form.text("category"),
            description=form.text("description"),
        )
        version = form.whole("version")
        await store_of(request).catalog.update(listing.id, shop.seller_id, changes, version)
    except (Invalid, Stale) as refused:
        return await editor(request, shop, listing, form, _status(refused), errors=refused.errors)
    return redirect(request, f"/selling/listings/{listing.id}", done="listing-saved")


async def status(request: Request) -> Response:
    form, shop = await submitted(request), await seller(request)
    listing = await own_listing(request, shop)
    wanted: Literal["active", "withdrawn"] = "active" if form.text("status") == "active" else "withdrawn"
    changes = ListingChanges(status=wanted)
    try:
        await store_of(request).catalog.update(listing.id, shop.seller_id, changes, None)
    except Conflict as refused:
        return await editor(request, shop, listing, shown(listing), 409, errors=refused.errors)
    return redirect(request, f"/selling/listings/{listing.id}", done=f"listing-{wanted}")


async def own_listing(request: Request, shop: Shop) -> Listing:
    """Raises NotFound, Forbidden."""
    id = number(request)
    if id is None:
        raise NotFound("listing")
    listing = await store_of(request).catalog.listing(id, shop.seller_id)
    if listing.seller_id != shop.seller_id:
        raise Forbidden("listing")
    return listing


def shown(listing: Listing) -> Form:
    """The form of a listing as it is."""
    return Form.of(
        {
            "title": listing.title,
            "price": listing.price.decimal,
            "category": listing.category,
            "description": listing.description,
            "version": listing.version,
        }
    )


async def editor(
    request: Request, shop: Shop, listing: Listing | None, form: Form, status: int = 200, **values: Any
) -> Response:
    """The form for a new listing or for changes, with the stock of one that exists; `typed` is its form."""
    store = store_of(request)
    places = await store.places()
    stock, moved, media, thumbs = None, [], [], {}
    if listing is not None:
        ids = media_ids(listing.media)
        media = await store.media.media(ids) if ids else []
        thumbs = await store.media.urls(ids, "thumb") if ids else {}
        stock = await store.catalog.stock(listing.id, shop.seller_id)
        moved = (await store.catalog.movements(listing.id, shop.seller_id, MOVEMENTS, None)).items
    return await page(
        request,
        "selling/listing.html",
        status,
        shop=shop,
        listing=listing,
        places=places,
        stock=stock,
        movements=moved,
        media=media,
        thumbs=thumbs,
        form=form,
        **{"typed": Form()} | values,
    )


def _price(checks: Checks, form: Form, shop: Shop) -> Money:
    """As people write it: `12.50`, also `12,50`."""
    try:
        return Money.parse(form.text("price").strip().replace(",", "."), shop.currency)
    except ValueError:
        checks.fault("price", f"must be an amount in {shop.currency}, such as 12.50")
        return Money(0, shop.currency)


def _stock(checks: Checks, form: Form) -> int:
    stock = form.whole("stock")
    if stock is None:
        checks.fault("stock", "must be a whole number")
    return stock or 0


def _status(refused: Refused) -> int:
    return 409 if isinstance(refused, Stale) else 422


PAGES = (
    Page("GET", "/selling/listings", listings),
    Page("GET", "/selling/listings/new", new),
    Page("POST", "/selling/listings/new", create),
    Page("GET", "/selling/listings/{id}", edit),
    Page("POST", "/selling/listings/{id}", change),
    Page("POST", "/selling/listings/{id}/status", status),
)
