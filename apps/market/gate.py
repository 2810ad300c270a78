"""How many calls of one sort (mails, pushes, webhooks) may be on their way at once in one worker.

A job that finds no place within `patience` steps aside instead of holding one of the worker's slots: somebody
who answers slowly keeps nothing busy but the places here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

__all__ = ["Busy", "Gate"]


class Busy(Exception):
    """All places are taken."""


class Gate:
    """`places` at once; `patience` in seconds."""

    def __init__(self, places: int, *, patience: float) -> None:
        if places < 1:
            raise ValueError(f"places must be >= 1, got {places}")
        if not patience > 0:
            raise ValueError(f"patience must be > 0 seconds, got {patience}")
        self._free = asyncio.Semaphore(places)
        self._patience = patience

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Raises Busy."""
        try:
            async with asyncio.timeout(self._patience):
                await self._free.acquire()
        except TimeoutError:
            raise Busy from None
        try:
            yield
        finally:
            self._free.release()
