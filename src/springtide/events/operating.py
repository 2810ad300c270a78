"""What operators see and do: where groups are, setting them back, letting go of what is stuck.

Every function works on all shards of a database (or on the one that is named) by statements of their own, and
may be repeated. Whatever sets a position raises the lane's token, so that a handler at work there cannot
move it any more: with effect "transactional" its writes are rolled back. Nothing is thrown away unseen: what
is skipped becomes a dead letter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from springtide.db import Database
from springtide.errors import EventError
from springtide.events._log import EVENT, Log, start_sql
from springtide.events.group import Start
from springtide.events.publish import LANES

__all__ = [
    "DeadLetter",
    "Gap",
    "GroupState",
    "LaneState",
    "LoggedEvent",
    "LogState",
    "check",
    "dead_letters",
    "discard",
    "groups",
    "lanes",
    "logs",
    "pause",
    "read",
    "remove",
    "replay",
    "resume",
    "retry",
    "skip",
]

MAX_READ = 1000


@dataclass(frozen=True, slots=True)
class LogState:
    """The log of a shard: its last position, and what is appended but not numbered yet."""

    shard: str
    position: int
    waiting: int
    age: float


@dataclass(frozen=True, slots=True)
class GroupState:
    """A group on a shard. `waiting`, `age`, `blocked` and `dead` as in `signals.GroupMeasured`; `seen_at` is
    when a worker of it was last there, give or take two minutes."""

    shard: str
    group: str
    kinds: Sequence[str]
    paused: bool
    waiting: int
    age: float
    blocked: int
    dead: int
    made_at: datetime
    seen_at: datetime


@dataclass(frozen=True, slots=True)
class LaneState:
    """A lane of a group on a shard, and what keeps it: a worker, the next try, `needs` (the kind and version
    that nobody could read), `blocked`."""

    shard: str
    lane: int
    position: int
    attempt: int
    worker: str | None
    retry_at: datetime | None
    needs: str | None
    blocked: bool
    error: str | None


@dataclass(frozen=True, slots=True)
class LoggedEvent:
    shard: str
    position: int
    at: datetime
    appended_at: datetime
    id: UUID
    lane: int
    bucket: int
    key: str | None
    kind: str
    version: int
    payload: bytes
    context: Any


@dataclass(frozen=True, slots=True)
class DeadLetter:
    event: LoggedEvent
    attempt: int
    error: str
    dead_at: datetime
    retry_at: datetime | None


@dataclass(frozen=True, slots=True)
class Gap:
    """Positions of a log that are not there, or are twice, between `first` and `last`."""

    shard: str
    first: int
    last: int
    count: int


# -- looking -------------------------------------------------------------------------------------------


async def logs(database: Database) -> list[LogState]:
    """The log of each shard."""
    return [LogState(shard, *await Log(database, shard).depth()) for shard in database.pools]


async def groups(database: Database) -> list[GroupState]:
    """Every group that was ever known on a shard and not removed."""
    found = []
    for shard, pool in database.pools.items():
        lags = {lag.group: lag for lag in await Log(database, shard).measure()}
        sql = f"SELECT grp, kinds, paused, made_at, seen_at FROM {database.schema}._event_group ORDER BY grp"  # noqa: S608 - the schema is an identifier checked by Database, here and below
        for row in await pool.fetch(sql):
            lag = lags.get(row["grp"])
            if lag is not None:
                found.append(
                    GroupState(
                        shard,
                        row["grp"],
                        tuple(row["kinds"]),
                        row["paused"],
                        lag.waiting,
                        lag.age,
                        lag.blocked,
                        lag.dead,
                        row["made_at"],
                        row["seen_at"],
                    )
                )
    return found


async def lanes(database: Database, group: str, *, shard: str | None = None) -> list[LaneState]:
    """The lanes of a group. Raises EventError when nobody knows it."""
    sql = f"""
        SELECT lane, pos, attempt, worker, retry_at, needs, blocked, error FROM {database.schema}._event_lane
        WHERE grp = $1 ORDER BY lane
    """  # noqa: S608
    found = [
        LaneState(where, *row.values())
        for where in _shards(database, shard)
        for row in await database.pools[where].fetch(sql, group)
    ]
    if not found:
        raise EventError(f"database {database.name!r} knows no group {group!r}")
    return found


async def read(
    database: Database, *, shard: str, start: int = 1, most: int = 20, key: str | None = None
) -> list[LoggedEvent]:
    """Up to `most` events of a shard's log from position `start` on, of one key or of any."""
    if not 1 <= most <= MAX_READ:
        raise EventError(f"most must be 1 to {MAX_READ}, got {most}")
    (shard,) = _shards(database, shard)
    sql = f"""
        SELECT {EVENT} FROM {database.schema}._event
        WHERE pos >= $1 AND ($2::text IS NULL OR key = $2) ORDER BY pos LIMIT $3
    """  # noqa: S608
    return [_event(shard, row) for row in await database.pools[shard].fetch(sql, start, key, most)]


async def dead_letters(database: Database, group: str, *, most: int = 100) -> list[DeadLetter]:
    """What the group could not handle, the oldest first, up to `most` of each shard."""
    if not 1 <= most <= MAX_READ:
        raise EventError(f"most must be 1 to {MAX_READ}, got {most}")
    sql = f"SELECT * FROM {database.schema}._event_dead WHERE grp = $1 ORDER BY pos LIMIT $2"  # noqa: S608
    return [
        DeadLetter(_event(shard, row), row["attempt"], row["error"], row["dead_at"], row["retry_at"])
        for shard, pool in database.pools.items()
        for row in await pool.fetch(sql, group, most)
    ]


async def check(database: Database) -> list[Gap]:
    """Where positions are missing or twice between the oldest that is kept and the last one: nowhere. Reads
    the whole log."""
    sql = f"""
        SELECT min(e.pos) AS first, h.pos AS last, count(e.pos) AS count, count(DISTINCT e.pos) AS positions
        FROM {database.schema}._event_head AS h LEFT JOIN {database.schema}._event AS e ON true GROUP BY h.pos
    """  # noqa: S608
    gaps = []
    for shard, pool in database.pools.items():
        (row,) = await pool.fetch(sql)
        there = 0 if row["first"] is None else row["last"] - row["first"] + 1
        if not row["count"] == row["positions"] == there:
            gaps.append(Gap(shard, row["first"], row["last"], row["count"]))
    return gaps


# -- doing ---------------------------------------------------------------------------------------------


async def replay(
    database: Database, group: str, start: Start | int, *, shard: str | None = None, lane: int | None = None
) -> int:
    """Set the group back (or on) to `start`: a position, the first to be handled, or what `Group` takes.

    What it had passed comes again (`delivery.again`), as far as it is kept. Returns how many lanes were set.
    Raises EventError.
    """
    given: tuple[Any, Any]
    place = start_sql(database.schema)
    if isinstance(start, int):
        place = f"""
            SELECT least($1::bigint - 1, h.pos) AS pos, least('epoch'::timestamptz, h.at) AS at
            FROM {database.schema}._event_head AS h WHERE $2::text IS NULL
        """  # noqa: S608
        given = (max(start, 1), None)
    elif isinstance(start, datetime) and start.tzinfo is not None:
        given = ("time", start)
    elif start in ("beginning", "now"):
        given = (start, None)
    else:
        raise EventError(
            f'group {group}: start must be "beginning", "now", a position or a time with its zone,'
            f" got {start!r}"
        )
    await lanes(database, group)  # refuses a name that nobody knows
    _check_lane(lane)
    sql = f"""
        UPDATE {database.schema}._event_lane AS l
        SET pos = start.pos, at = start.at, token = token + 1, attempt = 0, worker = NULL,
            leased_until = NULL, retry_at = NULL, needs = NULL, blocked = false, error = NULL
        FROM ({place}) AS start
        WHERE l.grp = $3 AND ($4::smallint IS NULL OR l.lane = $4) RETURNING 1
    """  # noqa: S608
    return await _each(database, shard, sql, *given, group, lane)


async def pause(database: Database, group: str) -> int:
    """Begin no more turns of the group until `resume`. Returns on how many shards it is known."""
    return await _set_paused(database, group, True)


async def resume(database: Database, group: str) -> int:
    """The inverse of `pause`."""
    return await _set_paused(database, group, False)


async def retry(
    database: Database, group: str, *, shard: str | None = None, position: int | None = None
) -> int:
    """Try dead letters of the group again (all, or the one at `position`), and lanes that wait, at once.

    Dead letters come after what followed them. Returns how many dead letters and lanes there were.
    """
    await lanes(database, group, shard=shard)  # refuses a name that nobody knows
    letters = f"""
        UPDATE {database.schema}._event_dead SET retry_at = clock_timestamp()
        WHERE grp = $1 AND ($2::bigint IS NULL OR pos = $2) RETURNING 1
    """  # noqa: S608
    stuck = f"""
        UPDATE {database.schema}._event_lane
        SET retry_at = NULL, attempt = 0, blocked = false, needs = NULL, error = NULL
        WHERE grp = $1 AND $2::bigint IS NULL AND worker IS NULL
            AND (blocked OR needs IS NOT NULL OR retry_at IS NOT NULL) RETURNING 1
    """  # noqa: S608
    found = [await _each(database, shard, sql, group, position) for sql in (letters, stuck)]
    return sum(found)


async def skip(database: Database, group: str, *, shard: str, lane: int) -> int | None:
    """Make a dead letter of the event that a lane is stuck at, and go past it. Returns its position, None
    when the lane is not stuck."""
    await lanes(database, group, shard=shard)  # refuses a name that nobody knows
    _check_lane(lane)
    sql = f"""
        WITH stuck AS MATERIALIZED (
            SELECT * FROM {database.schema}._event_lane
            WHERE grp = $1 AND lane = $2 AND (blocked OR needs IS NOT NULL OR error IS NOT NULL) FOR UPDATE
        ), next AS MATERIALIZED (
            SELECT e.*, s.attempt, s.error FROM {database.schema}._event AS e, stuck AS s
            WHERE e.lane = s.lane AND e.pos > s.pos ORDER BY e.pos LIMIT 1
        ), aside AS (
            INSERT INTO {database.schema}._event_dead AS d (grp, {EVENT}, attempt, error, dead_at)
            SELECT $1, {EVENT}, attempt, 'skipped by hand: ' || coalesce(error, ''), clock_timestamp()
            FROM next
            ON CONFLICT (grp, pos) DO NOTHING
        )
        UPDATE {database.schema}._event_lane AS l
        SET pos = next.pos, at = next.at, furthest = greatest(l.furthest, next.pos), token = token + 1,
            attempt = 0, worker = NULL, leased_until = NULL, retry_at = NULL, needs = NULL, blocked = false,
            error = NULL
        FROM next WHERE l.grp = $1 AND l.lane = $2 RETURNING l.pos
    """  # noqa: S608
    rows = await database.pools[shard].fetch(sql, group, lane)
    return rows[0]["pos"] if rows else None


async def discard(database: Database, group: str, *, shard: str, position: int) -> bool:
    """Throw a dead letter away; whether it was there."""
    await lanes(database, group, shard=shard)  # refuses a name that nobody knows
    sql = f"DELETE FROM {database.schema}._event_dead WHERE grp = $1 AND pos = $2 RETURNING 1"  # noqa: S608
    return bool(await database.pools[shard].fetch(sql, group, position))


async def remove(database: Database, group: str) -> int:
    """Forget a group with its positions and dead letters, so that nothing is kept for it any more. Workers
    that still handle it do nothing for it until they are started again; then it is new."""
    await lanes(database, group)  # refuses a name that nobody knows
    sql = f"DELETE FROM {database.schema}._event_group WHERE grp = $1 RETURNING 1"  # noqa: S608
    return await _each(database, None, sql, group)


async def _set_paused(database: Database, group: str, paused: bool) -> int:
    sql = f"UPDATE {database.schema}._event_group SET paused = $2 WHERE grp = $1 RETURNING 1"  # noqa: S608
    found = await _each(database, None, sql, group, paused)
    if not found:
        raise EventError(f"database {database.name!r} knows no group {group!r}")
    return found


async def _each(database: Database, shard: str | None, sql: str, *args: Any) -> int:
    """How many rows `sql` answers on one shard, or on all of them."""
    counts = [len(await database.pools[where].fetch(sql, *args)) for where in _shards(database, shard)]
    return sum(counts)


def _check_lane(lane: int | None) -> None:
    if lane is not None and not 0 <= lane < LANES:
        raise EventError(f"lane must be 0 to {LANES - 1}, got {lane}")


def _shards(database: Database, shard: str | None) -> list[str]:
    if shard is None:
        return list(database.pools)
    if shard not in database.pools:
        raise EventError(f"database {database.name!r} has no shard {shard!r} ({', '.join(database.pools)})")
    return [shard]


def _event(shard: str, row: Any) -> LoggedEvent:
    return LoggedEvent(
        shard,
        row["pos"],
        row["at"],
        row["appended_at"],
        row["id"],
        row["lane"],
        row["bucket"],
        row["key"],
        row["kind"],
        row["version"],
        row["payload"],
        row["context"],
    )
