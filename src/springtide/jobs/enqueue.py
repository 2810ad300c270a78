"""Put a job into the caller's write transaction: it exists if and only if the transaction commits.

The row goes into the module's own schema, on the transaction's shard and in the bucket of its key, so it
moves with the data that it is about. After the commit the bell wakes the workers; a job that is not due yet
rings nothing, workers find it by polling.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from springtide.context import Priority
from springtide.errors import JobError
from springtide.jobs._statements import insert_many_sql, insert_sql
from springtide.jobs.job import JobKind, kind_of
from springtide.outbox.bell import Bell
from springtide.outbox.envelope import Envelope

if TYPE_CHECKING:
    from springtide.db import WriteTransaction

__all__ = ["MAX_PAYLOAD_BYTES", "Enqueuer", "enqueue", "enqueue_many"]

MAX_PAYLOAD_BYTES = 65_536
MAX_KEY_CHARS = 500
MAX_SECONDS = 10 * 366 * 86_400.0
MANY = 2000
"""Jobs that one statement adds at most."""

_encode = msgspec.json.Encoder().encode


class Enqueuer:
    """What `WriteTransaction.enqueue` and `enqueue_many` call; the composition root gives one to each
    module's database.

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
        ordering_key: str | None = None,
        limit_key: str | None = None,
        deadline: float | datetime | None = None,
    ) -> UUID:
        """See `enqueue`."""
        spec, payload = self._accept(tx, job), _encoded(job)
        _check(delay, run_at, ordering_key, deadline)
        _check_key("unique_key", unique_key)
        row = await tx.fetch_one(
            insert_sql(tx.database.schema),
            tx.bucket,
            _new_ids(1)[0],
            spec.kind,
            spec.version,
            payload,
            Envelope.capture().dump(),
            unique_key,
            int(Priority(priority) if priority is not None else spec.priority),
            spec.max_attempts,
            run_at,
            delay or 0.0,
            ordering_key,
            *_moment(deadline),
            _limit(spec, limit_key),
        )
        assert row is not None
        self._ring(tx, row["due_in"])
        return UUID(int=row["id"].int)

    async def many(
        self,
        tx: WriteTransaction,
        jobs: Sequence[Any],
        *,
        delay: float | None = None,
        run_at: datetime | None = None,
        priority: Priority | None = None,
        ordering_key: str | None = None,
        limit_key: str | None = None,
        deadline: float | datetime | None = None,
    ) -> list[UUID]:
        """See `enqueue_many`."""
        _check(delay, run_at, ordering_key, deadline)
        specs = [self._accept(tx, job) for job in jobs]
        payloads = [_encoded(job) for job in jobs]
        ids = _new_ids(len(jobs))
        sql, envelope = insert_many_sql(tx.database.schema), Envelope.capture().dump()
        wanted = None if priority is None else int(Priority(priority))
        for start in range(0, len(jobs), MANY):
            chunk = slice(start, start + MANY)
            await tx.execute(
                sql,
                tx.bucket,
                envelope,
                ids[chunk],
                [spec.kind for spec in specs[chunk]],
                [spec.version for spec in specs[chunk]],
                payloads[chunk],
                [int(spec.priority) if wanted is None else wanted for spec in specs[chunk]],
                [spec.max_attempts for spec in specs[chunk]],
                run_at,
                delay or 0.0,
                ordering_key,
                *_moment(deadline),
                [_limit(spec, limit_key) for spec in specs[chunk]],
            )
        if jobs:
            self._ring(tx, delay or 0.0)
        return ids

    def _accept(self, tx: WriteTransaction, job: Any) -> JobKind:
        spec = kind_of(job)
        if self._names is not None and spec.name not in self._names:
            known = ", ".join(sorted(self._names)) or "none"
            raise JobError(
                f"database {tx.database.name!r} has no handler for {spec.name} (it has: {known});"
                " list one in its Module(jobs=...)"
            )
        return spec

    def _ring(self, tx: WriteTransaction, due_in: float) -> None:
        bell = self._bell
        if bell is not None and due_in < 0.05:
            pool, schema = tx.database.pools[tx.shard], tx.database.schema
            tx.on_commit(lambda: bell.ring(pool, schema))


_unchecked = Enqueuer()


async def enqueue(
    tx: WriteTransaction,
    job: Any,
    *,
    delay: float | None = None,
    run_at: datetime | None = None,
    priority: Priority | None = None,
    unique_key: str | None = None,
    ordering_key: str | None = None,
    limit_key: str | None = None,
    deadline: float | datetime | None = None,
) -> UUID:
    """Add `job` to the open write `tx`, for a database that was built without a platform.

    delay, run_at: when it is due, in seconds from now or as an aware time; at once when neither is given.
    priority:      instead of the kind's.
    unique_key:    a job of the same kind, version, bucket and key that has not begun yet takes its place,
                   with the earlier time of both. One that has begun does not: it may have read old data.
    ordering_key:  jobs of one key and bucket run one after the other, in the order of enqueueing.
    limit_key:     what the `concurrency` and `rate` of its kind are counted by; jobs without one count
                   together.
    deadline:      in seconds from now or as an aware time: a run ends there, and one that would begin later
                   is a dead letter instead.

    Returns the id of the job, or of the one that takes its place. Raises JobError for what cannot run.
    """
    return await _unchecked(
        tx, job, delay=delay, run_at=run_at, priority=priority, unique_key=unique_key,
        ordering_key=ordering_key, limit_key=limit_key, deadline=deadline,
    )  # fmt: skip


async def enqueue_many(
    tx: WriteTransaction,
    jobs: Sequence[Any],
    *,
    delay: float | None = None,
    run_at: datetime | None = None,
    priority: Priority | None = None,
    ordering_key: str | None = None,
    limit_key: str | None = None,
    deadline: float | datetime | None = None,
) -> list[UUID]:
    """Add `jobs`, of one kind or several, by one statement; the options are those of `enqueue`, for all.

    With an ordering key they run in the order of the sequence. Returns their ids in that order.
    """
    return await _unchecked.many(
        tx, jobs, delay=delay, run_at=run_at, priority=priority, ordering_key=ordering_key,
        limit_key=limit_key, deadline=deadline,
    )  # fmt: skip


def _encoded(job: Any) -> bytes:
    payload = _encode(job)
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise JobError(
            f"a job of kind {kind_of(job).kind} has {len(payload)} bytes, more than {MAX_PAYLOAD_BYTES}:"
            " store what it is about and enqueue its id"
        )
    return payload


def _check(
    delay: float | None,
    run_at: datetime | None,
    ordering_key: str | None,
    deadline: float | datetime | None,
) -> None:
    if delay is not None and run_at is not None:
        raise JobError(f"give a job either delay or run_at, got {delay} and {run_at}")
    if delay is not None and not 0 <= delay <= MAX_SECONDS:
        raise JobError(f"delay must be >= 0 seconds and at most ten years, got {delay}")
    if run_at is not None and run_at.tzinfo is None:
        raise JobError(f"run_at must have a time zone, got {run_at!r}")
    if isinstance(deadline, datetime):
        if deadline.tzinfo is None:
            raise JobError(f"deadline must have a time zone, got {deadline!r}")
    elif deadline is not None and not 0 < deadline <= MAX_SECONDS:
        raise JobError(f"deadline must be > 0 seconds and at most ten years, got {deadline}")
    _check_key("ordering_key", ordering_key)


def _check_key(what: str, key: str | None) -> None:
    if key is not None and not (0 < len(key) <= MAX_KEY_CHARS and "\0" not in key):
        raise JobError(f"{what} must have 1 to {MAX_KEY_CHARS} characters without NUL, got {key!r}")


def _limit(spec: JobKind, limit_key: str | None) -> str | None:
    """The key to store: none for kinds that have no limit."""
    if not spec.limited:
        if limit_key is not None:
            raise JobError(f"jobs of kind {spec.kind} have no limit, got limit_key {limit_key!r}")
        return None
    _check_key("limit_key", limit_key)
    return limit_key or ""


def _moment(deadline: float | datetime | None) -> tuple[datetime | None, float | None]:
    """As the statements take it: a time, or seconds from now by the database's clock."""
    return (deadline, None) if isinstance(deadline, datetime) else (None, deadline)


def _new_ids(count: int) -> list[UUID]:
    """UUIDs of version 7 (RFC 9562), one after the other: milliseconds, then random bits that are counted up;
    ids of one time lie side by side."""
    first = secrets.randbits(73)
    high = time.time_ns() // 1_000_000 << 80 | 0x7 << 76
    made = []
    for number in range(first, first + count):
        # 12 bits above the variant's two, 62 below
        made.append(UUID(int=high | number >> 62 << 64 | 0x2 << 62 | number & (1 << 62) - 1))
    return made
