-- Requests with an idempotency key; springtide/db/idempotency.py explains the states.
-- __schema__ stands for the module's schema. A row lies in the bucket of what the request changes, so that
-- it commits in the same transaction and moves with it.

CREATE TABLE __schema__._idempotency (
    bucket       smallint    NOT NULL,
    digest       bytea       NOT NULL CHECK (octet_length(digest) = 32),
    fingerprint  bytea       NOT NULL CHECK (octet_length(fingerprint) = 32),
    claim_id     uuid        NOT NULL,
    leased_until timestamptz NOT NULL,
    expires_at   timestamptz NOT NULL,
    status       smallint    CHECK (status BETWEEN 200 AND 499),
    headers      jsonb,
    body         bytea,
    PRIMARY KEY (bucket, digest),
    CHECK ((status IS NULL) = (body IS NULL) AND (status IS NULL) = (headers IS NULL))
) WITH (fillfactor = 80);

CREATE INDEX _idempotency_expiry ON __schema__._idempotency (expires_at);
