"""What the orders module offers to the rest of the application: the only part of it that may be imported.

    placing -> confirmed -> cancelling -> cancelled
       |  '-> awaiting_payment -'  (or failed)
       '-> failed

placing:           stock is being reserved, the source charged, the stock sold.
awaiting_payment:  the provider had not said at once what became of the charge; the stock is held meanwhile.
confirmed:         paid once, and sold.
cancelling:        what was done is being undone, because it cannot succeed or the buyer does not want it.
failed, cancelled: nothing is sold and nothing is kept of the money; `reason` says why.

An order that has begun ends in `confirmed`, `failed` or `cancelled`, whatever crashes, and needs nobody who
waits for it. A failed order is over: whoever wants to try again places another one.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, Protocol

import msgspec

from market.faults import Conflict, Invalid, NotFound, Stale
from market.money import Money
from springtide.db.idempotency import Once
from springtide.events import event
from springtide.services import raises

__all__ = [
    "ADDRESS_LENGTH",
    "MAX_LIMIT",
    "MAX_LINES",
    "MAX_QUANTITY",
    "POSTAL_CODE_LENGTH",
    "SOURCE_LENGTH",
    "Address",
    "Cart",
    "CartLine",
    "Change",
    "Disagreements",
    "LineFault",
    "NewOrder",
    "Order",
    "OrderEnded",
    "OrderLine",
    "OrderPage",
    "OrderPlaced",
    "OrderState",
    "Orders",
    "Reason",
    "ReasonCode",
    "Sale",
    "SalePage",
    "SaleState",
    "WantedLine",
]

MAX_LINES = 100
MAX_QUANTITY = 10_000
"""Lines of a cart or an order; items of one line."""

MAX_LIMIT = 100
SOURCE_LENGTH = 200
ADDRESS_LENGTH = 200
POSTAL_CODE_LENGTH = 20
"""The longest of each, in characters; the most of a page."""

OrderState = Literal["placing", "awaiting_payment", "confirmed", "cancelling", "cancelled", "failed"]

ReasonCode = Literal[
    "out_of_stock", "price_changed", "not_for_sale", "declined", "expired", "payment_cancelled", "buyer"
]
"""The first three are about lines. buyer: who placed it did not want it any more."""

Change = Literal["same", "price_changed", "fewer_left", "sold_out", "not_for_sale"]
"""How a line of a cart compares with what can be bought now."""

SaleState = Literal["open", "shipped", "cancelled"]


class WantedLine(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`price` is for one item, as the buyer has seen it: the order fails rather than cost another one."""

    listing_id: int
    quantity: int
    price: Money


class Address(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where to send it. `country` is two capital letters (ISO 3166)."""

    name: str
    street: str
    city: str
    postal_code: str
    country: str
    extra: str = ""


class CartLine(msgspec.Struct, frozen=True, kw_only=True):
    """`price` is what the buyer has seen, `price_now` what it costs now: None when it is not for sale."""

    listing_id: int
    quantity: int
    price: Money
    change: Change
    title: str | None
    shop: str | None
    price_now: Money | None
    available: int


class Cart(msgspec.Struct, frozen=True, kw_only=True):
    """`version` grows with every change. `orderable`: nothing stands against an order at the moment.

    `total` is of the prices that the buyer has seen, None while the cart is empty.
    """

    version: int
    lines: list[CartLine]
    total: Money | None
    orderable: bool


class NewOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Either `lines`, or `cart_version`: what is in the cart, if the buyer has seen its last version.

    `source` is what the payment provider is to charge, such as a card's token. One version of a cart makes
    one order: asked for again, it is the order that it made.
    """

    source: str
    address: Address
    lines: list[WantedLine] | None = None
    cart_version: int | None = None


class LineFault(msgspec.Struct, frozen=True, kw_only=True):
    """What is wrong with a line: how many are left, or what one item costs now."""

    listing_id: int
    code: Literal["out_of_stock", "price_changed", "not_for_sale"]
    available: int | None = None
    price: Money | None = None


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """Why an order fails or is cancelled; `says` is a sentence for the buyer.

    `decline_code` is the provider's.
    """

    code: ReasonCode
    says: str
    faults: list[LineFault] = []
    decline_code: str | None = None


class OrderLine(msgspec.Struct, frozen=True, kw_only=True):
    """Seller and title are those of the moment the stock was reserved, None before."""

    listing_id: int
    quantity: int
    price: Money
    seller_id: int | None = None
    title: str | None = None
    shipped_at: datetime | None = None


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """`total` is of `lines`: a seller sees the own ones only. `version` grows with every change.

    `pay_by`: an order whose payment is not known by then is given up.
    """

    id: int
    buyer_id: int
    state: OrderState
    reason: Reason | None
    lines: list[OrderLine]
    total: Money
    address: Address
    pay_by: datetime
    version: int
    created_at: datetime
    updated_at: datetime


class OrderPage(msgspec.Struct, frozen=True, kw_only=True):
    """`next` is the cursor of the next page, None on the last."""

    items: list[Order]
    next: str | None


class Sale(msgspec.Struct, frozen=True, kw_only=True):
    """A seller's part of a confirmed order; `total` is of these lines."""

    order_id: int
    seller_id: int
    state: SaleState
    lines: list[OrderLine]
    total: Money
    sold_at: datetime
    shipped_at: datetime | None
    version: int


class SalePage(msgspec.Struct, frozen=True, kw_only=True):
    items: list[Sale]
    next: str | None


class Disagreements(msgspec.Struct, frozen=True, kw_only=True):
    """What orders, payments and stock say of each other; all but the first two are 0 when all is well.

    checked:             orders that were compared
    open:                orders that are not at their end yet; they are not compared
    confirmed_not_paid:  confirmed, and not charged with its total, or given back
    confirmed_not_sold:  confirmed, and its stock is not sold
    ended_still_paid:    failed or cancelled, and money of it is kept
    ended_still_held:    failed or cancelled, and stock of it is held or sold
    """

    checked: int
    open: int
    confirmed_not_paid: int
    confirmed_not_sold: int
    ended_still_paid: int
    ended_still_held: int


@event(kind="orders.placed")
class OrderPlaced(msgspec.Struct, frozen=True, kw_only=True):
    """Appended with the order; keyed by it, as the other one."""

    order_id: int
    at: datetime


@event(kind="orders.ended")
class OrderEnded(msgspec.Struct, frozen=True, kw_only=True):
    """Appended when it is confirmed, cancelled or failed; `reason` is the code of the order's, if it has one.

    A confirmed order that is cancelled ends a second time.
    """

    order_id: int
    at: datetime
    state: Literal["confirmed", "cancelled", "failed"]
    reason: str | None


class Orders(Protocol):
    """Errors are those of `market.faults`; each method names the ones it raises.

    `once` is the request that asks for it: whoever repeats that gets the same order, as it is now, and
    nothing is done twice. None means that each call counts.
    """

    async def cart(self, buyer: int) -> Cart:
        """With what is true now; empty for who has none."""

    @raises(Invalid, NotFound, Conflict)
    async def put(self, buyer: int, listing_id: int, quantity: int, price: Money | None = None) -> Cart:
        """So many of a listing are in the cart from now on, however often it is said; 0 takes it out.

        `price` is what the buyer has seen, None the present one.
        Raises Invalid, NotFound("listing") for what is not for sale, Conflict for another currency than that
        of the cart and for a full cart.
        """

    @raises(Invalid, Conflict, Stale)
    async def place(self, buyer: int, new: NewOrder, once: Once | None = None) -> Order:
        """Reserve, charge and sell, as far as it gets within the caller's time: look at `state`.

        What is not finished goes on by itself. Raises Invalid (also for lines of several currencies),
        Stale("cart") when the cart has changed, Conflict("cart") when it is empty.
        """

    @raises(NotFound)
    async def order(self, id: int, viewer: int) -> Order:
        """For its buyer; for a seller of it, once it was confirmed, with the own lines. Raises NotFound."""

    @raises(Invalid)
    async def history(self, buyer: int, limit: int, after: str | None) -> OrderPage:
        """The buyer's orders, newest first. Raises Invalid, also for a cursor of another list."""

    @raises(Invalid)
    async def sales(self, seller: int, limit: int, after: str | None) -> SalePage:
        """What was sold, newest first; a sale appears a moment after its order is confirmed.

        Raises Invalid.
        """

    @raises(NotFound, Conflict)
    async def cancel(self, id: int, buyer: int, once: Once | None = None) -> Order:
        """The buyer does not want it: what was paid is given back, what was sold returns to the stock.

        Idempotent. Raises NotFound, Conflict when a part of it is shipped, or when it has failed.
        """

    @raises(NotFound, Conflict)
    async def ship(self, id: int, seller: int, once: Once | None = None) -> Sale:
        """The seller's lines are on their way; from now on the order cannot be cancelled.

        Idempotent. Raises NotFound for what the seller has not sold, Conflict when it is cancelled.
        """

    async def payment_known(self, id: int) -> None:
        """The provider has told payments what became of its charge: if the order awaits that, it goes on now
        and not when it would have asked. Anything else changes nothing."""

    async def reconcile(self) -> Disagreements:
        """Compare every order with its payment and its stock. Changes nothing."""
