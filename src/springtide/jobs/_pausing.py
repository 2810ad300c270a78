"""Which kinds of one line are paused: written by operators, read by every worker with its upkeep.

    ready -> paused     its kind, or its module, is paused
    paused -> ready     no longer

The row in `_job_pause` is the truth and survives restarts. A worker that has read it claims no more of those
kinds; what it runs already it finishes. Rows of paused kinds leave the index that claims read, so that a
million of them slow nobody; upkeep goes on doing so with what is enqueued meanwhile, and puts back what was
left behind. Delayed jobs keep their time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from springtide.jobs._statements import BATCH, MARKED_NOW

__all__ = ["EVERY_KIND", "Pause", "Pausing", "paused_kinds"]

EVERY_KIND = ""
"""What `_job_pause` has as the kind when the whole module is paused."""


class Queries(Protocol):
    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        """Every row."""


@dataclass(frozen=True, slots=True)
class Pause:
    """`kind` None: the whole module."""

    kind: str | None
    reason: str
    since: datetime


def paused_kinds(pauses: Sequence[Pause]) -> set[str] | None:
    """None when all are."""
    kinds = {pause.kind for pause in pauses}
    return None if None in kinds else {kind for kind in kinds if kind is not None}


class Pausing:
    """The statements, for the jobs in `schema`."""

    def __init__(self, schema: str) -> None:
        table, pauses = f"{schema}._job", f"{schema}._job_pause"
        paused = f"EXISTS (SELECT FROM {pauses} AS p WHERE p.kind IN (w.kind, '{EVERY_KIND}'))"
        self._look = f"SELECT kind, reason, since FROM {pauses} ORDER BY kind"  # noqa: S608
        self._begin = f"""
            INSERT INTO {pauses} AS p (kind, reason) VALUES ($1, $2)
            ON CONFLICT (kind) DO UPDATE SET reason = excluded.reason
        """  # noqa: S608
        self._end = f"DELETE FROM {pauses} WHERE kind = $1 RETURNING kind"  # noqa: S608
        self._aside = f"""
            WITH chosen AS MATERIALIZED (
                SELECT w.bucket, w.id FROM {table} AS w WHERE w.state = 'ready' AND {paused}
                LIMIT {BATCH} FOR UPDATE OF w SKIP LOCKED
            )
            UPDATE {table} AS j SET state = 'paused'
            FROM chosen AS c WHERE j.bucket = c.bucket AND j.id = c.id
            RETURNING j.id
        """  # noqa: S608
        self._back = f"""
            WITH chosen AS MATERIALIZED (
                SELECT w.bucket, w.id FROM {table} AS w WHERE w.state = 'paused' AND NOT {paused}
                LIMIT {BATCH} FOR UPDATE OF w SKIP LOCKED
            )
            UPDATE {table} AS j
            SET state = 'ready', due_at = coalesce(j.due_at, j.run_at), run_at = greatest(j.run_at, t.now)
            FROM chosen AS c, (SELECT {MARKED_NOW} AS now FROM chosen LIMIT 1) AS t
            WHERE j.bucket = c.bucket AND j.id = c.id
            RETURNING j.id
        """  # noqa: S608
        self._left = f"SELECT EXISTS (SELECT FROM {table} AS w WHERE w.state = 'paused') AS any"  # noqa: S608

    async def look(self, queries: Queries) -> list[Pause]:
        rows = await queries.fetch(self._look)
        return [Pause(row["kind"] or None, row["reason"], row["since"]) for row in rows]

    async def begin(self, queries: Queries, kind: str | None, reason: str) -> None:
        await queries.fetch(self._begin, kind or EVERY_KIND, reason)

    async def end(self, queries: Queries, kind: str | None) -> bool:
        """Whether it was paused."""
        return bool(await queries.fetch(self._end, kind or EVERY_KIND))

    async def set_aside(self, queries: Queries) -> int:
        """Set a batch of ready jobs aside whose kind is paused; how many."""
        return len(await queries.fetch(self._aside))

    async def put_back(self, queries: Queries) -> int:
        """Make a batch of jobs ready again whose kind is not paused any more; how many."""
        (found,) = await queries.fetch(self._left)  # without one, nothing takes a transaction number
        return len(await queries.fetch(self._back)) if found["any"] else 0
