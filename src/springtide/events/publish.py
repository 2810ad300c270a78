"""Append an event in the caller's write transaction: it is in the log if and only if that commits.

The row goes into the module's own schema, on the transaction's shard and in the bucket of its key, by one
insert. A worker numbers it into the log after the commit (`_floor.py`, `_log.py`); the bell wakes it.

Order: events of one key (without one: of one bucket) are handled in the order in which they were appended,
where one writer could see the other's commit. Of two writers at the same time either may come first: append
after you have locked what the event is about.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from springtide.errors import EventError
from springtide.events.event import EventKind, kind_of
from springtide.outbox.bell import Bell
from springtide.outbox.envelope import Envelope
from springtide.outbox.kinds import check_key

if TYPE_CHECKING:
    from springtide.db import WriteTransaction

__all__ = ["LANES", "MAX_PAYLOAD_BYTES", "Publisher", "lane_of", "publish", "publish_many"]

MAX_PAYLOAD_BYTES = 65_536
MANY = 2000
"""Events that one statement appends at most."""

LANES = 16
"""Of each log, for good: a group handles one event of a lane at a time."""

_encode = msgspec.json.Encoder().encode


def lane_of(key: str | None, bucket: int) -> int:
    """The lane of a key, the same in every process and for ever; without a key that of the bucket."""
    if key is None:
        return bucket % LANES
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest(), "big") % LANES


class Publisher:
    """What `WriteTransaction.publish` and `publish_many` call; the composition root gives one to each
    module's database.

    names: `kind/version` of what the module publishes. Any other event is refused here, in the request that
           made the mistake. None means that nothing is checked.
    bell:  rung after the commit; None means that workers find the event by polling.
    """

    def __init__(self, *, names: Collection[str] | None = None, bell: Bell | None = None) -> None:
        self._names = frozenset(names) if names is not None else None
        self._bell = bell

    async def __call__(self, tx: WriteTransaction, event: Any, *, key: str | None = None) -> UUID:
        """See `publish`."""
        spec, payload = self._accept(tx, event), _encoded(event)
        check_key("key", key, EventError)
        id = _new_id()
        await tx.execute(
            _insert(tx.database.schema),
            tx.bucket,
            lane_of(key, tx.bucket),
            spec.version,
            id,
            spec.kind,
            key,
            payload,
            Envelope.capture().dump(),
        )
        self._ring(tx)
        return id

    async def many(
        self, tx: WriteTransaction, events: Sequence[Any], *, key: str | None = None
    ) -> list[UUID]:
        """See `publish_many`."""
        check_key("key", key, EventError)
        specs = [self._accept(tx, event) for event in events]
        payloads = [_encoded(event) for event in events]
        ids = [_new_id() for _ in events]
        sql, envelope = _insert_many(tx.database.schema), Envelope.capture().dump()
        for start in range(0, len(events), MANY):
            chunk = slice(start, start + MANY)
            await tx.execute(
                sql,
                tx.bucket,
                lane_of(key, tx.bucket),
                key,
                envelope,
                [spec.version for spec in specs[chunk]],
                ids[chunk],
                [spec.kind for spec in specs[chunk]],
                payloads[chunk],
            )
        if events:
            self._ring(tx)
        return ids

    def _accept(self, tx: WriteTransaction, event: Any) -> EventKind:
        spec = kind_of(event)
        if isinstance(event, type):
            raise EventError(f"an event must be a value, such as {event.__name__}(...), got the class")
        if self._names is not None and spec.name not in self._names:
            known = ", ".join(sorted(self._names)) or "nothing"
            raise EventError(
                f"database {tx.database.name!r} does not publish {spec.name} (it publishes: {known});"
                " list it in its Module(publishes=...)"
            )
        return spec

    def _ring(self, tx: WriteTransaction) -> None:
        bell = self._bell
        if bell is not None:
            pool, schema = tx.database.pools[tx.shard], tx.database.schema
            tx.on_commit(lambda: bell.ring(pool, schema))


_unchecked = Publisher()


async def publish(tx: WriteTransaction, event: Any, *, key: str | None = None) -> UUID:
    """Append `event` in the open write `tx`, for a database that was built without a platform.

    key: events of one key are handled in their order by every group; without one, those of the write's bucket
         are. It holds within a shard: give the write a key that keeps what belongs together in one bucket.

    Returns the event's id. Raises EventError for what cannot be published.
    """
    return await _unchecked(tx, event, key=key)


async def publish_many(tx: WriteTransaction, events: Sequence[Any], *, key: str | None = None) -> list[UUID]:
    """Append `events`, of one kind or several, by one statement, in their order; see `publish`."""
    return await _unchecked.many(tx, events, key=key)


def _encoded(event: Any) -> bytes:
    try:
        payload = _encode(event)
    except (TypeError, ValueError, OverflowError) as error:
        kind = kind_of(event).kind
        raise EventError(f"an event of kind {kind} cannot be stored as JSON: {error}") from error
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise EventError(
            f"an event of kind {kind_of(event).kind} has {len(payload)} bytes, more than {MAX_PAYLOAD_BYTES}:"
            " store what it is about and publish its id"
        )
    return payload


def _new_id() -> UUID:
    """UUID of version 7 (RFC 9562): milliseconds, then random bits."""
    random = secrets.randbits(74)
    high = time.time_ns() // 1_000_000 << 80 | 0x7 << 76
    return UUID(int=high | random >> 62 << 64 | 0x2 << 62 | random & (1 << 62) - 1)


def _seq(schema: str) -> str:
    """Drawn after this transaction has a number."""
    return f"CASE WHEN pg_current_xact_id() IS NOT NULL THEN nextval('{schema}._event_seq') END"


_COLUMNS = "seq, bucket, lane, version, appended_at, id, kind, key, payload, context"


def _insert(schema: str) -> str:
    return f"""
        INSERT INTO {schema}._event_new ({_COLUMNS})
        SELECT {_seq(schema)}, $1::smallint, $2::smallint, $3::integer, clock_timestamp(), $4::uuid, $5::text,
            $6::text, $7::bytea, $8::jsonb
    """


def _insert_many(schema: str) -> str:
    return f"""
        INSERT INTO {schema}._event_new ({_COLUMNS})
        SELECT {_seq(schema)}, $1::smallint, $2::smallint, e.version, clock_timestamp(), e.id, e.kind,
            $3::text, e.payload, $4::jsonb
        FROM (
            SELECT * FROM unnest($5::integer[], $6::uuid[], $7::text[], $8::bytea[])
                WITH ORDINALITY AS u (version, id, kind, payload, number)
            ORDER BY number OFFSET 0
        ) AS e
    """  # noqa: S608
