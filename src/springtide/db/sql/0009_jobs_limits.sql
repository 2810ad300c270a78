-- How many jobs of a key run at once, and how many begin in a time; springtide/jobs/_limited.py explains it.
-- __schema__ stands for the module's schema. A limit holds on a shard, so it has no bucket.

ALTER TABLE __schema__._job
    ADD COLUMN limit_key text,
    ADD COLUMN paced boolean NOT NULL DEFAULT false,
    DROP CONSTRAINT _job_state_check,
    ADD CONSTRAINT _job_state_check
        CHECK (state IN ('ready', 'running', 'held', 'limited', 'parked', 'dead', 'done')) NOT VALID;

CREATE INDEX _job_limited ON __schema__._job (kind, limit_key, state, priority, due_at)
    WHERE limit_key IS NOT NULL AND state IN ('running', 'limited');

ALTER TABLE __schema__._job_done ADD COLUMN limit_key text;

-- When the jobs that have been given a time until now are all begun, at the pace of their kind.
CREATE TABLE __schema__._job_pace (
    kind      text        NOT NULL,
    limit_key text        NOT NULL,
    begun_at  timestamptz NOT NULL,
    step      interval    NOT NULL,
    PRIMARY KEY (kind, limit_key)
);

-- NULL while another claim decides about the key. The lock is kept until the claim is committed, and the count
-- has a snapshot of its own that is taken after it: it sees whatever was claimed before.
CREATE FUNCTION __schema__._job_running(of_kind text, of_key text) RETURNS bigint
LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    IF NOT pg_try_advisory_xact_lock(hashtextextended('__schema__._job ' || of_kind || '/' || of_key, 0)) THEN
        RETURN NULL;
    END IF;
    RETURN (
        SELECT count(*) FROM __schema__._job
        WHERE kind = of_kind AND limit_key = of_key AND state = 'running'
    );
END
$$;

-- Lets as many limited jobs of a key go as there is room for; waits for a claim that is about to set some aside.
CREATE FUNCTION __schema__._job_let(of_kind text, of_key text, at_once integer) RETURNS bigint
LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    marked timestamptz;
    room bigint;
    let_go bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtextextended('__schema__._job ' || of_kind || '/' || of_key, 0));
    SELECT at_once - count(*) INTO room FROM __schema__._job
    WHERE kind = of_kind AND limit_key = of_key AND state = 'running';
    marked := CASE WHEN pg_current_xact_id() IS NOT NULL THEN clock_timestamp() END;
    WITH chosen AS MATERIALIZED (
        SELECT bucket, id FROM __schema__._job
        WHERE kind = of_kind AND limit_key = of_key AND state = 'limited'
        ORDER BY priority, due_at LIMIT greatest(room, 0) FOR UPDATE SKIP LOCKED
    )
    UPDATE __schema__._job AS j SET state = 'ready', run_at = marked
    FROM chosen WHERE j.bucket = chosen.bucket AND j.id = chosen.id;
    GET DIAGNOSTICS let_go = ROW_COUNT;
    RETURN let_go;
END
$$;
