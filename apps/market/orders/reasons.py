"""Why an order fails or is cancelled, in words for its buyer. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from market.catalog.api import Ended, NotForSale, OutOfStock, PriceChanged
from market.money import Money
from market.orders.api import LineFault, Reason, ReasonCode

__all__ = ["BUYER", "EXPIRED", "PAYMENT_CANCELLED", "declined", "given_back", "not_reserved"]

BUYER = Reason(code="buyer", says="You cancelled it.")

EXPIRED = Reason(
    code="expired",
    says="It could not be paid and sold in time. You pay nothing: what was charged is given back.",
)

PAYMENT_CANCELLED = Reason(code="payment_cancelled", says="The payment was called off. Nothing is charged.")

DECLINED = "The payment was declined. Nothing is charged; you can order again and pay in another way."

_SAYS: dict[ReasonCode, str] = {
    "not_for_sale": "Something in it is not for sale any more.",
    "out_of_stock": "There is not enough left of something in it.",
    "price_changed": "The price of something in it has changed.",
}
"""The gravest first: an order with several faults has the first of these as its reason."""


def declined(code: str | None) -> Reason:
    return Reason(code="declined", says=DECLINED, decline_code=code)


def given_back(amount: Money) -> str:
    """What a buyer who cancelled has of the money; nothing may be known of a charge that is still open."""
    if amount.amount == 0:
        return "You pay nothing: what is charged nevertheless is given back."
    return f"You get back: {amount}"


def not_reserved(faults: Sequence[OutOfStock | PriceChanged | NotForSale | Ended]) -> Reason | None:
    """None when the faults are not of the lines: the reservation was there and is over."""
    found = [_fault(fault) for fault in faults if not isinstance(fault, Ended)]
    codes = {fault.code for fault in found}
    for code, says in _SAYS.items():
        if code in codes:
            return Reason(code=code, says=f"{says} Nothing is charged.", faults=found)
    return None


def _fault(fault: OutOfStock | PriceChanged | NotForSale) -> LineFault:
    match fault:
        case OutOfStock(listing_id=id, available=available):
            return LineFault(listing_id=id, code="out_of_stock", available=available)
        case PriceChanged(listing_id=id, price=price):
            return LineFault(listing_id=id, code="price_changed", price=price)
        case NotForSale(listing_id=id):
            return LineFault(listing_id=id, code="not_for_sale")
