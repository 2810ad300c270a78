"""Who handles events: a group with a position of its own in every log, and one handler per kind.

    Group("dashboard.sales", [On(OrderPlaced, Dashboard.count, effect="transactional")], source="orders")

A group gets every event of the kinds that its handlers name, those of one key in order, one at a time; other
kinds are passed over. Groups know nothing of each other: each is as far as it is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar
from uuid import UUID

import msgspec

from springtide.errors import EventError
from springtide.events.event import EventKind, kind_of
from springtide.outbox.kinds import (
    KIND,
    MAX_RUN,
    Effect,
    Upcast,
    check_counts,
    check_handler,
    check_seconds,
)

if TYPE_CHECKING:
    from springtide.db import WriteTransaction

__all__ = ["Delivery", "Effect", "Group", "On", "Start"]

S = TypeVar("S", bound=msgspec.Struct)

Start = Literal["beginning", "now"] | datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One event as its handler gets it.

    `key` is the same whenever this event is delivered to this group, and unique over all events and groups:
    hand it to third parties as idempotency key. `attempt` begins with 1. `again` is whether the group had
    passed this event before somebody set it back.
    """

    id: UUID
    key: str
    group: str
    shard: str
    position: int
    ordering_key: str | None
    attempt: int
    max_attempts: int
    appended_at: datetime
    again: bool = False
    transaction: WriteTransaction | None = None

    @property
    def tx(self) -> WriteTransaction:
        """The transaction that moves the group on, for handlers declared with effect="transactional"."""
        if self.transaction is None:
            raise EventError('only a handler with effect="transactional" has the transaction that moves on')
        return self.transaction


@dataclass(frozen=True, slots=True)
class On(Generic[S]):
    """`method` handles events of the class `event`; its arguments are the module's implementation, event and
    Delivery.

    effect "any":           the group moves on after the method returned. A crash in between delivers the
                            event again, and possibly others of the last moments: use `delivery.key`.
    effect "transactional": the method runs inside a write transaction on the event's shard, `delivery.tx`,
                            which also moves the group on: both happen once or not at all. The module's own
                            writes on that shard join it. Keep such methods short, and call nobody outside.
    upcasts: older versions that are read, too: one for each version from the oldest to the one before the
             event's, applied one after the other.
    batch:   the method gets a list of up to so many events that follow each other, and a list of their
             deliveries; what it raises concerns all of them, and then they come one by one.

    Raises EventError.
    """

    event: type[S]
    method: (
        Callable[[Any, S, Delivery], Awaitable[Any]]
        | Callable[[Any, list[S], list[Delivery]], Awaitable[Any]]
    )
    effect: Effect = "any"
    upcasts: Sequence[Upcast] = field(default=(), kw_only=True)
    batch: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        spec = kind_of(self.event)
        check_handler(
            spec.name,
            self.event,
            EventError,
            newest=spec.version,
            method=self.method,
            effect=self.effect,
            upcasts=self.upcasts,
            batch=self.batch,
        )

    @property
    def kind(self) -> EventKind:
        return kind_of(self.event)

    @property
    def versions(self) -> list[int]:
        """All that it reads: the event's own, then those of its upcasts."""
        return [self.kind.version, *(upcast.version for upcast in self.upcasts)]


@dataclass(frozen=True, slots=True)
class Group:
    """`name` is what the group's positions are kept under; keep it. `handlers` say which kinds it wants.

    source:       the module whose events it reads; None means the one that declares the group.
    start:        where it begins when its name is new on a shard: "beginning" (the oldest event that is
                  kept), "now", or an aware time.
    max_attempts: runs before an event is a dead letter; runs that were cut off by a crash count.
    max_run:      seconds that one call of a handler may take, at most a week; also the deadline of everything
                  it does.
                  A worker that is gone keeps its lanes for so long and a little more.
    backoff:      seconds before the second run; doubled for each further one, up to `max_backoff`, and
                  multiplied by a uniform factor in [0.5, 1.5). The lane waits: that is what order means.
    on_dead:      "pass": the event is set aside, visible, and the lane goes on. "block": the lane waits until
                  somebody says `springtide events retry` or `skip`.
    ignores:      kinds that the group wanted once and does not want any more. Without that, a worker that has
                  no handler for a kind which the group is known to want leaves the lane to one that has.

    Raises EventError.
    """

    name: str
    handlers: Sequence[On[Any]]
    source: str | None = field(default=None, kw_only=True)
    start: Start = field(default="beginning", kw_only=True)
    max_attempts: int = field(default=10, kw_only=True)
    max_run: float = field(default=20.0, kw_only=True)
    backoff: float = field(default=1.0, kw_only=True)
    max_backoff: float = field(default=60.0, kw_only=True)
    on_dead: Literal["pass", "block"] = field(default="pass", kw_only=True)
    ignores: Sequence[str] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        name = self.name
        if not KIND.fullmatch(name):
            raise EventError(
                "a group's name is 1 to 4 words of lower-case letters, digits and _ with dots between,"
                f" such as dashboard.sales, got {name!r}"
            )
        if not self.handlers:
            raise EventError(f"group {name}: handlers must not be empty")
        check_counts(f"group {name}", EventError, max_attempts=self.max_attempts)
        check_seconds(f"group {name}", EventError, most=MAX_RUN, max_run=self.max_run)
        check_seconds(f"group {name}", EventError, backoff=self.backoff, max_backoff=self.max_backoff)
        if self.max_attempts < 2 and any(handler.batch is not None for handler in self.handlers):
            raise EventError(
                f"group {name}: max_attempts must be >= 2 with batches, because what fails together is tried"
                f" again one by one, got {self.max_attempts}"
            )
        kinds = self.kinds
        for kind in kinds:
            if kinds.count(kind) > 1:
                raise EventError(f"group {name}: two handlers take the event {kind}")
        for kind in self.ignores:
            if kind in kinds or not KIND.fullmatch(kind):
                raise EventError(f"group {name}: ignores are kinds without a handler, got {kind!r}")
        if self.start not in ("beginning", "now") and not isinstance(self.start, datetime):
            raise EventError(
                f'group {name}: start must be "beginning", "now" or a datetime, got {self.start!r}'
            )
        if isinstance(self.start, datetime) and self.start.tzinfo is None:
            raise EventError(f"group {name}: start must have a time zone, got {self.start!r}")
        if self.backoff > self.max_backoff:
            raise EventError(
                f"group {name}: backoff must be <= max_backoff, got {self.backoff} and {self.max_backoff}"
            )
        if self.on_dead not in ("pass", "block"):
            raise EventError(f'group {name}: on_dead must be "pass" or "block", got {self.on_dead!r}')

    @property
    def kinds(self) -> list[str]:
        return [handler.kind.kind for handler in self.handlers]
