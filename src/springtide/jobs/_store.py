"""The rows of one module's jobs on one shard: every statement of the queue.

    ready -> running -> done
               |-> ready     retry, hand-back, rescue of an expired lease
               `-> dead      no attempts left, or the handler said that trying again cannot help
    ready <-> parked         no worker that looked at it knows its kind and version

`attempt` is counted by the claim, so a job that kills its worker reaches the dead letters. A run is named
by (id, attempt, worker); every statement that ends one is guarded by that name and tells whether it held.
Where replicas exist, a claim also tells where the log stood: after the commit that made the job visible, so
a replica that has replayed that far has what the job is about. Time is the database's alone. `unique_key`
is held until the job begins: the claim clears it, so what was enqueued while a job of the same key was
running is not lost to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from uuid import UUID

from springtide.context import LOST, Position
from springtide.db import Database
from springtide.db.causality import PLACE, position_of

__all__ = ["BATCH", "Claimed", "Ending", "Found", "MEASURED", "RunName", "Store", "insert_sql"]

BATCH = 1000
"""Rows that one statement of upkeep changes at most."""

MEASURED = 100_000
"""Rows of a shard that a measurement counts per state; more are shown as that many."""


MAX_CAUSALITY_CHARS = 2000
"""Of tokens that were put together for one job; with more, it reads from the primaries."""


class Queries(Protocol):
    """A pool, or a transaction that the statement is to be part of."""

    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        """Every row."""


@dataclass(frozen=True, slots=True)
class RunName:
    """Which run of which job; at most one is ever in charge of a job."""

    bucket: int
    id: UUID
    attempt: int


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job as claimed. `waited` is how many seconds it had been due.

    `position` covers the commit that enqueued it; None where the shard has no replicas.
    """

    run: RunName
    kind: str
    version: int
    payload: bytes
    context: Any
    priority: int
    max_attempts: int
    enqueued_at: datetime
    waited: float
    position: Position | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """What becomes of a run: state done, ready (after `delay` seconds) or dead.

    `uncounted` takes the attempt back: the run was ended by us, not by the job.
    """

    state: str
    error: str | None = None
    delay: float = 0.0
    uncounted: bool = False


@dataclass(frozen=True, slots=True)
class Found:
    """Jobs of one kind by state, and how long the oldest due one waits."""

    kind: str
    ready: int
    running: int
    parked: int
    dead: int
    age: float


def insert_sql(schema: str) -> str:
    """Add a job and return (its id, how many seconds until it is due).

    A job of the same unique key that has not begun takes its place, with the earlier time and the more
    important priority of both, and what either caller has seen. Its row is locked by that until the caller's
    commit, so it cannot begin before what the caller wrote can be seen.
    """
    return f"""
        INSERT INTO {schema}._job AS j
            (bucket, id, kind, version, payload, context, unique_key, priority, state, max_attempts,
             run_at, enqueued_at)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 'ready', $9,
            coalesce($10::timestamptz, clock_timestamp() + make_interval(secs => $11)), clock_timestamp())
        ON CONFLICT (bucket, kind, version, unique_key) WHERE unique_key IS NOT NULL
        DO UPDATE SET run_at = least(j.run_at, excluded.run_at),
            priority = least(j.priority, excluded.priority),
            context = CASE
                WHEN excluded.context ->> 'causality' IS NULL THEN j.context
                WHEN length(j.context ->> 'causality') > {MAX_CAUSALITY_CHARS}
                    THEN jsonb_set(j.context, '{{causality}}', '"{LOST}"')
                ELSE jsonb_set(j.context, '{{causality}}', to_jsonb(
                    concat_ws(',', j.context ->> 'causality', excluded.context ->> 'causality')))
                END
        RETURNING id, greatest(extract(epoch FROM run_at - clock_timestamp()), 0)::float8 AS due_in
    """  # noqa: S608 - the schema is an identifier checked by Database


class Store:
    """The jobs of `database` on `shard`."""

    def __init__(self, database: Database, shard: str) -> None:
        self.module = database.name
        self.schema = database.schema
        self.shard = shard
        self.pool = database.pools[shard]
        self._servers = database.servers.get(shard)
        self.cluster = self._servers.cluster if self._servers is not None else shard
        table = f"{database.schema}._job"
        mine = "j.attempt = $3 AND j.worker = $4"
        self._claim = f"""
            WITH due AS MATERIALIZED (
                SELECT found.bucket, found.id
                FROM (VALUES (0::smallint), (1::smallint), (2::smallint)) AS class (priority)
                CROSS JOIN LATERAL (
                    SELECT w.bucket, w.id FROM {table} AS w
                    WHERE w.state = 'ready' AND w.priority = class.priority
                        AND w.run_at <= statement_timestamp()
                        AND w.kind || '/' || w.version = ANY ($1::text[])
                    ORDER BY w.run_at, w.id LIMIT $2
                    FOR UPDATE SKIP LOCKED
                ) AS found
                LIMIT $2
            )
            UPDATE {table} AS j
            SET state = 'running', attempt = j.attempt + 1, worker = $3, unique_key = NULL,
                leased_until = clock_timestamp() + make_interval(secs => $4),
                started_at = clock_timestamp(), finished_at = NULL
            FROM due WHERE j.bucket = due.bucket AND j.id = due.id
            RETURNING j.bucket, j.id, j.attempt, j.kind, j.version, j.payload, j.context, j.priority,
                j.max_attempts, j.enqueued_at, j.run_at,
                greatest(extract(epoch FROM j.started_at - j.run_at), 0)::float8 AS waited
        """  # noqa: S608 - the schema is an identifier checked by Database, here and below
        self._claim_placed = f"{self._claim}, {PLACE}"
        # The second state makes the statement repeatable when its answer was lost: the row is still named
        # after this run until the next claim.
        self._end = f"""
            UPDATE {table} AS j
            SET state = $5, error = $6,
                run_at = CASE WHEN $5 = 'ready' THEN clock_timestamp() + make_interval(secs => $7)
                    ELSE j.run_at END,
                finished_at = CASE WHEN $5 <> 'ready' THEN clock_timestamp() END, leased_until = NULL
            WHERE j.bucket = $1 AND j.id = $2 AND {mine} AND j.state IN ('running', $5)
            RETURNING 1
        """  # noqa: S608
        self._hand_back = f"""
            UPDATE {table} AS j
            SET state = 'ready', attempt = j.attempt - 1, worker = NULL, leased_until = NULL
            WHERE j.bucket = $1 AND j.id = $2 AND {mine} AND j.state = 'running'
            RETURNING 1
        """  # noqa: S608
        # A row that a finishing transaction has locked is neither renewed nor lost; nor is one that this run
        # has just finished, while the answer to its COMMIT is on the way.
        self._renew = f"""
            WITH named AS (
                SELECT * FROM unnest($1::smallint[], $2::uuid[], $3::integer[]) AS n (bucket, id, attempt)
            ), held AS MATERIALIZED (
                SELECT j.bucket, j.id FROM {table} AS j JOIN named AS n
                    ON j.bucket = n.bucket AND j.id = n.id AND j.attempt = n.attempt
                WHERE j.worker = $4 AND j.state = 'running'
                FOR UPDATE OF j SKIP LOCKED
            ), renewed AS (
                UPDATE {table} AS j SET leased_until = clock_timestamp() + make_interval(secs => $5)
                FROM held WHERE j.bucket = held.bucket AND j.id = held.id
            )
            SELECT n.id FROM named AS n WHERE NOT EXISTS (
                SELECT FROM {table} AS j WHERE j.bucket = n.bucket AND j.id = n.id
                    AND j.attempt = n.attempt AND j.worker = $4 AND j.state IN ('running', 'done'))
        """  # noqa: S608
        self._rescue = f"""
            WITH expired AS MATERIALIZED (
                SELECT j.bucket, j.id FROM {table} AS j
                WHERE j.state = 'running' AND j.leased_until < clock_timestamp()
                LIMIT {BATCH} FOR UPDATE SKIP LOCKED
            )
            UPDATE {table} AS j
            SET state = CASE WHEN j.attempt >= j.max_attempts THEN 'dead' ELSE 'ready' END,
                finished_at = CASE WHEN j.attempt >= j.max_attempts THEN clock_timestamp() END,
                error = 'its worker ' || coalesce(j.worker, '') || ' stopped renewing the lease',
                worker = NULL, leased_until = NULL
            FROM expired AS e WHERE j.bucket = e.bucket AND j.id = e.id
            RETURNING j.id, j.kind, j.version, j.attempt, j.state
        """  # noqa: S608
        # Only the head of each priority is looked at: what no worker claims gathers there.
        self._park = f"""
            WITH head AS MATERIALIZED (
                SELECT found.* FROM (VALUES (0::smallint), (1::smallint), (2::smallint)) AS class (priority)
                CROSS JOIN LATERAL (
                    SELECT w.bucket, w.id, w.kind || '/' || w.version AS name FROM {table} AS w
                    WHERE w.state = 'ready' AND w.priority = class.priority
                        AND w.run_at < statement_timestamp() - make_interval(secs => $2)
                    ORDER BY w.run_at, w.id LIMIT {BATCH}
                ) AS found
            ), strange AS MATERIALIZED (
                SELECT j.bucket, j.id FROM {table} AS j JOIN head USING (bucket, id)
                WHERE NOT head.name = ANY ($1::text[]) AND j.state = 'ready'
                FOR UPDATE OF j SKIP LOCKED
            )
            UPDATE {table} AS j SET state = 'parked', error = 'no worker knows this kind and version'
            FROM strange AS s WHERE j.bucket = s.bucket AND j.id = s.id
            RETURNING j.kind || '/' || j.version AS name
        """  # noqa: S608
        self._release = f"""
            WITH known AS MATERIALIZED (
                SELECT j.bucket, j.id FROM {table} AS j
                WHERE j.state = 'parked' AND j.kind || '/' || j.version = ANY ($1::text[])
                LIMIT {BATCH} FOR UPDATE SKIP LOCKED
            )
            UPDATE {table} AS j SET state = 'ready', error = NULL
            FROM known AS k WHERE j.bucket = k.bucket AND j.id = k.id
            RETURNING j.id
        """  # noqa: S608
        self._purge = f"""
            WITH old AS MATERIALIZED (
                SELECT j.bucket, j.id FROM {table} AS j
                WHERE j.state = 'done' AND j.finished_at < clock_timestamp() - make_interval(secs => $1)
                ORDER BY j.finished_at LIMIT {BATCH} FOR UPDATE SKIP LOCKED
            )
            DELETE FROM {table} AS j USING old WHERE j.bucket = old.bucket AND j.id = old.id
            RETURNING 1
        """  # noqa: S608
        self._measure = " UNION ALL ".join(
            f"""
            SELECT '{state}' AS state, s.kind, count(*)::integer AS jobs, greatest(
                extract(epoch FROM statement_timestamp() - min(s.run_at)), 0)::float8 AS age
            FROM (SELECT kind, run_at FROM {table} WHERE state = '{state}' LIMIT {MEASURED}) AS s
            GROUP BY s.kind"""  # noqa: S608
            for state in ("ready", "running", "parked", "dead")
        )

    async def claim(self, names: Sequence[str], limit: int, worker: str, lease: float) -> list[Claimed]:
        """Up to `limit` due jobs of the kinds `names`, most important first, then oldest."""
        placed = self._servers is not None and self._servers.replicated
        sql = self._claim_placed if placed else self._claim
        rows = await self.pool.fetch(sql, list(names), limit, worker, lease)
        rows.sort(key=lambda row: (row["priority"], row["run_at"], row["id"]))
        return [
            Claimed(
                RunName(row["bucket"], UUID(int=row["id"].int), row["attempt"]),
                row["kind"],
                row["version"],
                row["payload"],
                row["context"],
                row["priority"],
                row["max_attempts"],
                row["enqueued_at"],
                row["waited"],
                position_of(row) if placed else None,
            )
            for row in rows
        ]

    async def end(self, run: RunName, worker: str, ending: Ending, queries: Queries | None = None) -> bool:
        """Write how a run ended; False when it was not this worker's any more. May be repeated."""
        queries = queries or self.pool
        name = (run.bucket, run.id, run.attempt, worker)
        if ending.uncounted:
            return bool(await queries.fetch(self._hand_back, *name))
        return bool(await queries.fetch(self._end, *name, ending.state, ending.error, ending.delay))

    async def renew(self, runs: Sequence[RunName], worker: str, lease: float, queries: Queries) -> set[UUID]:
        """Renew the leases of `runs`; the ids of those that are not this worker's any more."""
        lost = await queries.fetch(
            self._renew,
            [run.bucket for run in runs],
            [run.id for run in runs],
            [run.attempt for run in runs],
            worker,
            lease,
        )
        return {UUID(int=row["id"].int) for row in lost}

    async def rescue(self) -> list[Any]:
        """Make jobs whose lease has expired ready again, or dead when they have no attempts left."""
        return await self.pool.fetch(self._rescue)

    async def park(self, names: Sequence[str], after: float) -> list[str]:
        """Set aside what has been due for `after` seconds and is none of `names`; what it is."""
        return [row["name"] for row in await self.pool.fetch(self._park, list(names), after)]

    async def release(self, names: Sequence[str]) -> int:
        """Make parked jobs of the kinds `names` ready again."""
        return len(await self.pool.fetch(self._release, list(names)))

    async def purge(self, keep: float) -> int:
        """Delete a batch of jobs that were done more than `keep` seconds ago."""
        return len(await self.pool.fetch(self._purge, keep))

    async def measure(self) -> list[Found]:
        by_kind: dict[str, dict[str, Any]] = {}
        for row in await self.pool.fetch(self._measure):
            by_kind.setdefault(row["kind"], {})[row["state"]] = row
        return [
            Found(
                kind,
                ready=states["ready"]["jobs"] if "ready" in states else 0,
                running=states["running"]["jobs"] if "running" in states else 0,
                parked=states["parked"]["jobs"] if "parked" in states else 0,
                dead=states["dead"]["jobs"] if "dead" in states else 0,
                age=states["ready"]["age"] if "ready" in states else 0.0,
            )
            for kind, states in by_kind.items()
        ]
