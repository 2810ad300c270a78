-- Events of a module: appended in the caller's transaction, numbered into a log, read by groups at their own
-- positions. __schema__ stands for the module's schema; springtide/events explains columns and states.

-- Appended and not numbered yet: mostly empty.
CREATE TABLE __schema__._event_new (
    seq         bigint      NOT NULL,
    bucket      smallint    NOT NULL,
    lane        smallint    NOT NULL,
    version     integer     NOT NULL,
    appended_at timestamptz NOT NULL,
    id          uuid        NOT NULL,
    kind        text        NOT NULL,
    key         text,
    payload     bytea       NOT NULL,
    context     jsonb       NOT NULL
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_threshold = -1, autovacuum_analyze_threshold = 1000000000,
    autovacuum_vacuum_cost_delay = 0);

CREATE UNIQUE INDEX _event_new_seq ON __schema__._event_new (seq);

-- Drawn after the transaction has its number, and by one session after the other: no cache.
CREATE SEQUENCE __schema__._event_seq;

-- The log. `at` is when an event was numbered; it never falls as `pos` rises.
CREATE TABLE __schema__._event (
    pos         bigint      NOT NULL,
    at          timestamptz NOT NULL,
    bucket      smallint    NOT NULL,
    lane        smallint    NOT NULL,
    version     integer     NOT NULL,
    appended_at timestamptz NOT NULL,
    id          uuid        NOT NULL,
    kind        text        NOT NULL,
    key         text,
    payload     bytea       NOT NULL,
    context     jsonb       NOT NULL
) PARTITION BY RANGE (at);

CREATE UNIQUE INDEX _event_lane_pos ON __schema__._event (lane, pos, at);

-- What has no partition of its day: until one is made, minutes after the first event.
CREATE TABLE __schema__._event_rest PARTITION OF __schema__._event DEFAULT;

-- One row: the last position that was given. Whoever numbers events holds its lock.
CREATE TABLE __schema__._event_head (
    one boolean     PRIMARY KEY DEFAULT true CHECK (one),
    pos bigint      NOT NULL,
    at  timestamptz NOT NULL
) WITH (fillfactor = 20);

INSERT INTO __schema__._event_head (pos, at) VALUES (0, 'epoch');

CREATE TABLE __schema__._event_group (
    grp     text        PRIMARY KEY,
    kinds   text[]      NOT NULL,
    paused  boolean     NOT NULL DEFAULT false,
    made_at timestamptz NOT NULL,
    seen_at timestamptz NOT NULL
);

-- Where a group is in a lane: it has passed everything up to `pos`. `token` counts who has held the lane.
CREATE TABLE __schema__._event_lane (
    grp          text        NOT NULL REFERENCES __schema__._event_group (grp) ON DELETE CASCADE,
    lane         smallint    NOT NULL,
    pos          bigint      NOT NULL,
    at           timestamptz NOT NULL,
    furthest     bigint      NOT NULL,
    token        bigint      NOT NULL DEFAULT 0,
    attempt      integer     NOT NULL DEFAULT 0,
    worker       text,
    leased_until timestamptz,
    retry_at     timestamptz,
    needs        text,
    blocked      boolean     NOT NULL DEFAULT false,
    error        text,
    PRIMARY KEY (grp, lane)
) WITH (fillfactor = 20, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0);

-- Dead letters: what a group could not handle and went past. A copy, because the log forgets.
CREATE TABLE __schema__._event_dead (
    grp          text        NOT NULL REFERENCES __schema__._event_group (grp) ON DELETE CASCADE,
    pos          bigint      NOT NULL,
    at           timestamptz NOT NULL,
    bucket       smallint    NOT NULL,
    lane         smallint    NOT NULL,
    version      integer     NOT NULL,
    appended_at  timestamptz NOT NULL,
    id           uuid        NOT NULL,
    kind         text        NOT NULL,
    key          text,
    payload      bytea       NOT NULL,
    context      jsonb       NOT NULL,
    attempt      integer     NOT NULL,
    error        text        NOT NULL,
    dead_at      timestamptz NOT NULL,
    retry_at     timestamptz,
    token        bigint      NOT NULL DEFAULT 0,
    PRIMARY KEY (grp, pos)
);

CREATE INDEX _event_dead_again ON __schema__._event_dead (retry_at) WHERE retry_at IS NOT NULL;

-- Numbers up to `most` events that can be seen, in the order in which they were appended; `busy` when somebody
-- else does it right now. springtide/events/_floor.py explains the rest. Each statement has a snapshot of its
-- own: `drawn` is read before the one of the move, and the number after that.
CREATE FUNCTION __schema__._event_number(
    floor bigint, pending bigint[], starts bigint[], before bigint, most integer,
    OUT busy boolean, OUT moved integer, OUT last bigint, OUT drawn bigint, OUT number bigint,
    OUT running bigint[]
) LANGUAGE plpgsql VOLATILE SET enable_seqscan = off SET enable_bitmapscan = off AS $$
DECLARE
    head record;
    stamp timestamptz;
BEGIN
    busy := false;
    moved := 0;
    SELECT CASE WHEN s.is_called THEN s.last_value ELSE 0 END INTO drawn FROM __schema__._event_seq AS s;
    IF drawn > before THEN
        number := pg_current_xact_id()::text::bigint;
    ELSIF drawn < floor AND NOT EXISTS (
        SELECT FROM unnest(pending) AS x
        WHERE x NOT IN (SELECT r::text::bigint FROM pg_snapshot_xip(pg_current_snapshot()) AS r)
    ) THEN
        RETURN;
    END IF;
    SELECT h.pos, h.at INTO head FROM __schema__._event_head AS h WHERE h.one FOR UPDATE SKIP LOCKED;
    IF NOT FOUND THEN
        busy := true;
        RETURN;
    END IF;
    stamp := greatest(clock_timestamp(), head.at);
    WITH snapshot AS MATERIALIZED (
        SELECT ARRAY(SELECT x::text::bigint FROM pg_snapshot_xip(pg_current_snapshot()) AS x) AS running
    ), taken AS (
        DELETE FROM __schema__._event_new WHERE ctid = ANY (ARRAY(
            SELECT n.ctid FROM __schema__._event_new AS n
            WHERE n.seq >= (
                SELECT least(floor, min(p.start)) FROM unnest(pending, starts) AS p (x, start), snapshot AS s
                WHERE NOT p.x = ANY (s.running)
            )
            ORDER BY n.seq LIMIT most
        ))
        RETURNING *
    ), put AS (
        INSERT INTO __schema__._event
            (pos, at, bucket, lane, version, appended_at, id, kind, key, payload, context)
        SELECT head.pos + row_number() OVER (ORDER BY t.seq), stamp, t.bucket, t.lane, t.version,
            t.appended_at, t.id, t.kind, t.key, t.payload, t.context
        FROM taken AS t
    )
    SELECT count(*)::integer, max(t.seq), (SELECT s.running FROM snapshot AS s) INTO moved, last, running
    FROM taken AS t;
    IF moved > 0 THEN
        UPDATE __schema__._event_head AS h SET pos = h.pos + moved, at = stamp WHERE h.one;
    END IF;
END
$$;
