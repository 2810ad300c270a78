-- Jobs that a transport carries to the workers; springtide/jobs/_sent.py explains states and columns.
-- __schema__ stands for the module's schema.

ALTER TABLE __schema__._job
    ADD COLUMN turn integer NOT NULL DEFAULT 0,
    ADD COLUMN unclaimed smallint NOT NULL DEFAULT 0,
    DROP CONSTRAINT _job_state_check,
    ADD CONSTRAINT _job_state_check
        CHECK (state IN ('ready', 'sent', 'running', 'held', 'limited', 'parked', 'dead', 'done')) NOT VALID;

-- Small at any time: what is ahead of the workers.
CREATE INDEX _job_sent ON __schema__._job (priority, leased_until) WHERE state = 'sent';
