"""A table in partitions of a day: made ahead, dropped when all in them is old enough.

Dropping a partition gives its space back at once and leaves nothing to vacuum, so retention costs those who
use the table nothing. Days are UTC, by the database's clock. A row whose day has no partition goes into the
default partition `<table>_rest`; when its partition is made at last it moves there.

Making and dropping need a lock on the whole table for a moment: one worker does it at a time, waits for the
lock no longer than LOCK_TIMEOUT, and a later call tries again. A worker that freezes with the lock, or is cut
off, would stop everybody who uses the table: the server ends its session after IDLE_TIMEOUT.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any

import asyncpg

from springtide.db.pool import Pool

__all__ = ["Days", "due_days"]

AHEAD = 3
"""Days, today among them, that have a partition."""

LOCK_TIMEOUT = "100ms"

IDLE_TIMEOUT = "2s"
"""How long the server waits for the next statement of a worker that may hold the lock."""

LIMITS = (
    f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT}';"
    f" SET LOCAL idle_in_transaction_session_timeout = '{IDLE_TIMEOUT}'"
)

BATCH = 1000

Done = Callable[[Any, str], Awaitable[bool]]


def due_days(table: str, names: list[str], now: datetime, keep: float) -> tuple[list[date], list[str]]:
    """Which days to make, and which of the partitions `names` of `table` to drop, oldest first; pure.

    A partition is dropped when the last moment of its day is more than `keep` seconds ago.
    """
    today = now.astimezone(UTC).date()
    wanted = [today + timedelta(days=ahead) for ahead in range(AHEAD)]
    partition = re.compile(rf"{table}_(\d{{8}})")
    drop = []
    for name in names:
        match = partition.fullmatch(name)
        if match is None:
            continue
        day = datetime.strptime(match[1], "%Y%m%d").replace(tzinfo=UTC)
        if day + timedelta(days=1, seconds=keep) < now:
            drop.append(name)
    return [day for day in wanted if _name(table, day) not in names], sorted(drop)


class Days:
    """The partitions of `table` in `schema` by the day of `column`."""

    def __init__(self, pool: Pool, schema: str, table: str, column: str) -> None:
        self._pool = pool
        self._schema = schema
        self._table = table
        self._parent = f"{schema}.{table}"
        self._column = column

    async def tend(self, keep: float, *, done: Done | None = None) -> list[str]:
        """Make the days that are missing; drop what is older than `keep` seconds. Returns what was dropped.

        `done`, given, is asked in the transaction that would drop a partition, with its full name, whether
        nobody needs it; then days go in their order, none before an older one, and from the default partition
        nothing is dropped.
        """
        row = await self._pool.fetch_one(
            "SELECT clock_timestamp() AS now, ARRAY(SELECT c.relname::text FROM pg_inherits AS i"
            " JOIN pg_class AS c ON c.oid = i.inhrelid WHERE i.inhparent = $1::regclass) AS names",
            self._parent,
        )
        assert row is not None
        make, drop = due_days(self._table, row["names"], row["now"], keep)
        for day in make:
            await self._alone(functools.partial(self._make, day))
        dropped = []
        for name in drop:
            if await self._alone(functools.partial(self._drop, name, done)):
                dropped.append(name)
            elif done is not None:
                break
        if done is None:
            rest = f"{self._parent}_rest"
            old = f"""
                DELETE FROM {rest} WHERE ctid = ANY (ARRAY(
                    SELECT ctid FROM {rest}
                    WHERE {self._column} < clock_timestamp() - make_interval(secs => $1) LIMIT {BATCH}
                ))
            """  # noqa: S608 - the schema is an identifier checked by Database, here and below
            await self._pool.execute(old, keep)
        return dropped

    async def _alone(self, step: Callable[[Any], Awaitable[bool]]) -> bool:
        """One worker at a time; whoever comes second, or gets no lock at once, leaves it to a later call."""
        try:
            async with self._pool.transaction() as tx:
                await tx.execute(LIMITS)
                if await tx.fetch_value("SELECT pg_try_advisory_xact_lock(hashtext($1))", self._parent):
                    return await step(tx)
        except (asyncpg.LockNotAvailableError, asyncpg.DuplicateTableError, asyncpg.UndefinedTableError):
            pass
        return False

    async def _make(self, day: date, tx: Any) -> bool:
        name = f"{self._schema}.{_name(self._table, day)}"
        begin, end = f"'{day}T00:00:00Z'", f"'{day + timedelta(days=1)}T00:00:00Z'"
        within = f"{self._column} >= {begin} AND {self._column} < {end}"
        # whoever is about to use the table waits for the lock, and then finds the new day: a statement that
        # had been planned without it would look for what moved where it was
        steps = f"""
            CREATE TABLE {name} (LIKE {self._parent} INCLUDING DEFAULTS, CONSTRAINT day CHECK ({within}));
            LOCK TABLE ONLY {self._parent} IN ACCESS EXCLUSIVE MODE;
            WITH gone AS (DELETE FROM {self._parent}_rest WHERE {within} RETURNING *)
            INSERT INTO {name} SELECT * FROM gone;
            ALTER TABLE {self._parent} ATTACH PARTITION {name} FOR VALUES FROM ({begin}) TO ({end});
            ALTER TABLE {name} DROP CONSTRAINT day
        """  # noqa: S608
        await tx.execute(steps)
        return True

    async def _drop(self, name: str, done: Done | None, tx: Any) -> bool:
        if done is not None and not await done(tx, f"{self._schema}.{name}"):
            return False
        await tx.execute(f"DROP TABLE {self._schema}.{name}")
        return True


def _name(table: str, day: date) -> str:
    return f"{table}_{day:%Y%m%d}"
