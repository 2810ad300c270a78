"""Shops, listings and their stock under /market."""

from __future__ import annotations

from datetime import datetime

import msgspec
from msgspec import UNSET
from starlette.requests import Request
from starlette.responses import Response

from market.catalog import api as catalog
from market.faults import Invalid, NotFound
from market.rest.answers import answer, created, read, wanted_version
from market.rest.bodies import id_of, ids_of, once, read_body, text_of, window
from market.rest.operations import PREFIX, Operation
from market.rest.rim import anybody, member, rest_of, somebody

__all__ = ["OPERATIONS"]

SHOPS, LISTINGS = "Shops", "Listings"

PUBLIC = frozenset({"active", "sold_out"})


class Categories(msgspec.Struct, frozen=True):
    """Every category, each department before its own."""

    items: list[catalog.Category]


class Adjustment(msgspec.Struct, frozen=True):
    """`change` is added to what is on hand; below zero it is taken away."""

    change: int
    note: str = ""


class ShopPage(msgspec.Struct, frozen=True):
    """A shop as everybody sees it."""

    seller_id: int
    slug: str
    name: str
    description: str
    currency: str
    created_at: datetime


async def get_categories(request: Request) -> Response:
    return read(request, Categories(await rest_of(request).catalog.categories()))


async def get_shop(request: Request) -> Response:
    shop = await rest_of(request).catalog.shop(request.path_params["slug"])
    if shop is None:
        raise NotFound("shop")
    fields = {name: getattr(shop, name) for name in ShopPage.__struct_fields__}
    return read(request, ShopPage(**fields))


async def open_shop(request: Request) -> Response:
    somebody(request)
    new = await read_body(request, catalog.NewShop)
    shop = await rest_of(request).catalog.open_shop(await member(request), new, await once(request))
    return created(shop, f"{PREFIX}/shops/{shop.slug}", version=shop.version)


async def get_own_shop(request: Request) -> Response:
    shop = await rest_of(request).catalog.shop_of(somebody(request))
    if shop is None:
        raise NotFound("shop")
    return read(request, shop, version=shop.version, private=True)


async def update_shop(request: Request) -> Response:
    viewer = somebody(request)
    version = wanted_version(request, "shop")
    changes = await read_body(request, catalog.ShopChanges)
    _some(changes)
    shop = await rest_of(request).catalog.update_shop(viewer, changes, version, await once(request))
    return answer(shop, version=shop.version)


async def get_own_listings(request: Request) -> Response:
    viewer = somebody(request)
    limit, after = window(request)
    return read(request, await rest_of(request).catalog.own(viewer, limit, after), private=True)


async def get_listings(request: Request) -> Response:
    rest = rest_of(request)
    ids, shop, category = (text_of(request, name) for name in ("ids", "shop", "category"))
    limit, after = window(request)
    if ids is not None:
        if shop or category or after:
            raise Invalid({"ids": ["cannot be combined with other filters"]})
        found = await rest.catalog.listings(ids_of(ids))
        items = [listing for listing in found if listing.status in PUBLIC]
        return read(request, catalog.ListingPage(items=items, next=None))
    seller = None
    if shop is not None:
        owner = await rest.catalog.shop(shop)
        if owner is None:
            return read(request, catalog.ListingPage(items=[], next=None))
        seller = owner.seller_id
    query = catalog.ListingQuery(category=category, seller_id=seller, limit=limit, after=after)
    return read(request, await rest.catalog.newest(query))


async def create_listing(request: Request) -> Response:
    somebody(request)
    new = await read_body(request, catalog.NewListing)
    rest = rest_of(request)
    listing = await rest.catalog.create(await member(request), new, await once(request))
    return created(listing, f"{PREFIX}/listings/{listing.id}", version=listing.version)


async def get_listing(request: Request) -> Response:
    viewer = anybody(request)
    listing = await rest_of(request).catalog.listing(id_of(request, "listing"), viewer)
    return read(request, listing, version=listing.version, private=listing.status not in PUBLIC)


async def update_listing(request: Request) -> Response:
    viewer, id = somebody(request), id_of(request, "listing")
    version = wanted_version(request, "listing")
    changes = await read_body(request, catalog.ListingChanges)
    _some(changes)
    rest = rest_of(request)
    listing = await rest.catalog.update(id, viewer, changes, version, await once(request))
    return answer(listing, version=listing.version)


async def get_stock(request: Request) -> Response:
    viewer, id = somebody(request), id_of(request, "listing")
    return read(request, await rest_of(request).catalog.stock(id, viewer), private=True)


async def adjust_stock(request: Request) -> Response:
    viewer, id = somebody(request), id_of(request, "listing")
    body = await read_body(request, Adjustment)
    stock = await rest_of(request).catalog.adjust(id, viewer, body.change, body.note, await once(request))
    return answer(stock)


async def get_movements(request: Request) -> Response:
    viewer, id = somebody(request), id_of(request, "listing")
    limit, after = window(request)
    return read(request, await rest_of(request).catalog.movements(id, viewer, limit, after), private=True)


def _some(changes: msgspec.Struct) -> None:
    """Refuse a body that changes nothing."""
    if all(getattr(changes, name) is UNSET for name in changes.__struct_fields__):
        raise Invalid({"body": ["must have at least one field to change"]})


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        id="GetCategories", method="GET", path="/categories", endpoint=get_categories, tag=LISTINGS,
        summary="Categories, and how much is on sale in each", answer=Categories, conditional=True,
    ),
    Operation(
        id="OpenShop", method="POST", path="/shops", endpoint=open_shop, tag=SHOPS, summary="Open your shop",
        says="One per account. Slug and currency stay for ever; without a slug one is made from the name.",
        auth="required", body=catalog.NewShop, answer=catalog.Shop, status=201, errors=(401, 409),
        idempotent=True,
    ),
    Operation(
        id="GetShop", method="GET", path="/shops/{slug}", endpoint=get_shop, tag=SHOPS, summary="A shop",
        answer=ShopPage, errors=(404,), conditional=True,
    ),
    Operation(
        id="GetOwnShop", method="GET", path="/shop", endpoint=get_own_shop, tag=SHOPS, summary="Your shop",
        auth="required", answer=catalog.Shop, errors=(401, 404), conditional=True,
    ),
    Operation(
        id="UpdateShop", method="PATCH", path="/shop", endpoint=update_shop, tag=SHOPS,
        summary="Change your shop", auth="required", body=catalog.ShopChanges, answer=catalog.Shop,
        errors=(401, 404), conditional=True, idempotent=True,
    ),
    Operation(
        id="GetOwnListings", method="GET", path="/shop/listings", endpoint=get_own_listings, tag=SHOPS,
        summary="Your listings, drafts and withdrawn ones with them", auth="required",
        answer=catalog.ListingPage, errors=(401,), conditional=True, listed=True,
    ),
    Operation(
        id="GetListings", method="GET", path="/listings", endpoint=get_listings, tag=LISTINGS,
        summary="What is on sale, newest first", answer=catalog.ListingPage, conditional=True, listed=True,
        query=(
            ("category", "only of this category or department (slug)"),
            ("shop", "only of this shop (slug)"),
            ("ids", "exactly these, in this order, also when sold out: `1,2,3`; with no other filter"),
        ),
        says="Listings in lists have no description. An unknown category is 422, an unknown shop has none.",
    ),
    Operation(
        id="CreateListing", method="POST", path="/listings", endpoint=create_listing, tag=LISTINGS,
        summary="Offer something", auth="required", body=catalog.NewListing, answer=catalog.Listing,
        status=201, errors=(401, 404), idempotent=True,
        says="You need a shop (404 without); the price is in its currency, in the smallest unit.",
    ),
    Operation(
        id="GetListing", method="GET", path="/listings/{id}", endpoint=get_listing, tag=LISTINGS,
        summary="A listing", auth="optional", answer=catalog.Listing, errors=(401, 404), conditional=True,
        says="Drafts and withdrawn ones are there for their seller only.",
    ),
    Operation(
        id="UpdateListing", method="PATCH", path="/listings/{id}", endpoint=update_listing, tag=LISTINGS,
        summary="Change a listing, put it on sale, withdraw it", auth="required", body=catalog.ListingChanges,
        answer=catalog.Listing, errors=(401, 403, 404, 409), conditional=True, idempotent=True,
    ),
    Operation(
        id="GetStock", method="GET", path="/listings/{id}/stock", endpoint=get_stock, tag=LISTINGS,
        summary="What is on hand and reserved of your listing", auth="required", answer=catalog.Stock,
        errors=(401, 403, 404), conditional=True,
    ),
    Operation(
        id="AdjustStock", method="POST", path="/listings/{id}/stock", endpoint=adjust_stock, tag=LISTINGS,
        summary="Add to the stock of your listing, or take away", auth="required", body=Adjustment,
        answer=catalog.Stock, errors=(401, 403, 404, 409), idempotent=True,
        says="What is reserved cannot be taken away (409).",
    ),
    Operation(
        id="GetMovements", method="GET", path="/listings/{id}/movements", endpoint=get_movements,
        tag=LISTINGS, summary="The log of your listing's stock, newest first", auth="required",
        answer=catalog.MovementPage, errors=(401, 403, 404), conditional=True, listed=True,
        says="The changes of the whole log add up to what is on hand.",
    ),
)  # fmt: skip
