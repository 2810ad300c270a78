"""The statements of what identities have seen; `positions.py` explains them.

`base` and `settled` are columns so that a statement that meets a row can name what it was given of both.
"""

from __future__ import annotations

__all__ = ["BATCH", "BEGIN_GENERATION", "KEEP", "LOCK", "LOOK", "PURGE", "TABLES"]

BATCH = 500

LOCK = 0x5350_5347
"""Advisory lock of whoever makes the tables."""

TABLES = """
CREATE SCHEMA IF NOT EXISTS springtide;
CREATE UNLOGGED TABLE IF NOT EXISTS springtide.seen (
    subject bigint NOT NULL,
    cluster text NOT NULL,
    epoch bigint NOT NULL,
    lsn bigint NOT NULL,
    witness text,
    version integer NOT NULL,
    base integer NOT NULL,
    settled boolean NOT NULL DEFAULT false,
    covered timestamptz,
    at timestamptz NOT NULL,
    PRIMARY KEY (subject, cluster)
) WITH (fillfactor = 70);
ALTER TABLE springtide.seen
    ADD COLUMN IF NOT EXISTS settled boolean NOT NULL DEFAULT false,
    ADD COLUMN IF NOT EXISTS covered timestamptz;
CREATE UNLOGGED TABLE IF NOT EXISTS springtide.generation (
    one boolean PRIMARY KEY CHECK (one),
    started timestamptz NOT NULL,
    since timestamptz NOT NULL
);
"""

LOOK = """
SELECT s.subject, s.cluster, s.epoch, s.lsn, s.witness, s.version,
    extract(epoch FROM now() - s.at)::float8 AS age,
    extract(epoch FROM now() - s.covered)::float8 AS covered
FROM springtide.seen AS s
WHERE s.subject = ANY ($1::bigint[]) AND s.at > now() - $2::interval
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, count(*)::integer, NULL, NULL
FROM springtide.generation AS g
WHERE g.started = pg_postmaster_start_time()
HAVING count(*) FILTER (WHERE g.since <= now() - $2::interval) = 0
"""
"""What is kept of the subjects; and, where that may not be all, a row without a subject. Its `version` is 1
where this run of the server has its row in `generation`, 0 where it has to be made."""

KEEP = """
INSERT INTO springtide.seen AS s (subject, cluster, epoch, lsn, witness, version, base, settled, at)
SELECT n.subject, n.cluster, n.epoch, n.lsn, n.witness, (random() * 1e9)::integer, n.base, n.settled, now()
FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::bigint[], $5::text[], $6::integer[], $7::boolean[])
    AS n (subject, cluster, epoch, lsn, witness, base, settled)
ORDER BY n.subject, n.cluster
ON CONFLICT (subject, cluster) DO UPDATE SET
    epoch = CASE WHEN (excluded.epoch, excluded.lsn) > (s.epoch, s.lsn) THEN excluded.epoch ELSE s.epoch END,
    lsn = CASE WHEN (excluded.epoch, excluded.lsn) > (s.epoch, s.lsn) THEN excluded.lsn ELSE s.lsn END,
    witness = CASE
        WHEN s.witness IS NULL OR (s.version = excluded.base AND excluded.settled) THEN excluded.witness
        WHEN excluded.witness IS NULL OR excluded.witness = s.witness THEN s.witness
        ELSE '?' END,
    covered = CASE
        WHEN s.witness IS NULL OR excluded.witness IS NOT NULL THEN NULL
        WHEN s.version <> excluded.base THEN s.covered
        WHEN NOT excluded.settled THEN coalesce(s.covered, clock_timestamp()) END,
    version = s.version + 1,
    at = now()
"""

BEGIN_GENERATION = """
INSERT INTO springtide.generation AS g (one, started, since)
VALUES (true, pg_postmaster_start_time(), clock_timestamp())
ON CONFLICT (one) DO UPDATE SET started = excluded.started, since = excluded.since
WHERE g.started <> excluded.started
"""

PURGE = f"""
DELETE FROM springtide.seen WHERE ctid = ANY (ARRAY(
    SELECT s.ctid FROM springtide.seen AS s WHERE s.at < now() - 2 * $1::interval LIMIT {BATCH}))
"""  # noqa: S608 - a number of ours
