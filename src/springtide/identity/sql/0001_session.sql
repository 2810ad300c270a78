-- Server-side sessions; springtide/identity/sessions.py explains the columns.
-- Only hashes of what the browser holds are here: a copy of this table signs nobody in.

CREATE TABLE sessions.session (
    bucket           smallint    NOT NULL,
    id               bytea       NOT NULL CHECK (octet_length(id) = 32),
    secret           bytea       NOT NULL CHECK (octet_length(secret) = 32),
    subject          bigint,
    scopes           text[]      NOT NULL,
    previous         bytea,
    previous_subject bigint,
    previous_scopes  text[],
    previous_until   timestamptz,
    created_at       timestamptz NOT NULL,
    signed_in_at     timestamptz,
    seen_at          timestamptz NOT NULL,
    expires_at       timestamptz NOT NULL,
    ends_at          timestamptz NOT NULL,
    PRIMARY KEY (bucket, id)
) WITH (fillfactor = 80);

CREATE INDEX session_subject ON sessions.session (subject) WHERE subject IS NOT NULL;

CREATE INDEX session_end ON sessions.session (ends_at);
