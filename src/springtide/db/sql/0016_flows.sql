-- Workflows of a module: where each is, what its steps did, and events that nobody waited for yet.
-- __schema__ stands for the module's schema; the columns and states are explained in springtide/flows/_store.py.

CREATE TABLE __schema__._flow (
    bucket     smallint    NOT NULL,
    id         uuid        NOT NULL,
    kind       text        NOT NULL,
    version    integer     NOT NULL,
    key        text,
    state      text        NOT NULL
        CHECK (state IN ('running', 'waiting', 'undoing', 'stuck', 'done', 'undone')),
    step       integer     NOT NULL,
    seq        bigint      NOT NULL,
    data       bytea       NOT NULL,
    reason     text,
    wait_event text,
    wait_key   text,
    wait_until timestamptz,
    job_id     uuid,
    started_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    ended_at   timestamptz,
    PRIMARY KEY (bucket, id)
);

CREATE UNIQUE INDEX _flow_key ON __schema__._flow (bucket, kind, key) WHERE key IS NOT NULL;
CREATE INDEX _flow_waiting ON __schema__._flow (bucket, wait_event, wait_key) WHERE wait_event IS NOT NULL;
CREATE INDEX _flow_open ON __schema__._flow (kind, state, updated_at) WHERE ended_at IS NULL;
CREATE INDEX _flow_ended ON __schema__._flow (ended_at) WHERE ended_at IS NOT NULL;

-- One row for each move of a flow; `seq` is the one that the move began from.
CREATE TABLE __schema__._flow_step (
    bucket  smallint    NOT NULL,
    flow_id uuid        NOT NULL,
    seq     bigint      NOT NULL,
    step    text        NOT NULL,
    outcome text        NOT NULL,
    attempt integer     NOT NULL,
    error   text,
    at      timestamptz NOT NULL,
    PRIMARY KEY (bucket, flow_id, seq)
);

CREATE TABLE __schema__._flow_event (
    bucket  smallint    NOT NULL,
    id      bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    name    text        NOT NULL,
    key     text        NOT NULL,
    payload bytea       NOT NULL,
    at      timestamptz NOT NULL,
    PRIMARY KEY (bucket, id)
);

CREATE INDEX _flow_event_of ON __schema__._flow_event (bucket, name, key, id);
CREATE INDEX _flow_event_age ON __schema__._flow_event (at);
