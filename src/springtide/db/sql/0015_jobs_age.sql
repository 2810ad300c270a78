-- How long the oldest job of each kind waits: written by one worker at a time, so that producers know it without
-- a look at the queue. __schema__ stands for the module's schema; springtide/jobs/_ages.py explains it. It is
-- about a shard as a whole, so it has no bucket. The row of kind '' says when all were measured last.

CREATE TABLE __schema__._job_age (
    kind        text        NOT NULL PRIMARY KEY,
    oldest_at   timestamptz,
    measured_at timestamptz NOT NULL
) WITH (fillfactor = 50);
