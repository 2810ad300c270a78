"""When a worker reads the cursors of its lines (`_cursor.py`), and looks below them.

After READ_CLAIMED jobs were claimed, within READ_BUSY seconds after some, and every READ_IDLE seconds; at
once when a bell rings while old transactions are pending, and after the first reading. Every CHECK seconds,
or less often where that takes long, it looks for jobs that the cursor has passed.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine
from typing import Any

import asyncpg

from springtide.clock import Clock
from springtide.context import RequestContext, activate
from springtide.errors import SpringtideError
from springtide.jobs._finish import Spawn
from springtide.jobs._line import Line

__all__ = ["Readings"]

_log = logging.getLogger(__name__)

SEARCH_TIMEOUT = 60.0
"""Seconds for a statement that may have to pass everything that a held transaction keeps."""

READ_CLAIMED, READ_LEAST, READ_BUSY, READ_IDLE = 500, 0.05, 1.0, 5.0

CHECK, CHECK_SHARE = 60.0, 50.0
"""Seconds between two looks below the cursor; at least so many times what the last one took."""


class Readings:
    """`wake` is called when a line is due earlier than it said; `spawn` makes the tasks."""

    def __init__(self, *, spawn: Spawn, wake: Callable[[], object], clock: Clock) -> None:
        self._spawn = spawn
        self._wake = wake
        self._clock = clock

    def open(self, line: Line) -> None:
        """Its worker begins: nothing is known."""
        line.read_at = 0.0
        line.check_at = self._clock.monotonic() + CHECK * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load
        line.store.cursor.forget()

    def claimed(self, line: Line, count: int) -> None:
        """So many jobs are not ready any more: the cursor moves soon."""
        line.unread += count
        pause = READ_LEAST if line.unread >= READ_CLAIMED else READ_BUSY
        line.read_at = min(line.read_at, self._clock.monotonic() + pause)

    def look(self, line: Line, now: float) -> None:
        """Move the cursor of a line, and look below it, when it is time."""
        if not line.reading and line.read_at <= now:
            line.reading, line.unread = True, 0
            task = self._spawn(self._patiently(line.store.read()), f"{line.store.module} read")
            task.add_done_callback(lambda done: self._read(line, done))
        if not line.checking and line.check_at <= now:
            line.checking = True
            task = self._spawn(self._patiently(line.store.check()), f"{line.store.module} check")
            task.add_done_callback(lambda done: self._checked(line, now, done))

    async def _patiently(self, body: Coroutine[Any, Any, bool]) -> bool:
        with activate(RequestContext(deadline=self._clock.monotonic() + SEARCH_TIMEOUT)):
            return await body

    def _read(self, line: Line, done: asyncio.Task[bool]) -> None:
        line.reading = False
        now = self._clock.monotonic()
        line.read_at = now + READ_IDLE * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load
        well = _went_well(line, done, "reading the cursor of")
        if well and done.result():
            line.due_at, line.rung = now, True
            line.read_at = now + READ_LEAST
        elif well and not line.store.cursor.read:
            line.read_at = now  # until there is a floor, claims pass all that was ever claimed
        elif line.unread:
            self.claimed(line, 0)
        self._wake()  # the loop did not know how long to wait while this line was reading

    def _checked(self, line: Line, begun: float, done: asyncio.Task[bool]) -> None:
        line.checking = False
        now = self._clock.monotonic()
        pause = max(CHECK, CHECK_SHARE * (now - begun))
        line.check_at = now + pause * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load
        if _went_well(line, done, "looking for passed jobs of") and done.result():
            _log.warning("a job of %s was not found at its time; it is now", line.store.module)
            line.due_at, line.rung = now, True
            self._wake()


def _went_well(line: Line, done: asyncio.Task[Any], what: str) -> bool:
    if done.cancelled():
        return False
    if (error := done.exception()) is not None:
        unexpected = not isinstance(error, SpringtideError | asyncpg.PostgresError)
        _log.log(
            logging.WARNING if unexpected else logging.INFO,
            "%s %s on %s failed: %s", what, line.store.module, line.store.shard, error,
            exc_info=error if unexpected else None,
        )  # fmt: skip
    return error is None
