"""What a pool does when its cluster has another primary, or none for a while.

The pool decides nothing about roles. Whoever watches the servers is told of everything that makes the role
of this one doubtful (`doubt`: a connection was lost, none could be opened, a write was refused) and answers,
when it has found the primary, with `Pool.move`.

A move breaks every connection to the server that is left, also those under way: what it might still answer
belongs to a history that is over, so a COMMIT it confirms now must not count as one. Hence, for callers:

    waiting, or lost before anything was sent   they get a connection to the new server, within their time
    a single read, BEGIN                        sent again there
    a single statement refused with 25006       sent again there: it was not executed
    a write under way, a transaction            DatabaseUnavailable: not repeated, it may have been executed
    COMMIT under way                            CommitUnknown

Behind a pooler the connections go to it as before: whoever runs it tells it of the new primary.

Without a server (`move(None)`, or none that can be reached), while somebody watches, callers wait for
`outage_timeout` or until their deadline, instead of `acquire_timeout`: they would only come back.
`max_waiting` bounds how many.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from springtide.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from springtide.db.pool import Pool

__all__ = ["Moves", "move"]

_log = logging.getLogger(__name__)


class Moves:
    """The moves of one pool: who is told of doubts, and a way to wait for the next move."""

    __slots__ = ("_moved", "count", "watcher")

    def __init__(self) -> None:
        self.count = 0
        self.watcher: Callable[[], None] | None = None
        self._moved = asyncio.Event()

    def doubt(self) -> None:
        if self.watcher is not None:
            self.watcher()

    def happened(self) -> None:
        self.count += 1
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    async def after(self, count: int, seconds: float) -> bool:
        """Wait for a move after the first `count`; False when none came in `seconds`, or nobody watches."""
        if self.count == count and self.watcher is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._moved.wait()
        return self.count != count


def move(pool: Pool, dsn: str | None) -> None:
    """See `Pool.move`."""
    connector = pool._connector
    if dsn == connector.target:
        return
    told, connector.target = connector.target != "", dsn
    if dsn is not None and not told:
        return  # behind a pooler: whom it leads to becomes known, and nothing has changed
    _log.info("%s leaves its server%s", pool.name, " for another" if dsn is not None else "")
    nobody = None if dsn is not None else DatabaseUnavailable(f"{pool.cluster} has no server now")
    connector.aim(dsn and (connector.via or dsn), nobody)
    pool._generation += 1
    pool._incident += 1  # what is lost from now on says nothing about connections to the new server
    for opener in tuple(pool._openers):
        opener.cancel()
    while pool._idle:
        pool._drop(pool._idle.pop(), "generation")
    pool.sever()
    pool._moves.happened()
    pool._want()
