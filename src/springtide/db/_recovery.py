"""Make a session clean again after its user has left, or say why the connection must go.

This is the only place that waits for the server on behalf of a caller who is gone, and it waits for
`RECOVERY` seconds at most.
"""

from __future__ import annotations

import asyncio
import logging

from asyncpg import exceptions as pg

from springtide.db._link import ASYNCPG_ERRORS, Link
from springtide.db._statements import Dirt

__all__ = ["RECOVERY", "hang_up", "recover"]

_log = logging.getLogger(__name__)

RECOVERY = 0.2
"""Seconds in which an abandoned statement must be cancelled and drained, or the connection is dropped."""

_RESET = (
    "SELECT pg_advisory_unlock_all(); CLOSE ALL; UNLISTEN *; RESET SESSION AUTHORIZATION; RESET ALL; "
    "DISCARD SEQUENCES; DISCARD TEMP"
)
"""DISCARD ALL, but for the prepared statements: those that asyncpg keeps are worth keeping."""


async def recover(link: Link) -> str | None:
    """Drain, roll back, reset. None when the session is clean, else broken, cancelled or replaced."""
    raw = link.raw
    try:
        async with asyncio.timeout(RECOVERY):
            for _ in range(2):
                try:
                    await raw.execute("SELECT 1")  # asyncpg sends it after the abandoned one was cancelled
                    break
                except pg.InFailedSQLTransactionError:
                    break
                except pg.QueryCanceledError:
                    continue  # the cancel request came late and hit this one
            if raw.is_in_transaction():
                await raw.execute("ROLLBACK")
            if link.dirt is Dirt.RESET:
                await raw.execute(_RESET)
                link.limit = None
                link.dirt = Dirt.NONE
    except (TimeoutError, *ASYNCPG_ERRORS, OSError) as error:
        _log.debug("a connection to %s could not be recovered: %r", link.cluster, error)
        if link.dirt is Dirt.REPLACE:
            return "replaced"
        return "cancelled" if link.unsettled and isinstance(error, TimeoutError) else "broken"
    if link.dirt is Dirt.REPLACE:
        return "replaced"
    link.unsettled = False
    return None


async def hang_up(link: Link) -> None:
    """Ask the server to stop what it does for this connection, unless it commits, and leave."""
    if link.committing:
        link.raw.terminate()
        return
    try:
        await link.raw.close(timeout=RECOVERY)
    except (TimeoutError, *ASYNCPG_ERRORS, OSError) as error:
        _log.debug("hanging up on %s: %r", link.cluster, error)
