"""What the module may be told and asked. Pure."""

from __future__ import annotations

from market.checks import Checks
from market.recommendations.api import MAX_BASKET, MAX_LIMIT, MAX_LISTINGS

__all__ = ["check_bought", "check_followed", "check_order", "check_question", "is_id"]

MAX_ID = (1 << 53) - 1


def is_id(value: int) -> bool:
    return 0 < value <= MAX_ID


def check_bought(order_id: int, buyer: int, listings: list[int]) -> list[int]:
    """The listings to count, each once, at most MAX_BASKET. Raises Invalid."""
    checks = Checks()
    _id(checks, "order_id", order_id)
    _id(checks, "buyer", buyer)
    if not listings:
        checks.fault("listings", "must have one at least")
    for listing in listings:
        _id(checks, "listings", listing)
    checks.finish()
    return list(dict.fromkeys(listings))[:MAX_BASKET]


def check_order(order_id: int) -> None:
    """Raises Invalid."""
    checks = Checks()
    _id(checks, "order_id", order_id)
    checks.finish()


def check_followed(follower: int, followee: int, version: int) -> None:
    """Raises Invalid."""
    checks = Checks()
    _id(checks, "follower", follower)
    _id(checks, "followee", followee)
    if follower == followee:
        checks.fault("followee", "is the follower")
    if not is_id(version):
        checks.fault("version", "must be between 1 and 2**53 - 1")
    checks.finish()


def check_question(limit: int, listings: list[int] | None = None) -> None:
    """Raises Invalid."""
    checks = Checks()
    if not 1 <= limit <= MAX_LIMIT:
        checks.fault("limit", f"must be between 1 and {MAX_LIMIT}")
    if listings is not None and len(listings) > MAX_LISTINGS:
        checks.fault("listings", f"must be {MAX_LISTINGS} at most")
    checks.finish()


def _id(checks: Checks, field: str, value: int) -> None:
    if not is_id(value):
        checks.fault(field, "is not an id")
