"""How much work each kind brings, written down by workers for whoever decides how many workers there are.

A worker counts in memory how many runs of a kind have ended and for how long they had slots, and adds that to
one row per kind every few seconds: no job costs a statement. One process at a time (`turn`) measures what
waits and what runs, and writes it into the same rows, with two moving averages:

    arrival  jobs per second that became due:  (d ended + d (waiting + running)) / dt,  over AVERAGED seconds
    service  seconds that a run has a slot, from the claim that asked for it:  of the last REMEMBERED runs

Nothing counts enqueues: what came is what left and what there is more of. Samples of the first may be
negative (rows go before their runs are counted) and are averaged as they are, so that nothing is counted
twice; a reader sees 0 at least. While no run of a kind has ever ended, `service` is how long those that run
have had their slots: the first jobs of an hour each are known to be long before one ends.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from springtide.jobs._cursor import EVERYTHING, PRIORITIES
from springtide.jobs._statements import MEASURED

__all__ = ["AHEAD", "Loads", "Row", "Spent", "Tally"]

AHEAD = 15.0
"""Seconds until a job is due for which it counts as waiting: about what a new worker takes to begin."""

AVERAGED = 60.0

REMEMBERED = 200


class Queries(Protocol):
    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        """Every row."""


class Spent(NamedTuple):
    """What one worker's runs of a kind took since it said so last: how many ended, after how many seconds in
    all. `so_far`: how long those that run have had their slots, on average; None without any."""

    runs: int
    seconds: float
    so_far: float | None

    def also(self, other: Spent) -> Spent:
        """Both, of two versions of a kind."""
        so_far = [one for one in (self.so_far, other.so_far) if one is not None]
        return Spent(self.runs + other.runs, self.seconds + other.seconds, max(so_far, default=None))


class Tally:
    """Of the runs that one worker has of a kind and version."""

    __slots__ = ("_began", "_known", "_running", "runs", "seconds")

    def __init__(self) -> None:
        self.runs = 0
        self.seconds = 0.0
        self._running = 0
        self._began = 0.0
        self._known = False

    def begin(self, at: float) -> None:
        """A run has a slot since `at`."""
        self._running += 1
        self._began += at

    def end(self, at: float, now: float, *, counts: bool = True) -> None:
        """It has none any more. `counts`: the job was run; it was not handed back, nor lost to another."""
        self._running -= 1
        self._began = self._began - at if self._running else 0.0
        if counts:
            self.runs += 1
            self.seconds += now - at

    def spent(self, now: float) -> Spent | None:
        """What there is to tell; None when that is nothing new."""
        self._known = self._known or self.runs > 0
        if self.runs:
            return Spent(self.runs, self.seconds, None)
        if self._running and not self._known:
            return Spent(0, 0.0, max(now - self._began / self._running, 0.0))
        return None

    def told(self, spent: Spent) -> None:
        """`spent` was written down."""
        self.runs -= spent.runs
        self.seconds = self.seconds - spent.seconds if self.runs else 0.0


class Row(NamedTuple):
    """A kind on one shard as it was measured. `service` is None when nothing is known of it."""

    kind: str
    waiting: int
    running: int
    arrival: float
    service: float | None


class Loads:
    """The statements, for the jobs in `schema`."""

    def __init__(self, schema: str) -> None:
        table, jobs = f"{schema}._job_load", f"{schema}._job"
        self._turn = f"""
            INSERT INTO {table} AS l (kind, measured_at) VALUES ('', clock_timestamp())
            ON CONFLICT (kind) DO UPDATE SET measured_at = clock_timestamp()
            WHERE l.measured_at NOT BETWEEN
                clock_timestamp() - make_interval(secs => $1::float8) AND clock_timestamp()
            RETURNING kind
        """  # noqa: S608 - the schema is an identifier checked by Database, here and below
        self._spend = f"""
            INSERT INTO {table} AS l (kind, service, weight, runs)
            SELECT n.kind, CASE WHEN n.runs > 0 THEN n.seconds / n.runs ELSE n.so_far END, n.runs, n.runs
            FROM unnest($1::text[], $2::bigint[], $3::float8[], $4::float8[])
                AS n (kind, runs, seconds, so_far)
            ORDER BY n.kind
            ON CONFLICT (kind) DO UPDATE SET
                runs = l.runs + excluded.runs,
                weight = least(l.weight, {REMEMBERED}) + excluded.weight,
                service = CASE
                    WHEN excluded.weight > 0 THEN
                        (coalesce(l.service, 0) * least(l.weight, {REMEMBERED})
                            + excluded.service * excluded.weight)
                        / (least(l.weight, {REMEMBERED}) + excluded.weight)
                    WHEN l.weight = 0 THEN greatest(l.service, excluded.service)
                    ELSE l.service
                END
        """  # noqa: S608
        # By leases that have not passed: the index has those of all that ended, too, while a transaction is
        # held open. What is left out will be rescued.
        self._measure = f"""
            SELECT f.kind, (count(*) FILTER (WHERE NOT f.runs))::integer AS waiting,
                (count(*) FILTER (WHERE f.runs))::integer AS running
            FROM (
                SELECT r.kind, false AS runs
                FROM unnest($1::timestamptz[]) WITH ORDINALITY AS class (floor, number)
                CROSS JOIN LATERAL (
                    SELECT w.kind FROM {jobs} AS w
                    WHERE w.state = 'ready' AND w.priority = class.number - 1 AND w.run_at >= class.floor
                        AND w.run_at <= statement_timestamp() + make_interval(secs => {AHEAD})
                    LIMIT {MEASURED}
                ) AS r
                UNION ALL (SELECT w.kind, false FROM {jobs} AS w WHERE w.state = 'sent' LIMIT {MEASURED})
                UNION ALL (
                    SELECT w.kind, true FROM {jobs} AS w
                    WHERE w.state = 'running' AND w.leased_until > statement_timestamp() LIMIT {MEASURED}
                )
            ) AS f GROUP BY f.kind
        """  # noqa: S608
        since = "greatest(extract(epoch FROM excluded.measured_at - l.measured_at), 0.1)::float8"
        came = "l.runs - l.counted + excluded.waiting + excluded.running - l.waiting - l.running"
        self._note = f"""
            INSERT INTO {table} AS l (kind, waiting, running, counted, measured_at)
            SELECT coalesce(n.kind, k.kind), coalesce(n.waiting, 0), coalesce(n.running, 0),
                coalesce(k.runs, 0), clock_timestamp()
            FROM unnest($1::text[], $2::integer[], $3::integer[]) AS n (kind, waiting, running)
            FULL JOIN (SELECT kind, runs FROM {table} WHERE kind <> '') AS k ON k.kind = n.kind
            ORDER BY 1
            ON CONFLICT (kind) DO UPDATE SET
                waiting = excluded.waiting, running = excluded.running, counted = l.runs,
                measured_at = excluded.measured_at,
                arrival = CASE WHEN l.measured_at IS NULL THEN 0 ELSE
                    l.arrival + (1 - exp(-least({since} / {AVERAGED}, 50)))
                        * (({came})::float8 / {since} - l.arrival)
                END
        """  # noqa: S608
        self._read = f"""
            SELECT kind, waiting, running, greatest(arrival, 0)::float8 AS arrival, service,
                extract(epoch FROM clock_timestamp() - measured_at)::float8 AS age
            FROM {table} WHERE measured_at IS NOT NULL ORDER BY kind
        """  # noqa: S608

    async def spend(self, queries: Queries, spent: Iterable[tuple[str, Spent]]) -> None:
        """Add what runs of these kinds took; each kind once."""
        rows = list(spent)
        columns: Sequence[list[Any]] = [
            [kind for kind, _ in rows],
            [one.runs for _, one in rows],
            [one.seconds for _, one in rows],
            [one.so_far for _, one in rows],
        ]
        await queries.fetch(self._spend, *columns)

    async def turn(self, queries: Queries, apart: float) -> bool:
        """Whether the last measurement was `apart` seconds ago, so that it is the caller's turn; or of a time
        that is to come, because the clock was set back."""
        return bool(await queries.fetch(self._turn, apart))

    async def measure(self, queries: Queries, floors: Sequence[Any] = (EVERYTHING,) * PRIORITIES) -> None:
        """Count what waits and runs, and write it down. `floors`: below them nothing is ready."""
        found = await queries.fetch(self._measure, list(floors))
        columns = [[row[name] for row in found] for name in ("kind", "waiting", "running")]
        await queries.fetch(self._note, *columns)

    async def read(self, queries: Queries) -> tuple[list[Row], float | None]:
        """What was measured last and how many seconds ago that was; None when it never was."""
        rows, age = [], None
        for row in await queries.fetch(self._read):
            if row["kind"] == "":
                age = row["age"]
            else:
                rows.append(Row(row["kind"], row["waiting"], row["running"], row["arrival"], row["service"]))
        return rows, age
