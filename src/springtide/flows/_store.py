# ruff: noqa: S608 - the schema is an identifier checked by Database
"""The rows of a module's flows: the texts of their statements, and what they mean.

    running <-> waiting         forward: `step` is the one to be done; waiting for an event or a time, or to
                                ask again
       |           |
       `-> undoing <-> stuck    backward: `step` is the one to be undone; stuck: undoing it failed for good
             |
    done   undone               the end

`seq` counts a flow's moves. A move is recorded only if the flow is where it began from, so of two runs of one
step one is recorded; the other's transaction finds nothing and changes nothing. Every flow that has not ended
has one job, `job_id`, made in the commit that made the state; or, while somebody drives the flow, an earlier
one, which finds that the flow is elsewhere and has the right one take its place. Only what waits for an event
and for no time has none: it is made with the event, or by upkeep, where the sender is of a release that does
not know the flow. Time is the database's alone.

An event and the flow that waits for it meet under an advisory lock of their name and key: either the wait
finds the event, or the sender finds the flow waiting. It is taken before any row is locked.
"""

from __future__ import annotations

from springtide.jobs._statements import MARKED_NOW

__all__ = ["COLUMNS", "Statements"]

COLUMNS = (
    "bucket, id, kind, version, key, state, step, seq, data, reason, wait_event, wait_key, wait_until,"
    " job_id, started_at, updated_at, ended_at"
)

BATCH = 200


class Statements:
    def __init__(self, schema: str) -> None:
        flow, steps, events, jobs = (
            f"{schema}.{table}" for table in ("_flow", "_flow_step", "_flow_event", "_job")
        )
        self.start = f"""
            INSERT INTO {flow}
                (bucket, id, kind, version, key, state, step, seq, data, wait_event, wait_key, wait_until,
                 job_id, started_at, updated_at)
            VALUES ($1, $2, $3, $4, $5, $6, $12, 1, $7, $8, $9, $10::timestamptz, $11, clock_timestamp(),
                clock_timestamp())
            ON CONFLICT (bucket, kind, key) WHERE key IS NOT NULL DO NOTHING
            RETURNING id
        """
        self.of_key = f"SELECT id FROM {flow} WHERE bucket = $1 AND kind = $2 AND key = $3"
        self.look = f"SELECT {COLUMNS} FROM {flow} WHERE bucket = $1 AND id = $2"
        self.lock = f"{self.look} FOR UPDATE"
        self.move = f"""
            WITH moved AS (
                UPDATE {flow}
                SET state = $4, step = $5, seq = seq + 1,
                    data = coalesce($6, data), reason = coalesce($7, reason),
                    wait_event = $8, wait_key = $9, wait_until = $10::timestamptz, job_id = $11,
                    updated_at = clock_timestamp(),
                    ended_at = CASE WHEN $4 IN ('done', 'undone') THEN clock_timestamp() END
                WHERE bucket = $1 AND id = $2 AND seq = $3 AND ($12::uuid IS NULL OR job_id = $12)
                RETURNING {COLUMNS}
            ), recorded AS (
                INSERT INTO {steps} (bucket, flow_id, seq, step, outcome, attempt, error, at)
                SELECT bucket, id, $3, $13::text, $14::text, $15::integer, $16::text, updated_at FROM moved
                WHERE $14::text IS NOT NULL
            ), dropped AS (
                DELETE FROM {jobs}
                WHERE bucket = $1 AND id = $12 AND $12 IS DISTINCT FROM $11 AND state <> 'running'
                    AND EXISTS (SELECT FROM moved)
            )
            SELECT {COLUMNS}, EXISTS (
                SELECT FROM {events} AS e
                WHERE e.bucket = moved.bucket AND e.name = moved.wait_event AND e.key = moved.wait_key
            ) AS sent
            FROM moved
        """
        self.set_job = f"UPDATE {flow} SET job_id = $3 WHERE bucket = $1 AND id = $2"
        self.wake = f"UPDATE {flow} SET wait_until = clock_timestamp() WHERE bucket = $1 AND id = $2"
        self.steps = f"""
            SELECT seq, step, outcome, attempt, error, at FROM {steps}
            WHERE bucket = $1 AND flow_id = $2 ORDER BY seq
        """
        self.meet = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"
        self.put_event = f"""
            INSERT INTO {events} (bucket, name, key, payload, at) VALUES ($1, $2, $3, $4, clock_timestamp())
        """
        self.take_event = f"""
            DELETE FROM {events} WHERE bucket = $1 AND id = (
                SELECT id FROM {events} WHERE bucket = $1 AND name = $2 AND key = $3 ORDER BY id LIMIT 1
            )
            RETURNING payload
        """
        self.waiting = f"""
            SELECT id, job_id FROM {flow} WHERE bucket = $1 AND wait_event = $2 AND wait_key = $3
            ORDER BY updated_at LIMIT {BATCH}
        """
        self.hasten = f"""
            UPDATE {jobs} SET run_at = least(run_at, {MARKED_NOW})
            WHERE bucket = $1 AND id = ANY($2::uuid[]) AND state = 'ready'
        """
        self.drop_job = f"DELETE FROM {jobs} WHERE bucket = $1 AND id = $2 AND state <> 'running'"
        self.failed = f"""
            SELECT f.bucket, f.id, f.seq, j.error, j.attempt FROM {jobs} AS j
            JOIN {flow} AS f ON f.bucket = j.bucket AND f.job_id = j.id
            WHERE j.state = 'dead' AND j.kind = ANY($1::text[]) AND f.state <> 'stuck' AND f.ended_at IS NULL
            LIMIT {BATCH}
        """
        self.left = f"""
            SELECT f.bucket, f.id, f.seq, 'its job is gone' AS error, 0 AS attempt FROM {flow} AS f
            WHERE f.ended_at IS NULL AND f.state <> 'stuck' AND f.kind = ANY($1::text[])
                AND (f.job_id IS NOT NULL OR f.wait_event IS NULL)
                AND f.updated_at < clock_timestamp() - interval '60 s'
                AND NOT EXISTS (SELECT FROM {jobs} AS j WHERE j.bucket = f.bucket AND j.id = f.job_id)
            LIMIT {BATCH}
        """
        self.unseen = f"""
            SELECT DISTINCT f.bucket, f.id FROM {events} AS e
            JOIN {flow} AS f ON f.bucket = e.bucket AND f.wait_event = e.name AND f.wait_key = e.key
            WHERE f.job_id IS NULL AND f.kind || '/' || f.version = ANY($1::text[])
            LIMIT {BATCH}
        """
        self.forget = f"""
            WITH gone AS (
                DELETE FROM {flow} WHERE (bucket, id) IN (
                    SELECT bucket, id FROM {flow}
                    WHERE ended_at < clock_timestamp() - make_interval(secs => $2) AND kind = $1
                    LIMIT {BATCH} FOR UPDATE SKIP LOCKED
                )
                RETURNING bucket, id
            )
            DELETE FROM {steps} AS s USING gone WHERE s.bucket = gone.bucket AND s.flow_id = gone.id
        """
        self.forget_events = f"""
            DELETE FROM {events} WHERE (bucket, id) IN (
                SELECT bucket, id FROM {events} WHERE at < clock_timestamp() - make_interval(secs => $1)
                LIMIT {BATCH} FOR UPDATE SKIP LOCKED
            )
        """
        self.measure = f"""
            SELECT kind, state, count(*) AS flows FROM {flow} WHERE ended_at IS NULL GROUP BY kind, state
        """
        self.versions = f"""
            SELECT kind, version, state, count(*) AS flows FROM {flow} WHERE ended_at IS NULL
            GROUP BY kind, version, state ORDER BY kind, version, state
        """
        self.data = f"""
            SELECT bucket, id, state, data AS payload FROM {flow}
            WHERE kind = $1 AND version = $2 AND ended_at IS NULL AND (bucket, id) > ($3::smallint, $4::uuid)
            ORDER BY bucket, id LIMIT $5
        """
        self.list = f"""
            SELECT {COLUMNS} FROM {flow}
            WHERE ($1::text IS NULL OR kind = $1)
                AND CASE WHEN $2::text IS NULL THEN ended_at IS NULL ELSE state = $2 END
            ORDER BY updated_at DESC LIMIT $3
        """
        self.find = f"SELECT bucket FROM {flow} WHERE id = $1"
