-- What a job may ask for besides its time: an order with others, a deadline, a place for its result.
-- __schema__ stands for the module's schema; springtide/jobs/_store.py explains columns and states.

ALTER TABLE __schema__._job
    ADD COLUMN ordering_key text,
    ADD COLUMN deadline timestamptz,
    ADD COLUMN progress jsonb,
    DROP CONSTRAINT _job_state_check,
    ADD CONSTRAINT _job_state_check
        CHECK (state IN ('ready', 'running', 'held', 'parked', 'dead', 'done')) NOT VALID;

-- The jobs of a key in their order; a claim asks whether one is before it.
CREATE INDEX _job_ordered ON __schema__._job (bucket, ordering_key, enqueued_at, id)
    WHERE ordering_key IS NOT NULL;

CREATE INDEX _job_held ON __schema__._job (enqueued_at) WHERE state = 'held';

ALTER TABLE __schema__._job_done
    ADD COLUMN ordering_key text,
    ADD COLUMN result jsonb;
