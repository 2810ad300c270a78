"""What the catalog offers to the rest of the application: the only part of it that may be imported.

A seller is an account: a shop has the id of its owner. Prices are in the currency of the shop. Available is
what is on hand less what is reserved; a reservation belongs to an order and ends in a sale or is
given back:

    reserve -> reserved -> commit  -> committed -> restock -> returned
           |           '-> release or expiry    -> released
           '-> refused

Every step is idempotent by the order's id, may be repeated after a crash at any moment, and is decided in one
place. An order's lines are reserved together or not at all, whoever sells them and wherever that is.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from market.faults import Conflict, Forbidden, Invalid, NotFound, Stale, Taken
from market.money import Money
from springtide.db.idempotency import Once
from springtide.services import raises

__all__ = [
    "DESCRIPTION_LENGTH",
    "HOLD_SECONDS",
    "MAX_HOLD_SECONDS",
    "MAX_IDS",
    "MAX_LIMIT",
    "MAX_LINES",
    "MAX_MEDIA",
    "MAX_PRICE",
    "MAX_QUANTITY",
    "MAX_STOCK",
    "MEDIA_LENGTH",
    "NAME_LENGTH",
    "NOTE_LENGTH",
    "SHOP_DESCRIPTION_LENGTH",
    "SLUG_LENGTH",
    "TITLE_LENGTH",
    "Catalog",
    "Category",
    "Ended",
    "Line",
    "Listing",
    "ListingChanges",
    "ListingPage",
    "ListingQuery",
    "ListingSummary",
    "Movement",
    "MovementPage",
    "NewListing",
    "NewShop",
    "NotForSale",
    "NotReserved",
    "OutOfStock",
    "PriceChanged",
    "Reservation",
    "Reserved",
    "ReservedLine",
    "Shop",
    "ShopChanges",
    "Status",
    "Stock",
]

SLUG_LENGTH = 40
NAME_LENGTH = 80
SHOP_DESCRIPTION_LENGTH = 5_000
TITLE_LENGTH = 200
DESCRIPTION_LENGTH = 20_000
NOTE_LENGTH = 200
MEDIA_LENGTH = 100
"""The longest of each, in characters."""

MAX_MEDIA = 12
"""Media of one listing."""

MAX_PRICE = 10_000_000_000
"""In the currency's smallest unit."""

MAX_STOCK = 1_000_000
MAX_QUANTITY = 10_000
MAX_LINES = 100
"""Items on hand of one listing; items of one line; lines of one order."""

MAX_LIMIT = 100
MAX_IDS = 200
"""Listings that are answered at once: of a list, by their ids."""

HOLD_SECONDS = 900.0
MAX_HOLD_SECONDS = 86_400.0
"""How long a reservation holds unless it says otherwise, and how long at most."""

Status = Literal["draft", "active", "sold_out", "withdrawn"]
"""draft: not shown yet. active: on sale. sold_out: nothing is available now. withdrawn: taken off sale."""


class Shop(msgspec.Struct, frozen=True, kw_only=True):
    """`seller_id` is the owner's account."""

    seller_id: int
    slug: str
    name: str
    description: str
    currency: str
    version: int
    created_at: datetime
    updated_at: datetime


class NewShop(msgspec.Struct, frozen=True, kw_only=True):
    """Without a slug the shop gets one made from its name."""

    name: str
    currency: str
    description: str = ""
    slug: str | None = None


class ShopChanges(msgspec.Struct, frozen=True, kw_only=True):
    """UNSET leaves a field as it is. Slug and currency stay for ever: links and prices depend on them."""

    name: str | UnsetType = UNSET
    description: str | UnsetType = UNSET


class Category(msgspec.Struct, frozen=True, kw_only=True):
    """`parent` is None for a department. `listings` are those on sale, with those of its categories."""

    slug: str
    name: str
    parent: str | None
    listings: int


class ListingSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A listing in a list: without its description.

    `available` is what can be bought now; `version` counts the seller's changes, not sales.
    """

    id: int
    seller_id: int
    shop: str
    shop_name: str
    title: str
    price: Money
    category: str
    status: Status
    available: int
    media: list[str]
    version: int
    listed_at: datetime
    created_at: datetime
    updated_at: datetime


class Listing(ListingSummary, frozen=True, kw_only=True):
    description: str


class ListingPage(msgspec.Struct, frozen=True, kw_only=True):
    """`next` is the cursor of the next page, None on the last."""

    items: list[ListingSummary]
    next: str | None


class ListingQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Listings on sale: all, of a category or department, or of a seller; of a seller's category, too.

    `limit` is 1 to 100, `after` the cursor of the page before.
    """

    category: str | None = None
    seller_id: int | None = None
    limit: int = 20
    after: str | None = None


class NewListing(msgspec.Struct, frozen=True, kw_only=True):
    """`stock` is what is on hand at first. A draft is shown to nobody until its status is made active."""

    title: str
    price: Money
    category: str
    description: str = ""
    stock: int = 0
    media: list[str] = []
    status: Literal["draft", "active"] = "draft"


class ListingChanges(msgspec.Struct, frozen=True, kw_only=True):
    """UNSET leaves a field as it is. `active` puts on sale (sold_out while nothing is available)."""

    title: str | UnsetType = UNSET
    description: str | UnsetType = UNSET
    price: Money | UnsetType = UNSET
    category: str | UnsetType = UNSET
    media: list[str] | UnsetType = UNSET
    status: Literal["active", "withdrawn"] | UnsetType = UNSET


class Stock(msgspec.Struct, frozen=True, kw_only=True):
    """`available` = `on_hand` - `reserved`, never below zero."""

    listing_id: int
    on_hand: int
    reserved: int
    available: int


class Movement(msgspec.Struct, frozen=True, kw_only=True):
    """One change of what is on hand, and what was on hand after it. Numbered from 1 per listing."""

    number: int
    kind: Literal["adjustment", "sale", "return"]
    change: int
    on_hand: int
    order_id: int | None
    note: str
    created_at: datetime


class MovementPage(msgspec.Struct, frozen=True, kw_only=True):
    items: list[Movement]
    next: str | None


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """What a buyer wants; `price` is for one item, as the buyer has seen it."""

    listing_id: int
    quantity: int
    price: Money


class ReservedLine(msgspec.Struct, frozen=True, kw_only=True):
    """The snapshot that the order keeps: later changes of the listing do not touch it."""

    listing_id: int
    seller_id: int
    title: str
    quantity: int
    price: Money


class Reserved(msgspec.Struct, frozen=True, kw_only=True, tag="reserved"):
    """The lines are held until `expires_at`, in the order of their listings' ids."""

    order_id: int
    lines: list[ReservedLine]
    expires_at: datetime


class OutOfStock(msgspec.Struct, frozen=True, kw_only=True, tag="out_of_stock"):
    listing_id: int
    available: int


class PriceChanged(msgspec.Struct, frozen=True, kw_only=True, tag="price_changed"):
    """`price` is what one item costs now."""

    listing_id: int
    price: Money


class NotForSale(msgspec.Struct, frozen=True, kw_only=True, tag="not_for_sale"):
    """A draft, withdrawn, or no listing at all."""

    listing_id: int


class Ended(msgspec.Struct, frozen=True, kw_only=True, tag="ended"):
    """This order had a reservation, and it is over: an order is reserved once."""

    outcome: Literal["committed", "released", "returned"]


class NotReserved(msgspec.Struct, frozen=True, kw_only=True, tag="not_reserved"):
    """Nothing is held. Every line that is wrong is named, or that the reservation is over."""

    order_id: int
    faults: list[OutOfStock | PriceChanged | NotForSale | Ended]


class Reservation(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an order's reservation."""

    order_id: int
    state: Literal["reserving", "reserved", "refused", "committed", "released", "returned"]


class Catalog(Protocol):
    """Errors are those of `market.faults`; each method names the ones it raises.

    `once` is the request that asks for it: whoever repeats that gets the same answer, and nothing is done
    twice. None means that each call counts.
    """

    @raises(Invalid, Taken)
    async def open_shop(self, owner: int, new: NewShop, once: Once | None = None) -> Shop:
        """Raises Invalid, Taken("slug"), Taken("shop") when the account has one."""

    async def shop(self, slug: str) -> Shop | None: ...

    async def shop_of(self, owner: int) -> Shop | None: ...

    @raises(Invalid, NotFound, Stale)
    async def update_shop(
        self, owner: int, changes: ShopChanges, version: int | None, once: Once | None = None
    ) -> Shop:
        """`version` None changes whichever is there. Raises Invalid, NotFound, Stale."""

    async def categories(self) -> list[Category]:
        """Every category, each department before its own. Counts are exact."""

    @raises(Invalid, NotFound)
    async def create(self, owner: int, new: NewListing, once: Once | None = None) -> Listing:
        """Raises Invalid, NotFound("shop")."""

    @raises(Invalid, NotFound, Forbidden, Stale, Conflict)
    async def update(
        self, id: int, owner: int, changes: ListingChanges, version: int | None, once: Once | None = None
    ) -> Listing:
        """`version` None changes whichever is there.

        Raises Invalid, NotFound, Forbidden, Stale, Conflict when the status cannot become that.
        """

    @raises(NotFound)
    async def listing(self, id: int, viewer: int | None) -> Listing:
        """Drafts and withdrawn ones are for their seller only. Raises NotFound."""

    @raises(Invalid)
    async def listings(self, ids: list[int]) -> list[ListingSummary]:
        """Many at once, in the order of `ids`, whatever their status; ids of nothing are left out.

        More ids make no more statements. Raises Invalid for more than 200.
        """

    @raises(Invalid)
    async def newest(self, query: ListingQuery) -> ListingPage:
        """What is on sale, newest first. Raises Invalid, also for a cursor of another list."""

    @raises(Invalid)
    async def own(self, owner: int, limit: int, after: str | None) -> ListingPage:
        """All listings of a seller, whatever their status, newest first. Raises Invalid."""

    @raises(Invalid, NotFound, Forbidden, Conflict)
    async def adjust(self, id: int, owner: int, change: int, note: str, once: Once | None = None) -> Stock:
        """Add to what is on hand, or take away what is not reserved.

        Raises Invalid, NotFound, Forbidden, Conflict when there is not enough, or would be too much.
        """

    @raises(NotFound, Forbidden)
    async def stock(self, id: int, owner: int) -> Stock:
        """Raises NotFound, Forbidden."""

    @raises(Invalid, NotFound, Forbidden)
    async def movements(self, id: int, owner: int, limit: int, after: str | None) -> MovementPage:
        """The newest first; they add up to what is on hand. Raises Invalid, NotFound, Forbidden."""

    @raises(Invalid)
    async def reserve(
        self, order_id: int, lines: list[Line], hold_seconds: float = HOLD_SECONDS
    ) -> Reserved | NotReserved:
        """Hold all lines for an order, or none. Repeated, it answers the same and holds nothing twice.

        Raises Invalid for lines that nobody could buy, or other ones than the order had before.
        """

    @raises(Conflict)
    async def commit(self, order_id: int) -> None:
        """What is reserved is sold. Idempotent. Raises Conflict when nothing is reserved (any more)."""

    @raises(Conflict)
    async def release(self, order_id: int) -> None:
        """Give back what is reserved. Idempotent, and an order that is unknown cannot be reserved after it.

        Raises Conflict when it is sold.
        """

    @raises(Conflict)
    async def restock(self, order_id: int) -> None:
        """What was sold comes back to the stock. Idempotent. Raises Conflict when it was not sold."""

    @raises(Invalid)
    async def reservations(self, order_ids: list[int]) -> list[Reservation]:
        """Of many orders at once, in no order; those without one are left out.

        Raises Invalid for more than 200.
        """
