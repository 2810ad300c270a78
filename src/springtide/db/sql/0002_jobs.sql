-- Jobs of a module: written by enqueue in the caller's transaction, claimed and finished by workers.
-- __schema__ stands for the module's schema; the columns and states are explained in springtide/jobs/_store.py.

CREATE TABLE __schema__._job (
    bucket       smallint    NOT NULL,
    id           uuid        NOT NULL,
    kind         text        NOT NULL,
    version      integer     NOT NULL,
    payload      bytea       NOT NULL,
    context      jsonb       NOT NULL,
    unique_key   text,
    priority     smallint    NOT NULL CHECK (priority BETWEEN 0 AND 2),
    state        text        NOT NULL CHECK (state IN ('ready', 'running', 'done', 'dead', 'parked')),
    attempt      integer     NOT NULL DEFAULT 0,
    max_attempts integer     NOT NULL,
    run_at       timestamptz NOT NULL,
    worker       text,
    leased_until timestamptz,
    enqueued_at  timestamptz NOT NULL,
    started_at   timestamptz,
    finished_at  timestamptz,
    error        text,
    PRIMARY KEY (bucket, id)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);

-- A claim reads one priority after the other, each from its oldest job on.
CREATE INDEX _job_ready ON __schema__._job (priority, run_at, id) WHERE state = 'ready';

-- Small at any time: the slots of all workers. leased_until stays out of it, so that renewing it is cheap.
CREATE INDEX _job_running ON __schema__._job (bucket, id) WHERE state = 'running';

CREATE INDEX _job_trouble ON __schema__._job (state, kind, id) WHERE state IN ('dead', 'parked');

CREATE INDEX _job_done ON __schema__._job (finished_at) WHERE state = 'done';

-- A key is held until the job begins: the claim clears it.
CREATE UNIQUE INDEX _job_waiting ON __schema__._job (bucket, kind, version, unique_key)
    WHERE unique_key IS NOT NULL;
