"""The inbox: effects of a job on a database that does not finish it, once.

A handler whose effect is "any" may run again after a crash. What it writes where the job does not lie cannot
commit together with the end of the job, but it can commit together with a row that says that it has. The next
run meets that row, or waits for the transaction that is about to write it.

no row -> row, with the effect: never back, until it is forgotten after KEPT seconds.
"""

from __future__ import annotations

__all__ = ["KEPT", "MAX_PART_CHARS", "enter_sql", "forget_sql"]

KEPT = 30 * 86_400.0
"""Seconds. A job that is run again later than this after its effect repeats it."""

MAX_PART_CHARS = 100

BATCH = 1000


def enter_sql(schema: str) -> str:
    """Bucket, job and part: a row when they are new, none when they are there."""
    return f"""
        INSERT INTO {schema}._job_inbox (bucket, job, part, written_at)
        VALUES ($1, $2, $3, clock_timestamp()) ON CONFLICT DO NOTHING RETURNING 1
    """  # noqa: S608 - the schema is an identifier checked by Database, here and below


def forget_sql(schema: str) -> str:
    """A batch of what was written more than $1 seconds ago."""
    return f"""
        DELETE FROM {schema}._job_inbox WHERE ctid = ANY (ARRAY(
            SELECT ctid FROM {schema}._job_inbox
            WHERE written_at < clock_timestamp() - make_interval(secs => $1)
            ORDER BY written_at LIMIT {BATCH} FOR UPDATE SKIP LOCKED
        )) RETURNING 1
    """  # noqa: S608
