"""What may be registered and told, what is sent, and when an endpoint is given up. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from urllib.parse import urlsplit

import msgspec
from msgspec import UNSET

from market.checks import Checks
from market.faults import Invalid
from market.moments import iso
from market.strangers import may_be_called
from market.webhooks.api import (
    KEPT_DAYS,
    SUBJECT_LENGTH,
    URL_LENGTH,
    EndpointChanges,
    NewEndpoint,
    News,
    SoldOrder,
    TurnedListing,
)

__all__ = [
    "body",
    "check_changes",
    "check_limit",
    "check_new",
    "check_news",
    "is_hopeless",
    "is_id",
    "is_old",
    "no_cursor",
    "shown_url",
]

MAX_ID = (1 << 53) - 1
MAX_LIMIT = 100
MAX_NEWS = 100
MAX_BODY_BYTES = 262_144

FAILING_FOR = timedelta(days=2)
FAILING_TRIES = 10
"""An endpoint is disabled when so many tries have failed over so long a time, and none succeeded."""

TOLD_FOR = timedelta(days=KEPT_DAYS - 5)
"""Older news are not told: that they were told already may be forgotten by then."""

BODY_VERSION = 1


def is_id(value: int) -> bool:
    return 0 < value <= MAX_ID


def check_new(new: NewEndpoint, *, loopback: bool) -> None:
    """Raises Invalid."""
    checks = Checks()
    _url(checks, new.url, loopback=loopback)
    _events(checks, new.events)
    checks.finish()


def check_changes(changes: EndpointChanges, *, loopback: bool) -> None:
    """Raises Invalid."""
    checks = Checks()
    if changes.url is not UNSET:
        _url(checks, changes.url, loopback=loopback)
    if changes.events is not UNSET:
        _events(checks, changes.events)
    checks.finish()


def check_limit(limit: int) -> None:
    """Raises Invalid."""
    if not 1 <= limit <= MAX_LIMIT:
        raise Invalid({"limit": [f"must be between 1 and {MAX_LIMIT}"]})


def check_news(seller: int, news: Sequence[News]) -> None:
    """Raises Invalid."""
    checks = Checks()
    if not is_id(seller):
        checks.fault("seller", "is not an id")
    if len(news) > MAX_NEWS:
        checks.fault("news", f"must be at most {MAX_NEWS}")
    for one in news:
        checks.text("subject", one.subject, max_length=SUBJECT_LENGTH)
        if not 0 < one.number <= MAX_ID:
            checks.fault("number", "is out of range")
        if one.at.tzinfo is None:
            checks.fault("at", "must have a time zone")
        elif len(body(one.type, one.at, one.data)) > MAX_BODY_BYTES:
            checks.fault("data", f"has more than {MAX_BODY_BYTES} bytes")
    checks.finish()


def no_cursor() -> Invalid:
    return Invalid({"after": ["is no cursor of this list"]})


def body(type: str, at: datetime, data: SoldOrder | TurnedListing | None) -> bytes:
    """What is sent; without data an empty object."""
    return msgspec.json.encode(
        {"type": type, "version": BODY_VERSION, "timestamp": iso(at), "data": data or {}}
    )


def is_old(at: datetime, now: datetime) -> bool:
    return now - at > TOLD_FOR


def is_hopeless(failures: int, since: datetime, now: datetime) -> bool:
    """Whether an endpoint that has failed so often since then is given up."""
    return failures >= FAILING_TRIES and now - since >= FAILING_FOR


def shown_url(url: str) -> str:
    """An endpoint as a notice names it: without its query, which may be a secret."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}{parts.path}"


def _url(checks: Checks, url: str, *, loopback: bool) -> None:
    if checks.text("url", url, max_length=URL_LENGTH) and not may_be_called(url, loopback=loopback):
        checks.fault("url", "must be an https address of a public server, on port 443")


def _events(checks: Checks, events: Sequence[str]) -> None:
    if not events:
        checks.fault("events", "must have at least one type")
    if len(set(events)) != len(events):
        checks.fault("events", "has a type twice")
