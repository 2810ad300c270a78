-- Kinds that are paused. __schema__ stands for the module's schema; springtide/jobs/_pausing.py explains it.
-- A pause holds on a shard as a whole, so it has no bucket.

ALTER TABLE __schema__._job
    DROP CONSTRAINT _job_state_check,
    ADD CONSTRAINT _job_state_check
        CHECK (state IN ('ready', 'sent', 'running', 'held', 'limited', 'paused', 'parked', 'dead', 'done')) NOT VALID;

CREATE INDEX _job_paused ON __schema__._job (kind, id) WHERE state = 'paused';

-- Kind '' is the whole module.
CREATE TABLE __schema__._job_pause (
    kind   text        NOT NULL PRIMARY KEY,
    reason text        NOT NULL,
    since  timestamptz NOT NULL DEFAULT clock_timestamp()
);
