-- Jobs that are done leave the queue for a history of their own, in partitions of a day that retention drops.
-- __schema__ stands for the module's schema; springtide/jobs/_store.py explains columns and states.
-- What is done already stays where it is: workers move it in batches, so that this waits for nothing.

-- State done is written by workers of the version before this one alone; `_job_ended` finds what they leave.
ALTER INDEX __schema__._job_done RENAME TO _job_ended;

-- Every row that is there obeys the narrower rule that this replaces, so it is not read again.
ALTER TABLE __schema__._job
    ADD COLUMN due_at timestamptz,
    DROP CONSTRAINT _job_state_check,
    ADD CONSTRAINT _job_state_check
        CHECK (state IN ('ready', 'running', 'parked', 'dead', 'done')) NOT VALID;

-- Rescues look for leases that passed since the last one, however many entries of old runs lie before them.
CREATE INDEX _job_leased ON __schema__._job (leased_until) WHERE state = 'running';
DROP INDEX __schema__._job_running;

CREATE TABLE __schema__._job_done (
    bucket       smallint    NOT NULL,
    id           uuid        NOT NULL,
    kind         text        NOT NULL,
    version      integer     NOT NULL,
    payload      bytea       NOT NULL,
    context      jsonb       NOT NULL,
    priority     smallint    NOT NULL,
    attempt      integer     NOT NULL,
    max_attempts integer     NOT NULL,
    worker       text,
    enqueued_at  timestamptz NOT NULL,
    due_at       timestamptz,
    started_at   timestamptz,
    finished_at  timestamptz NOT NULL,
    error        text
) PARTITION BY RANGE (finished_at);

-- Ids begin with the time, so this one grows at its end.
CREATE INDEX _job_done_id ON __schema__._job_done (id);

-- What has no partition of its day: a clock far ahead, or days on which no worker ran.
CREATE TABLE __schema__._job_done_rest PARTITION OF __schema__._job_done DEFAULT;
