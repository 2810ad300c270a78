"""What may be recorded and asked. Pure."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from market.checks import Checks
from market.dashboard.api import MAX_DAYS, MAX_LIMIT, MAX_LINES, TITLE_LENGTH, Sale
from market.money import MAX_AMOUNT

__all__ = ["check_limit", "check_report", "check_sale", "check_undone", "check_window", "day_of", "is_id"]

MAX_ID = (1 << 53) - 1
MAX_QUANTITY = 1_000_000
FIRST_DAY = date(2000, 1, 1)


def is_id(value: int) -> bool:
    return 0 < value <= MAX_ID


def day_of(at: datetime) -> date:
    """The day of UTC that `at` is on."""
    return at.astimezone(UTC).date()


def check_sale(sale: Sale) -> None:
    """Raises Invalid."""
    checks = Checks()
    _ids(checks, order_id=sale.order_id, seller=sale.seller)
    _aware(checks, sale.at)
    if not 1 <= len(sale.lines) <= MAX_LINES:
        checks.fault("lines", f"must be 1 to {MAX_LINES}")
    if len({line.listing_id for line in sale.lines}) < len(sale.lines):
        checks.fault("lines", "must have each listing once")
    if len({line.price.currency for line in sale.lines}) > 1:
        checks.fault("lines", "must have one currency")
    for line in sale.lines:
        _ids(checks, listing_id=line.listing_id)
        checks.text("title", line.title, max_length=TITLE_LENGTH, required=False)
        if not 1 <= line.quantity <= MAX_QUANTITY:
            checks.fault("quantity", f"must be between 1 and {MAX_QUANTITY}")
        if line.price.amount < 0:
            checks.fault("price", "must not be less than 0")
    if sum(line.price.amount * line.quantity for line in sale.lines) > MAX_AMOUNT:
        checks.fault("lines", "add up to more than 2**53")
    checks.finish()


def check_undone(order_id: int, seller: int, at: datetime) -> None:
    """Raises Invalid."""
    checks = Checks()
    _ids(checks, order_id=order_id, seller=seller)
    _aware(checks, at)
    checks.finish()


def check_window(days: int, today: date) -> date:
    """The first day of a window of `days` that ends today. Raises Invalid."""
    if not 1 <= days <= MAX_DAYS:
        checks = Checks()
        checks.fault("days", f"must be between 1 and {MAX_DAYS}")
        checks.finish()
    return today - timedelta(days=days - 1)


def check_limit(limit: int) -> None:
    """Raises Invalid."""
    if not 1 <= limit <= MAX_LIMIT:
        checks = Checks()
        checks.fault("limit", f"must be between 1 and {MAX_LIMIT}")
        checks.finish()


def check_report(seller: int, first: date, last: date, today: date) -> None:
    """Raises Invalid."""
    checks = Checks()
    _ids(checks, seller=seller)
    if first < FIRST_DAY:
        checks.fault("first", f"must not be before {FIRST_DAY}")
    if last > today:
        checks.fault("last", "must not be after today (UTC)")
    if first > last:
        checks.fault("first", "must not be after the last day")
    elif (last - first).days >= MAX_DAYS:
        checks.fault("last", f"must be within {MAX_DAYS} days")
    checks.finish()


def _ids(checks: Checks, **ids: int) -> None:
    for field, value in ids.items():
        if not is_id(value):
            checks.fault(field, "is not an id")


def _aware(checks: Checks, at: datetime) -> None:
    if at.tzinfo is None:
        checks.fault("at", "must have a time zone")
    elif not FIRST_DAY <= at.date() <= date(2200, 1, 1):
        checks.fault("at", "is no time of a sale")
