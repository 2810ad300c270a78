"""One leader per database: whoever holds an advisory lock on a connection of its own to the primary.

    waiting -> leading   nobody holds the lock, or its holder was silent and its connection has been ended
    leading -> waiting   the connection was lost

A leader proves that it is alive by its statements, one every fraction of a second. One that is stopped or cut
off holds the lock all the same: its server process sits idle in it. Whoever waits sees since when
(`state_change`), and after `silence` seconds ends that process, and with it the lock. One that is busy with a
statement has three times as long, for then it may be the server that is slow.

Those who wait ask over the ordinary pool, so they cost no connection, and at random moments. A leader that
wakes up again finds its connection gone with its next statement. What it does until then must do no harm;
nothing here can prevent it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from hashlib import blake2b
from typing import Any

from springtide.clock import Clock
from springtide.context import Priority, RequestContext, activate
from springtide.db.connection import Connection
from springtide.db.pool import Pool
from springtide.db.seeing import SEEN, Seen, seen_of

__all__ = ["Leader", "Leading"]

STATEMENT = 10.0
"""Seconds for a statement; one that takes longer ends the leadership."""

POLL = 0.05
TAKES = 40
"""Tries to take the lock of a process that was ended, one every POLL seconds."""

_HOLDER = """
FROM pg_locks AS l JOIN pg_stat_activity AS a ON a.pid = l.pid
WHERE l.locktype = 'advisory' AND l.granted AND l.objsubid = 1
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND l.classid = (($1::bigint >> 32) & 4294967295)::oid AND l.objid = ($1::bigint & 4294967295)::oid
"""

_SILENT = """coalesce(clock_timestamp() - a.state_change
    > make_interval(secs => CASE a.state WHEN 'active' THEN 3 ELSE 1 END * $2), false)"""
"""Nobody may tell us what the leader does: then it counts as alive."""

LED = f"SELECT NOT ({_SILENT}) AS led {_HOLDER}"

END = f"SELECT pg_terminate_backend(a.pid) {_HOLDER} AND {_SILENT}"


class Leader:
    """Who holds the lock: statements on its connection, what its server had then, and where that is."""

    def __init__(self, connection: Connection, seen: Seen, dsn: str, clock: Clock) -> None:
        self.seen = seen
        self.dsn = dsn
        self._connection = connection
        self._clock = clock

    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        with activate(_limited(self._clock)):
            return await self._connection.fetch(sql, *args)


class Leading:
    """The lock `name` in the database of `pool`. `dsn` is where its primary answers itself, past a pooler."""

    def __init__(
        self, name: str, *, cluster: str, pool: Pool, dsn: Callable[[], str], silence: float, clock: Clock
    ) -> None:
        self._key = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big", signed=True)
        self._cluster = cluster
        self._pool = pool
        self._dsn = dsn
        self._silence = silence
        self._clock = clock

    async def led(self) -> bool:
        """Whether somebody leads who is not silent. Raises what the pool raises."""
        with activate(_limited(self._clock)):
            return bool(await self._pool.fetch_value(LED, self._key, self._silence))

    @asynccontextmanager
    async def lead(self) -> AsyncIterator[Leader | None]:
        """Try to become the leader for the block; None when somebody else was faster, or leads and is not
        silent. Raises what a pool raises."""
        dsn = self._dsn()
        pool = Pool(
            dsn,
            cluster=self._cluster,
            size=1,
            reserved=0,
            clock=self._clock,
            # a row that is deleted once more, after a crash, was applied once more
            server_settings={"application_name": "springtide relay", "synchronous_commit": "off"},
        )
        try:
            await pool.start()
            async with pool.acquire() as connection:
                with activate(_limited(self._clock)):
                    seen = await self._take(connection)
                yield Leader(connection, seen, dsn, self._clock) if seen is not None else None
        finally:
            await pool.stop()

    async def _take(self, connection: Connection) -> Seen | None:
        for attempt in range(TAKES):
            if await connection.fetch_value("SELECT pg_try_advisory_lock($1)", self._key):
                seen = seen_of(self._cluster, await connection.fetch_one(SEEN))
                return None if seen.standby else seen
            if attempt == 0 and not await connection.fetch(END, self._key, self._silence):
                return None
            await self._clock.sleep(POLL)
        return None


def _limited(clock: Clock) -> RequestContext:
    return RequestContext(deadline=clock.monotonic() + STATEMENT, priority=Priority.CRITICAL)
