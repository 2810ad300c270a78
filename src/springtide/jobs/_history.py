"""The history of one line in partitions of a day: made ahead, dropped when all in them is old enough.

Dropping a partition gives its space back at once and leaves nothing to vacuum, so retention costs the queue
nothing. Days are UTC, by the database's clock. A row whose day has no partition goes into `_job_done_rest`;
when its partition is made at last it moves there.

Making and dropping need a lock on the whole history for a moment: one worker does it at a time, waits for
the lock no longer than LOCK_TIMEOUT, and a later call tries again.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg

from springtide.db.pool import Pool

__all__ = ["History", "due_partitions"]

AHEAD = 3
"""Days, today among them, that have a partition."""

LOCK_TIMEOUT = "100ms"

BATCH = 1000

_PARTITION = re.compile(r"_job_done_(\d{8})")


def due_partitions(names: list[str], now: datetime, keep: float) -> tuple[list[date], list[str]]:
    """Which days to make, and which of the partitions `names` to drop; pure.

    A partition is dropped when the last moment of its day is more than `keep` seconds ago.
    """
    today = now.astimezone(UTC).date()
    wanted = [today + timedelta(days=ahead) for ahead in range(AHEAD)]
    drop = []
    for name in names:
        match = _PARTITION.fullmatch(name)
        if match is None:
            continue
        day = datetime.strptime(match[1], "%Y%m%d").replace(tzinfo=UTC)
        if day + timedelta(days=1, seconds=keep) < now:
            drop.append(name)
    return [day for day in wanted if _name(day) not in names], sorted(drop)


class History:
    def __init__(self, pool: Pool, schema: str) -> None:
        self._pool = pool
        self._schema = schema
        self._parent = f"{schema}._job_done"

    async def tend(self, keep: float) -> None:
        """Make the days that are missing; drop what is older than `keep` seconds."""
        row = await self._pool.fetch_one(
            "SELECT clock_timestamp() AS now, ARRAY(SELECT c.relname::text FROM pg_inherits AS i"
            " JOIN pg_class AS c ON c.oid = i.inhrelid WHERE i.inhparent = $1::regclass) AS names",
            self._parent,
        )
        assert row is not None
        make, drop = due_partitions(row["names"], row["now"], keep)
        for day in make:
            await self._alone(self._make, day)
        for name in drop:
            await self._alone(self._drop, name)
        rest = f"{self._parent}_rest"
        old = f"""
            DELETE FROM {rest} WHERE ctid = ANY (ARRAY(
                SELECT ctid FROM {rest} WHERE finished_at < clock_timestamp() - make_interval(secs => $1)
                LIMIT {BATCH}
            ))
        """  # noqa: S608 - the schema is an identifier checked by Database, here and below
        await self._pool.execute(old, keep)

    async def _alone(self, step: Any, what: Any) -> None:
        """One worker at a time; whoever comes second, or gets no lock at once, leaves it to a later call."""
        try:
            async with self._pool.transaction() as tx:
                await tx.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'")
                if await tx.fetch_value("SELECT pg_try_advisory_xact_lock(hashtext($1))", self._parent):
                    await step(tx, what)
        except (asyncpg.LockNotAvailableError, asyncpg.DuplicateTableError, asyncpg.UndefinedTableError):
            return

    async def _make(self, tx: Any, day: date) -> None:
        name = f"{self._schema}.{_name(day)}"
        begin, end = f"'{day}T00:00:00Z'", f"'{day + timedelta(days=1)}T00:00:00Z'"
        await tx.execute(
            f"CREATE TABLE {name} (LIKE {self._parent} INCLUDING DEFAULTS,"
            f" CONSTRAINT day CHECK (finished_at >= {begin} AND finished_at < {end}))"
        )
        # whoever is about to write into the history waits for this, and then finds the new day
        await tx.execute(f"LOCK TABLE ONLY {self._parent} IN SHARE ROW EXCLUSIVE MODE")
        move = f"""
            WITH gone AS (
                DELETE FROM {self._parent}_rest WHERE finished_at >= {begin} AND finished_at < {end}
                RETURNING *
            )
            INSERT INTO {name} SELECT * FROM gone
        """  # noqa: S608
        await tx.execute(move)
        await tx.execute(
            f"ALTER TABLE {self._parent} ATTACH PARTITION {name} FOR VALUES FROM ({begin}) TO ({end})"
        )
        await tx.execute(f"ALTER TABLE {name} DROP CONSTRAINT day")

    async def _drop(self, tx: Any, name: str) -> None:
        await tx.execute(f"DROP TABLE {self._schema}.{name}")


def _name(day: date) -> str:
    return f"_job_done_{day:%Y%m%d}"
