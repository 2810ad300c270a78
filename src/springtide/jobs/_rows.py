"""The parameters of the statements that add jobs: `insert_sql`, `insert_many_sql`. Pure but for ids and time.

Whoever adds a job comes through here, whatever connection it has: what cannot run is refused before anything
is sent. The values are those that every driver binds by itself (texts, numbers, bytes, UUIDs, aware times and
lists of them); the context goes as text, because what a connection makes of jsonb is its owner's to say.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec

from springtide.context import Priority
from springtide.errors import JobError
from springtide.jobs.job import JobKind, kind_of
from springtide.outbox.envelope import Envelope
from springtide.outbox.kinds import check_key, is_number, priority_of

__all__ = ["MANY", "MAX_PAYLOAD_BYTES", "SOON", "accept", "due_in", "new_ids", "row", "rows"]

MAX_PAYLOAD_BYTES = 65_536
MAX_SECONDS = 10 * 366 * 86_400.0
MANY = 2000
"""Jobs that one statement adds at most."""

SOON = 0.05
"""Seconds until a job is due for which the bell is not rung."""

_encode = msgspec.json.Encoder().encode


def accept(job: Any, names: Collection[str] | None, database: str, *, listed: str) -> JobKind:
    """The declaration of `job`. `names` are those that are handled, `kind/version`; `listed` says where.

    Raises JobError when there is no declaration, or it is none of `names`.
    """
    spec = kind_of(job)
    if isinstance(job, type):
        raise JobError(f"a job must be a value, such as {job.__name__}(...), got the class")
    if names is not None and spec.name not in names:
        known = ", ".join(sorted(names)) or "none"
        raise JobError(
            f"database {database!r} has no handler for {spec.name} (it has: {known}); list one in {listed}"
        )
    return spec


def row(
    spec: JobKind,
    job: Any,
    bucket: int,
    *,
    delay: float | None,
    run_at: datetime | None,
    priority: Priority | None,
    unique_key: str | None,
    ordering_key: str | None,
    limit_key: str | None,
    deadline: float | datetime | None,
) -> tuple[Any, ...]:
    """Of one job, for `insert_sql`. Raises JobError."""
    payload = _encoded(job)
    _check(delay, run_at, ordering_key, deadline)
    check_key("unique_key", unique_key, JobError)
    return (
        bucket,
        new_ids(1)[0],
        spec.kind,
        spec.version,
        payload,
        _context(),
        unique_key,
        int(spec.priority if priority is None else priority_of(f"job {spec.kind}", priority, JobError)),
        spec.max_attempts,
        run_at,
        float(delay or 0.0),
        ordering_key,
        *_moment(deadline),
        _limit(spec, limit_key),
    )


def rows(
    specs: Sequence[JobKind],
    jobs: Sequence[Any],
    bucket: int,
    *,
    delay: float | None,
    run_at: datetime | None,
    priority: Priority | None,
    ordering_key: str | None,
    limit_key: str | None,
    deadline: float | datetime | None,
) -> Iterator[tuple[list[UUID], tuple[Any, ...]]]:
    """Of many jobs: ids and parameters of one statement after the other. All are checked before the first.

    Raises JobError.
    """
    _check(delay, run_at, ordering_key, deadline)
    payloads = [_encoded(job) for job in jobs]
    limits = [_limit(spec, limit_key) for spec in specs]
    ids, context = new_ids(len(jobs)), _context()
    wanted = None if priority is None else int(priority_of("jobs", priority, JobError))

    def chunks() -> Iterator[tuple[list[UUID], tuple[Any, ...]]]:
        for start in range(0, len(jobs), MANY):
            chunk = slice(start, start + MANY)
            yield (
                ids[chunk],
                (
                    bucket,
                    context,
                    ids[chunk],
                    [spec.kind for spec in specs[chunk]],
                    [spec.version for spec in specs[chunk]],
                    payloads[chunk],
                    [int(spec.priority) if wanted is None else wanted for spec in specs[chunk]],
                    [spec.max_attempts for spec in specs[chunk]],
                    run_at,
                    float(delay or 0.0),
                    ordering_key,
                    *_moment(deadline),
                    limits[chunk],
                ),
            )

    return chunks()


def due_in(delay: float | None, run_at: datetime | None) -> float:
    """Seconds until what `rows` makes is due, by the clock of this machine: a hint."""
    return (run_at - datetime.now(UTC)).total_seconds() if run_at is not None else delay or 0.0


def _encoded(job: Any) -> bytes:
    try:
        payload = _encode(job)
    except (TypeError, ValueError, OverflowError) as error:
        raise JobError(f"a job of kind {kind_of(job).kind} cannot be stored as JSON: {error}") from error
    if len(payload) > MAX_PAYLOAD_BYTES:
        raise JobError(
            f"a job of kind {kind_of(job).kind} has {len(payload)} bytes, more than {MAX_PAYLOAD_BYTES}:"
            " store what it is about and enqueue its id"
        )
    return payload


def _context() -> str:
    return _encode(Envelope.capture()).decode()


def _check(
    delay: float | None,
    run_at: datetime | None,
    ordering_key: str | None,
    deadline: float | datetime | None,
) -> None:
    if delay is not None and run_at is not None:
        raise JobError(f"give a job either delay or run_at, got {delay} and {run_at}")
    if delay is not None and not (is_number(delay) and 0 <= delay <= MAX_SECONDS):
        raise JobError(f"delay must be >= 0 seconds and at most ten years, got {delay!r}")
    if run_at is not None and getattr(run_at, "tzinfo", None) is None:
        raise JobError(f"run_at must have a time zone, got {run_at!r}")
    if isinstance(deadline, datetime):
        if deadline.tzinfo is None:
            raise JobError(f"deadline must have a time zone, got {deadline!r}")
    elif deadline is not None and not (is_number(deadline) and 0 < deadline <= MAX_SECONDS):
        raise JobError(f"deadline must be > 0 seconds and at most ten years, got {deadline!r}")
    check_key("ordering_key", ordering_key, JobError)


def _limit(spec: JobKind, limit_key: str | None) -> str | None:
    """The key to store: none for kinds that have no limit."""
    if not spec.limited:
        if limit_key is not None:
            raise JobError(f"jobs of kind {spec.kind} have no limit, got limit_key {limit_key!r}")
        return None
    check_key("limit_key", limit_key, JobError)
    return limit_key or ""


def _moment(deadline: float | datetime | None) -> tuple[datetime | None, float | None]:
    """As the statements take it: a time, or seconds from now by the database's clock."""
    return (deadline, None) if isinstance(deadline, datetime) else (None, deadline)


def new_ids(count: int) -> list[UUID]:
    """UUIDs of version 7 (RFC 9562), one after the other: milliseconds, then random bits that are counted up;
    ids of one time lie side by side."""
    first = secrets.randbits(73)
    high = time.time_ns() // 1_000_000 << 80 | 0x7 << 76
    made = []
    for number in range(first, first + count):
        # 12 bits above the variant's two, 62 below
        made.append(UUID(int=high | number >> 62 << 64 | 0x2 << 62 | number & (1 << 62) - 1))
    return made
