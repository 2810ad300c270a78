-- What committed writes have made stale in caches; springtide/db/_invalidating.py explains the rows.
-- __schema__ stands for the module's schema. A row lives until the relay has applied it, mostly well under a
-- second. It is about transactions of this very server, so it has no bucket and never moves with the data.

CREATE TABLE __schema__._invalidation (
    xid        xid8        NOT NULL,
    class      text        NOT NULL,
    fields     text        NOT NULL,
    written_at timestamptz NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_threshold = -1, autovacuum_analyze_threshold = 1000000000,
    autovacuum_vacuum_cost_delay = 0);

-- The relay reads what is new since its last round, and steps over what vacuum may not remove yet.
CREATE INDEX _invalidation_xid ON __schema__._invalidation (xid);
