"""Tell those who wait for rows that some were committed.

`ring` is called after a commit. All rings of one server within `spacing` seconds become one NOTIFY, sent on
a connection that no producer holds: a NOTIFY inside producers' transactions would make their commits take
turns on a lock of the whole server. The payload is the schema whose rows are new.

idle -> sending (-> sending again, when rung meanwhile) -> idle. The bell is a hint: when it cannot be sent it
is dropped, because every reader polls.
"""

from __future__ import annotations

import asyncio
import logging

from springtide.clock import Clock, SystemClock
from springtide.context import Priority, RequestContext, activate, detached
from springtide.db.pool import Pool
from springtide.errors import SpringtideError
from springtide.lifecycle import StartStop
from springtide.signals import Sink

__all__ = ["CHANNEL", "Bell"]

_log = logging.getLogger(__name__)

CHANNEL = "springtide_outbox"

SEND_TIMEOUT = 2.0

SEND = "SELECT pg_notify($1, schema) FROM unnest($2::text[]) AS schema"


class Bell:
    """A lifecycle service; rings of a bell that is not running are dropped.

    spacing: least seconds between two NOTIFYs to one server by this process.
    """

    name = "outbox bell"

    def __init__(
        self, *, spacing: float = 0.005, clock: Clock | None = None, sink: Sink | None = None
    ) -> None:
        if spacing < 0:
            raise ValueError(f"spacing must be >= 0 seconds, got {spacing}")
        self._spacing = spacing
        self._clock = clock or SystemClock()
        self._rung: dict[Pool, set[str]] = {}
        self._sending: dict[Pool, asyncio.Task[None]] = {}
        self._life = StartStop(self.name, self._open, self._close, sink=sink)

    @property
    def state(self) -> str:
        return self._life.state

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    def ring(self, pool: Pool, schema: str) -> None:
        """Wake whoever waits for rows of `schema` on the server of `pool`. Never waits, never raises."""
        if not self._life.running:
            return
        self._rung.setdefault(pool, set()).add(schema)
        if pool not in self._sending:
            # detached: the task belongs to no request, and the commit that rang is over
            self._sending[pool] = asyncio.get_running_loop().create_task(
                self._send(pool), name=f"{self.name}:{pool.cluster}", context=detached()
            )

    async def _open(self) -> None:
        self._rung.clear()

    async def _close(self) -> None:
        tasks = list(self._sending.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._rung.clear()

    async def _send(self, pool: Pool) -> None:
        try:
            while schemas := self._rung.pop(pool, None):
                deadline = self._clock.monotonic() + SEND_TIMEOUT
                try:
                    with activate(RequestContext(deadline=deadline, priority=Priority.BULK)):
                        await pool.fetch(SEND, CHANNEL, sorted(schemas))
                except SpringtideError as error:
                    _log.info(
                        "%s: %s was not told of new rows, it will poll: %s", self.name, pool.name, error
                    )
                await self._clock.sleep(self._spacing)
        finally:
            del self._sending[pool]
