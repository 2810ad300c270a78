"""The texts of the queue's statements for one schema; `_store.py` says what they mean.

Order on the clock: whatever makes a row ready evaluates `MARKED_NOW`, which takes a transaction number
*before* it reads the clock, and `run_at` is never earlier than that. Claims begin at a floor because of it
(`_cursor.py`).

A row leaves `_job` when it is done: one statement deletes the rows of many runs and puts them into the
history `_job_done`, which nothing of the queue reads but the question whether a run has ended already.
"""

from __future__ import annotations

from springtide.context import LOST
from springtide.db.causality import PLACE
from springtide.jobs._limited import limited_claim

__all__ = [
    "BATCH",
    "MARKED_NOW",
    "MEASURED",
    "Statements",
    "claim_sql",
    "due_sql",
    "insert_many_sql",
    "insert_sql",
    "waits_sql",
]

BATCH = 1000
"""Rows that one statement of upkeep changes at most."""

MEASURED = 100_000
"""Rows of a shard that a measurement counts per state; more are shown as that many."""

MAX_CAUSALITY_CHARS = 2000
"""Of tokens that were put together for one job; with more, it reads from the primaries."""

MARKED_NOW = "CASE WHEN pg_current_xact_id() IS NOT NULL THEN clock_timestamp() END"
"""The time, read after this transaction has a number."""

HISTORY = (
    "bucket, id, kind, version, payload, context, priority, attempt, max_attempts, worker, enqueued_at,"
    " due_at, started_at, ordering_key, limit_key"
)
"""What `_job_done` keeps of a row, besides `finished_at`, `error` and `result`."""

APART, MAX_APART = 20.0, 60.0
"""Jobs that were lost together again and again become ready each at its own time: so many a second, and all
within so many seconds."""

PATIENCE = "200ms"
"""How long one statement that ends many runs waits for a row that somebody has locked."""


def insert_sql(schema: str) -> str:
    """Add a job and return (its id, how many seconds until it is due).

    A job of the same unique key that has not begun takes its place, with the earlier time and the more
    important priority of both, and what either caller has seen. Its row is locked by that until the caller's
    commit, so it cannot begin before what the caller wrote can be seen.
    """
    return f"""
        INSERT INTO {schema}._job AS j
            (bucket, id, kind, version, payload, context, unique_key, priority, state, max_attempts,
             run_at, due_at, enqueued_at, ordering_key, deadline, limit_key)
        SELECT $1::smallint, $2::uuid, $3::text, $4::integer, $5::bytea, $6::text::jsonb, $7::text,
            $8::smallint, 'ready', $9::integer,
            t.due, t.due, t.now, $12::text,
            coalesce($13::timestamptz, t.now + make_interval(secs => $14::float8)), $15::text
        FROM {_due("$10", "$11")}
        ON CONFLICT (bucket, kind, version, unique_key) WHERE unique_key IS NOT NULL
        DO UPDATE SET run_at = least(j.run_at, excluded.run_at), due_at = least(j.due_at, excluded.due_at),
            priority = least(j.priority, excluded.priority),
            deadline = CASE WHEN j.deadline IS NOT NULL AND excluded.deadline IS NOT NULL
                THEN greatest(j.deadline, excluded.deadline) END,
            context = CASE
                WHEN excluded.context ->> 'causality' IS NULL THEN j.context
                WHEN length(j.context ->> 'causality') > {MAX_CAUSALITY_CHARS}
                    THEN jsonb_set(j.context, '{{causality}}', '"{LOST}"')
                ELSE jsonb_set(j.context, '{{causality}}', to_jsonb(
                    concat_ws(',', j.context ->> 'causality', excluded.context ->> 'causality')))
                END
        RETURNING id, greatest(extract(epoch FROM run_at - clock_timestamp()), 0)::float8 AS due_in
    """  # noqa: S608 - the schema is an identifier checked by Database


def insert_many_sql(schema: str) -> str:
    """Add jobs of one write that differ in what they are: ids, kinds, versions, payloads and so on."""
    return f"""
        INSERT INTO {schema}._job
            (bucket, id, kind, version, payload, context, priority, state, max_attempts,
             run_at, due_at, enqueued_at, ordering_key, deadline, limit_key)
        SELECT $1::smallint, u.id, u.kind, u.version, u.payload, $2::text::jsonb, u.priority, 'ready',
            u.attempts, t.due, t.due, t.now, $11::text,
            coalesce($12::timestamptz, t.now + make_interval(secs => $13::float8)), u.limit_key
        FROM {_due("$9", "$10")}
        CROSS JOIN unnest(
            $3::uuid[], $4::text[], $5::integer[], $6::bytea[], $7::smallint[], $8::integer[], $14::text[]
        ) AS u (id, kind, version, payload, priority, attempts, limit_key)
    """  # noqa: S608


def _due(run_at: str, delay: str) -> str:
    """`t` of one row: the time, and when what is enqueued is due. A time that has passed is now: nothing has
    waited before it was there."""
    asked = f"coalesce({run_at}::timestamptz, c.now + make_interval(secs => {delay}))"
    return f"""(
            SELECT c.now, greatest({asked}, c.now) AS due
            FROM (SELECT {MARKED_NOW} AS now OFFSET 0) AS c OFFSET 0
        ) AS t"""  # noqa: S608


def due_sql(schema: str, names: str, floors: str, rooms: str, most: str) -> str:
    """Rows that are due, locked, in the order in which they are to run; each of them `waits` or not."""
    return f"""
                SELECT found.*, {waits_sql(f"{schema}._job", "found")} AS waits
                FROM {schema}._job_due({names}::text[], {floors}::timestamptz[], {rooms}::integer[], {most})
                    AS found
    """  # noqa: S608 - the schema is an identifier checked by Database


def waits_sql(table: str, row: str) -> str:
    """Whether an earlier job of this row's ordering key has not ended."""
    return f"""CASE WHEN {row}.ordering_key IS NOT NULL THEN EXISTS (
                    SELECT FROM {table} AS e
                    WHERE e.bucket = {row}.bucket AND e.ordering_key = {row}.ordering_key
                        AND (e.enqueued_at, e.id) < ({row}.enqueued_at, {row}.id)
                        AND e.state NOT IN ('dead', 'done')
                ) ELSE false END"""


def claim_sql(schema: str, due: str, returning: str, *, more: str = "") -> str:
    """Claim the rows that `due` gives, and hold those that wait; $3 is the worker, $4 its lease.

    A row is found by its place (ctid): one that was changed between the statement's snapshot and its lock is
    not claimed yet; whoever changed it rings, or it is polled for.
    """
    return f"WITH due AS MATERIALIZED ({due}) {_take(schema, returning, more=more)}"


def _take(schema: str, returning: str, *, more: str = "") -> str:
    """Claim what lies in `due`."""
    return f"""
            UPDATE {schema}._job AS j
            SET state = CASE WHEN due.waits THEN 'held' ELSE 'running' END,
                attempt = j.attempt + CASE WHEN due.waits THEN 0 ELSE 1 END,
                worker = CASE WHEN due.waits THEN j.worker ELSE $3 END,
                unique_key = CASE WHEN due.waits THEN j.unique_key END,
                leased_until = CASE WHEN NOT due.waits
                    THEN clock_timestamp() + make_interval(secs => $4) END,
                started_at = clock_timestamp(), finished_at = NULL{more}
            FROM due WHERE j.ctid = due.place
            RETURNING due.waits, {returning}
        """  # noqa: S608


class Statements:
    """Each attribute is one statement; the parameters are those that `Store` gives it."""

    def __init__(self, schema: str) -> None:
        table, history = f"{schema}._job", f"{schema}._job_done"
        mine = "j.attempt = $3 AND j.worker = $4"
        # said so that no plan looks for the row in the index of all leases, which has those that ended, too
        running = "CASE j.state WHEN 'running' THEN true ELSE false END"
        named = (
            "unnest($1::text::smallint[], $2::text::uuid[], $3::text::integer[]) AS n (bucket, id, attempt)"
        )
        due = due_sql(schema, "$1", "$5", "NULL", "$2")
        self.returning = returning = """
            j.bucket, j.id, j.attempt, j.kind, j.version, j.payload, j.context::text, j.priority,
            j.max_attempts, j.enqueued_at,
            greatest(date_part('epoch', j.started_at - coalesce(j.due_at, j.run_at)), 0) AS waited,
            j.ordering_key, j.limit_key, date_part('epoch', j.deadline - j.started_at) AS remaining,
            date_part('epoch', j.run_at) AS rank
        """
        self.claim = claim_sql(schema, due, returning)
        self.claim_limited = limited_claim(schema, due, returning)
        self.claim_placed = f"{self.claim}, {PLACE}"
        self.claim_limited_placed = f"{self.claim_limited}, {PLACE}"
        self.let = f"""
            SELECT {schema}._job_let(k.kind, k.limit_key, k.at_once) AS many FROM (
                SELECT * FROM unnest($1::text[], $2::text[], $3::integer[]) AS k (kind, limit_key, at_once)
                ORDER BY kind, limit_key OFFSET 0
            ) AS k
        """  # noqa: S608
        # Kinds that are not limited any more have room for all.
        self.let_all = f"""
            SELECT {schema}._job_let(k.kind, k.limit_key, k.at_once) AS many FROM (
                SELECT DISTINCT w.kind, w.limit_key, coalesce(nullif(l.at_once, 0), {BATCH}) AS at_once
                FROM {table} AS w
                LEFT JOIN unnest($1::text[], $2::integer[]) AS l (kind, at_once) ON l.kind = w.kind
                WHERE w.state = 'limited' AND w.limit_key IS NOT NULL AND w.kind = ANY ($3::text[])
                ORDER BY w.kind, w.limit_key
            ) AS k
        """  # noqa: S608
        self.forget_pace = f"""
            DELETE FROM {schema}._job_pace WHERE begun_at < clock_timestamp() - interval '1 hour' RETURNING 1
        """  # noqa: S608
        first = f"{schema}._job_first($1::timestamptz[]) AS first"
        self.first = f"SELECT {first}"
        # the clock before the number: whoever has a greater one reads the clock later
        self.read = f"""
            SELECT ARRAY(SELECT x::text::bigint FROM pg_snapshot_xip(pg_current_snapshot()) AS x) AS running,
                t.clock, CASE WHEN t.clock IS NOT NULL THEN pg_current_xact_id()::text::bigint END AS number,
                {first}
            FROM (SELECT clock_timestamp() AS clock OFFSET 0) AS t
        """  # noqa: S608
        # A job of an ordering key lets the next one go. That is touched even if it looks ready or sent: a
        # claim may be about to hold it because of this very job.
        following = f"""
            , next AS MATERIALIZED (
                SELECT DISTINCT ON (n.bucket, n.ordering_key) n.bucket, n.id
                FROM gone AS g JOIN {table} AS n ON n.bucket = g.bucket AND n.ordering_key = g.ordering_key
                WHERE n.state IN ('held', 'ready', 'sent') AND n.id <> g.id
                ORDER BY n.bucket, n.ordering_key, n.enqueued_at, n.id
            ), let AS (
                UPDATE {table} AS n
                SET state = CASE WHEN n.state = 'held' THEN 'ready' ELSE n.state END,
                    run_at = CASE WHEN n.state = 'held' THEN {MARKED_NOW} ELSE n.run_at END
                FROM next
                WHERE n.bucket = next.bucket AND n.id = next.id AND n.state IN ('held', 'ready', 'sent')
            )
        """  # noqa: S608
        into = f"""
            INSERT INTO {history} ({HISTORY}, finished_at, result)
            SELECT {HISTORY}, clock_timestamp(), result FROM gone
            RETURNING id
        """  # noqa: S608

        def gone(buckets: str, ids: str, attempts: str, worker: str, results: str) -> str:
            return f"""
                WITH patience AS MATERIALIZED (SELECT set_config('lock_timeout', '{PATIENCE}', true) AS set),
                mine AS MATERIALIZED (
                    SELECT row.ctid, n.result
                    FROM patience, unnest({buckets}::text::smallint[], {ids}::text::uuid[],
                        {attempts}::text::integer[], {results}::text[]) AS n (bucket, id, attempt, result)
                    CROSS JOIN LATERAL (
                        SELECT j.ctid FROM {table} AS j WHERE j.bucket = n.bucket AND j.id = n.id
                            AND j.attempt = n.attempt AND j.worker = {worker} AND {running} OFFSET 0
                    ) AS row
                    WHERE patience.set IS NOT NULL
                ), gone AS (
                    DELETE FROM {table} AS j USING mine WHERE j.ctid = mine.ctid
                    RETURNING {HISTORY}, mine.result::jsonb AS result
                )
            """  # noqa: S608

        gone_one = f"""
            WITH gone AS (
                DELETE FROM {table} AS j
                WHERE j.bucket = $1 AND j.id = $2 AND {mine} AND {running}
                RETURNING {HISTORY}, $5::text::jsonb AS result
            )
        """  # noqa: S608
        written = f", written AS ({into})"

        # NULL: all of them, as nearly always; else the ids of those that could be
        def some(ids: str) -> str:
            return f"""
                SELECT CASE WHEN count(*) < cardinality({ids}::text::uuid[])
                    THEN coalesce(array_agg(id), '{{}}') END AS some FROM written
            """  # noqa: S608

        finished = gone("$1", "$2", "$3", "$4", "$5")
        self.finish = finished + written + some("$2")
        self.finish_ordered = finished + following + written + some("$2")
        # The end of some runs and a claim at once: each row has `some`; `waits` is NULL when there is no job.
        # Not for what waits for others: a claim would not see what ends here.
        turn = gone("$6", "$7", "$8", "$3", "$9") + written

        def turned(returning: str) -> str:
            return f"""{turn},
                due AS MATERIALIZED ({due}),
                claimed AS ({_take(schema, returning)})
                SELECT claimed.*, ended.some
                FROM ({some("$7")}) AS ended LEFT JOIN claimed ON true
            """  # noqa: S608

        self.turn, self.turn_placed = turned(returning), turned(f"{returning}, {PLACE}")
        self.finish_one, self.finish_one_ordered = gone_one + into, gone_one + following + into
        self.let_next = f"""
            WITH gone AS (SELECT $1::smallint AS bucket, $2::text AS ordering_key, $3::uuid AS id)
            {following}
            SELECT 1
        """
        self.let_free = f"""
            WITH free AS MATERIALIZED (
                SELECT h.bucket, h.id FROM {table} AS h
                WHERE h.state = 'held' AND NOT EXISTS (
                    SELECT FROM {table} AS e
                    WHERE e.bucket = h.bucket AND e.ordering_key = h.ordering_key
                        AND (e.enqueued_at, e.id) < (h.enqueued_at, h.id) AND e.state NOT IN ('dead', 'done')
                )
                LIMIT {BATCH} FOR UPDATE SKIP LOCKED
            )
            UPDATE {table} AS j SET state = 'ready', run_at = t.now
            FROM free, (SELECT {MARKED_NOW} AS now FROM free LIMIT 1) AS t
            WHERE j.bucket = free.bucket AND j.id = free.id
            RETURNING j.id
        """  # noqa: S608
        self.progress = f"""
            UPDATE {table} AS j SET progress = $5::text::jsonb
            WHERE j.bucket = $1 AND j.id = $2 AND {mine} AND {running}
            RETURNING 1
        """  # noqa: S608
        self.look = f"""
            SELECT state, attempt, error, progress, NULL::jsonb AS result FROM {table}
            WHERE bucket = $1 AND id = $2
            UNION ALL
            SELECT CASE WHEN error IS NULL THEN 'done' ELSE 'discarded' END, attempt, error, NULL, result
            FROM {history} WHERE id = $2 AND bucket = $1
            LIMIT 1
        """  # noqa: S608
        self.finished = f"""
            SELECT id FROM {history} WHERE id = $1 AND bucket = $2 AND attempt = $3 AND worker = $4
        """  # noqa: S608
        # The second state makes the statement repeatable when its answer was lost: the row is still named
        # after this run until the next claim.
        self.end = f"""
            UPDATE {table} AS j
            SET state = $5, error = $6, leased_until = NULL, paced = false,
                run_at = CASE WHEN $5 = 'ready' THEN t.now + make_interval(secs => $7) ELSE j.run_at END,
                due_at = CASE WHEN $5 = 'ready' THEN t.now + make_interval(secs => $7) ELSE j.due_at END,
                finished_at = CASE WHEN $5 = 'dead' THEN t.now END
            FROM (SELECT {MARKED_NOW} AS now OFFSET 0) AS t
            WHERE j.bucket = $1 AND j.id = $2 AND {mine} AND j.state IN ('running', $5)
            RETURNING 1
        """  # noqa: S608
        self.hand_back = f"""
            WITH back AS MATERIALIZED (
                SELECT row.ctid FROM {named} CROSS JOIN LATERAL (
                    SELECT j.ctid FROM {table} AS j WHERE j.bucket = n.bucket AND j.id = n.id
                        AND j.attempt = n.attempt AND j.worker = $4 AND {running} OFFSET 0
                ) AS row
            )
            UPDATE {table} AS j
            SET state = 'ready', attempt = j.attempt - 1, worker = NULL, leased_until = NULL,
                due_at = coalesce(j.due_at, j.run_at), run_at = t.now
            FROM back, (SELECT {MARKED_NOW} AS now OFFSET 0) AS t
            WHERE j.ctid = back.ctid
            RETURNING j.id
        """  # noqa: S608
        # A row that a finishing transaction has locked is neither renewed nor lost; nor is one that this run
        # has just finished, while the answer to its COMMIT is on the way.
        self.renew = f"""
            WITH named AS (
                SELECT * FROM {named}
            ), held AS MATERIALIZED (
                SELECT row.* FROM named AS n CROSS JOIN LATERAL (
                    SELECT j.bucket, j.id FROM {table} AS j WHERE j.bucket = n.bucket AND j.id = n.id
                        AND j.attempt = n.attempt AND j.worker = $4 AND {running}
                    FOR UPDATE SKIP LOCKED
                ) AS row
            ), renewed AS (
                UPDATE {table} AS j SET leased_until = clock_timestamp() + make_interval(secs => $5)
                FROM held WHERE j.bucket = held.bucket AND j.id = held.id
            )
            SELECT n.id FROM named AS n WHERE NOT EXISTS (
                SELECT FROM {table} AS j WHERE j.bucket = n.bucket AND j.id = n.id
                    AND j.attempt = n.attempt AND j.worker = $4 AND {running} OFFSET 0
            ) AND NOT EXISTS (
                SELECT FROM {history} AS d WHERE d.id = n.id AND d.bucket = n.bucket
                    AND d.attempt = n.attempt AND d.worker = $4 OFFSET 0
            )
        """  # noqa: S608
        # What was lost together twice comes back apart: a job that kills its workers meets others each time.
        apart = f"""
            make_interval(secs => CASE WHEN j.attempt > 1
                THEN random() * least(greatest(2.0 ^ j.attempt, t.lost / {APART}), {MAX_APART}) ELSE 0 END)
        """
        # By places, not by a join: a plan that hashes what has expired reads the table up to its first row,
        # past all that has ended and cannot be vacuumed.
        self.rescue = f"""
            WITH expired AS MATERIALIZED (
                SELECT j.ctid FROM {table} AS j
                WHERE j.state = 'running' AND j.leased_until < statement_timestamp()
                    AND j.leased_until >= coalesce($1::timestamptz, '-infinity')
                LIMIT {BATCH} FOR UPDATE SKIP LOCKED
            ), rescued AS (
                UPDATE {table} AS j
                SET state = CASE WHEN j.attempt >= j.max_attempts THEN 'dead' ELSE 'ready' END,
                    finished_at = CASE WHEN j.attempt >= j.max_attempts THEN t.now END,
                    due_at = coalesce(j.due_at, j.run_at), run_at = t.now + {apart},
                    error = 'its worker ' || coalesce(j.worker, '') || ' stopped renewing the lease',
                    worker = NULL, leased_until = NULL
                FROM (
                    SELECT {MARKED_NOW} AS now, (SELECT count(*) FROM expired) AS lost FROM expired LIMIT 1
                ) AS t
                WHERE j.ctid = ANY (ARRAY(SELECT e.ctid FROM expired AS e))
                RETURNING j.id, j.kind, j.version, j.attempt, j.state
            )
            SELECT statement_timestamp() AS scanned, r.* FROM (SELECT) AS once LEFT JOIN rescued AS r ON true
        """  # noqa: S608
        # Only the head of each priority is looked at: what no worker claims gathers there.
        self.park = f"""
            WITH head AS MATERIALIZED (
                SELECT found.*
                FROM unnest($3::timestamptz[]) WITH ORDINALITY AS class (floor, number)
                CROSS JOIN LATERAL (
                    SELECT w.bucket, w.id, w.kind || '/' || w.version AS name FROM {table} AS w
                    WHERE w.state = 'ready' AND w.priority = class.number - 1 AND w.run_at >= class.floor
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
        self.release = f"""
            WITH known AS MATERIALIZED (
                SELECT j.bucket, j.id FROM {table} AS j
                WHERE j.state = 'parked' AND j.kind || '/' || j.version = ANY ($1::text[])
                LIMIT {BATCH} FOR UPDATE SKIP LOCKED
            )
            UPDATE {table} AS j
            SET state = 'ready', error = NULL, due_at = coalesce(j.due_at, j.run_at), run_at = t.now
            FROM known AS k, (SELECT {MARKED_NOW} AS now FROM known LIMIT 1) AS t
            WHERE j.bucket = k.bucket AND j.id = k.id
            RETURNING j.id
        """  # noqa: S608
        # Workers of the version before history say `done` in place.
        self.room = f"SELECT {schema}._job_room()"
        self.sweep = f"""
            WITH ended AS MATERIALIZED (
                SELECT j.bucket, j.id FROM {table} AS j WHERE j.state = 'done'
                LIMIT {BATCH} FOR UPDATE SKIP LOCKED
            ), gone AS (
                DELETE FROM {table} AS j USING ended WHERE j.bucket = ended.bucket AND j.id = ended.id
                RETURNING j.*
            )
            INSERT INTO {history} ({HISTORY}, finished_at)
            SELECT {HISTORY}, coalesce(finished_at, clock_timestamp()) FROM gone
            RETURNING id
        """  # noqa: S608
        age = "greatest(extract(epoch FROM statement_timestamp() - min(due)), 0)::float8 AS age"
        counted = f"count(*)::integer AS jobs, {age}"
        self.waiting = f"""
            SELECT 'ready' AS state, r.kind, {counted}
            FROM unnest($1::timestamptz[]) WITH ORDINALITY AS class (floor, number)
            CROSS JOIN LATERAL (
                SELECT w.kind, coalesce(w.due_at, w.run_at) AS due FROM {table} AS w
                WHERE w.state = 'ready' AND w.priority = class.number - 1 AND w.run_at >= class.floor
                LIMIT {MEASURED}
            ) AS r GROUP BY r.kind
        """  # noqa: S608

        def counting(state: str) -> str:
            return f"""
                UNION ALL SELECT '{state}' AS state, s.kind, {counted}
                FROM (
                    SELECT w.kind, coalesce(w.due_at, w.run_at) AS due FROM {table} AS w
                    WHERE w.state = '{state}' LIMIT {MEASURED}
                ) AS s GROUP BY s.kind
            """  # noqa: S608

        self.waiting += counting("sent")
        others = ("running", "held", "limited", "paused", "parked", "dead")
        self.measure = self.waiting + "".join(map(counting, others))
