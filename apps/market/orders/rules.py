"""What may be put into a cart and ordered, and what a cart is worth. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from market.catalog.api import MAX_PRICE, ListingSummary
from market.checks import Checks
from market.faults import Conflict
from market.money import MAX_AMOUNT, Money, total
from market.orders.api import (
    ADDRESS_LENGTH,
    MAX_LIMIT,
    MAX_LINES,
    MAX_QUANTITY,
    POSTAL_CODE_LENGTH,
    SOURCE_LENGTH,
    Address,
    Cart,
    CartLine,
    Change,
    NewOrder,
    WantedLine,
)

__all__ = ["ON_SALE", "cart_of", "check_limit", "check_new", "check_put", "is_id", "with_line"]

MAX_ID = (1 << 53) - 1

ON_SALE = frozenset({"active", "sold_out"})

_COUNTRY = re.compile(r"[A-Z]{2}")


def is_id(value: int) -> bool:
    return 0 <= value <= MAX_ID


def check_limit(limit: int) -> None:
    checks = Checks()
    if not 1 <= limit <= MAX_LIMIT:
        checks.fault("limit", f"must be between 1 and {MAX_LIMIT}")
    checks.finish()


def check_put(listing_id: int, quantity: int, price: Money | None) -> None:
    checks = Checks()
    if not is_id(listing_id):
        checks.fault("listing_id", "is no id")
    _quantity(checks, quantity, least=0)
    if price is not None:
        _price(checks, price)
    checks.finish()


def check_new(new: NewOrder) -> NewOrder:
    """The order to place, its address trimmed; its lines, if it has some, are good. Raises Invalid."""
    checks = Checks()
    checks.text("source", new.source, max_length=SOURCE_LENGTH)
    address = _address(checks, new.address)
    if (new.lines is None) == (new.cart_version is None):
        checks.fault("lines", "or cart_version is needed, and not both")
    elif new.lines is not None:
        _lines(checks, new.lines)
    elif new.cart_version is not None and not 0 <= new.cart_version < 1 << 31:
        checks.fault("cart_version", "is no version")
    checks.finish()
    return NewOrder(source=new.source, address=address, lines=new.lines, cart_version=new.cart_version)


def with_line(lines: Sequence[WantedLine], new: WantedLine) -> list[WantedLine]:
    """The lines with `new`, in the place of the line of that listing if there is one. Raises Conflict."""
    others = [line for line in lines if line.listing_id != new.listing_id]
    for line in others:
        if line.price.currency != new.price.currency:
            theirs, own = line.price.currency, new.price.currency
            raise Conflict("currency", f"of the cart is {theirs} and this costs {own}: order it separately")
    if len(others) >= MAX_LINES:
        raise Conflict("cart", f"is full (maximum is {MAX_LINES} lines)")
    changed = [new if line.listing_id == new.listing_id else line for line in lines]
    if len(others) == len(lines):
        changed.append(new)
    if sum(line.price.amount * line.quantity for line in changed) > MAX_AMOUNT:
        raise Conflict("cart", "comes to more than can be paid at once")
    return changed


def cart_of(version: int, lines: Sequence[WantedLine], listings: Mapping[int, ListingSummary]) -> Cart:
    """The cart against what can be bought now."""
    shown = [_line(line, listings.get(line.listing_id)) for line in lines]
    return Cart(
        version=version,
        lines=shown,
        total=_total(lines) if lines else None,
        orderable=bool(shown) and all(line.change == "same" for line in shown),
    )


def _line(line: WantedLine, listing: ListingSummary | None) -> CartLine:
    change: Change = "same"
    if listing is None or listing.status not in ON_SALE:
        change = "not_for_sale"
    elif listing.available == 0:
        change = "sold_out"
    elif listing.available < line.quantity:
        change = "fewer_left"
    elif listing.price != line.price:
        change = "price_changed"
    for_sale = listing is not None and change != "not_for_sale"
    return CartLine(
        listing_id=line.listing_id,
        quantity=line.quantity,
        price=line.price,
        change=change,
        title=listing.title if listing is not None and for_sale else None,
        shop=listing.shop if listing is not None and for_sale else None,
        price_now=listing.price if listing is not None and for_sale else None,
        available=listing.available if listing is not None and for_sale else 0,
    )


def _lines(checks: Checks, lines: Sequence[WantedLine]) -> None:
    if not lines:
        checks.fault("lines", "must be one at least")
        return
    if len(lines) > MAX_LINES:
        checks.fault("lines", f"are too many (maximum is {MAX_LINES})")
    if len({line.listing_id for line in lines}) < len(lines):
        checks.fault("lines", "must name each listing once")
    if not all(is_id(line.listing_id) for line in lines):
        checks.fault("listing_id", "is no id")
    currencies = sorted({line.price.currency for line in lines})
    if len(currencies) > 1:
        checks.fault("currency", f"must be one in an order, these lines have {' and '.join(currencies)}")
    for line in lines:
        _quantity(checks, line.quantity, least=1)
        _price(checks, line.price)
    if sum(line.price.amount * line.quantity for line in lines) > MAX_AMOUNT:
        checks.fault("lines", "come to more than can be paid at once")


def _quantity(checks: Checks, quantity: int, *, least: int) -> None:
    if type(quantity) is not int or not least <= quantity <= MAX_QUANTITY:
        checks.fault("quantity", f"must be a whole number between {least} and {MAX_QUANTITY}")


def _price(checks: Checks, price: Money) -> None:
    if not 1 <= price.amount <= MAX_PRICE:
        checks.fault("price", "is no price of a listing")


def _address(checks: Checks, address: Address) -> Address:
    fields = {name: str(getattr(address, name)).strip() for name in Address.__struct_fields__}
    for name, value in fields.items():
        field = f"address.{name}"
        if name == "country":
            if _COUNTRY.fullmatch(value) is None:
                checks.fault(field, "must be two capital letters, such as DE")
            continue
        longest = POSTAL_CODE_LENGTH if name == "postal_code" else ADDRESS_LENGTH
        good = checks.text(field, value, max_length=longest, required=name != "extra")
        if good and not value.isprintable():
            checks.fault(field, "must be one line of text")
    return Address(**fields)


def _total(lines: Sequence[WantedLine]) -> Money:
    return total((line.price * line.quantity for line in lines), lines[0].price.currency)
