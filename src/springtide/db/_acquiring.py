"""What the pool hands out beside rows: a connection for a block, and figures about itself."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from springtide.context import Priority
from springtide.db._link import Link
from springtide.db.connection import Connection

if TYPE_CHECKING:
    from springtide.db.pool import Pool

__all__ = ["Acquiring", "PoolStats"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """`size` counts every open connection, `busy` those lent or recovering; opened and closed are totals."""

    size: int
    idle: int
    busy: int
    waiting: int
    opened: int
    closed: int
    generation: int


class Acquiring:
    """`async with pool.acquire() as connection`."""

    __slots__ = ("_connection", "_entered", "_pool", "_priority", "_timeout")

    def __init__(self, pool: Pool, priority: Priority | None, timeout: float | None) -> None:
        self._pool = pool
        self._priority = priority
        self._timeout = timeout
        self._connection: Connection | None = None
        self._entered = False

    async def __aenter__(self) -> Connection:
        if self._entered:
            raise RuntimeError("an acquire() cannot be entered twice; call acquire() again")
        self._entered = True
        link = await self._pool._begin(self._priority, Link.greet, self._timeout)
        self._connection = Connection(self._pool, link, self._pool._statements)
        return self._connection

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._connection is not None
        link, self._connection._lent = self._connection._lent, None
        if link is not None:
            self._pool._put(link)
