"""The statements of operators for one schema: lists, and what changes many jobs by what they are.

Every one takes the same filter (`FILTER`, parameters $1 to $8) and a bound. A page is read in the order of
ids, which is that of enqueueing over all modules and shards. What changes rows skips those that somebody has
locked: a claim was first, and the job is not what the operator has seen any more.
"""

from __future__ import annotations

from springtide.jobs._statements import HISTORY, MARKED_NOW

__all__ = ["CHANGED", "Texts"]

SINCE = """
    CASE WHEN w.state IN ('done', 'discarded', 'dead') THEN w.finished_at
        WHEN w.state = 'running' THEN w.started_at ELSE coalesce(w.due_at, w.run_at) END
"""
"""Since when a job is what it is; for one that waits: since when it is due."""

FILTER = f"""
    ($1::uuid[] IS NULL OR w.id = ANY ($1)) AND w.state = ANY ($2::text[])
    AND ($3::text[] IS NULL OR w.kind = ANY ($3))
    AND ($4::float8 IS NULL OR {SINCE} <= statement_timestamp() - make_interval(secs => $4))
    AND ($5::float8 IS NULL OR {SINCE} > statement_timestamp() - make_interval(secs => $5))
    AND ($6::text IS NULL OR $6 IN (w.ordering_key, w.limit_key, w.unique_key))
    AND ($7::uuid IS NULL OR w.id > $7)
"""

COLUMNS = (
    "bucket, id, kind, version, priority, attempt, max_attempts, worker, error, enqueued_at, due_at,"
    " started_at, ordering_key, limit_key, context"
)

CHANGED = "id, kind, version, state, attempt"


class Texts:
    """Each attribute is one statement.

    listed:  jobs in the queue, listed_done: in the history; $1 to $7 the filter, $8 how many.
    show:    one job with its payload, by $1 its id.
    retry:   $9 how many more runs a dead letter has.
    discard: $9 what the history says about it.
    replay:  $9 as many new ids as it may need; `replay_done` of the history.
    """

    def __init__(self, schema: str) -> None:
        table, history = f"{schema}._job", f"{schema}._job_done"
        ended = "CASE WHEN d.error IS NULL THEN 'done' ELSE 'discarded' END"
        aside = f"""
            (SELECT {COLUMNS}, {ended} AS state, NULL::text AS unique_key, due_at AS run_at, payload,
                finished_at, NULL::timestamptz AS deadline, NULL::jsonb AS progress, result
            FROM {history} AS d)
        """  # noqa: S608 - the schema is an identifier checked by Database, here and below
        queued = f"""
            (SELECT {COLUMNS}, state, unique_key, run_at, payload, finished_at, deadline, progress,
                NULL::jsonb AS result FROM {table})
        """  # noqa: S608
        plain = f"{COLUMNS}, state, unique_key, run_at, finished_at, deadline"
        age = f"greatest(extract(epoch FROM statement_timestamp() - ({SINCE})), 0)::float8 AS age"

        self.listed = f"""
            SELECT {plain}, {age} FROM {queued} AS w WHERE {FILTER} ORDER BY w.id LIMIT $8
        """  # noqa: S608
        self.listed_done = f"""
            SELECT {plain}, {age}
            FROM {aside} AS w WHERE {FILTER} ORDER BY w.id LIMIT $8
        """  # noqa: S608
        everything = f"{plain}, payload, progress, result"
        self.show = f"""
            SELECT {everything}, {age} FROM {queued} AS w WHERE w.id = $1
            UNION ALL SELECT {everything}, {age}
            FROM {aside} AS w WHERE w.id = $1 LIMIT 1
        """  # noqa: S608
        chosen = f"""
            WITH chosen AS MATERIALIZED (
                SELECT w.bucket, w.id FROM {table} AS w WHERE {FILTER}
                ORDER BY w.id LIMIT $8 FOR UPDATE SKIP LOCKED
            )
        """  # noqa: S608
        # The run's name goes with its worker, and the attempt never goes back: a run that was given up, and
        # lives on, cannot end the next one.
        self.retry = f"""
            {chosen}
            UPDATE {table} AS j
            SET state = 'ready', run_at = t.now, due_at = t.now, worker = NULL, leased_until = NULL,
                finished_at = NULL, paced = false, unclaimed = 0,
                error = CASE WHEN j.state = 'parked' THEN NULL ELSE j.error END,
                max_attempts = CASE WHEN j.state = 'dead'
                    THEN greatest(j.max_attempts, j.attempt + $9::integer) ELSE j.max_attempts END,
                deadline = CASE WHEN j.deadline > t.now THEN j.deadline END
            FROM chosen AS c, (SELECT {MARKED_NOW} AS now FROM chosen LIMIT 1) AS t
            WHERE j.bucket = c.bucket AND j.id = c.id
            RETURNING j.id, j.kind, j.version, j.state, j.attempt
        """  # noqa: S608
        kept = ", ".join(
            f"g.{name.strip()}" if name.strip() != "worker" else "NULL" for name in HISTORY.split(",")
        )
        self.discard = f"""
            {chosen}, gone AS (
                DELETE FROM {table} AS j USING chosen AS c WHERE j.bucket = c.bucket AND j.id = c.id
                RETURNING j.*
            ), kept AS (
                INSERT INTO {history} ({HISTORY}, finished_at, error)
                SELECT {kept}, clock_timestamp(), $9::text FROM gone AS g
            ), next AS MATERIALIZED (
                SELECT DISTINCT ON (n.bucket, n.ordering_key) n.bucket, n.id
                FROM gone AS g JOIN {table} AS n ON n.bucket = g.bucket AND n.ordering_key = g.ordering_key
                WHERE n.state = 'held' AND n.id NOT IN (SELECT id FROM gone)
                ORDER BY n.bucket, n.ordering_key, n.enqueued_at, n.id
            ), let AS (
                UPDATE {table} AS n SET state = 'ready', run_at = t.now
                FROM next, (SELECT {MARKED_NOW} AS now FROM next LIMIT 1) AS t
                WHERE n.bucket = next.bucket AND n.id = next.id AND n.state = 'held'
            )
            SELECT {CHANGED} FROM gone
        """  # noqa: S608
        again = f"""
            INSERT INTO {table} (bucket, id, kind, version, payload, context, priority, state, max_attempts,
                run_at, due_at, enqueued_at, ordering_key, limit_key)
            SELECT c.bucket, ($9::uuid[])[c.number], c.kind, c.version, c.payload, c.context, c.priority,
                'ready', c.max_attempts, t.now, t.now, t.now, c.ordering_key, c.limit_key
            FROM chosen AS c, (SELECT {MARKED_NOW} AS now FROM chosen LIMIT 1) AS t
            RETURNING id
        """  # noqa: S608
        pairs = "($9::uuid[])[c.number] AS id, c.id AS replayed, c.kind, c.version"
        picked = "row_number() OVER (ORDER BY w.id) AS number"
        self.replay = f"""
            WITH chosen AS MATERIALIZED (
                SELECT w.*, {picked} FROM {queued} AS w WHERE {FILTER} AND w.state = 'dead'
                ORDER BY w.id LIMIT $8
            ), added AS ({again})
            SELECT {pairs} FROM chosen AS c WHERE EXISTS (SELECT FROM added)
        """  # noqa: S608
        self.replay_done = f"""
            WITH chosen AS MATERIALIZED (
                SELECT w.*, {picked} FROM {aside} AS w WHERE {FILTER} ORDER BY w.id LIMIT $8
            ), added AS ({again})
            SELECT {pairs} FROM chosen AS c WHERE EXISTS (SELECT FROM added)
        """  # noqa: S608
        # as they are, without their columns of later migrations: a new version asks an old database, too
        self.kinds = f"""
            SELECT w.kind, w.version, w.state, count(*)::bigint AS jobs FROM {table} AS w
            WHERE w.state <> 'done' GROUP BY w.kind, w.version, w.state ORDER BY w.kind, w.version, w.state
        """  # noqa: S608
        self.payloads = f"""
            SELECT w.bucket, w.id, w.state, w.payload FROM {table} AS w
            WHERE w.kind = $1 AND w.version = $2 AND w.state <> 'done'
                AND (w.bucket, w.id) > ($3::smallint, $4::uuid)
            ORDER BY w.bucket, w.id LIMIT $5
        """  # noqa: S608
