# ruff: noqa: S608 - what the statements are put together from are this file's own numbers and a checked schema
"""The rows of a module's schedules: the texts of their statements, and what they mean.

`_schedule` has one row a schedule; `_schedule_spec` one for each declaration of it that a running release
has. Of several the one that was declared last is in charge, as long as it is seen: a rolling deploy has two,
and an old process that starts once more in the middle of it does not bring the old times back; when a release
was taken back, its last process gone for GONE seconds, the one before is in charge again. Time is the
database's.
"""

from __future__ import annotations

from datetime import timedelta

__all__ = ["ADJUST", "BUCKET", "DECLARE", "FIRE", "FORGET", "LIST", "PLAN", "READ", "SEEN"]

BUCKET = 0

SEEN = 10.0
"""Seconds between two marks that a declaration is there, over all processes that have it."""

GONE = timedelta(seconds=60)
"""After so long without a mark nobody has it any more."""

FORGOTTEN = timedelta(days=30)
"""After so long without a declaration a schedule is forgotten: declared again, it begins anew."""

# A mark in the future was made before the database's clock was set back.
DECLARE = f"""
INSERT INTO {{schema}}._schedule_spec AS spec (bucket, name, spec, declared_at, seen_at)
SELECT {BUCKET}, mine.name, mine.spec, clock_timestamp(), clock_timestamp()
FROM unnest($1::text[], $2::text[]) AS mine (name, spec)
ORDER BY 2
ON CONFLICT (bucket, name, spec) DO UPDATE
SET seen_at = excluded.seen_at,
    declared_at = CASE
        WHEN spec.seen_at BETWEEN excluded.seen_at - interval '{GONE.total_seconds():g} s'
            AND excluded.seen_at + interval '{GONE.total_seconds():g} s'
        THEN spec.declared_at ELSE excluded.declared_at END
WHERE spec.seen_at NOT BETWEEN excluded.seen_at - interval '{SEEN / 2:g} s'
    AND excluded.seen_at + interval '{SEEN / 2:g} s'
"""

PLAN = f"""
INSERT INTO {{schema}}._schedule (bucket, name, timing, next_at) VALUES ({BUCKET}, $1, $2, $3)
ON CONFLICT (bucket, name) DO NOTHING
"""

_LEADER = f"""
(SELECT spec.spec FROM {{schema}}._schedule_spec AS spec
 WHERE spec.bucket = {BUCKET} AND spec.name = schedule.name
    AND spec.seen_at BETWEEN clock_timestamp() - interval '{GONE.total_seconds():g} s'
        AND clock_timestamp() + interval '{GONE.total_seconds():g} s'
 ORDER BY spec.declared_at DESC, spec.spec LIMIT 1)
"""

READ = f"""
SELECT wanted.name, schedule.timing, schedule.next_at, schedule.last_at, clock_timestamp() AS now,
    {_LEADER} AS leader
FROM unnest($1::text[]) AS wanted (name)
LEFT JOIN {{schema}}._schedule AS schedule ON schedule.bucket = {BUCKET} AND schedule.name = wanted.name
"""

ADJUST = f"""
UPDATE {{schema}}._schedule SET timing = $4, next_at = $5
WHERE bucket = {BUCKET} AND name = $1 AND timing = $2 AND next_at = $3
RETURNING next_at
"""

FIRE = f"""
UPDATE {{schema}}._schedule
SET timing = $4, next_at = $5, last_at = coalesce($6, last_at), runs = runs + $7, skipped = skipped + $8
WHERE bucket = {BUCKET} AND name = $1 AND timing = $2 AND next_at = $3
RETURNING next_at
"""

FORGET = f"""
WITH gone AS (
    DELETE FROM {{schema}}._schedule_spec
    WHERE seen_at < clock_timestamp() - interval '{FORGOTTEN.days} days'
    RETURNING name
)
DELETE FROM {{schema}}._schedule AS schedule
WHERE bucket = {BUCKET} AND name IN (SELECT name FROM gone)
    AND NOT EXISTS (
        SELECT FROM {{schema}}._schedule_spec AS spec
        WHERE spec.bucket = {BUCKET} AND spec.name = schedule.name
            AND spec.seen_at >= clock_timestamp() - interval '{FORGOTTEN.days} days'
    )
"""

LIST = f"""
SELECT name, timing, next_at, last_at, runs, skipped,
    extract(epoch FROM next_at - clock_timestamp())::float8 AS due_in, {_LEADER} IS NOT NULL AS declared
FROM {{schema}}._schedule AS schedule WHERE bucket = {BUCKET} ORDER BY name
"""
