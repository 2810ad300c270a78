"""Parts of a page that it can do without: recommendations, counts, suggestions.

A part that does not come in time, or cannot be had, is nothing: the page is answered without it, the request
goes on, and what was missing is logged and counted. What the module refuses (`market.faults`) is a mistake of
the caller and is raised.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from typing import TypeVar

import asyncpg

from springtide.errors import DatabaseError, DeadlineExceeded, Unavailable
from springtide.signals import PartOmitted, Sink

__all__ = ["EXTRA_TIMEOUT", "Extras"]

T = TypeVar("T")

EXTRA_TIMEOUT = 0.15
"""Seconds that a page waits for a part that it can do without."""

_log = logging.getLogger(__name__)


class Extras:
    """One for all pages of a rim; `sink` hears what was left out."""

    def __init__(self, sink: Sink, *, timeout: float = EXTRA_TIMEOUT) -> None:
        if not timeout > 0:
            raise ValueError(f"timeout must be > 0 seconds, got {timeout}")
        self._sink = sink
        self._timeout = timeout

    async def fetch(self, part: str, call: Awaitable[list[T]]) -> list[T]:
        """What `call` answers, or nothing. `part` names it in logs and metrics: one of a few fixed words.

        similar = await extras.fetch("also-bought", recommendations.also_bought([listing], 10))
        """
        try:
            async with asyncio.timeout(self._timeout):
                return await call
        except (TimeoutError, Unavailable, DeadlineExceeded, DatabaseError, asyncpg.PostgresError) as error:
            reason = type(error).__name__
            _log.warning("answered without %s: %r", part, error)
            self._sink.emit(PartOmitted(part, reason))
            return []
