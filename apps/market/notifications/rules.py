"""What may be told to whom, and what the answers of others mean. Pure."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec

from market.checks import Checks
from market.faults import Invalid
from market.notifications import api
from market.notifications.api import DATA, KINDS, Notice, Preference, Recipient, Subscription
from market.strangers import may_be_called

__all__ = [
    "MAX_ID",
    "MAX_LIMIT",
    "check_endpoint",
    "check_id",
    "check_notice",
    "check_page",
    "check_preferences",
    "check_recipient",
    "check_subscription",
    "check_unread",
    "decoded",
    "no_cursor",
]

MAX_ID = (1 << 53) - 1
MAX_LIMIT = 100

LENGTHS: Mapping[str, int] = {
    "article": api.TITLE_LENGTH,
    "excerpt": api.EXCERPT_LENGTH,
    "money": api.REASON_LENGTH,
    "reason": api.REASON_LENGTH,
    "titles": api.TITLES_LENGTH,
    "total": api.TOTAL_LENGTH,
    "url": api.LINK_LENGTH,
}
"""Data that is text; the rest are ids."""

_ID = re.compile(r"[1-9][0-9]{0,15}")
_LINK = re.compile(r"/(?:[^/\\\s\x00-\x1f\x7f][^\\\s\x00-\x1f\x7f]*)?")


def check_id(field: str, id: int) -> None:
    checks = Checks()
    _id(checks, field, id)
    checks.finish()


def check_recipient(person: Recipient) -> None:
    checks = Checks()
    _id(checks, "id", person.id)
    checks.text("name", person.name, max_length=api.NAME_LENGTH)
    checks.text("email", person.email, max_length=api.EMAIL_LENGTH)
    if not 0 <= person.version <= MAX_ID:
        checks.fault("version", "is out of range")
    checks.finish()


def check_notice(notice: Notice) -> None:
    checks = Checks()
    _id(checks, "recipient", notice.recipient)
    checks.text("key", notice.key, max_length=api.KEY_LENGTH)
    if checks.text("link", notice.link, max_length=api.LINK_LENGTH) and not _LINK.fullmatch(notice.link):
        checks.fault("link", "must be a path of this application, such as /orders/5")
    needed = DATA[notice.kind]
    for name in needed:
        if name not in notice.data:
            checks.fault(f"data.{name}", "is missing")
    for name, value in notice.data.items():
        if name not in needed:
            checks.fault("data", f"of {notice.kind} is {', '.join(needed) or 'empty'}")
        elif name in LENGTHS:
            checks.text(f"data.{name}", value, max_length=LENGTHS[name])
        elif not _ID.fullmatch(value) or int(value) > MAX_ID:
            checks.fault(f"data.{name}", "is no id")
    checks.finish()


def check_page(recipient: int, limit: int) -> None:
    checks = Checks()
    _id(checks, "recipient", recipient)
    if not 1 <= limit <= MAX_LIMIT:
        checks.fault("limit", f"must be 1 to {MAX_LIMIT}")
    checks.finish()


def check_unread(recipients: Sequence[int]) -> None:
    checks = Checks()
    if len(recipients) > api.MAX_UNREAD_ASKED:
        checks.fault("recipients", f"must be at most {api.MAX_UNREAD_ASKED}")
    elif not all(0 < id <= MAX_ID for id in recipients):
        checks.fault("recipients", "has what is no id")
    checks.finish()


def check_preferences(recipient: int, wanted: Sequence[Preference]) -> None:
    checks = Checks()
    _id(checks, "recipient", recipient)
    kinds = [item.kind for item in wanted]
    if not kinds:
        checks.fault("items", "must have at least one kind")
    if len(set(kinds)) != len(kinds):
        checks.fault("items", "has a kind twice")
    if not set(kinds) <= set(KINDS):
        checks.fault("items", "has an unknown kind")
    checks.finish()


def check_subscription(recipient: int, given: Subscription, *, loopback: bool) -> None:
    """`loopback`: this machine may be pushed to, also without TLS."""
    checks = Checks()
    _id(checks, "recipient", recipient)
    if checks.text("endpoint", given.endpoint, max_length=api.ENDPOINT_LENGTH) and not may_be_called(
        given.endpoint, loopback=loopback
    ):
        checks.fault("endpoint", "must be an https address of a push service")
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), decoded(given.p256dh, 65))
    except ValueError:
        checks.fault("p256dh", "must be a point on P-256: 65 bytes, uncompressed, in base64url")
    try:
        decoded(given.auth, 16)
    except ValueError:
        checks.fault("auth", "must be 16 bytes in base64url")
    checks.finish()


def check_endpoint(endpoint: str) -> None:
    """One that is to be forgotten."""
    checks = Checks()
    checks.text("endpoint", endpoint, max_length=api.ENDPOINT_LENGTH)
    checks.finish()


def decoded(text: str, length: int) -> bytes:
    """`length` bytes out of base64url. Raises ValueError."""
    if len(text) > 2 * length:
        raise ValueError("too long")
    try:
        raw = base64.b64decode(text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), b"-_", validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise ValueError(str(error)) from error
    if len(raw) != length:
        raise ValueError(f"{len(raw)} bytes")
    return raw


def no_cursor() -> Invalid:
    return Invalid({"after": ["is no cursor of this list"]})


def _id(checks: Checks, field: str, value: Any) -> None:
    if not 0 < value <= MAX_ID:
        checks.fault(field, "is no id")
