-- What the data layer keeps beside a module's own tables. __schema__ stands for the module's schema.

-- The next free counter of each bucket; ids are counter << 10 | bucket.
CREATE TABLE __schema__._id_counter (
    bucket smallint NOT NULL PRIMARY KEY,
    next   bigint   NOT NULL
);

-- Values that are unique over all buckets, in the bucket of the value's hash.
-- pending, keeping and releasing are decided by the outcome of claim_id, on the shard of owner_id.
CREATE TABLE __schema__._reservation (
    bucket     smallint    NOT NULL,
    kind       text        NOT NULL,
    value      text        NOT NULL,
    owner_id   bigint      NOT NULL,
    claim_id   uuid        NOT NULL,
    state      text        NOT NULL CHECK (state IN ('pending', 'confirmed', 'keeping', 'releasing')),
    claimed_at timestamptz NOT NULL,
    PRIMARY KEY (bucket, kind, value)
);

CREATE INDEX _reservation_undecided ON __schema__._reservation (claim_id) WHERE state <> 'confirmed';

-- Whoever inserts first decides a claim: its writer (committed) or who finds it abandoned (not committed).
CREATE TABLE __schema__._reservation_outcome (
    bucket    smallint    NOT NULL,
    claim_id  uuid        NOT NULL,
    committed boolean     NOT NULL,
    at        timestamptz NOT NULL,
    PRIMARY KEY (bucket, claim_id)
);

CREATE INDEX _reservation_outcome_age ON __schema__._reservation_outcome (at);
