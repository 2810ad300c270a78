"""A connection lent to one caller, for several statements on one session.

It belongs to the caller between the two ends of `async with pool.acquire()`, and to nobody afterwards: a
reference that was kept raises, and so does a connection on which a statement was cancelled. What the caller's
statements leave in the session is undone before somebody else gets it, as far as their text shows it; the
rest is declared with `mark_dirty`.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import asyncpg

from springtide.db._link import Link, RawConnection
from springtide.db._statements import Dirt, Statements
from springtide.errors import PoolClosed, SessionStateRefused

if TYPE_CHECKING:
    from springtide.db.pool import Pool
    from springtide.db.transaction import Beginning

__all__ = ["Connection", "Queries"]

Record = asyncpg.Record


class Queries:
    """The statements that connections and transactions have in common.

    Errors of a statement are asyncpg's own (`asyncpg.UniqueViolationError`). A lost connection is
    `DatabaseUnavailable`, a used-up deadline `DeadlineExceeded`.
    """

    __slots__ = ("_lent", "_limited", "_read_only", "_statements")

    def __init__(self, link: Link, statements: Statements, *, limited: bool, read_only: bool) -> None:
        self._lent: Link | None = link
        self._statements = statements
        self._limited = limited
        self._read_only = read_only

    def _link(self) -> Link:
        if self._lent is None:
            raise PoolClosed(f"this {type(self).__name__.lower()} has ended; acquire another")
        return self._lent

    async def _ready(self) -> Link:
        """The link to use for the next statement."""
        return self._link()

    async def fetch(self, sql: str, *args: Any) -> list[Record]:
        """All rows."""
        link = await self._ready()
        rows: list[Record] = await link.perform(
            asyncpg.Connection.fetch,
            sql,
            args,
            self._statements.get(sql),
            limited=self._limited,
            read_only=self._read_only,
        )
        return rows

    async def fetch_one(self, sql: str, *args: Any) -> Record | None:
        """The first row, or None."""
        link = await self._ready()
        row: Record | None = await link.perform(
            asyncpg.Connection.fetchrow,
            sql,
            args,
            self._statements.get(sql),
            limited=self._limited,
            read_only=self._read_only,
        )
        return row

    async def fetch_value(self, sql: str, *args: Any) -> Any:
        """The first column of the first row, or None."""
        link = await self._ready()
        return await link.perform(
            asyncpg.Connection.fetchval,
            sql,
            args,
            self._statements.get(sql),
            limited=self._limited,
            read_only=self._read_only,
        )

    async def execute(self, sql: str, *args: Any) -> str:
        """Run a statement (or, without arguments, several) and return the last one's tag, `INSERT 0 1`."""
        link = await self._ready()
        tag: str = await link.perform(
            asyncpg.Connection.execute,
            sql,
            args,
            self._statements.get(sql),
            limited=self._limited,
            read_only=self._read_only,
        )
        return tag

    async def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run a statement once per row, all or nothing, in few round trips."""
        link = await self._ready()
        await link.perform(
            asyncpg.Connection.executemany,
            sql,
            (rows,),
            self._statements.get(sql),
            limited=self._limited,
            read_only=self._read_only,
        )

    async def copy_in(
        self,
        table: str,
        columns: Sequence[str],
        records: Iterable[Sequence[Any]] | AsyncIterable[Sequence[Any]] | None = None,
        *,
        source: Any = None,
        schema: str | None = None,
    ) -> int:
        """COPY rows into `table` and return how many.

        Give either `records` (tuples, encoded in binary) or `source` (a path, a binary file or an
        asynchronous iterator of bytes in COPY's text format).
        """
        if (records is None) == (source is None):
            raise ValueError("copy_in takes either records or source")
        link = await self._ready()
        label = self._statements.get(f"COPY {f'{schema}.' if schema else ''}{table} FROM STDIN")
        operation = (
            asyncpg.Connection.copy_records_to_table if source is None else asyncpg.Connection.copy_to_table
        )
        content = {"records": records} if source is None else {"source": source}
        tag: str = await link.perform(
            operation,
            table,
            (),
            label,
            limited=self._limited,
            read_only=self._read_only,
            columns=list(columns),
            schema_name=schema,
            **content,
        )
        return int(tag.rpartition(" ")[2])

    def mark_dirty(self) -> None:
        """Say that the session must be reset before its next user: a function called here left something
        behind (a setting, an advisory lock, a temporary table) that the statement's text does not show."""
        link = self._link()
        if link.pooled:
            raise SessionStateRefused("mark_dirty", "")
        link.dirt = max(link.dirt, Dirt.RESET)

    @property
    def raw(self) -> RawConnection:
        """asyncpg's connection, for what this class lacks (cursors, listeners, codecs).

        Nothing done with it is accounted for, so the pool replaces the connection after its return. For
        the same reason it does not carry the deadline. Raises SessionStateRefused behind a pooler.
        """
        link = self._link()
        if link.pooled:
            raise SessionStateRefused("raw", "")
        link.dirt = Dirt.REPLACE
        return link.raw


class Connection(Queries):
    __slots__ = ("_pool", "_touched")

    def __init__(
        self, pool: Pool, link: Link, statements: Statements, *, read_only: bool | None = None
    ) -> None:
        """read_only: a statement has run on it, and its server is a standby or not; None: not known."""
        super().__init__(link, statements, limited=True, read_only=bool(read_only))
        self._pool = pool
        self._touched = read_only is not None

    def _link(self) -> Link:
        link = super()._link()
        if link.unsettled:  # executed or not, inside a transaction or not: nobody knows
            raise PoolClosed(
                "this connection has ended: a statement on it was cancelled or too slow; acquire another"
            )
        return link

    async def _ready(self) -> Link:
        link = self._link()
        if link.raw.is_closed() and not self._touched:
            # died between acquire and the first statement: nothing of the caller is lost with it
            self._lent = None
            self._lent = link = await self._pool._exchange(link)
        self._touched = True
        return link

    @property
    def raw(self) -> RawConnection:
        self._touched = True
        return super().raw

    def transaction(self, *, read_only: bool = False, isolation: str = "read committed") -> Beginning:
        """A transaction on this connection; see `Pool.transaction`."""
        from springtide.db.transaction import Beginning

        return Beginning(self._pool, self, None, read_only=read_only, isolation=isolation)
