-- When the module's schedules run next, and which releases of the application declare them. All of a module is
-- in one bucket, so on one shard. __schema__ stands for the module's schema; springtide/jobs/scheduler.py explains it.

-- `next_at` only grows; whoever moves it on has the slot. `timing` is what it was reckoned from.
CREATE TABLE __schema__._schedule (
    bucket  smallint    NOT NULL,
    name    text        NOT NULL,
    timing  text        NOT NULL,
    next_at timestamptz NOT NULL,
    last_at timestamptz,
    runs    bigint      NOT NULL DEFAULT 0,
    skipped bigint      NOT NULL DEFAULT 0,
    PRIMARY KEY (bucket, name)
);

CREATE TABLE __schema__._schedule_spec (
    bucket      smallint    NOT NULL,
    name        text        NOT NULL,
    spec        text        NOT NULL,
    declared_at timestamptz NOT NULL,
    seen_at     timestamptz NOT NULL,
    PRIMARY KEY (bucket, name, spec)
);
