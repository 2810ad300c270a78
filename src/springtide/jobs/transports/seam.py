"""What a job needs of a broker, and what every driver of one gives: the seam between them.

A job is owned by SQL from its enqueueing to its end. A broker carries one thing: *this job may run now*. So a
message is a reference, and losing, repeating, delaying or reordering it does no harm:

- lost      a job that is `sent` and was not claimed in time is sent again;
- repeated  the claim takes only what is `sent`, or ready and due, so the second one finds nothing;
- early, late, out of order: time, order, limits and attempts are judged by SQL when the job is claimed.

A *line* is one queue of the broker: the jobs of one module on one shard with one priority. Its name has
letters, digits, `_`, `-` and dots, at most `MAX_LINE` characters; a driver makes of it what its broker takes,
under the platform's name, and makes the queue when it is first asked for it.

A driver is a lifecycle service. It connects in `start`, or later: a broker that is away is no error there.
`publish`, `receive` and the others raise TransportUnavailable while nobody answers; the next call tries
again, so the driver itself needs no loop for that. Calls of one driver may overlap.
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol
from uuid import UUID

from asyncpg.pgproto.pgproto import UUID as FastUUID  # one that is made, hashed and sent in C

from springtide.errors import TransportRefused

__all__ = [
    "MAX_BODY",
    "MAX_LINE",
    "Capabilities",
    "Delivery",
    "Message",
    "Transport",
    "check",
    "emulated",
    "line_name",
    "readable",
]

_log = logging.getLogger(__name__)

MAX_LINE = 130
"""Characters of a line's name."""

MAX_BODY = 2048
"""Bytes of a message: its head, and an ordering key of 500 characters with up to four bytes each."""

_HEAD = struct.Struct(">BhI16s")
_VERSION = 1


class Message(NamedTuple):
    """`turn` says how often the job has been sent until now, by any transport: no two messages are alike.

    `ordering_key` is for brokers that keep what belongs together in order; nothing depends on it.
    """

    line: str
    bucket: int
    id: UUID
    turn: int
    ordering_key: str | None = None

    @property
    def key(self) -> str:
        """For brokers that drop what they have had already: the same for a message published again."""
        return f"{self.id}-{self.turn}"

    @property
    def body(self) -> bytes:
        """At most MAX_BODY bytes; `readable` is the inverse."""
        head = _HEAD.pack(_VERSION, self.bucket, self.turn, self.id.bytes)
        return head if self.ordering_key is None else head + self.ordering_key.encode()


def readable(line: str, body: bytes) -> Message | None:
    """The message with this body; None, and a line in the log, when it is none of ours.

    The driver then settles it for good: given back, it would come again and again.
    """
    try:
        version, bucket, turn, id = _HEAD.unpack_from(body)
        key = body[_HEAD.size :].decode() or None
    except (struct.error, UnicodeDecodeError):
        version = -1
    if version != _VERSION:
        _log.error("a message of %d bytes in %s is not of ours; it is dropped", len(body), line)
        return None
    return Message(line, bucket, FastUUID(id), turn, key)


class Delivery(NamedTuple):
    """A message as it was received; `handle` is what the driver needs to settle it."""

    message: Message
    handle: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a broker does by itself, as its driver uses it. Nothing is lost where it does not: SQL does it.

    durable:          what a confirm means on disk, in words, for people.
    survives_restart: what was confirmed is there after a restart of the broker.
    redelivers:       what was received and never settled comes again, by itself or to others.
    ordered:          one line is received in the order of publishing while nothing fails.
    deduplicates:     a message published twice within a short time is there once.
    delays, priorities: it could hold messages back, or give important ones first.
    max_body:         bytes of a message that it takes at least.
    """

    durable: str
    survives_restart: bool
    redelivers: bool
    ordered: bool
    deduplicates: bool
    delays: bool
    priorities: bool
    max_body: int


class Transport(Protocol):
    """See the module. Made as `Driver(url, name=..., clock=..., sink=...)`; `name` is the platform's."""

    capabilities: ClassVar[Capabilities]

    @property
    def name(self) -> str:
        """For people: kind and address, without a password."""

    async def start(self) -> None:
        """Return after the first attempt to connect. Raises ConfigurationError when a broker answered and can
        never serve (its version, its settings, the login)."""

    async def stop(self) -> None:
        """Give back what was fetched and nobody has, and close."""

    async def publish(self, messages: Sequence[Message]) -> Sequence[bool]:
        """For each message whether the broker has confirmed it, in order; bounded in time.

        Raises TransportUnavailable when none can be; what became of them is not known then.
        """

    async def receive(self, lines: Collection[str], most: int, wait: float) -> Sequence[Delivery]:
        """Up to `most` messages, those of earlier lines first; [] when there is none within `wait` seconds.

        Cancelled, it may have taken messages that nobody sees: they are given back or come again.
        """

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """These have done their duty. Best effort: one that comes again is recognised."""

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        """Others get these now."""

    async def depth(self, line: str) -> int | None:
        """How many messages of a line the broker has, those that were received and not settled included;
        None when it cannot say."""


def line_name(module: str, shard: str, priority: int) -> str:
    return f"{module}.{shard}.{priority}"


EMULATED = {
    "survives_restart": "messages that the broker loses are sent again",
    "redelivers": "jobs of a receiver that died before its claim are sent again",
    "ordered": "the jobs of an ordering key are sent one after the other",
    "deduplicates": "a message that comes twice finds its job claimed",
    "delays": "a job is sent when it is due",
    "priorities": "each priority has a line of its own, and few messages are ahead of the workers",
}
"""What SQL does in place of each capability. It does so on every transport."""


def emulated(capabilities: Capabilities) -> list[str]:
    """What SQL does because the broker does not, in words."""
    return [text for name, text in EMULATED.items() if not getattr(capabilities, name)]


def check(transport: Transport) -> None:
    """Raise TransportRefused when `transport` lacks what nothing can replace."""
    if (most := transport.capabilities.max_body) < MAX_BODY:
        raise TransportRefused(transport.name, "max_body", most, f"must be at least {MAX_BODY} bytes")
