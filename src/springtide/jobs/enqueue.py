"""Put a job into the caller's write transaction: it exists if and only if the transaction commits.

The row goes into the module's own schema, on the transaction's shard and in the bucket of its key, so it
moves with the data that it is about. After the commit the bell wakes the workers; a job that is not due yet
rings nothing, workers find it by polling.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from springtide.context import Priority
from springtide.errors import JobError
from springtide.jobs._statements import insert_sql
from springtide.jobs.job import kind_of
from springtide.outbox.bell import Bell
from springtide.outbox.envelope import Envelope

if TYPE_CHECKING:
    from springtide.db import WriteTransaction

__all__ = ["MAX_PAYLOAD_BYTES", "Enqueuer", "enqueue"]

MAX_PAYLOAD_BYTES = 65_536
MAX_UNIQUE_KEY_CHARS = 500

_encode = msgspec.json.Encoder().encode


class Enqueuer:
    """What `WriteTransaction.enqueue` calls; the composition root gives one to each module's database.

    names: `kind/version` of the module's handlers. A job that none of them takes is refused here, in the
           request that made the mistake. None means that handlers are elsewhere and nothing is checked.
    bell:  rung after the commit; None means that workers find the job by polling.
    """

    def __init__(self, *, names: Collection[str] | None = None, bell: Bell | None = None) -> None:
        self._names = frozenset(names) if names is not None else None
        self._bell = bell

    async def __call__(
        self,
        tx: WriteTransaction,
        job: Any,
        *,
        delay: float | None = None,
        run_at: datetime | None = None,
        priority: Priority | None = None,
        unique_key: str | None = None,
    ) -> UUID:
        """See `enqueue`."""
        spec = kind_of(job)
        if self._names is not None and spec.name not in self._names:
            known = ", ".join(sorted(self._names)) or "none"
            raise JobError(
                f"database {tx.database.name!r} has no handler for {spec.name} (it has: {known});"
                " list one in its Module(jobs=...)"
            )
        if delay is not None and run_at is not None:
            raise JobError(f"give a job either delay or run_at, got {delay} and {run_at}")
        if delay is not None and not 0 <= delay <= 10 * 366 * 86_400:
            raise JobError(f"delay must be >= 0 seconds and at most ten years, got {delay}")
        if run_at is not None and run_at.tzinfo is None:
            raise JobError(f"run_at must have a time zone, got {run_at!r}")
        if unique_key is not None and not (
            0 < len(unique_key) <= MAX_UNIQUE_KEY_CHARS and "\0" not in unique_key
        ):
            raise JobError(
                f"unique_key must have 1 to {MAX_UNIQUE_KEY_CHARS} characters without NUL, got {unique_key!r}"
            )
        payload = _encode(job)
        if len(payload) > MAX_PAYLOAD_BYTES:
            raise JobError(
                f"a job of kind {spec.kind} has {len(payload)} bytes, more than {MAX_PAYLOAD_BYTES}:"
                " store what it is about and enqueue its id"
            )
        row = await tx.fetch_one(
            insert_sql(tx.database.schema),
            tx.bucket,
            _new_id(),
            spec.kind,
            spec.version,
            payload,
            Envelope.capture().dump(),
            unique_key,
            int(Priority(priority) if priority is not None else spec.priority),
            spec.max_attempts,
            run_at,
            delay or 0.0,
        )
        assert row is not None
        bell = self._bell
        if bell is not None and row["due_in"] < 0.05:
            pool, schema = tx.database.pools[tx.shard], tx.database.schema
            tx.on_commit(lambda: bell.ring(pool, schema))
        return UUID(int=row["id"].int)


_unchecked = Enqueuer()


async def enqueue(
    tx: WriteTransaction,
    job: Any,
    *,
    delay: float | None = None,
    run_at: datetime | None = None,
    priority: Priority | None = None,
    unique_key: str | None = None,
) -> UUID:
    """Add `job` to the open write `tx`, for a database that was built without a platform.

    delay, run_at: when it is due, in seconds from now or as an aware time; at once when neither is given.
    priority:      instead of the kind's.
    unique_key:    a job of the same kind, version, bucket and key that has not begun yet takes its place,
                   with the earlier time of both. One that has begun does not: it may have read old data.

    Returns the id of the job, or of the one that takes its place. Raises JobError for what cannot run.
    """
    return await _unchecked(tx, job, delay=delay, run_at=run_at, priority=priority, unique_key=unique_key)


def _new_id() -> UUID:
    """A UUID of version 7 (RFC 9562): milliseconds, then random bits; ids of one time lie side by side."""
    value = time.time_ns() // 1_000_000 << 80 | secrets.randbits(80)
    value = value & ~(0xF << 76) | 0x7 << 76
    return UUID(int=value & ~(0x3 << 62) | 0x2 << 62)
