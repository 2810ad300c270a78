"""What a shop, a listing, a change of stock and an order's lines may be; what a reservation meets. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from msgspec import UNSET

from market.catalog.api import (
    DESCRIPTION_LENGTH,
    MAX_HOLD_SECONDS,
    MAX_IDS,
    MAX_LIMIT,
    MAX_LINES,
    MAX_MEDIA,
    MAX_PRICE,
    MAX_QUANTITY,
    MAX_STOCK,
    MEDIA_LENGTH,
    NAME_LENGTH,
    NOTE_LENGTH,
    SHOP_DESCRIPTION_LENGTH,
    SLUG_LENGTH,
    TITLE_LENGTH,
    Ended,
    Line,
    ListingChanges,
    NewListing,
    NewShop,
    NotForSale,
    OutOfStock,
    PriceChanged,
    ShopChanges,
)
from market.catalog.categories import department_of
from market.checks import Checks
from market.money import CURRENCIES, Money

__all__ = [
    "Fault",
    "Offer",
    "check_adjustment",
    "check_changes",
    "check_ids",
    "check_limit",
    "check_lines",
    "check_new",
    "check_shop",
    "check_shop_changes",
    "is_id",
    "is_slug",
    "judge",
    "slugs",
]

MAX_ID = (1 << 53) - 1

_SLUG = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_ACCENTS = re.compile("[\u0300-\u036f]+")
_NOT_SLUG = re.compile("[^a-z0-9]+")
_SHORTEST_SLUG = 3

Fault = OutOfStock | PriceChanged | NotForSale | Ended


def is_id(value: int) -> bool:
    return 0 <= value <= MAX_ID


def is_slug(value: str) -> bool:
    return _SHORTEST_SLUG <= len(value) <= SLUG_LENGTH and _SLUG.fullmatch(value) is not None


def slugs(name: str, owner: int) -> list[str]:
    """The slugs that a shop of this name may get, the nicest first; the last one is nobody else's."""
    plain = _ACCENTS.sub("", unicodedata.normalize("NFKD", name.casefold()))
    longest = SLUG_LENGTH - 17  # an id has at most 16 digits
    plain = _NOT_SLUG.sub("-", plain)[:longest].strip("-")
    unique = f"{plain or 'shop'}-{owner}"
    return [plain, unique] if is_slug(plain) else [unique]


def check_shop(new: NewShop) -> NewShop:
    """The shop to open, its name trimmed. Raises Invalid."""
    checks = Checks()
    name = new.name.strip()
    checks.text("name", name, max_length=NAME_LENGTH)
    checks.text("description", new.description, max_length=SHOP_DESCRIPTION_LENGTH, required=False)
    if new.currency not in CURRENCIES:
        checks.fault("currency", "is no currency that is traded here")
    if new.slug is not None and not is_slug(new.slug):
        checks.fault(
            "slug", f"must be {_SHORTEST_SLUG} to {SLUG_LENGTH} of a-z and 0-9, with single hyphens between"
        )
    checks.finish()
    return NewShop(name=name, currency=new.currency, description=new.description, slug=new.slug)


def check_shop_changes(changes: ShopChanges) -> ShopChanges:
    checks = Checks()
    name = changes.name
    if name is not UNSET:
        name = name.strip()
        checks.text("name", name, max_length=NAME_LENGTH)
    if changes.description is not UNSET:
        checks.text("description", changes.description, max_length=SHOP_DESCRIPTION_LENGTH, required=False)
    checks.finish()
    return ShopChanges(name=name, description=changes.description)


def check_new(new: NewListing, currency: str) -> NewListing:
    """The listing to create, its title trimmed; `currency` is the shop's. Raises Invalid."""
    checks = Checks()
    title = new.title.strip()
    checks.text("title", title, max_length=TITLE_LENGTH)
    checks.text("description", new.description, max_length=DESCRIPTION_LENGTH, required=False)
    _price(checks, new.price, currency)
    _category(checks, new.category)
    _media(checks, new.media)
    if not 0 <= new.stock <= MAX_STOCK:
        checks.fault("stock", f"must be between 0 and {MAX_STOCK}")
    checks.finish()
    return NewListing(
        title=title,
        price=new.price,
        category=new.category,
        description=new.description,
        stock=new.stock,
        media=new.media,
        status=new.status,
    )


def check_changes(changes: ListingChanges, currency: str) -> ListingChanges:
    """The changes to make, trimmed as `check_new` does. Raises Invalid."""
    checks = Checks()
    title = changes.title
    if title is not UNSET:
        title = title.strip()
        checks.text("title", title, max_length=TITLE_LENGTH)
    if changes.description is not UNSET:
        checks.text("description", changes.description, max_length=DESCRIPTION_LENGTH, required=False)
    if changes.price is not UNSET:
        _price(checks, changes.price, currency)
    if changes.category is not UNSET:
        _category(checks, changes.category)
    if changes.media is not UNSET:
        _media(checks, changes.media)
    checks.finish()
    return ListingChanges(
        title=title,
        description=changes.description,
        price=changes.price,
        category=changes.category,
        media=changes.media,
        status=changes.status,
    )


def check_adjustment(change: int, note: str) -> None:
    checks = Checks()
    if change == 0 or abs(change) > MAX_STOCK:
        checks.fault("change", f"must be between -{MAX_STOCK} and {MAX_STOCK}, and not 0")
    checks.text("note", note, max_length=NOTE_LENGTH, required=False)
    checks.finish()


def check_limit(limit: int) -> None:
    checks = Checks()
    if not 1 <= limit <= MAX_LIMIT:
        checks.fault("limit", f"must be between 1 and {MAX_LIMIT}")
    checks.finish()


def check_ids(ids: Sequence[int]) -> None:
    checks = Checks()
    if len(ids) > MAX_IDS:
        checks.fault("ids", f"are too many (maximum is {MAX_IDS})")
    checks.finish()


def check_lines(order_id: int, lines: Sequence[Line], hold_seconds: float) -> list[Line]:
    """The lines in the order of their listings. Raises Invalid."""
    checks = Checks()
    if not is_id(order_id):
        checks.fault("order_id", "is no id")
    if not lines:
        checks.fault("lines", "must be one at least")
    if len(lines) > MAX_LINES:
        checks.fault("lines", f"are too many (maximum is {MAX_LINES})")
    if len({line.listing_id for line in lines}) < len(lines):
        checks.fault("lines", "must name each listing once")
    if not all(is_id(line.listing_id) for line in lines):
        checks.fault("listing_id", "is no id")
    if not all(1 <= line.quantity <= MAX_QUANTITY for line in lines):
        checks.fault("quantity", f"must be between 1 and {MAX_QUANTITY}")
    if not 1 <= hold_seconds <= MAX_HOLD_SECONDS:
        checks.fault("hold_seconds", f"must be between 1 and {MAX_HOLD_SECONDS:.0f}")
    checks.finish()
    return sorted(lines, key=lambda line: line.listing_id)


class Offer(NamedTuple):
    """A listing as a buyer meets it."""

    status: str
    price: Money
    available: int


def judge(lines: Sequence[Line], offers: Mapping[int, Offer]) -> list[Fault]:
    """What keeps `lines` from being reserved; every line that is wrong has one fault, the gravest."""
    faults: list[Fault] = []
    for line in lines:
        offer = offers.get(line.listing_id)
        if offer is None or offer.status not in ("active", "sold_out"):
            faults.append(NotForSale(listing_id=line.listing_id))
        elif offer.available < line.quantity:
            faults.append(OutOfStock(listing_id=line.listing_id, available=offer.available))
        elif offer.price != line.price:
            faults.append(PriceChanged(listing_id=line.listing_id, price=offer.price))
    return faults


def _price(checks: Checks, price: Money, currency: str) -> None:
    if price.currency != currency:
        checks.fault("price", f"must be in {currency}, the currency of the shop")
    elif not 1 <= price.amount <= MAX_PRICE:
        checks.fault("price", f"must be between {Money(1, currency)} and {Money(MAX_PRICE, currency)}")


def _category(checks: Checks, category: str) -> None:
    if department_of(category) is None:
        checks.fault("category", "is no category of a department")


def _media(checks: Checks, media: Sequence[str]) -> None:
    if len(media) > MAX_MEDIA:
        checks.fault("media", f"are too many (maximum is {MAX_MEDIA})")
    if len(set(media)) < len(media):
        checks.fault("media", "must name each one once")
    for id in media[: MAX_MEDIA + 1]:
        checks.text("media", id, max_length=MEDIA_LENGTH)
