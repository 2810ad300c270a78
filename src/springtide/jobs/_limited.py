"""The claim of a line some of whose kinds are limited, per limit key: at once, or in a time.

A job of such a kind that the claim meets is

    running    there is room
    limited    as many of its key are running as may; whatever ends one of them lets another go
    ready      its turn comes later: `run_at` is moved to it, once (`paced`). Or another claim is just
               deciding about its key, and it is met again

*At once*: running jobs are counted under a lock of the key, with a snapshot that is younger than the lock, so
two claims never take the same room.
*In a time*: each job of a key gets a turn when it is met first. With `rate` in `per` seconds, step =
per / rate, and T = the turn after the last one that was given, or now if that is later: job number n of this
claim, from 0, begins at max(now, T + n * step - (per - step)). So `rate` may begin at once after a pause and
then one every step (the generic cell rate algorithm, ITU-T I.371).
A retry takes a turn again, a job that is handed back does not.
"""

from __future__ import annotations

from springtide.jobs.job import JobKind

__all__ = ["Limits", "limited_claim", "limits_of"]

Limits = tuple[list[str], list[int], list[int], list[float]]
"""Kinds, how many at once (0: any number), rates (0: none) and their periods."""


def limits_of(kinds: list[JobKind]) -> Limits | None:
    """The parameters of `limited_claim` for these kinds; None when none of them is limited."""
    limited = {kind.kind: kind for kind in kinds if kind.limited}
    if not limited:
        return None
    return (
        list(limited),
        [kind.concurrency or 0 for kind in limited.values()],
        [kind.rate or 0 for kind in limited.values()],
        [kind.per for kind in limited.values()],
    )


def limited_claim(
    schema: str, due: str, returning: str, *, more: str = "", ready_at: str = "j.run_at"
) -> str:
    """`due`, `returning` and `more` are those of the claim without limits; $6 to $9 are `Limits`.

    `ready_at` is when a job that is not to be run yet becomes ready at the earliest.
    """
    return f"""
        WITH due AS MATERIALIZED ({due}),
        asked AS MATERIALIZED (
            SELECT d.kind, d.limit_key, l.concurrency, l.rate, l.per,
                count(*) FILTER (WHERE NOT d.paced) AS unpaced
            FROM due AS d
            JOIN unnest($6::text[], $7::integer[], $8::integer[], $9::float8[])
                AS l (kind, concurrency, rate, per) ON l.kind = d.kind
            WHERE NOT d.waits AND d.limit_key IS NOT NULL
            GROUP BY d.kind, d.limit_key, l.concurrency, l.rate, l.per
            ORDER BY d.kind, d.limit_key
        ), turns AS (
            INSERT INTO {schema}._job_pace AS p (kind, limit_key, begun_at, step)
            SELECT kind, limit_key, statement_timestamp() + unpaced * make_interval(secs => per / rate),
                unpaced * make_interval(secs => per / rate)
            FROM asked WHERE rate > 0 AND unpaced > 0
            ON CONFLICT (kind, limit_key) DO UPDATE
            SET begun_at = greatest(p.begun_at, statement_timestamp()) + excluded.step, step = excluded.step
            RETURNING kind, limit_key, begun_at - step AS first
        ), counted AS MATERIALIZED (
            SELECT a.*, CASE WHEN a.concurrency > 0
                THEN {schema}._job_running(a.kind, a.limit_key) END AS running
            FROM asked AS a
        ), numbered AS MATERIALIZED (
            SELECT d.place, d.id, d.waits, d.priority, d.run_at,
                c.kind, c.limit_key, c.concurrency, c.running, c.rate,
                CASE WHEN c.rate > 0 AND NOT d.paced THEN greatest(
                    statement_timestamp(),
                    t.first - make_interval(secs => c.per - c.per / c.rate)
                        + make_interval(secs => c.per / c.rate * (row_number() OVER (
                            PARTITION BY c.kind, c.limit_key, d.paced ORDER BY d.priority, d.run_at, d.id
                        ) - 1))
                ) END AS turn
            FROM due AS d
            LEFT JOIN counted AS c ON c.kind = d.kind AND c.limit_key = d.limit_key AND NOT d.waits
            LEFT JOIN turns AS t ON t.kind = c.kind AND t.limit_key = c.limit_key
        ), judged AS MATERIALIZED (
            SELECT n.*, CASE
                WHEN n.waits THEN 'held'
                WHEN n.turn > statement_timestamp() THEN 'ready'
                WHEN n.concurrency > 0 AND n.running IS NULL THEN 'ready'
                WHEN n.concurrency > 0 AND n.concurrency - n.running < row_number() OVER (
                    PARTITION BY n.kind, n.limit_key, n.waits, coalesce(n.turn > statement_timestamp(), false)
                    ORDER BY n.priority, n.run_at, n.id) THEN 'limited'
                ELSE 'running' END AS verdict
            FROM numbered AS n
        )
        UPDATE {schema}._job AS j
        SET state = v.verdict,
            attempt = j.attempt + CASE WHEN v.verdict = 'running' THEN 1 ELSE 0 END,
            worker = CASE WHEN v.verdict = 'running' THEN $3 ELSE j.worker END,
            unique_key = CASE WHEN v.verdict <> 'running' THEN j.unique_key END,
            leased_until = CASE WHEN v.verdict = 'running'
                THEN clock_timestamp() + make_interval(secs => $4) END,
            run_at = CASE WHEN v.verdict = 'ready' THEN greatest({ready_at}, v.turn) ELSE j.run_at END,
            paced = j.paced OR coalesce(v.rate, 0) > 0,
            started_at = clock_timestamp(), finished_at = NULL{more}
        FROM judged AS v WHERE j.ctid = v.place
        RETURNING v.verdict <> 'running' AS waits, {returning}
    """  # noqa: S608 - the schema is an identifier checked by Database
