"""What may be charged, how the provider's keys are named, and when a webhook is genuine. Pure.

A key is made from the order's id, so that a charge that we have forgotten still has the same name at the
provider: `<prefix>-<order>-<attempt>`, refunds `<prefix>-<order>-refund-<number>`.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Sequence
from typing import NamedTuple

from market.checks import Checks
from market.money import Money
from market.payments.api import KEY_LENGTH, MAX_IDS, REASON_LENGTH, SOURCE_LENGTH

__all__ = [
    "REPLAY_WINDOW",
    "Named",
    "check_charge",
    "check_ids",
    "check_order",
    "check_refund",
    "genuine",
    "key_of",
    "named",
]

REPLAY_WINDOW = 300.0
"""Seconds that a signature may differ from our clock."""

MAX_ID = (1 << 53) - 1

_SIGNATURE = re.compile(r"t=([0-9]{1,12}),v1=([0-9a-f]{64})")
_KEY = re.compile(r"-([0-9]{1,16})(-refund)?-([0-9]{1,9})")


class Named(NamedTuple):
    """What a key stands for: an attempt to charge, or a refund's number."""

    order_id: int
    refund: bool
    number: int


def check_charge(order_id: int, amount: Money, source: str) -> None:
    checks = Checks()
    _order(checks, order_id)
    _amount(checks, amount)
    checks.text("source", source, max_length=SOURCE_LENGTH)
    checks.finish()


def check_refund(order_id: int, amount: Money, reason: str, key: str) -> None:
    checks = Checks()
    _order(checks, order_id)
    _amount(checks, amount)
    checks.text("reason", reason, max_length=REASON_LENGTH)
    if key != reason:
        checks.text("key", key, max_length=KEY_LENGTH)
    checks.finish()


def check_order(order_id: int, reason: str, amount: Money | None) -> None:
    checks = Checks()
    _order(checks, order_id)
    if amount is not None:
        _amount(checks, amount)
    checks.text("reason", reason, max_length=REASON_LENGTH)
    checks.finish()


def check_ids(order_ids: Sequence[int]) -> None:
    checks = Checks()
    if len(order_ids) > MAX_IDS:
        checks.fault("order_ids", f"are too many (maximum is {MAX_IDS})")
    checks.finish()


def key_of(prefix: str, order_id: int, number: int, *, refund: bool = False) -> str:
    return f"{prefix}-{order_id}{'-refund' if refund else ''}-{number}"


def named(prefix: str, key: str) -> Named | None:
    """What `key` stands for; None when it is not one of ours."""
    if not key.startswith(prefix):
        return None
    found = _KEY.fullmatch(key, len(prefix))
    if found is None or not 0 < int(found[1]) <= MAX_ID:
        return None
    return Named(int(found[1]), found[2] is not None, int(found[3]))


def genuine(secret: str | None, body: bytes, signature: str, now: float) -> bool:
    """Whether the provider signed `body` within the window. Without a secret nothing is genuine."""
    found = _SIGNATURE.fullmatch(signature)
    if not secret or found is None:
        return False
    expected = hmac.new(secret.encode(), found[1].encode() + b"." + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, found[2]) and abs(now - int(found[1])) <= REPLAY_WINDOW


def _order(checks: Checks, order_id: int) -> None:
    if not 0 < order_id <= MAX_ID:
        checks.fault("order_id", "is no order's")


def _amount(checks: Checks, amount: Money) -> None:
    if amount.amount <= 0:
        checks.fault("amount", "must be more than nothing")
