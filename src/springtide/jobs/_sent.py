"""The rows of jobs that a transport carries: sent, claimed by who received them, or made ready again.

    ready -> sent       the relay, committed before it publishes
    sent  -> running    a claim by ids, of what was received; also one that is ready again meanwhile, and due
          -> held, limited, ready   as with the claim of what is ready: its order or its limit says so
          -> parked     who received it does not know its kind
          -> paused     its kind has been paused meanwhile
          -> ready      it could not be published, or was not claimed in time

`leased_until` of a sent row is until when the transport has it: TRUST seconds, doubled for each time that it
was sent and not claimed (`unclaimed`), at most TRUST * 2**MAX_DOUBLINGS. `turn` counts how often the job has
been sent at all. A row keeps its unique key until it is claimed for a run, and becomes ready by the order on
the clock that cursors need (`_cursor.py`).

A message says nothing but "look": a row that is `sent`, or ready and due, is claimed by one who looks.
Whatever a broker does with messages, the row has one owner. What is ready again is claimed, for its message
was only late: were that dropped, a broker that is TRUST seconds behind would bring nothing but late messages,
while their jobs are sent again behind them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple
from uuid import UUID

from springtide.db.causality import PLACE
from springtide.jobs._limited import Limits, limited_claim
from springtide.jobs._statements import BATCH, MARKED_NOW, claim_sql, due_sql, waits_sql
from springtide.jobs._store import MAX_ROUNDS, Claimed, Store

__all__ = ["BATCH", "Claim", "Outgoing", "Sending"]

TRUST = 10.0
"""Seconds that a transport has for a job, from its sending to a claim."""

MAX_DOUBLINGS = 8


class Outgoing(NamedTuple):
    """A row as it was sent, in the order of the statement; `lag` is how many seconds it had been due.
    `repeated`: it was sent before and not claimed."""

    bucket: int
    id: UUID
    priority: int
    turn: int
    ordering_key: str | None
    lag: float
    repeated: bool


class Claim(NamedTuple):
    """What became of jobs that were received.

    jobs:    to be run. parked: kind and version of those set aside. locked: still sent, and somebody has
    locked the row; look again. waiting: to be run later. dropped: claimed before, or gone.
    """

    jobs: list[Claimed]
    parked: list[str]
    locked: set[UUID]
    waiting: int
    dropped: int


class Sending:
    """What transports need of the jobs of `store`."""

    def __init__(self, store: Store) -> None:
        self.store = store
        schema, table = store.schema, f"{store.schema}._job"
        self._send = f"""
            WITH due AS MATERIALIZED ({due_sql(schema, "$1", "$2", "$3", "$4")})
            UPDATE {table} AS j
            SET state = CASE WHEN due.waits THEN 'held' ELSE 'sent' END,
                turn = j.turn + CASE WHEN due.waits THEN 0 ELSE 1 END,
                leased_until = CASE WHEN NOT due.waits THEN clock_timestamp()
                    + make_interval(secs => {TRUST} * 2 ^ least(j.unclaimed, {MAX_DOUBLINGS})) END
            FROM due WHERE j.ctid = due.place
            RETURNING due.waits, j.bucket, j.id, j.priority, j.turn, j.ordering_key,
                date_part('epoch', clock_timestamp() - j.run_at), j.unclaimed > 0
        """  # noqa: S608 - the schema is an identifier checked by Database, here and below
        self._ahead = f"""
            SELECT (
                SELECT count(*) FROM (
                    SELECT FROM {table} AS w WHERE w.state = 'sent' AND w.priority = class.number - 1
                        AND w.leased_until > statement_timestamp() LIMIT $1
                ) AS w
            )::integer AS ahead
            FROM generate_series(1, 3) AS class (number) ORDER BY class.number
        """  # noqa: S608
        back = f"""
            UPDATE {table} AS j
            SET state = 'ready', unclaimed = least(j.unclaimed + 1, {MAX_DOUBLINGS}), leased_until = NULL,
                due_at = coalesce(j.due_at, j.run_at), run_at = t.now
            FROM back AS b, (SELECT {MARKED_NOW} AS now FROM back LIMIT 1) AS t
            WHERE j.bucket = b.bucket AND j.id = b.id
            RETURNING j.id
        """  # noqa: S608
        self._unsend = f"""
            WITH back AS MATERIALIZED (
                SELECT j.bucket, j.id FROM {table} AS j
                JOIN unnest($1::smallint[], $2::uuid[], $3::integer[]) AS n (bucket, id, turn)
                    ON j.bucket = n.bucket AND j.id = n.id
                WHERE j.state = 'sent' AND j.turn = n.turn
                FOR UPDATE OF j SKIP LOCKED
            ) {back}
        """  # noqa: S608
        self._recall = f"""
            WITH back AS MATERIALIZED (
                SELECT found.* FROM generate_series(0, 2) AS class (number)
                CROSS JOIN LATERAL (
                    SELECT w.bucket, w.id FROM {table} AS w
                    WHERE w.state = 'sent' AND w.priority = class.number
                        AND ($1 OR w.leased_until < statement_timestamp())
                    LIMIT {BATCH} FOR UPDATE SKIP LOCKED
                ) AS found
                LIMIT {BATCH}
            ) {back}
        """  # noqa: S608
        received = f"""
                SELECT found.*, {waits_sql(table, "found")} AS waits
                FROM unnest($2::smallint[], $5::uuid[]) AS n (bucket, id)
                CROSS JOIN LATERAL (
                    SELECT w.ctid AS place, w.bucket, w.id, w.ordering_key, w.enqueued_at, w.kind,
                        w.limit_key, w.paced, w.priority, w.run_at
                    FROM {table} AS w
                    WHERE w.bucket = n.bucket AND w.id = n.id
                        AND (w.state = 'sent' OR w.state = 'ready' AND w.run_at <= statement_timestamp())
                        AND w.kind || '/' || w.version = ANY ($1::text[])
                    FOR UPDATE SKIP LOCKED
                ) AS found
        """  # noqa: S608
        returning = store.statements.returning
        more = ", unclaimed = 0"
        self._claim = claim_sql(schema, received, returning, more=more)
        self._claim_limited = limited_claim(schema, received, returning, more=more, ready_at=MARKED_NOW)
        self._left = f"""
            WITH named AS MATERIALIZED (
                SELECT * FROM unnest($1::smallint[], $2::uuid[]) AS n (bucket, id)
            ), strange AS MATERIALIZED (
                SELECT j.bucket, j.id FROM {table} AS j JOIN named USING (bucket, id)
                WHERE j.state = 'sent' AND NOT j.kind || '/' || j.version = ANY ($3::text[])
                FOR UPDATE OF j SKIP LOCKED
            ), parked AS (
                UPDATE {table} AS j
                SET leased_until = NULL,
                    state = CASE WHEN j.kind || '/' || j.version = ANY ($4::text[])
                        THEN 'paused' ELSE 'parked' END,
                    error = CASE WHEN j.kind || '/' || j.version = ANY ($4::text[])
                        THEN j.error ELSE 'no worker knows this kind and version' END
                FROM strange AS s WHERE j.bucket = s.bucket AND j.id = s.id
                RETURNING j.id, j.kind || '/' || j.version AS name, j.state
            )
            SELECT id, name, state FROM parked
            UNION ALL
            SELECT j.id, NULL, j.state FROM {table} AS j JOIN named USING (bucket, id)
            WHERE j.state = 'sent' AND NOT EXISTS (SELECT FROM parked AS p WHERE p.id = j.id)
        """  # noqa: S608

    # -- the relay's -----------------------------------------------------------------------------------

    async def send(self, names: Sequence[str], rooms: Sequence[int], most: int) -> list[Outgoing]:
        """Up to `most` due jobs of these kinds are sent from now on; of each priority up to its room."""
        left = list(rooms)
        out: list[Outgoing] = []
        for _ in range(MAX_ROUNDS):
            asked = min(most - len(out), sum(left))
            if asked <= 0:
                break
            try:
                rows = await self.store.pool.fetch(self._send, names, self.store.cursor.floors, left, asked)
            except BaseException as error:
                self.store.cursor.forget()  # as a claim that failed: the server may be another one
                if out and isinstance(error, Exception):
                    break
                raise
            met = [Outgoing._make(row[1:]) for row in rows if not row[0]]
            for one in met:
                left[one.priority] -= 1
            out += met
            if len(met) == len(rows):  # else it met some that have to wait, and there may be more
                break
        return out

    async def ahead(self, most: int) -> list[int]:
        """How many jobs of each priority are sent and not claimed, up to `most` each."""
        return [row["ahead"] for row in await self.store.pool.fetch(self._ahead, most)]

    async def unsend(self, sent: Sequence[Outgoing]) -> int:
        """These could not be published: they are ready again, unless somebody has claimed them."""
        names = [one.bucket for one in sent], [one.id for one in sent], [one.turn for one in sent]
        return len(await self.store.pool.fetch(self._unsend, *names))

    async def recall(self, *, everything: bool = False) -> int:
        """A batch of what was not claimed in time (or `everything` that was not claimed) is ready again."""
        return len(await self.store.pool.fetch(self._recall, everything))

    # -- the receiver's --------------------------------------------------------------------------------

    async def claim(
        self,
        received: Sequence[tuple[int, UUID]],
        names: Sequence[str],
        known: Sequence[str],
        worker: str,
        lease: float,
        limits: Limits | None,
    ) -> Claim:
        """Take what was received (buckets and ids, each once), as far as it is to be run now.

        `names` are the kinds and versions that may be: those of `known` that are not paused.
        """
        sql = self._claim if limits is None else self._claim_limited
        buckets, ids = [bucket for bucket, _ in received], [id for _, id in received]
        placed = self.store.placed
        rows = await self.store.pool.fetch(
            f"{sql}, {PLACE}" if placed else sql, names, buckets, worker, lease, ids, *(limits or ())
        )
        jobs = self.store.claimed([row for row in rows if not row["waits"]], placed=placed)
        parked: list[str] = []
        locked: set[UUID] = set()
        waiting = len(rows) - len(jobs)
        if len(rows) < len(received):
            met = {row["id"] for row in rows}
            others = [(bucket, id) for bucket, id in received if id not in met]
            left = await self.store.pool.fetch(
                self._left, [bucket for bucket, _ in others], [id for _, id in others], names, known
            )
            parked = [row["name"] for row in left if row["state"] == "parked"]
            locked = {UUID(int=row["id"].int) for row in left if row["state"] == "sent"}
            waiting += sum(row["state"] == "paused" for row in left)
        dropped = len(received) - len(jobs) - waiting - len(parked) - len(locked)
        return Claim(jobs, parked, locked, waiting, dropped)
