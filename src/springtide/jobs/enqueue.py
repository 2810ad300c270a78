"""Put a job into the caller's write transaction: it exists if and only if the transaction commits.

The row goes into the module's own schema, on the transaction's shard and in the bucket of its key, so it
moves with the data that it is about. After the commit the bell wakes the workers; a job that is not due yet
rings nothing, workers find it by polling.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from springtide.context import Priority
from springtide.jobs._rows import MAX_PAYLOAD_BYTES, SOON, accept, due_in, row, rows
from springtide.jobs._statements import insert_many_sql, insert_sql
from springtide.jobs.job import JobKind
from springtide.outbox.bell import Bell

if TYPE_CHECKING:
    from springtide.db import WriteTransaction
    from springtide.jobs.pressure import Pressure

__all__ = ["MAX_PAYLOAD_BYTES", "Enqueuer", "enqueue", "enqueue_many"]

LISTED = "its Module(jobs=...)"


class Enqueuer:
    """What `WriteTransaction.enqueue` and `enqueue_many` call; the composition root gives one to each
    module's database.

    names: `kind/version` of the module's handlers. A job that none of them takes is refused here, in the
           request that made the mistake. None means that handlers are elsewhere and nothing is checked.
    bell:  rung after the commit; None means that workers find the job by polling.
    pressure: refuses or slows producers of kinds whose queue is behind; None: nobody does.
    """

    def __init__(
        self,
        *,
        names: Collection[str] | None = None,
        bell: Bell | None = None,
        pressure: Pressure | None = None,
    ) -> None:
        self._names = frozenset(names) if names is not None else None
        self._bell = bell
        self._pressure = pressure

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
        spec = accept(job, self._names, tx.database.name, listed=LISTED)
        self._admit(tx, {spec})
        added = await tx.fetch_one(
            insert_sql(tx.database.schema),
            *row(
                spec, job, tx.bucket, delay=delay, run_at=run_at, priority=priority, unique_key=unique_key,
                ordering_key=ordering_key, limit_key=limit_key, deadline=deadline,
            ),
        )  # fmt: skip
        assert added is not None
        self._ring(tx, added["due_in"])
        return UUID(int=added["id"].int)

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
        specs = [accept(job, self._names, tx.database.name, listed=LISTED) for job in jobs]
        self._admit(tx, set(specs))
        sql = insert_many_sql(tx.database.schema)
        added: list[UUID] = []
        for ids, values in rows(
            specs, jobs, tx.bucket, delay=delay, run_at=run_at, priority=priority, ordering_key=ordering_key,
            limit_key=limit_key, deadline=deadline,
        ):  # fmt: skip
            await tx.execute(sql, *values)
            added += ids
        if added:
            self._ring(tx, due_in(delay, run_at))
        return added

    def _admit(self, tx: WriteTransaction, kinds: Collection[JobKind]) -> None:
        if self._pressure is not None:
            for kind in kinds:
                self._pressure.admit(tx, kind)

    def ring(self, tx: WriteTransaction) -> None:
        """Wake workers when `tx` has committed: it has brought jobs forward."""
        self._ring(tx, 0.0)

    def _ring(self, tx: WriteTransaction, seconds: float) -> None:
        bell = self._bell
        if bell is not None and seconds < SOON:
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

    delay, run_at: when it is due, in seconds from now or as an aware time; at once when neither is given, or
                   the time has passed.
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
