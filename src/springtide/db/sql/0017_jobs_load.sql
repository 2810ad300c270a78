-- How much work each kind of job brings: written down by workers for whoever decides how many workers there are.
-- __schema__ stands for the module's schema; springtide/jobs/_loads.py explains it. It is about a shard as a
-- whole, so it has no bucket. The row of kind '' says when all were measured last.

CREATE TABLE __schema__._job_load (
    kind        text    NOT NULL PRIMARY KEY,
    waiting     integer NOT NULL DEFAULT 0,
    running     integer NOT NULL DEFAULT 0,
    arrival     float8  NOT NULL DEFAULT 0,
    service     float8,
    weight      float8  NOT NULL DEFAULT 0,
    runs        bigint  NOT NULL DEFAULT 0,
    counted     bigint  NOT NULL DEFAULT 0,
    measured_at timestamptz
) WITH (fillfactor = 50);
