"""What the notifications module offers to the rest of the application: its only part that may be imported.

A notice is told once per recipient and key, however often `notify` is called: it is in the inbox when the
call returns, and goes out by mail and push afterwards, as the recipient prefers. What a notice says is made
from its kind and data:

    kind             data, all of it text; nothing else is taken
    welcome          -
    comment          actor: id of who wrote it; article: its title; excerpt: how the comment begins
    order_confirmed  order: its id; total: as people read it, such as 12.50 EUR; titles: one per line
    order_failed     order; reason: a sentence for the buyer; titles
    order_cancelled  order; money: a sentence for the buyer, about what was paid; titles
    order_shipped    order; titles
    sale             order; actor: the buyer's id; total: the seller's part; titles: the seller's
    sale_cancelled   order; actor; total; titles
    webhook_disabled url: of the endpoint; reason: why, a part of a sentence

Names of people come from what `introduce` was told last. Notices of an inbox are numbered from 1 in the order
in which they came; that number is their id.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Literal, Protocol

import msgspec

from market.faults import Forbidden, Invalid
from springtide.db.idempotency import Once
from springtide.services import raises

__all__ = [
    "CHANNELS",
    "DATA",
    "EMAIL_LENGTH",
    "ENDPOINT_LENGTH",
    "EXCERPT_LENGTH",
    "KEPT",
    "KEY_LENGTH",
    "KINDS",
    "KIND_NAMES",
    "LINK_LENGTH",
    "MAX_SUBSCRIPTIONS",
    "MAX_UNREAD_ASKED",
    "NAME_LENGTH",
    "REASON_LENGTH",
    "TITLES_LENGTH",
    "TITLE_LENGTH",
    "TOTAL_LENGTH",
    "Channel",
    "Kind",
    "MailState",
    "Notice",
    "NoticePage",
    "Notifications",
    "Preference",
    "Preferences",
    "Recipient",
    "Subscription",
    "Told",
    "Unread",
]

NAME_LENGTH = 64
EMAIL_LENGTH = 254
KEY_LENGTH = 200
LINK_LENGTH = 2_048
TITLE_LENGTH = 255
EXCERPT_LENGTH = 500
REASON_LENGTH = 500
TOTAL_LENGTH = 64
TITLES_LENGTH = 20_000
ENDPOINT_LENGTH = 2_048
"""The longest of each, in characters."""

KEPT = 500
"""How many notices an inbox keeps: the newest."""

MAX_UNREAD_ASKED = 5_000
MAX_SUBSCRIPTIONS = 10
"""Recipients of one `unread`, and browsers of one recipient; the one subscribed first makes room."""

Kind = Literal[
    "welcome",
    "comment",
    "order_confirmed",
    "order_failed",
    "order_cancelled",
    "order_shipped",
    "sale",
    "sale_cancelled",
    "webhook_disabled",
]
Channel = Literal["mail", "push"]

KINDS: tuple[Kind, ...] = (
    "welcome",
    "comment",
    "order_confirmed",
    "order_failed",
    "order_cancelled",
    "order_shipped",
    "sale",
    "sale_cancelled",
    "webhook_disabled",
)
CHANNELS: tuple[Channel, ...] = ("mail", "push")

DATA: Mapping[Kind, tuple[str, ...]] = {
    "welcome": (),
    "comment": ("actor", "article", "excerpt"),
    "order_confirmed": ("order", "total", "titles"),
    "order_failed": ("order", "reason", "titles"),
    "order_cancelled": ("order", "money", "titles"),
    "order_shipped": ("order", "titles"),
    "sale": ("order", "actor", "total", "titles"),
    "sale_cancelled": ("order", "actor", "total", "titles"),
    "webhook_disabled": ("url", "reason"),
}
"""What each kind needs to be told."""

KIND_NAMES: Mapping[Kind, str] = {
    "welcome": "Welcome",
    "comment": "Comments on your articles",
    "order_confirmed": "Confirmed orders",
    "order_failed": "Failed orders",
    "order_cancelled": "Cancelled orders",
    "order_shipped": "Shipped orders",
    "sale": "Sales",
    "sale_cancelled": "Cancelled sales",
    "webhook_disabled": "Webhooks that were disabled",
}
"""A kind as people read it."""

MailState = Literal["queued", "sent", "unwanted", "unconfigured", "refused"]
"""`unwanted` by the recipient's preferences; `unconfigured`: this installation sends no mail; `refused`: the
address takes none, or did not take this one."""


class Recipient(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who can be told; `version` grows with every change of the name or the address."""

    id: int
    name: str
    email: str
    version: int


class Notice(msgspec.Struct, frozen=True, kw_only=True):
    """`key` is the cause's, such as the key of the job that tells; `link` a path of this application."""

    recipient: int
    kind: Kind
    key: str
    data: dict[str, str] = {}
    link: str


class Told(msgspec.Struct, frozen=True, kw_only=True):
    """A notice as its recipient sees it: `title` one line, `text` the rest, plain text that may be empty."""

    id: int
    kind: Kind
    title: str
    text: str
    data: dict[str, str]
    link: str
    read: bool
    mail: MailState
    created_at: datetime


class NoticePage(msgspec.Struct, frozen=True, kw_only=True):
    """The newest first; `unread` counts the whole inbox."""

    items: list[Told]
    unread: int
    next: str | None


class Unread(msgspec.Struct, frozen=True, kw_only=True):
    """How many notices are unread, and the newest one's id, 0 when there never was one."""

    recipient: int
    count: int
    newest: int


class Preference(msgspec.Struct, frozen=True, kw_only=True):
    """Whether notices of a kind go out by mail and push. The inbox gets them all."""

    kind: Kind
    mail: bool
    push: bool


class Preferences(msgspec.Struct, frozen=True, kw_only=True):
    """Every kind; `email` is where mails go, `bouncing` that the address took none lately.

    `mailing` is False where this installation sends no mail.
    """

    items: list[Preference]
    email: str | None
    bouncing: bool
    mailing: bool


class Subscription(msgspec.Struct, frozen=True, kw_only=True):
    """What a browser's PushSubscription has: `p256dh` and `auth` are its keys, in base64url."""

    endpoint: str
    p256dh: str
    auth: str


class Notifications(Protocol):
    """Errors are those of `market.faults`; each method names the ones it raises."""

    @raises(Invalid)
    async def introduce(self, person: Recipient) -> None:
        """Somebody can be told, under that name and at that address. Older versions change nothing."""

    @raises(Invalid)
    async def notify(self, notice: Notice) -> None:
        """Tell it, once per recipient and key. Raises Invalid, also for data that the kind does not need.

        May come before the recipient is introduced: the mail waits for that.
        """

    @raises(Invalid)
    async def inbox(self, recipient: int, limit: int = 20, after: str | None = None) -> NoticePage:
        """Raises Invalid for a cursor that is none."""

    @raises(Invalid)
    async def unread(self, recipients: list[int]) -> list[Unread]:
        """One for each, in their order. One statement per shard, at most 5,000 recipients."""

    @raises(Invalid)
    async def mark_read(self, recipient: int, up_to: int, once: Once | None = None) -> Unread:
        """Everything up to that id is read. Idempotent; what was read stays so."""

    async def preferences(self, recipient: int) -> Preferences: ...

    @raises(Invalid)
    async def prefer(self, recipient: int, wanted: list[Preference], once: Once | None = None) -> Preferences:
        """Set the kinds that are listed; the others stay.

        Who wants mails of some kind says that the address takes them: one that bounced is tried again.
        """

    @raises(Forbidden)
    async def stop_mail(self, token: str) -> Kind:
        """What the link in a mail does: no more mail of that kind. Raises Forbidden for a token not ours."""

    @raises(Forbidden)
    async def mail_stopped_by(self, token: str) -> Kind:
        """The kind that `stop_mail` would stop; changes nothing."""

    async def push_key(self) -> str:
        """The public key that browsers subscribe with (`applicationServerKey`), in base64url."""

    @raises(Invalid)
    async def subscribe(self, recipient: int, subscription: Subscription, once: Once | None = None) -> None:
        """Push to that browser from now on. An endpoint is one recipient's: the one who came last."""

    @raises(Invalid)
    async def unsubscribe(self, recipient: int, endpoint: str, once: Once | None = None) -> None:
        """Idempotent."""
