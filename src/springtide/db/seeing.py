"""Read from one server, and say what that server had: for whoever keeps what was read.

A *sight* is pinned to one server. Before its first statement that server is asked which transactions it can
see (`Seen`); all that is read afterwards sees at least those. Earlier is the safe side: the snapshots of one
server only grow, so a write that `Seen` shows is in whatever the sight reads, and one that it does not show
may be or not.

What a snapshot shows depends on the server's role:

    primary   every transaction below xmax that is not listed as running
    standby   every one below xmin: what runs on the primary is not listed there, nothing above is certain

A role that changes in between does no harm. The snapshot is taken first and the role asked after it: who is
no standby by then has replayed all that there will ever be of the numbers below its xmax, and the sight's
statements come later still.

Transaction numbers mean something within one *history* alone: one system on one timeline. `epoch` names it,
and the database in it (by its number, which one that is dropped and made again does not keep): rows of two
databases have nothing to do with each other. Epochs are equal or not, and never ordered. A standby names the
history that it receives, of which what it has replayed is the beginning.

Two forms: on a connection of our own, statements of their own; through a transaction pooler, which may lead
two statements to two servers, one READ COMMITTED READ ONLY transaction. Each statement has a snapshot of its
own in both: several of them may see a write in between, which `Seen` then does not show.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any

import asyncpg

from springtide.db._link import ASYNCPG_ERRORS, Link, RawConnection
from springtide.db.connection import Connection, Queries

if TYPE_CHECKING:
    from springtide.db.pool import Pool

__all__ = ["DATABASE", "EPOCH", "Seen", "Sight", "epoch_of", "history", "learn", "note", "opening", "seen_of"]

_log = logging.getLogger(__name__)

DATABASE = "(SELECT oid::bigint FROM pg_database WHERE datname = current_database()) AS database"
"""What a statement selects to learn the number of its database."""

EPOCH = f"""(SELECT system_identifier FROM pg_control_system()) AS system, {DATABASE},
    ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int AS timeline"""  # noqa: S608 - a constant
"""What a statement on a primary selects to learn its history; fails on a standby. See `epoch_of`."""

SEEN = f"""
SELECT pg_current_snapshot()::text AS snapshot, role.recovering, control.system_identifier AS system,
    {DATABASE},
    CASE WHEN role.recovering THEN
        coalesce(
            (SELECT received_tli FROM pg_stat_get_wal_receiver()),
            (SELECT min_recovery_end_timeline FROM pg_control_recovery()),
            0
        )
        ELSE ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::int END AS timeline
FROM (SELECT pg_is_in_recovery() AS recovering OFFSET 0) AS role
CROSS JOIN pg_control_system() AS control
"""  # noqa: S608 - a constant


@dataclass(frozen=True, slots=True)
class Seen:
    """What one server of `cluster` had, before anything was read from it.

    epoch: which history its transaction numbers belong to, in which database. standby: whether it was one.
    xmin, xmax, running: as `pg_current_snapshot()` says; 64 bits, so they do not wrap.
    """

    cluster: str
    epoch: int
    standby: bool
    xmin: int
    xmax: int
    running: tuple[int, ...]


def history(system: int, timeline: int, database: int) -> int:
    """The epoch of a system (its identifier) on a timeline, for one of its databases."""
    return database << 96 | (system & 0xFFFF_FFFF_FFFF_FFFF) << 32 | timeline


def epoch_of(row: Any) -> int:
    """The history named by the columns of `EPOCH`."""
    return history(row["system"], row["timeline"], row["database"])


def seen_of(cluster: str, row: Any) -> Seen:
    """The answer to SEEN."""
    xmin, xmax, running = row["snapshot"].split(":")
    return Seen(
        cluster=cluster,
        epoch=epoch_of(row),
        standby=row["recovering"],
        xmin=int(xmin),
        xmax=int(xmax),
        running=tuple(map(int, running.split(","))) if running else (),
    )


class Sight:
    """Reads on one server; `seen` is what it had before them."""

    __slots__ = ("_pool", "_queries", "seen")

    def __init__(self, pool: Pool, queries: Queries, seen: Seen) -> None:
        self._pool = pool
        self._queries = queries
        self.seen = seen

    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        self._only_reads(sql)
        return await self._queries.fetch(sql, *args)

    async def fetch_one(self, sql: str, *args: Any) -> Any | None:
        self._only_reads(sql)
        return await self._queries.fetch_one(sql, *args)

    async def fetch_value(self, sql: str, *args: Any) -> Any:
        self._only_reads(sql)
        return await self._queries.fetch_value(sql, *args)

    def _only_reads(self, sql: str) -> None:
        if not self._pool.reads(sql):
            raise ValueError(f"a sight may only be read from, got {self._pool._statements.get(sql).label!r}")


def opening(pool: Pool, cluster: str) -> AbstractAsyncContextManager[Sight]:
    """A sight on the server of `pool`. A connection that turns out to be lost is exchanged before anything
    was read; afterwards that is the caller's error."""
    return _through_a_pooler(pool, cluster) if pool.pooled else _Opening(pool, cluster)


def learn(pool: Pool) -> None:
    """Have each new connection of a primary's pool say which history it leads to (`Pool.epoch`)."""

    async def ask(raw: RawConnection) -> None:
        try:
            row = await raw.fetchrow(SEEN)
        except ASYNCPG_ERRORS as error:  # the connection is good for all else
            _log.debug("%s: its history was not learnt: %r", pool.name, error)
        else:
            note(pool, seen_of(pool.cluster, row))

    if not pool.admits:
        pool.admit(ask)


def note(pool: Pool, seen: Seen) -> None:
    """Remember which history the server of a primary's pool is on."""
    if not seen.standby:
        pool.epoch = seen.epoch


class _Opening:
    """A connection of our own, with what its server had."""

    __slots__ = ("_cluster", "_connection", "_pool", "_seen")

    def __init__(self, pool: Pool, cluster: str) -> None:
        self._pool = pool
        self._cluster = cluster
        self._connection: Connection | None = None
        self._seen: Seen | None = None

    async def __aenter__(self) -> Sight:
        link = await self._pool._begin(None, self._look)
        assert self._seen is not None
        self._connection = Connection(self._pool, link, self._pool._statements, read_only=self._seen.standby)
        return Sight(self._pool, self._connection, self._seen)

    async def _look(self, link: Link) -> None:
        statement = self._pool._statements.get(SEEN)
        row = await link.perform(asyncpg.Connection.fetchrow, SEEN, (), statement)
        self._seen = seen_of(self._cluster, row)
        note(self._pool, self._seen)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._connection is not None
        link, self._connection._lent = self._connection._lent, None
        if link is not None:
            self._pool._put(link)


@asynccontextmanager
async def _through_a_pooler(pool: Pool, cluster: str) -> AsyncIterator[Sight]:
    async with pool.transaction(read_only=True) as tx:
        seen = seen_of(cluster, await tx.fetch_one(SEEN))
        note(pool, seen)
        yield Sight(pool, tx, seen)
