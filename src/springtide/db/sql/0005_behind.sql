-- Changes that are applied behind the request that made them; springtide/cache/behind.py explains it.
-- __schema__ stands for the module's schema. A row lies in the bucket of what it changes. The key is JSON text.
-- "C" orders keys as every program does, whatever the database's own order of texts.
-- seq orders the changes of one key: it is taken by the server that keeps them, so no clock has a say.

CREATE TABLE __schema__._behind (
    name   text        NOT NULL,
    bucket smallint    NOT NULL,
    key    text        COLLATE "C" NOT NULL,
    seq    bigint      NOT NULL GENERATED ALWAYS AS IDENTITY,
    value  bytea       NOT NULL,
    put_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (name, bucket, key, seq)
) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
