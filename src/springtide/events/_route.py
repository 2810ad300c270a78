"""How one group's events of one log are handled: who reads which kind and version, and one call of a handler.

A call runs in the task of the turn, inside a new request context that continues the trace of the (first)
event's request in a span of its own. It has seen what that request had seen, and all that the log's shard had
when the events were read, so the handler's session reads find what the events are about, on any server. The
deadline is `max_run`: a fact has none of its own. Identity does not travel.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from springtide.clock import Clock
from springtide.context import Position, Priority, RequestContext, activate
from springtide.db import Bucket, Database
from springtide.errors import DeadlineExceeded, EventError, EventLost
from springtide.events._log import Log, Stored
from springtide.events.group import Delivery, Group, On
from springtide.outbox.envelope import Envelope
from springtide.outbox.kinds import decoder
from springtide.outbox.retry import describe

if TYPE_CHECKING:
    from springtide.db import WriteTransaction

__all__ = ["GRACE", "Opened", "Reader", "Route", "Unreadable"]

GRACE = 5.0
"""Seconds after `max_run` (or as much again, if that is less) in which a cancelled handler may still clean
up, and the lane be moved on."""

Moving = Callable[["WriteTransaction"], Awaitable[bool]]


class Unreadable(Exception):
    """Trying again cannot help: what is stored is no such event."""


class Reader:
    """A handler, and how each version that it takes is decoded."""

    __slots__ = ("batch", "decode", "on", "transactional")

    def __init__(self, on: On[Any]) -> None:
        self.on = on
        self.batch = on.batch
        self.transactional = on.effect == "transactional"
        self.decode = {
            version: decoder(on.event, on.kind.version, on.upcasts, version) for version in on.versions
        }


class Opened:
    """An event as its handler takes it."""

    __slots__ = ("envelope", "event", "stored")

    def __init__(self, reader: Reader, stored: Stored) -> None:
        """Raises Unreadable."""
        name = f"{stored.kind}/{stored.version}"
        self.stored = stored
        try:
            self.envelope = Envelope.load(stored.context)
            self.event = reader.decode[stored.version](stored.payload or b"")
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Unreadable(f"cannot be read as {name}: {describe(error)}") from error
        except Exception as error:  # an upcast's
            raise Unreadable(f"cannot be made of {name}: {describe(error)}") from error


class Route:
    """A group at work on `log`. `database` is the one that its transactional handlers write to."""

    def __init__(
        self, group: Group, log: Log, database: Database, implementation: Any, *, clock: Clock
    ) -> None:
        if any(on.effect == "transactional" for on in group.handlers) and not _together(
            database, log.database
        ):
            raise EventError(
                f"group {group.name}: its position lies in {log.database.name!r} and its effects in"
                f" {database.name!r}, which is on other clusters: one transaction cannot have both, so its"
                ' handlers must have effect "any"'
            )
        self.group = group
        self.log = log
        self.lease = group.max_run + min(GRACE, group.max_run)
        self.kinds = group.kinds
        self.ignores = frozenset(group.ignores)
        self.readers = {on.kind.kind: Reader(on) for on in group.handlers}
        self.names = [
            f"{group.name} {kind}/{version}" for kind, on in self.readers.items() for version in on.decode
        ]
        self.names += [f"{group.name} {kind}" for kind in group.ignores]  # a lane may wait for one of them
        self._database = database
        self._implementation = implementation
        self._clock = clock

    async def call(
        self,
        reader: Reader,
        batch: Sequence[Opened],
        *,
        attempt: int,
        furthest: int,
        position: Position | None,
        moving: Moving,
        told: Callable[[RequestContext], None],
    ) -> None:
        """Give `batch` to its handler; raises what it raises, DeadlineExceeded and EventLost.

        moving: moves the group on in the transaction of a transactional handler; False when it cannot.
        told:   is given the context before the handler begins.
        """
        group, first = self.group, batch[0]
        context = first.envelope.open(
            deadline=self._clock.monotonic() + group.max_run, priority=Priority.NORMAL, attempt=attempt
        )
        for other in batch[1:]:
            if other.envelope.causality:
                context.causality.merge(other.envelope.open().causality)
        if position is not None:
            context.causality.cover(self.log.cluster, position)
        told(context)
        try:
            with activate(context):
                async with asyncio.timeout(group.max_run) as scope:
                    if not reader.transactional:
                        await self._invoke(reader, batch, attempt, furthest, None)
                        return
                    async with self._database.write(Bucket(first.stored.bucket)) as tx:
                        if tx.shard != self.log.shard:
                            raise EventError(
                                f"bucket {first.stored.bucket} of {self._database.name!r} is on {tx.shard!r}"
                                f" now, and its event is in the log of {self.log.shard!r}: one transaction"
                                ' cannot have both; a handler with effect "any" can'
                            )
                        await self._invoke(reader, batch, attempt, furthest, tx)
                        if not await moving(tx):
                            raise EventLost(
                                f"group {group.name} has moved on without this worker; the effect of event"
                                f" {first.stored.pos} was rolled back"
                            )
        except TimeoutError:
            if not scope.expired():
                raise
            raise DeadlineExceeded(
                f"handling the event {first.stored.kind} in {group.name} (max_run {group.max_run:g} s)"
            ) from None

    async def _invoke(
        self,
        reader: Reader,
        batch: Sequence[Opened],
        attempt: int,
        furthest: int,
        tx: WriteTransaction | None,
    ) -> None:
        method: Callable[..., Awaitable[Any]] = reader.on.method
        deliveries = [
            Delivery(
                id=stored.id,
                key=f"{self.group.name}:{stored.id}",
                group=self.group.name,
                shard=self.log.shard,
                position=stored.pos,
                ordering_key=stored.key,
                attempt=attempt,
                max_attempts=self.group.max_attempts,
                appended_at=stored.appended_at,
                again=stored.pos <= furthest,
                transaction=tx,
            )
            for stored in (opened.stored for opened in batch)
        ]
        if reader.batch is None:
            await method(self._implementation, batch[0].event, deliveries[0])
        else:
            await method(self._implementation, [opened.event for opened in batch], deliveries)


def _together(effects: Database, log: Database) -> bool:
    """Whether every write of `effects` is on the same server as the log of its bucket, through one pool."""
    return effects is log or (
        effects.shards.shards == log.shards.shards
        and all(effects.shards.buckets_of(s) == log.shards.buckets_of(s) for s in log.shards.shards)
        and all(effects.pools[shard] is log.pools[shard] for shard in log.shards.shards)
    )
