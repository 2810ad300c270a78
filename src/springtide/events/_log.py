"""The log of one module on one shard, and where groups are in it.

    appended (_event_new) -> numbered (_event: pos 1, 2, 3 ... without a gap) -> dropped with its day

Numbering is one statement under the lock of the head's row, which any worker may send at any time: nobody
leads, so nobody has to be replaced. It takes all that its snapshot shows, in the order of `seq`. Whoever
appends after having seen another's commit has the higher `seq` and is never visible before it, so positions
keep the order of cause and effect; what commits late gets a later position and is passed by nobody. No
reader looks at `seq`, and none waits for other transactions to end.

A group has a position in each lane of the log, and one worker at a time has a lane:

    free -> held by a worker, until its lease runs out -> free, further on
    free -> waiting: for its next try; for a worker that can read the next event (`needs`); for a person
            (`blocked`); for `resume` (the group is paused)

Every claim and everything that sets a position from outside raises `token`. Each statement of a holder is
guarded by it and tells whether it held: whoever lost the lane, frozen or slow, changes nothing any more, and
a transactional handler's writes are rolled back. Tokens of a new group begin with the time, so that whoever
held a lane of one that was removed has none of the one that is made again. `attempt` is counted by the claim
and set back by every step on, so an event that kills its worker reaches the dead letters, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol
from uuid import UUID

from springtide.context import Position
from springtide.db import Database
from springtide.db.causality import PLACE, position_of
from springtide.errors import EventError
from springtide.events._floor import Floor, Look
from springtide.events.group import Start
from springtide.events.publish import LANES

__all__ = ["BEGINNING", "COUNTED", "Dead", "Lane", "Log", "Lag", "Read", "Stored", "start_sql"]

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)

NUMBERED = 2000
"""Events that one statement numbers at most."""

COUNTED = 10_000
"""Events of a lane that a measurement counts at most."""

ENDED = "its worker ended in the middle of a try"

EVENT = "pos, at, bucket, lane, version, appended_at, id, kind, key, payload, context"


class Queries(Protocol):
    """A pool, or a transaction that the statement is to be part of."""

    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        """Every row."""


@dataclass(frozen=True, slots=True)
class Lane:
    """A lane that this worker holds, as it was claimed. `furthest`: the group had been there once."""

    group: str
    lane: int
    pos: int
    at: datetime
    furthest: int
    token: int
    attempt: int


class Stored(NamedTuple):
    """An event as it is in the log. `payload` and `context` are None for kinds that were not asked for."""

    pos: int
    at: datetime
    bucket: int
    lane: int
    version: int
    appended_at: datetime
    id: UUID
    kind: str
    key: str | None
    payload: bytes | None
    context: Any


@dataclass(frozen=True, slots=True)
class Read:
    """The next events of a lane, what the group is known to want, and where the log stood on the server."""

    events: Sequence[Stored]
    kinds: frozenset[str]
    position: Position | None


@dataclass(frozen=True, slots=True)
class Dead:
    """A dead letter that is to be tried again, with the token that its end is guarded by.

    `error` is why it is one. `position` covers the commit that published it; None where the shard has no
    replicas.
    """

    group: str
    event: Stored
    attempt: int
    token: int
    error: str
    position: Position | None


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a group is behind: events it has not passed (counted up to COUNTED per lane), how long ago the
    oldest of them was numbered, lanes that wait for somebody (`blocked`), and dead letters."""

    group: str
    waiting: int
    age: float
    blocked: int
    dead: int


def start_sql(schema: str) -> str:
    """(pos, at) of a start: $1 the kind of it, $2 a time. Everything after that position is handled."""
    return f"""
        SELECT CASE $1::text WHEN 'beginning' THEN 0 WHEN 'now' THEN h.pos ELSE coalesce(
                    (SELECT min(e.pos) - 1 FROM {schema}._event AS e WHERE e.at >= $2::timestamptz), h.pos
                ) END AS pos,
            CASE $1::text WHEN 'beginning' THEN 'epoch'::timestamptz WHEN 'now' THEN h.at
                ELSE least($2::timestamptz, h.at) END AS at
        FROM {schema}._event_head AS h
    """  # noqa: S608 - the schema is an identifier checked by Database, here and below


class Log:
    """The log of `database` on `shard`."""

    def __init__(self, database: Database, shard: str) -> None:
        self.database = database
        self.module = database.name
        self.schema = schema = database.schema
        self.shard = shard
        self.pool = database.pools[shard]
        self.floor = Floor()
        self._servers = database.servers.get(shard)
        self.cluster = self._servers.cluster if self._servers is not None else shard
        self._number = f"SELECT * FROM {schema}._event_number($1, $2, $3, $4, $5)"  # noqa: S608 - see above
        mine = "grp = $1 AND lane = $2 AND token = $3"
        after = "e.lane = l.lane AND e.pos > l.pos AND e.at >= l.at"
        self._claim = f"""
            WITH free AS MATERIALIZED (
                SELECT l.grp, l.lane, w.lease
                FROM unnest($1::text[], $2::float8[]) AS w (grp, lease)
                JOIN {schema}._event_group AS g ON g.grp = w.grp AND NOT g.paused
                JOIN {schema}._event_lane AS l ON l.grp = w.grp
                WHERE NOT l.blocked AND (l.leased_until IS NULL OR l.leased_until < clock_timestamp())
                    AND (l.retry_at IS NULL OR l.retry_at <= clock_timestamp())
                    AND (l.needs IS NULL OR l.grp || ' ' || l.needs = ANY ($3::text[])
                        OR l.grp || ' ' || split_part(l.needs, '/', 1) = ANY ($3::text[]))
                    AND EXISTS (SELECT FROM {schema}._event AS e WHERE {after})
                ORDER BY l.at LIMIT $4 FOR UPDATE OF l SKIP LOCKED
            )
            UPDATE {schema}._event_lane AS l
            SET worker = $5, token = l.token + 1, attempt = l.attempt + 1, needs = NULL, retry_at = NULL,
                leased_until = clock_timestamp() + make_interval(secs => free.lease)
            FROM free WHERE l.grp = free.grp AND l.lane = free.lane
            RETURNING l.grp, l.lane, l.pos, l.at, l.furthest, l.token, l.attempt
        """  # noqa: S608
        self._read, self._read_placed = (
            f"""
                SELECT e.pos, e.at, e.bucket, e.lane, e.version, e.appended_at, e.id, e.kind, e.key,
                    CASE WHEN e.kind = ANY ($5::text[]) THEN e.payload END AS payload,
                    CASE WHEN e.kind = ANY ($5::text[]) THEN e.context END AS context, g.*
                FROM {schema}._event AS e,
                    (SELECT kinds{place} FROM {schema}._event_group WHERE grp = $1) AS g
                WHERE e.lane = $2 AND e.pos > $3 AND e.at >= $4 ORDER BY e.pos LIMIT $6
            """  # noqa: S608
            for place in ("", f", {PLACE}")
        )
        self._move, self._pass = (
            f"""
                UPDATE {schema}._event_lane
                SET pos = $4, at = $5, furthest = greatest(furthest, $4), attempt = $6, error = NULL,
                    leased_until = clock_timestamp() + make_interval(secs => $7::float8)
                WHERE {mine} AND pos {than} $4 RETURNING 1
            """  # noqa: S608
            for than in ("<=", "<")
        )
        # What is said here is about the event after $4. A lane may be past that, when the COMMIT of its
        # holder had no answer and succeeded.
        self._leave = f"""
            UPDATE {schema}._event_lane
            SET pos = greatest(pos, $4), at = CASE WHEN $4 > pos THEN $5 ELSE at END,
                furthest = greatest(furthest, $4), worker = NULL, leased_until = NULL,
                attempt = CASE WHEN pos > $4 THEN 0 ELSE $6::integer END,
                retry_at = CASE WHEN pos > $4 THEN NULL
                    ELSE clock_timestamp() + make_interval(secs => $7::float8) END,
                error = CASE WHEN pos > $4 THEN NULL ELSE $8::text END,
                needs = CASE WHEN pos > $4 THEN NULL ELSE $9::text END, blocked = pos <= $4 AND $10::boolean
            WHERE {mine} RETURNING 1
        """  # noqa: S608
        self._bury = f"""
            INSERT INTO {schema}._event_dead AS d (grp, {EVENT}, attempt, error, dead_at)
            SELECT $1, {EVENT}, $4, $5, clock_timestamp() FROM {schema}._event
            WHERE lane = $2 AND pos = $3
            ON CONFLICT (grp, pos) DO UPDATE SET attempt = excluded.attempt, error = excluded.error,
                dead_at = excluded.dead_at, retry_at = NULL, token = d.token + 1
            RETURNING 1
        """  # noqa: S608
        self._again = f"""
            WITH due AS MATERIALIZED (
                SELECT d.grp, d.pos, d.error FROM {schema}._event_dead AS d
                JOIN {schema}._event_group AS g ON g.grp = d.grp AND NOT g.paused
                WHERE d.retry_at <= clock_timestamp() AND d.grp = ANY ($1::text[])
                    AND d.grp || ' ' || d.kind || '/' || d.version = ANY ($2::text[])
                ORDER BY d.retry_at LIMIT $3 FOR UPDATE OF d SKIP LOCKED
            )
            UPDATE {schema}._event_dead AS d
            SET token = d.token + 1, attempt = d.attempt + 1, retry_at = NULL, error = '{ENDED}'
            FROM due WHERE d.grp = due.grp AND d.pos = due.pos RETURNING d.*, due.error AS before
        """  # noqa: S608

    # -- numbering -------------------------------------------------------------------------------------

    async def number(self) -> Look | None:
        """Number what was appended; None when somebody else is about it. `floor` takes in what was seen."""
        floor = self.floor
        try:
            (row,) = await self.pool.fetch(
                self._number,
                floor.value,
                list(floor.pending),
                list(floor.pending.values()),
                floor.before,
                NUMBERED,
            )
        except BaseException:
            floor.forget()  # the server may be another one
            raise
        if row["busy"]:
            return None
        moved = row["moved"]
        look = Look(row["drawn"], row["number"], row["running"], moved, row["last"], moved == NUMBERED)
        return look if not floor.advance(look) else Look(look.drawn, None, None, moved, full=True)

    # -- groups ----------------------------------------------------------------------------------------

    async def register(self, group: str, kinds: Sequence[str], ignores: Sequence[str], start: Start) -> bool:
        """Make the group known, at its start if it is new (then True), with all kinds it is known to want."""
        what, when = (start, None) if isinstance(start, str) else ("time", start)
        async with self.pool.transaction() as tx:
            new = await tx.fetch(
                f"INSERT INTO {self.schema}._event_group (grp, kinds, made_at, seen_at)"  # noqa: S608
                " VALUES ($1, $2, clock_timestamp(), clock_timestamp()) ON CONFLICT DO NOTHING RETURNING 1",
                group,
                sorted(kinds),
            )
            if new:
                lanes = f"""
                    INSERT INTO {self.schema}._event_lane (grp, lane, pos, at, furthest, token)
                    SELECT $3, lane, start.pos, start.at, start.pos,
                        (extract(epoch FROM clock_timestamp()) * 1000000)::bigint
                    FROM generate_series(0, {LANES - 1}) AS lane, ({start_sql(self.schema)}) AS start
                """  # noqa: S608
                await tx.execute(lanes, what, when, group)
            else:
                wants = f"""
                    UPDATE {self.schema}._event_group SET seen_at = clock_timestamp(), kinds = ARRAY(
                        SELECT DISTINCT kind FROM unnest(kinds || $2::text[]) AS kind
                        WHERE kind <> ALL ($3::text[]) ORDER BY kind
                    ) WHERE grp = $1
                """  # noqa: S608
                await tx.execute(wants, group, list(kinds), list(ignores))
        return bool(new)

    async def claim(
        self, groups: Sequence[str], leases: Sequence[float], names: Sequence[str], limit: int, worker: str
    ) -> list[Lane]:
        """Up to `limit` lanes of `groups` that have something to do, those furthest behind first.

        leases: seconds, one for each group. names: `group kind/version` of all that can be read here, and
        `group kind` of what a group ignores.
        """
        rows = await self.pool.fetch(self._claim, groups, leases, names, limit, worker)
        return [Lane(*row.values()) for row in rows]

    async def read(
        self, group: str, lane: int, pos: int, at: datetime, kinds: Sequence[str], most: int
    ) -> Read:
        """The next `most` events of a lane after `pos`, with the payloads of those of `kinds`."""
        placed = self._placed
        sql = self._read_placed if placed else self._read
        rows = await self.pool.fetch(sql, group, lane, pos, at, kinds, most)
        if not rows:
            return Read((), frozenset(), None)
        position = position_of(rows[0]) if placed else None
        return Read([Stored(*list(row.values())[:11]) for row in rows], frozenset(rows[0]["kinds"]), position)

    async def move(
        self,
        lane: Lane,
        pos: int,
        at: datetime,
        *,
        attempt: int,
        lease: float,
        queries: Queries | None = None,
    ) -> bool:
        """The group has passed `pos`, and its holder goes on; False when it holds the lane no more."""
        name = (lane.group, lane.lane, lane.token)
        return bool(await (queries or self.pool).fetch(self._move, *name, pos, at, attempt, lease))

    async def leave(
        self,
        lane: Lane,
        pos: int,
        at: datetime,
        *,
        attempt: int = 0,
        delay: float | None = None,
        error: str | None = None,
        needs: str | None = None,
        blocked: bool = False,
        queries: Queries | None = None,
    ) -> bool:
        """The group has passed `pos`, and the lane is free: at once, after `delay`, or as it is said."""
        name = (lane.group, lane.lane, lane.token)
        rows = await (queries or self.pool).fetch(
            self._leave, *name, pos, at, attempt, delay, error, needs, blocked
        )
        return bool(rows)

    async def bury(self, lane: Lane, event: Stored, *, attempt: int, error: str, lease: float) -> bool:
        """Set the event aside as a dead letter and go past it; both or neither. False when its holder holds
        the lane no more, or the group has passed the event."""
        async with self.pool.transaction() as tx:
            name = (lane.group, lane.lane, lane.token)
            if not await tx.fetch(self._pass, *name, event.pos, event.at, 1, lease):
                return False
            if not await tx.fetch(self._bury, lane.group, lane.lane, event.pos, attempt, error):
                raise EventError(f"group {lane.group}: event {event.pos} is not in the log any more")
        return True

    @property
    def _placed(self) -> bool:
        """Whether what is handed out also tells where the server's log stood: the shard has replicas."""
        return self._servers is not None and self._servers.replicated

    # -- dead letters ----------------------------------------------------------------------------------

    async def again(self, groups: Sequence[str], names: Sequence[str], limit: int) -> list[Dead]:
        """Dead letters that somebody wants to be tried again; once for each time that they are asked for."""
        placed = self._placed
        sql = f"{self._again}, {PLACE}" if placed else self._again
        return [
            Dead(
                row["grp"],
                Stored(*(row[name] for name in Stored._fields)),
                row["attempt"],
                row["token"],
                row["before"],
                position_of(row) if placed else None,
            )
            for row in await self.pool.fetch(sql, groups, names, limit)
        ]

    async def settle(self, dead: Dead, error: str | None = None, queries: Queries | None = None) -> bool:
        """A dead letter was handled and is gone, or was tried in vain and stays; False: by then somebody else
        had it."""
        name = (dead.group, dead.event.pos, dead.token)
        where = "WHERE grp = $1 AND pos = $2 AND token = $3 RETURNING 1"
        if error is None:
            sql = f"DELETE FROM {self.schema}._event_dead {where}"  # noqa: S608
            return bool(await (queries or self.pool).fetch(sql, *name))
        sql = f"UPDATE {self.schema}._event_dead SET error = $4 {where}"  # noqa: S608
        return bool(await self.pool.fetch(sql, *name, error))

    async def put_back(self, dead: Dead) -> None:
        """The try was broken off and does not count; somebody else makes it."""
        sql = f"""
            UPDATE {self.schema}._event_dead
            SET attempt = attempt - 1, error = $4, retry_at = clock_timestamp()
            WHERE grp = $1 AND pos = $2 AND token = $3
        """  # noqa: S608
        await self.pool.execute(sql, dead.group, dead.event.pos, dead.token, dead.error)

    # -- upkeep ----------------------------------------------------------------------------------------

    async def seen(self, groups: Sequence[str]) -> None:
        """Somebody works for these groups; written once a minute."""
        sql = f"""
            UPDATE {self.schema}._event_group SET seen_at = clock_timestamp()
            WHERE grp = ANY ($1) AND seen_at < clock_timestamp() - interval '1 minute'
        """  # noqa: S608
        await self.pool.execute(sql, groups)

    async def behind(self, queries: Any, partition: str) -> list[str]:
        """The groups that have not passed all of what is in `partition`."""
        sql = f"""
            SELECT DISTINCT l.grp FROM {self.schema}._event_lane AS l
            WHERE EXISTS (SELECT FROM {partition} AS e WHERE e.lane = l.lane AND e.pos > l.pos)
        """  # noqa: S608
        return [row["grp"] for row in await queries.fetch(sql)]

    async def forget_rest(self, keep: float) -> None:
        """Drop what is old enough, before all that a group has not passed, from the default partition, a
        batch of it."""
        rest = f"{self.schema}._event_rest"
        sql = f"""
            DELETE FROM {rest} WHERE ctid = ANY (ARRAY(
                SELECT e.ctid FROM {rest} AS e
                WHERE e.at < clock_timestamp() - make_interval(secs => $1) AND NOT coalesce(e.pos >= (
                    SELECT min(next.pos) FROM {self.schema}._event_lane AS l CROSS JOIN LATERAL (
                        SELECT n.pos FROM {self.schema}._event AS n
                        WHERE n.lane = l.lane AND n.pos > l.pos AND n.at >= l.at ORDER BY n.pos LIMIT 1
                    ) AS next
                ), false) ORDER BY e.pos LIMIT 1000
            ))
        """  # noqa: S608
        await self.pool.execute(sql, keep)

    async def measure(self) -> list[Lag]:
        """How far each group is behind."""
        sql = f"""
            SELECT g.grp, coalesce(sum(n.waiting), 0)::bigint AS waiting,
                coalesce(extract(epoch FROM clock_timestamp() - min(n.oldest)), 0)::float8 AS age,
                (count(*) FILTER (WHERE l.blocked OR l.needs IS NOT NULL))::bigint AS blocked,
                (SELECT count(*) FROM {self.schema}._event_dead AS d WHERE d.grp = g.grp) AS dead
            FROM {self.schema}._event_group AS g
            JOIN {self.schema}._event_lane AS l USING (grp)
            CROSS JOIN LATERAL (
                SELECT count(*) AS waiting, min(e.at) AS oldest FROM (
                    SELECT e.at FROM {self.schema}._event AS e
                    WHERE e.lane = l.lane AND e.pos > l.pos AND e.at >= l.at ORDER BY e.pos LIMIT {COUNTED}
                ) AS e
            ) AS n
            GROUP BY g.grp ORDER BY g.grp
        """  # noqa: S608
        rows = await self.pool.fetch(sql)
        return [Lag(row["grp"], row["waiting"], row["age"], row["blocked"], row["dead"]) for row in rows]

    async def depth(self) -> tuple[int, int, float]:
        """The last position; how many events are not numbered yet, and how old the oldest of them is."""
        sql = f"""
            SELECT h.pos, n.waiting,
                coalesce(extract(epoch FROM clock_timestamp() - n.oldest), 0)::float8 AS age
            FROM {self.schema}._event_head AS h, (
                SELECT count(*) AS waiting, min(appended_at) AS oldest FROM (
                    SELECT appended_at FROM {self.schema}._event_new ORDER BY seq LIMIT {COUNTED}
                ) AS n
            ) AS n
        """  # noqa: S608
        (row,) = await self.pool.fetch(sql)
        return row["pos"], row["waiting"], row["age"]
