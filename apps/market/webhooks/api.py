"""What the webhooks module offers to the rest of the application: its only part that may be imported.

A seller registers endpoints: addresses of programs that want to know what happens in the shop. `tell` makes
a message of each piece of news for each endpoint that wants it; jobs deliver them, signed as Standard
Webhooks has it, at least once and with the same id each time. Of one subject (an order, a listing) an
endpoint gets the messages in their order, one after the other; one that fails holds up nothing else.

    type               subject   data
    order.confirmed    order     SoldOrder: the seller's part is paid and sold
    order.shipped      order     the same, as it is by then
    order.cancelled    order     the same; it is given back
    listing.sold_out   listing   TurnedListing
    listing.available  listing   the same; there is something left again
    test               test      {}; sent when it is asked for

The body is JSON: {type, version, timestamp, data}; `version` grows when a type's data would not be understood
by who knows the one before.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal, Protocol

import msgspec
from msgspec import UNSET, UnsetType

from market.faults import Conflict, Invalid, NotFound, Stale
from market.money import Money
from springtide.db.idempotency import Once
from springtide.services import raises

__all__ = [
    "EVENT_TYPES",
    "KEPT_DAYS",
    "MAX_ENDPOINTS",
    "MAX_QUEUED",
    "OVERLAP_HOURS",
    "SUBJECT_LENGTH",
    "URL_LENGTH",
    "Endpoint",
    "EndpointChanges",
    "EndpointPage",
    "EventType",
    "Message",
    "MessagePage",
    "MessageState",
    "NewEndpoint",
    "News",
    "Registered",
    "Secret",
    "SoldLine",
    "SoldOrder",
    "TurnedListing",
    "Webhooks",
]

MAX_ENDPOINTS = 10
"""Of one seller."""

MAX_QUEUED = 1_000
"""Messages that wait for one endpoint; what comes then is `unsent`."""

URL_LENGTH = 2_048
SUBJECT_LENGTH = 100

KEPT_DAYS = 30
"""How long a message can be looked at and sent again."""

OVERLAP_HOURS = 24
"""How long messages are signed with the old secret, too, after it was replaced."""

EventType = Literal[
    "order.confirmed", "order.shipped", "order.cancelled", "listing.sold_out", "listing.available"
]

EVENT_TYPES: tuple[EventType, ...] = (
    "order.confirmed",
    "order.shipped",
    "order.cancelled",
    "listing.sold_out",
    "listing.available",
)

MessageState = Literal["queued", "delivered", "failed", "unsent"]
"""failed: nobody took it in all tries. unsent: the endpoint was disabled, or too much waited for it."""


class NewEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """`url` is https, on port 443, of a public name; `events` are the types that it wants."""

    url: str
    events: list[EventType]


class EndpointChanges(msgspec.Struct, frozen=True, kw_only=True):
    """UNSET leaves a field as it is. Enabling forgets how often it failed."""

    url: str | UnsetType = UNSET
    events: list[EventType] | UnsetType = UNSET
    enabled: bool | UnsetType = UNSET


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """`reason` is why it is disabled, when its seller did not do it; `failing_since`: the first of the tries
    that failed without one in between that did not."""

    id: int
    url: str
    events: list[EventType]
    enabled: bool
    reason: str | None
    failing_since: datetime | None
    version: int
    created_at: datetime
    updated_at: datetime


class EndpointPage(msgspec.Struct, frozen=True, kw_only=True):
    items: list[Endpoint]
    next: str | None


class Secret(msgspec.Struct, frozen=True, kw_only=True):
    """Shown once. Until `previous_until` messages are signed with the one before, too."""

    secret: str
    previous_until: datetime | None


class Registered(msgspec.Struct, frozen=True, kw_only=True):
    """`secret` is shown here and never again."""

    endpoint: Endpoint
    secret: str


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """`attempts` counts the tries that ended, `status` is what the last one was answered (None: nothing),
    `note` what was wrong with it. `next_at` is when it is tried again; None also while it is being tried, and
    while an earlier message of its subject has not ended."""

    id: int
    type: EventType | Literal["test"]
    subject: str
    state: MessageState
    attempts: int
    status: int | None
    note: str | None
    created_at: datetime
    tried_at: datetime | None
    next_at: datetime | None


class MessagePage(msgspec.Struct, frozen=True, kw_only=True):
    """The newest first."""

    items: list[Message]
    next: str | None


class SoldLine(msgspec.Struct, frozen=True, kw_only=True):
    """`price` is for one piece, as the buyer paid it."""

    listing_id: int
    title: str | None
    quantity: int
    price: Money


class SoldOrder(msgspec.Struct, frozen=True, kw_only=True, tag_field="object", tag="order"):
    """The seller's part of an order when the message was made; nothing in it is about the buyer."""

    order_id: int
    state: Literal["open", "shipped", "cancelled"]
    lines: list[SoldLine]
    total: Money
    sold_at: datetime
    shipped_at: datetime | None


class TurnedListing(msgspec.Struct, frozen=True, kw_only=True, tag_field="object", tag="listing"):
    """`turn` counts how often the stock made it sold out or brought it back."""

    listing_id: int
    title: str
    turn: int


class News(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened at `at` (an aware time). Of one `subject` later news have greater numbers."""

    type: EventType
    subject: str
    number: int
    at: datetime
    data: SoldOrder | TurnedListing


class Webhooks(Protocol):
    """Errors are those of `market.faults`; each method names the ones it raises."""

    @raises(Invalid)
    async def tell(self, seller: int, news: list[News]) -> None:
        """Make the messages: each subject and number once per endpoint, none after a later one.

        An endpoint hears nothing of what was before it was registered.
        """

    @raises(Invalid, Conflict)
    async def register(self, seller: int, new: NewEndpoint, once: Once | None = None) -> Registered:
        """Raises Conflict when there are MAX_ENDPOINTS."""

    @raises(Invalid)
    async def endpoints(self, seller: int, limit: int, after: str | None) -> EndpointPage:
        """The newest first. Raises Invalid for a cursor that is none."""

    @raises(NotFound)
    async def endpoint(self, seller: int, id: int) -> Endpoint: ...

    @raises(Invalid, NotFound, Stale)
    async def change(
        self, seller: int, id: int, changes: EndpointChanges, version: int | None, once: Once | None = None
    ) -> Endpoint: ...

    @raises(NotFound)
    async def delete(self, seller: int, id: int, once: Once | None = None) -> None:
        """It is called no more, and its messages are deleted."""

    @raises(NotFound)
    async def rotate(self, seller: int, id: int, once: Once | None = None) -> Secret:
        """Another secret; the one it had is good for OVERLAP_HOURS beside it, an older one no more."""

    @raises(NotFound, Conflict)
    async def test(self, seller: int, id: int, once: Once | None = None) -> Message:
        """Send a message that says nothing. Raises Conflict while it is disabled, or MAX_QUEUED wait."""

    @raises(Invalid, NotFound)
    async def messages(self, seller: int, id: int, limit: int, after: str | None) -> MessagePage:
        """Of one endpoint."""

    @raises(NotFound, Conflict)
    async def send_again(self, seller: int, message: int, once: Once | None = None) -> Message:
        """The same message under the same id. Raises Conflict while it is queued or its endpoint disabled."""
