-- Plans of a queue. __schema__ stands for the module's schema.
-- PostgreSQL plans by how much a table has just then, and keeps the plan while a burst fills it. Vacuumed while
-- it is idle a queue is a page or none, for which the cheapest plan reads the whole table, or sorts all that is
-- ready; then every claim of the burst would. So the table stays larger than that, which makes its indexes the
-- cheaper way to single rows at any time, and what comes first is looked for by functions with settings of their own.

ALTER TABLE __schema__._job SET (vacuum_truncate = false);

-- A table of less than 40 pages (new, or restored) grows by rows that nobody ever sees.
CREATE FUNCTION __schema__._job_room() RETURNS void LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    ids uuid[];
BEGIN
    IF pg_relation_size('__schema__._job') < 40 * current_setting('block_size')::bigint THEN
        WITH made AS (
            INSERT INTO __schema__._job
                (bucket, id, kind, version, payload, context, priority, state, max_attempts, run_at, enqueued_at)
            SELECT 0, gen_random_uuid(), '', 1, convert_to(repeat(' ', 1800), 'UTF8'), '{}', 2, 'done', 1,
                'epoch', 'epoch'
            FROM generate_series(1, 160)
            RETURNING id
        )
        SELECT array_agg(id) INTO ids FROM made;
        DELETE FROM __schema__._job WHERE bucket = 0 AND id = ANY (ids);
    END IF;
END
$$;

SELECT __schema__._job_room();

-- Locks up to `most` due rows of the kinds `names`, most important first, then oldest, and says where they are.
-- `floors`: of each priority, where to begin. `rooms`: of each priority, how many at most; NULL: `most`.
CREATE FUNCTION __schema__._job_due(names text[], floors timestamptz[], rooms integer[], most integer)
RETURNS TABLE (
    place tid, bucket smallint, id uuid, ordering_key text, enqueued_at timestamptz, kind text, limit_key text,
    paced boolean, priority smallint, run_at timestamptz
) LANGUAGE plpgsql VOLATILE ROWS 1
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off AS $$
BEGIN
    RETURN QUERY
    SELECT found.*
    FROM unnest(floors, rooms) WITH ORDINALITY AS class (floor, room, number)
    CROSS JOIN LATERAL (
        SELECT w.ctid, w.bucket, w.id, w.ordering_key, w.enqueued_at, w.kind, w.limit_key, w.paced, w.priority,
            w.run_at
        FROM __schema__._job AS w
        WHERE w.state = 'ready' AND w.priority = class.number - 1
            AND w.run_at >= class.floor AND w.run_at <= statement_timestamp()
            AND w.kind || '/' || w.version = ANY (names)
        ORDER BY w.run_at, w.id LIMIT coalesce(class.room, most)
        FOR UPDATE SKIP LOCKED
    ) AS found
    LIMIT most;
END
$$;

-- The time of the first ready row of each priority from its floor on; NULL where there is none.
CREATE FUNCTION __schema__._job_first(floors timestamptz[]) RETURNS timestamptz[] LANGUAGE plpgsql STABLE
SET enable_seqscan = off SET enable_bitmapscan = off SET enable_sort = off AS $$
BEGIN
    RETURN ARRAY(
        SELECT (
            SELECT w.run_at FROM __schema__._job AS w
            WHERE w.state = 'ready' AND w.priority = class.number - 1 AND w.run_at >= class.floor
            ORDER BY w.run_at LIMIT 1
        ) FROM unnest(floors) WITH ORDINALITY AS class (floor, number)
    );
END
$$;
