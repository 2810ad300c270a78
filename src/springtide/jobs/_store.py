"""The rows of one module's jobs on one shard: what the queue does to them, and nothing else.

    ready -> running -> done     the row moves from `_job` to the history `_job_done`
               |-> ready         retry, hand-back, rescue of an expired lease
               `-> dead          no attempts left, or the handler said that trying again cannot help
    ready <-> held               an earlier job of its ordering key has not ended
    ready <-> limited            as many of its kind and limit key are running as may (`_limited.py`)
    ready <-> parked             no worker that looked at it knows its kind and version
    ready <-> sent -> running    a transport carries it to the workers (`_sent.py`)
    ready <-> paused             operators have paused its kind, or all of the module (`_pausing.py`)

`_job` has what is unfinished or needs a look (dead, parked), so it is small and what has ended slows nothing.

`attempt` is counted by the claim, so a job that kills its worker reaches the dead letters. A run is named
by (id, attempt, worker); every statement that ends one is guarded by that name and tells whether it held.
Where replicas exist, a claim also tells where the log stood: after the commit that made the job visible, so
a replica that has replayed that far has what the job is about. Time is the database's alone. `run_at` orders
what is ready and is never earlier than when the row became so; `due_at` is since when the job waits.
`unique_key` is held until the job begins: the claim clears it, so what was enqueued while a job of the same
key was running is not lost to it. Of the jobs of one `ordering_key` in a bucket, the claim takes the earliest
by (enqueued_at, id) alone and holds the others it meets; whatever ends a job for good lets the next one go.

The texts are in `_statements.py`. `cursor` is where claims begin to look; `read` moves it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from springtide.clock import Clock, SystemClock
from springtide.context import Position
from springtide.db import Database
from springtide.db.causality import position_of
from springtide.jobs._cursor import EVERYTHING, PRIORITIES, Cursor, Reading
from springtide.jobs._inbox import forget_sql
from springtide.jobs._limited import Limits
from springtide.jobs._pausing import Pausing
from springtide.jobs._statements import BATCH, MEASURED, Statements

__all__ = ["BATCH", "MEASURED", "Claimed", "Ending", "Found", "RunName", "Store"]

MAX_ROUNDS = 50
"""Statements of one claim that meet nothing but jobs which have to wait for others."""

RESCUED_AGAIN = timedelta(minutes=2)
"""How far before the last rescue the next one begins to look: for leases written by slow statements."""


class Queries(Protocol):
    """A pool, or a transaction that the statement is to be part of."""

    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        """Every row."""


class RunName(NamedTuple):
    """Which run of which job; at most one is ever in charge of a job."""

    bucket: int
    id: UUID
    attempt: int


class Claimed(NamedTuple):
    """A job as claimed. `waited` is how many seconds it had been due.

    `context` is the text of its envelope. `position` covers the commit that enqueued it; None where the shard
    has no replicas. `remaining` is how many seconds are left until its deadline, None when it has none.
    """

    run: RunName
    kind: str
    version: int
    payload: bytes
    context: str
    priority: int
    max_attempts: int
    enqueued_at: datetime
    waited: float
    position: Position | None = None
    ordering_key: str | None = None
    limit_key: str | None = None
    remaining: float | None = None


@dataclass(frozen=True, slots=True)
class Ending:
    """What becomes of a run: state done, ready (after `delay` seconds) or dead.

    `uncounted` takes the attempt back: the run was ended by us, not by the job. `result` is JSON to keep.
    """

    state: str
    error: str | None = None
    delay: float = 0.0
    uncounted: bool = False
    result: str | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """Jobs of one kind by state, and how long the oldest due one waits, ready or sent. `held` has those that
    are limited."""

    kind: str
    ready: int
    running: int
    held: int
    parked: int
    dead: int
    age: float
    sent: int = 0
    paused: int = 0


class Store:
    """The jobs of `database` on `shard`."""

    def __init__(self, database: Database, shard: str, *, clock: Clock | None = None) -> None:
        self.module = database.name
        self.schema = database.schema
        self.shard = shard
        self.pool = database.pools[shard]
        self.cursor = Cursor()
        self.statements = Statements(database.schema)
        self.pausing = Pausing(database.schema)
        self._servers = database.servers.get(shard)
        self.cluster = self._servers.cluster if self._servers is not None else shard
        self._monotonic = (clock or SystemClock()).monotonic
        self._rescued: datetime | None = None

    # -- claiming --------------------------------------------------------------------------------------

    async def claim(
        self, names: Sequence[str], limit: int, worker: str, lease: float, limits: Limits | None = None
    ) -> list[Claimed]:
        """Up to `limit` due jobs of the kinds `names`, most important first, then oldest.

        `limits` are those of the kinds that have some (`limits_of`).
        """
        met = await self.meet(names, limit, worker, lease, limits)
        return await self.complete(met, names, limit, worker, lease, limits)

    async def meet(
        self, names: Sequence[str], limit: int, worker: str, lease: float, limits: Limits | None = None
    ) -> list[Any]:
        """One statement of a claim: rows that `complete` reads."""
        placed, texts = self.placed, self.statements
        if limits is None:
            sql = texts.claim_placed if placed else texts.claim
        else:
            sql = texts.claim_limited_placed if placed else texts.claim_limited
        return await self._ask(sql, names, limit, worker, lease, self.cursor.floors, *(limits or ()))

    async def turn(
        self,
        runs: Sequence[RunName],
        results: Sequence[str | None] | None,
        names: Sequence[str],
        limit: int,
        worker: str,
        lease: float,
    ) -> tuple[set[UUID], list[Any]]:
        """`finish` and `meet` by one statement: both are done, or none. Not for runs of an ordering key, and
        not where kinds have limits."""
        texts = self.statements
        met = await self._ask(
            texts.turn_placed if self.placed else texts.turn,
            names, limit, worker, lease, self.cursor.floors, *_columns(runs), results,
        )  # fmt: skip
        some = met[0]["some"]
        ended = {run.id for run in runs} if some is None else set(some)
        return ended, [] if met[0]["waits"] is None else met

    async def complete(
        self,
        met: list[Any],
        names: Sequence[str],
        limit: int,
        worker: str,
        lease: float,
        limits: Limits | None = None,
    ) -> list[Claimed]:
        """What was `met`, and as many more as are missing because some of it has to wait for others."""
        rows: list[Any] = []
        for _ in range(MAX_ROUNDS):
            left = limit - len(rows)
            rows += [row for row in met if not row["waits"]]
            if len(met) < left or len(rows) == limit:
                break
            try:
                met = await self.meet(names, limit - len(rows), worker, lease, limits)
            except Exception:
                if rows:  # these are ours; what went wrong shows again
                    break
                raise
        if len(rows) > 1:
            rows.sort(key=_order)
        return self.claimed(rows, placed=self.placed)

    async def _ask(self, sql: str, *args: Any) -> list[Any]:
        try:
            return await self.pool.fetch(sql, *args)
        except BaseException:
            self.cursor.forget()  # the server may be another one, which has lost some claims
            raise

    @property
    def placed(self) -> bool:
        """Whether a claim also tells where the log stood: the shard has replicas."""
        return self._servers is not None and self._servers.replicated

    @staticmethod
    def claimed(rows: Sequence[Any], *, placed: bool) -> list[Claimed]:
        """Rows of a claim."""
        return [_claimed(row, placed) for row in rows]

    async def read(self) -> bool:
        """Move the cursor; whether there is something to claim that the last claims did not look at.

        One call at a time.
        """
        sent = self._monotonic()
        try:
            (row,) = await self.pool.fetch(self.statements.read, self.cursor.floors)
        except BaseException:
            self.cursor.forget()
            raise
        return self.cursor.advance(
            Reading(row["running"], row["number"], row["clock"], row["first"], sent, self._monotonic())
        )

    async def check(self) -> bool:
        """Look below the cursor, which may take long; whether something was there. Then it is forgotten."""
        (row,) = await self.pool.fetch(self.statements.first, [EVERYTHING] * PRIORITIES)
        if self.cursor.below(row["first"]):
            self.cursor.forget()
            return True
        return False

    # -- ending ----------------------------------------------------------------------------------------

    async def finish(
        self,
        runs: Sequence[RunName],
        worker: str,
        results: Sequence[str | None] | None = None,
        *,
        ordered: bool = False,
        queries: Queries | None = None,
    ) -> set[UUID]:
        """These runs are done: the ids of those that could be written down. The others: ask `end`.

        `results` None: none has one. `ordered`: some have an ordering key. Fails soon when somebody has
        locked one of the rows.
        """
        sql = self.statements.finish_ordered if ordered else self.statements.finish
        (row,) = await (queries or self.pool).fetch(sql, *_columns(runs), worker, results)
        return {run.id for run in runs} if row["some"] is None else set(row["some"])

    async def end(
        self,
        run: RunName,
        worker: str,
        ending: Ending,
        queries: Queries | None = None,
        *,
        ordering_key: str | None = None,
    ) -> bool:
        """Write how a run ended; False when it was not this worker's any more. May be repeated."""
        queries = queries or self.pool
        name = (run.bucket, run.id, run.attempt, worker)
        if ending.state == "done":
            one, ordered = self.statements.finish_one, self.statements.finish_one_ordered
            if await queries.fetch(one if ordering_key is None else ordered, *name, ending.result):
                return True
            finished = (run.id, run.bucket, run.attempt, worker)
            return bool(await queries.fetch(self.statements.finished, *finished))
        if ending.uncounted:
            return bool(await self.hand_back([run], worker, queries))
        held = await queries.fetch(self.statements.end, *name, ending.state, ending.error, ending.delay)
        if held and ending.state == "dead" and ordering_key is not None:
            await queries.fetch(self.statements.let_next, run.bucket, ordering_key, run.id)
        return bool(held)

    async def hand_back(
        self, runs: Sequence[RunName], worker: str, queries: Queries | None = None
    ) -> set[UUID]:
        """These runs are ready again, and were none: the ids of those that were this worker's and that nobody
        touched meanwhile."""
        rows = await (queries or self.pool).fetch(self.statements.hand_back, *_columns(runs), worker)
        return {row["id"] for row in rows}

    async def report(self, run: RunName, worker: str, progress: str) -> bool:
        """Keep how far a run is, as JSON; False when it was not this worker's any more."""
        name = (run.bucket, run.id, run.attempt, worker)
        return bool(await self.pool.fetch(self.statements.progress, *name, progress))

    async def look(self, bucket: int, id: UUID) -> Any | None:
        """State, attempt, error, progress and result of a job; None when nobody knows it (any more)."""
        rows = await self.pool.fetch(self.statements.look, bucket, id)
        return rows[0] if rows else None

    # -- leases ----------------------------------------------------------------------------------------

    async def renew(self, runs: Sequence[RunName], worker: str, lease: float, queries: Queries) -> set[UUID]:
        """Extend these leases; the ids of those that are not this worker's any more."""
        lost = await queries.fetch(self.statements.renew, *_columns(runs), worker, lease)
        return {row["id"] for row in lost}

    async def rescue(self, *, whole: bool = False) -> list[Any]:
        """Make jobs whose lease has expired ready again, or dead when they have no attempts left.

        Looks at leases that have passed since shortly before the last rescue; `whole`: at all.
        """
        since = None if whole or self._rescued is None else self._rescued - RESCUED_AGAIN
        rows = await self.pool.fetch(self.statements.rescue, since)
        rescued = [row for row in rows if row["id"] is not None]
        if len(rescued) < BATCH:
            self._rescued = rows[0]["scanned"]
        return rescued

    # -- upkeep ----------------------------------------------------------------------------------------

    async def park(self, names: Sequence[str], after: float) -> list[str]:
        """Set aside what has been due for `after` seconds and is none of `names`; what it is."""
        rows = await self.pool.fetch(self.statements.park, list(names), after, self.cursor.floors)
        return [row["name"] for row in rows]

    async def release(self, names: Sequence[str]) -> int:
        """Make parked jobs of the kinds `names` ready again."""
        return len(await self.pool.fetch(self.statements.release, list(names)))

    async def free(self, kinds: Sequence[str] = (), limits: Limits | None = None) -> int:
        """Make jobs ready that are held or, of `kinds`, limited without a cause any more; how many."""
        free = len(await self.pool.fetch(self.statements.let_free))
        names, at_once = limits[:2] if limits is not None else ([], [])
        let = await self.pool.fetch(self.statements.let_all, names, at_once, list(kinds))
        await self.pool.fetch(self.statements.forget_pace)
        return free + sum(int(row["many"]) for row in let)

    async def let(self, keys: Mapping[tuple[str, str], int]) -> int:
        """Limited jobs may go as there is room: (kind, limit key) -> how many at once; how many went."""
        kinds, limit_keys = [kind for kind, _ in keys], [key for _, key in keys]
        rows = await self.pool.fetch(self.statements.let, kinds, limit_keys, list(keys.values()))
        return sum(int(row["many"]) for row in rows)

    async def keep_room(self) -> None:
        """Let the table be so large that plans go by its indexes (0018_jobs_plans.sql says why)."""
        await self.pool.fetch(self.statements.room)

    async def sweep(self) -> int:
        """Move a batch of jobs that are done but still in the queue to the history; how many."""
        return len(await self.pool.fetch(self.statements.sweep))

    async def forget(self, kept: float) -> int:
        """Forget a batch of what the inbox has known for longer than `kept` seconds; how many."""
        return len(await self.pool.fetch(forget_sql(self.schema), kept))

    async def measure(self, *, waiting: bool = False) -> list[Found]:
        """`waiting`: only what is ready or sent. Else it reads of all leases, too, and while a transaction is
        held open their index has what ended long ago: not for every second."""
        jobs: dict[str, Counter[str]] = {}
        ages: dict[str, float] = {}
        sql = self.statements.waiting if waiting else self.statements.measure
        for row in await self.pool.fetch(sql, self.cursor.floors):
            jobs.setdefault(row["kind"], Counter())[row["state"]] = row["jobs"]
            if row["state"] in ("ready", "sent"):
                ages[row["kind"]] = max(row["age"], ages.get(row["kind"], 0.0))
        return [
            Found(
                kind,
                ready=counts["ready"],
                running=counts["running"],
                held=counts["held"] + counts["limited"],
                parked=counts["parked"],
                dead=counts["dead"],
                age=ages.get(kind, 0.0),
                sent=counts["sent"],
                paused=counts["paused"],
            )
            for kind, counts in jobs.items()
        ]


def _columns(runs: Sequence[RunName]) -> tuple[str, str, str]:
    """Their names as the statements take them: texts of arrays, which cost a driver least."""
    return (
        f"{{{','.join([str(run.bucket) for run in runs])}}}",
        f"{{{','.join([str(run.id) for run in runs])}}}",
        f"{{{','.join([str(run.attempt) for run in runs])}}}",
    )


def _order(row: Any) -> Any:
    return row["priority"], row["rank"], row["id"]


def _claimed(row: Any, placed: bool) -> Claimed:
    (
        _, bucket, id, attempt, kind, version, payload, context, priority, max_attempts, enqueued_at, waited,
        ordering_key, limit_key, remaining, _, *_,
    ) = row  # fmt: skip
    return Claimed(
        RunName(bucket, id, attempt), kind, version, payload, context, priority, max_attempts, enqueued_at,
        waited, position_of(row) if placed else None, ordering_key, limit_key, remaining,
    )  # fmt: skip
