"""Look at one server: who it is, which role it plays, how far its log is. One statement, one round trip.

A *run* is one life of a server's memory: from the start of its postmaster, or from the last crash of one of
its processes, after which the postmaster begins again under the same start time (its statistics are reset
then, which is how that shows). Within one run what a server has replayed only grows; a standby that was
killed, or crashed, comes back at an *older* position. So a position says something only of its run, and a
connection belongs to the run in which it was opened.

The timeline of a primary is the one it inserts into, from the moment of its promotion. That of a standby is
the one it receives: the receiver is never started for a timeline that does not contain what was replayed. A
standby that receives nothing (its primary is gone), or whose receiver we may not see, is known by its
control file: what that guarantees to be replayed, and on which timeline. Both are lower bounds, and true.
Unknown is None, and equals nothing.

The position of a primary is where it inserts, not what it has flushed: a commit may be seen before it is
flushed (synchronous_commit = off). `normalise` makes it one that replay can reach.
"""

from __future__ import annotations

import asyncio
import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import asyncpg

from springtide.context import Position
from springtide.db._link import ASYNCPG_ERRORS, RawConnection
from springtide.db._tls import tls
from springtide.db.causality import PLACE, normalise, parse_lsn
from springtide.db.durability import WAITING
from springtide.db.seeing import DATABASE

__all__ = ["BLIND", "CAPTURE", "Eye", "Look", "Run", "run_of", "witness_of"]

BLIND = (TimeoutError, OSError, *ASYNCPG_ERRORS)
"""What `Eye.look` raises when the server cannot be seen."""

_RUN = """
    (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint AS started,
    coalesce(extract(epoch from pg_stat_get_bgwriter_stat_reset_time()) * 1000000, 0)::bigint AS reset"""

RUN = f"SELECT {_RUN}"

LOOK = f"""
SELECT role.recovering, control.system_identifier AS system, {DATABASE}, {_RUN},
    pg_size_bytes(current_setting('wal_segment_size')) AS segment,
    pg_size_bytes(current_setting('wal_block_size')) AS page,
    CASE WHEN role.recovering THEN receiver.received_tli
         ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int END AS timeline,
    CASE WHEN role.recovering THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_insert_lsn() END::text AS lsn,
    pg_last_wal_receive_lsn()::text AS received,
    file.min_recovery_end_timeline AS kept_timeline, file.min_recovery_end_lsn::text AS kept,
    btrim(current_setting('synchronous_standby_names')) <> ''
        AND current_setting('synchronous_commit') IN {WAITING} AS waits
FROM (SELECT pg_is_in_recovery() AS recovering OFFSET 0) AS role
CROSS JOIN pg_control_system() AS control
LEFT JOIN pg_stat_get_wal_receiver() AS receiver ON role.recovering AND receiver.pid IS NOT NULL
LEFT JOIN LATERAL (
    SELECT * FROM pg_control_recovery() WHERE role.recovering AND receiver.received_tli IS NULL
) AS file ON true
"""  # noqa: S608 - a constant

CAPTURE = f"SELECT {PLACE}"
"""Where a primary's log stands, and on which timeline: a row for `position_of`."""


class Run(NamedTuple):
    """One life of a server's memory, in microseconds since 1970 by its own clock."""

    started: int
    reset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one server said of itself. `position` is None when its timeline is not known.

    database: the number of the one that it was asked in.
    timeline: that of a primary, of a standby the one it receives or has kept; 0 when it is not known.
    replayed: of a standby, as a plain number, whatever its timeline.
    waits: COMMIT waits for a standby's disk there, for this account; of a standby, once it is promoted.
    """

    run: Run
    system: int
    database: int
    recovering: bool
    timeline: int
    position: Position | None
    replayed: int
    received: int | None
    waits: bool = True


async def run_of(raw: RawConnection) -> Run:
    """The run of its server that this connection belongs to."""
    row = await raw.fetchrow(RUN)
    assert row is not None
    return Run(row["started"], row["reset"])


def witness_of(node: str, run: Run) -> str:
    """A run of a server as a causality token names it: 12 hexadecimal digits."""
    return hashlib.blake2b(f"{node} {run.started} {run.reset}".encode(), digest_size=6).hexdigest()


def read_look(row: Any) -> Look:
    """The answer to LOOK."""
    recovering, timeline = row["recovering"], row["timeline"]
    lsn = parse_lsn(row["lsn"]) if row["lsn"] is not None else 0
    position: Position | None = None
    if not recovering:
        position = Position(timeline, normalise(lsn, segment_bytes=row["segment"], page_bytes=row["page"]))
    elif timeline:
        position = Position(timeline, lsn)
    elif row["kept_timeline"]:
        timeline = row["kept_timeline"]
        position = Position(timeline, min(lsn, parse_lsn(row["kept"])))
    return Look(
        run=Run(row["started"], row["reset"]),
        system=row["system"],
        database=row["database"],
        recovering=recovering,
        timeline=timeline or 0,
        position=position,
        replayed=lsn,
        received=parse_lsn(row["received"]) if row["received"] is not None else None,
        waits=row["waits"],
    )


class Eye:
    """Looks at one server over a connection of its own, opened when it is needed.

    `timeout` bounds a look with its connecting; after a failure the next one connects anew.
    """

    def __init__(self, url: str, *, timeout: float) -> None:
        self.url = url
        self._timeout = timeout
        self._raw: RawConnection | None = None

    async def look(self) -> Look:
        """Raises one of `BLIND` when the server cannot be seen."""
        try:
            async with asyncio.timeout(self._timeout):
                if self._raw is None or self._raw.is_closed():
                    self._raw = await asyncpg.connect(
                        self.url,
                        timeout=self._timeout,
                        ssl=await tls(self.url),
                        server_settings={"application_name": "springtide-look"},
                    )
                row = await self._raw.fetchrow(LOOK)
        except BaseException:
            self.close()
            raise
        return read_look(row)

    def close(self) -> None:
        """Hang up at once; the next look connects again."""
        raw, self._raw = self._raw, None
        if raw is not None and not raw.is_closed():
            raw.terminate()
