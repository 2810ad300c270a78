-- Which jobs have written here already, for those that are finished somewhere else; `Run.once` explains it.
-- __schema__ stands for the module's schema. A row lies in the bucket of what the job writes, so that it commits
-- in the same transaction and moves with it.

CREATE TABLE __schema__._job_inbox (
    bucket     smallint    NOT NULL,
    job        uuid        NOT NULL,
    part       text        NOT NULL,
    written_at timestamptz NOT NULL,
    PRIMARY KEY (bucket, job, part)
);

CREATE INDEX _job_inbox_age ON __schema__._job_inbox (written_at);
