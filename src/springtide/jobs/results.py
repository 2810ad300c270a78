"""Look at one job, and wait for what it returned; on the primary of its shard.

What is done is known as long as its day of the history is kept.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from springtide.context import current
from springtide.db import Database, Key, bucket_of
from springtide.errors import DeadlineExceeded, JobError, JobFailed
from springtide.jobs._store import Store
from springtide.outbox.kinds import is_number

__all__ = ["JobStatus", "look", "result"]

FIRST_PAUSE, MAX_PAUSE = 0.02, 1.0


@dataclass(frozen=True, slots=True)
class JobStatus:
    """A job now. `state`: ready, running, held, limited, paused, parked, dead, done or discarded.

    `progress` is what its run reported last, None once it is done or discarded; `error` why the last run
    failed, `result` what it returned.
    """

    state: str
    attempt: int
    error: str | None
    progress: Any
    result: Any


async def look(database: Database, key: Key, id: UUID) -> JobStatus | None:
    """The job `id` that was enqueued in a write of `key`; None when nobody knows it (any more)."""
    return await _look(Store(database, database.shards.shard_of(key)), bucket_of(key), _checked(id))


async def result(database: Database, key: Key, id: UUID, timeout: float) -> Any:
    """What the job `id` returned, once it is done: waits at most `timeout` seconds, and the request's time.

    Its kind is declared with `result=True`; else it is None. The values are those of JSON.
    Raises DeadlineExceeded, JobFailed when it is a dead letter or was discarded, JobError when
    nobody knows it (any more).
    """
    if not (is_number(timeout) and timeout >= 0):
        raise JobError(f"timeout must be >= 0 seconds, got {timeout!r}")
    id = _checked(id)
    store, bucket, clock = Store(database, database.shards.shard_of(key)), bucket_of(key), database.clock
    until, pause = clock.monotonic() + timeout, FIRST_PAUSE
    context = current()
    if context is not None and context.deadline is not None:
        until = min(until, context.deadline)
    while True:
        found = await _look(store, bucket, id)
        if found is None:
            raise JobError(f"no job {id} of {database.name!r} is known")
        if found.state == "done":
            return found.result
        if found.state in ("dead", "discarded"):
            raise JobFailed(found.error or "it is a dead letter")
        left = until - clock.monotonic()
        if left <= 0:
            raise DeadlineExceeded(f"waiting for the job {id} ({found.state})")
        await asyncio.sleep(min(left, pause * random.uniform(0.5, 1.5)))  # noqa: S311 - spreads looks
        pause = min(pause * 2, MAX_PAUSE)


def _checked(id: object) -> UUID:
    try:
        return UUID(str(id))
    except ValueError as error:
        raise JobError(f"id must be a UUID, got {id!r}") from error


async def _look(store: Store, bucket: int, id: UUID) -> JobStatus | None:
    row = await store.look(bucket, id)
    return JobStatus(**row) if row is not None else None
