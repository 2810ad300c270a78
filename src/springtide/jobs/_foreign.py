"""Send a statement through a transaction that is not ours: on the caller's own connection, by its own driver.

What a connection is, is told by its type; drivers that are not imported are not looked at, so nothing is
imported here that the application did not bring. A driver has one duty: run a statement with `$1`, `$2`, ...
and return the rows, with parameters that the server binds. It refuses a connection on which no transaction is
open, because what it sends would then commit at once, whatever becomes of the caller. Errors of the server
stay those of the driver.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any, Protocol

from springtide.errors import JobError

__all__ = ["Foreign", "foreign"]

KNOWN = (
    "an asyncpg connection, a psycopg AsyncConnection, or an AsyncConnection or AsyncSession of SQLAlchemy"
    " over one of them"
)


class Foreign(Protocol):
    """An open transaction of the caller's."""

    async def fetch(self, sql: str, args: Sequence[Any]) -> Sequence[Any]:
        """Every row, with columns by number."""


async def foreign(connection: Any) -> Foreign:
    """The transaction that is open on `connection`. Raises JobError when there is none."""
    if _is(connection, "sqlalchemy.ext.asyncio", "AsyncSession", "async_scoped_session"):
        connection = await connection.connection()
    if _is(connection, "sqlalchemy.ext.asyncio", "AsyncConnection"):
        paramstyle = connection.dialect.paramstyle
        if connection.dialect.name != "postgresql" or paramstyle not in ("numeric_dollar", "pyformat"):
            raise JobError(
                f"jobs are enqueued through {KNOWN}, got SQLAlchemy over {connection.dialect.driver}"
            )
        lower = (await connection.get_raw_connection()).driver_connection
        if not _open(lower):  # SQLAlchemy begins with the first statement, unless it is told never to
            await connection.exec_driver_sql("SELECT 1")
            _require(lower)
        return _SQLAlchemy(connection, named=paramstyle == "pyformat")
    if _is(connection, "asyncpg", "Connection") or _is(connection, "asyncpg.pool", "PoolConnectionProxy"):
        _require(connection)
        return _Asyncpg(connection)
    if _is(connection, "psycopg", "AsyncConnection"):
        if connection.autocommit:
            _require(connection)
        return _Psycopg(connection)
    kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
    raise JobError(f"jobs are enqueued through {KNOWN}, got {kind}")


class _Asyncpg:
    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def fetch(self, sql: str, args: Sequence[Any]) -> Sequence[Any]:
        rows: Sequence[Any] = await self._connection.fetch(sql, *args)
        return rows


class _Psycopg:
    """Without autocommit its connection begins a transaction by itself."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def fetch(self, sql: str, args: Sequence[Any]) -> Sequence[Any]:
        psycopg = sys.modules["psycopg"]  # a raw cursor takes `$1` as it is, whatever the application's is
        async with psycopg.AsyncRawCursor(self._connection, row_factory=psycopg.rows.tuple_row) as cursor:
            await cursor.execute(sql, args)
            rows: Sequence[Any] = [] if cursor.description is None else await cursor.fetchall()
            return rows


class _SQLAlchemy:
    """Past compilation, by its connection's execute: so that it knows of the transaction that this begins."""

    def __init__(self, connection: Any, *, named: bool) -> None:
        self._connection = connection
        self._named = named

    async def fetch(self, sql: str, args: Sequence[Any]) -> Sequence[Any]:
        if self._named:
            values = {f"p{number}": value for number, value in enumerate(args, 1)}
            result = await self._connection.exec_driver_sql(_named(sql), values)
        else:
            result = await self._connection.exec_driver_sql(sql, tuple(args))
        rows: Sequence[Any] = result.fetchall() if result.returns_rows else []
        return rows


@cache
def _named(sql: str) -> str:
    """`$1` as `%(p1)s`, which psycopg makes `$1` again. Cached: a few texts per schema."""
    return re.sub(r"\$(\d+)", r"%(p\1)s", sql.replace("%", "%%"))


def _is(value: Any, module: str, *names: str) -> bool:
    """Whether `value` is an instance of a class of a module, which then is imported already."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, tuple(getattr(loaded, name) for name in names))


def _open(connection: Any) -> bool:
    """Whether a transaction is open on a connection of asyncpg or psycopg."""
    if _is(connection, "psycopg", "AsyncConnection"):
        idle = sys.modules["psycopg"].pq.TransactionStatus.IDLE
        return bool(connection.info.transaction_status != idle)
    return bool(connection.is_in_transaction())


def _require(connection: Any) -> None:
    if not _open(connection):
        raise JobError(
            "a job is enqueued in the transaction of what causes it, and none is open on this connection:"
            " begin one, such as `async with connection.transaction():`"
        )
