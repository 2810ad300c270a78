"""Hear the bell of one server, on a connection of its own.

connecting -> listening -> (lost, silent to a probe, or moved away) connecting. Each time it begins to listen
it reports everything as new, because what was rung before was not heard. A connection that is broken without
a sign (LISTEN dies silently) is found by a probe every `probe` seconds.
It needs a direct connection to the server: LISTEN does not work through transaction pooling.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable
from typing import Any

from springtide.clock import Clock, SystemClock
from springtide.context import RequestContext, activate
from springtide.db.connection import Connection
from springtide.db.pool import Pool
from springtide.errors import DatabaseUnavailable
from springtide.lifecycle import Supervised
from springtide.outbox.bell import CHANNEL
from springtide.signals import Sink

__all__ = ["Listener"]

PROBE_TIMEOUT = 5.0


class Listener:
    """A lifecycle service. `heard` is called in the event loop with a schema, or None for "any of them".

    It starts whether the server is there or not, and keeps trying. `dsn` is asked before each connection and
    at each probe, so a listener goes where its primary has gone.
    """

    def __init__(
        self,
        dsn: Callable[[], str],
        *,
        cluster: str,
        heard: Callable[[str | None], None],
        probe: float = 15.0,
        clock: Clock | None = None,
        sink: Sink | None = None,
    ) -> None:
        if probe <= 0:
            raise ValueError(f"probe must be > 0 seconds, got {probe}")
        self._dsn = dsn
        self._cluster = cluster
        self._heard = heard
        self._probe = probe
        self._clock = clock or SystemClock()
        self.name = f"outbox listener {cluster}"
        self._task = Supervised(
            self.name, self._listen, backoff=0.2, max_backoff=5.0, clock=self._clock, sink=sink
        )

    @property
    def state(self) -> str:
        return self._task.state

    async def start(self) -> None:
        await self._task.start()

    async def stop(self) -> None:
        await self._task.stop()

    async def _listen(self) -> None:
        dsn = self._dsn()
        pool = Pool(
            dsn,
            cluster=self._cluster,
            size=1,
            reserved=0,
            clock=self._clock,
            server_settings={"application_name": "springtide listener"},
        )
        try:
            await pool.start()
            async with pool.acquire() as connection:
                await self._listen_on(connection, dsn)
        finally:
            await pool.stop()  # also when the start was cancelled: it goes on by itself
        raise DatabaseUnavailable(f"the connection that listens to {self._cluster} was lost")

    async def _listen_on(self, connection: Connection, dsn: str) -> None:
        """Return when the connection is lost or leads to the wrong server; raise when a probe fails."""
        raw = connection.raw
        lost = asyncio.Event()
        raw.add_termination_listener(lambda _: lost.set())
        await raw.add_listener(CHANNEL, self._on_notice)
        self._heard(None)
        while not lost.is_set():
            pause = self._probe * random.uniform(0.8, 1.2)  # noqa: S311 - spreads probes
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await lost.wait()
            if self._dsn() != dsn:
                return
            if not lost.is_set():
                deadline = self._clock.monotonic() + PROBE_TIMEOUT
                with activate(RequestContext(deadline=deadline)):
                    await connection.fetch_value("SELECT 1")

    def _on_notice(self, connection: Any, pid: int, channel: str, payload: Any) -> None:
        self._heard(str(payload))
