"""Hear the bell of one server, on a connection of its own.

connecting -> listening -> (lost, silent to a probe, or moved away) connecting. Each time it begins to listen
it reports everything as new, because what was rung before was not heard. A connection that is broken without
a sign (LISTEN dies silently) is found by a probe every `probe` seconds.
It needs a direct connection to the server: LISTEN does not work through transaction pooling. Behind a pooler
it finds out whether what another connection tells arrives, warns once when it does not, and goes on: whoever
would have been woken polls.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from springtide.clock import Clock, SystemClock
from springtide.context import RequestContext, activate
from springtide.db.connection import Connection
from springtide.db.pool import Pool
from springtide.errors import DatabaseUnavailable, SpringtideError
from springtide.lifecycle import Supervised
from springtide.outbox.bell import CHANNEL
from springtide.signals import Sink

__all__ = ["Listener"]

_log = logging.getLogger(__name__)

PROBE_TIMEOUT = 5.0


class Listener:
    """A lifecycle service. `heard` is called in the event loop with a schema, or None for "any of them".

    It starts whether the server is there or not, and keeps trying. `dsn` is asked before each connection and
    at each probe, so a listener goes where its primary has gone. `poll`: seconds between looks of those who
    would be woken, named where LISTEN does not work.
    """

    def __init__(
        self,
        dsn: Callable[[], str],
        *,
        cluster: str,
        heard: Callable[[str | None], None],
        poll: float,
        probe: float = 15.0,
        clock: Clock | None = None,
        sink: Sink | None = None,
    ) -> None:
        if probe <= 0:
            raise ValueError(f"probe must be > 0 seconds, got {probe}")
        self._dsn = dsn
        self._cluster = cluster
        self._heard = heard
        self._poll = poll
        self._probe = probe
        self._clock = clock or SystemClock()
        self._warned: str | None = None
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
        async with self._connected(dsn, "springtide listener", pooled=False) as connection:
            await self._listen_on(connection, dsn)
        raise DatabaseUnavailable(f"the connection that listens to {self._cluster} was lost")

    @contextlib.asynccontextmanager
    async def _connected(self, dsn: str, application: str, *, pooled: bool) -> AsyncIterator[Connection]:
        pool = Pool(
            dsn,
            cluster=self._cluster,
            size=1,
            reserved=0,
            clock=self._clock,
            server_settings={"application_name": application},
            pooled=pooled,
        )
        try:
            await pool.start()
            async with pool.acquire() as connection:
                yield connection
        finally:
            await pool.stop()  # also when the start was cancelled: it goes on by itself

    async def _listen_on(self, connection: Connection, dsn: str) -> None:
        """Return when the connection is lost or leads to the wrong server; raise when a probe fails."""
        raw = connection.raw
        lost = asyncio.Event()
        raw.add_termination_listener(lambda _: lost.set())
        known = await self._is_direct(connection)
        await raw.add_listener(CHANNEL, self._on_notice)
        self._heard(None)
        while not lost.is_set():
            known = known or await self._try(raw, dsn)
            pause = self._probe * random.uniform(0.8, 1.2)  # noqa: S311 - spreads probes
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await lost.wait()
            if self._dsn() != dsn:
                return
            if not lost.is_set():
                await self._ask(connection, "SELECT 1")

    async def _is_direct(self, connection: Connection) -> bool:
        """Whether nobody is in between: a pooler gives each client a number of its own, because its sessions
        change, and may lose what was prepared."""
        try:
            pid = await self._ask(connection, "SELECT pg_backend_pid()")
        except asyncpg.PostgresError:
            return False
        return bool(pid == connection.raw.get_server_pid())

    async def _ask(self, connection: Connection, sql: str, *args: Any) -> Any:
        with activate(RequestContext(deadline=self._clock.monotonic() + PROBE_TIMEOUT)):
            return await connection.fetch_value(sql, *args)

    async def _try(self, raw: Any, dsn: str) -> bool:
        """Have another connection tell this one something, and warn when it does not arrive. It must be
        another one: a pooler may lend the session that listens for what it tells itself. Returns whether it
        could be tried."""
        stirred, arrived = asyncio.Event(), list[bool]()
        channel = f"{CHANNEL}_{secrets.token_hex(8)}"

        def arrive(*_: Any) -> None:
            arrived.append(True)
            stirred.set()

        raw.add_termination_listener(lambda _: stirred.set())
        await raw.add_listener(channel, arrive)
        try:
            async with self._connected(dsn, "springtide listener's trial", pooled=True) as other:
                await self._ask(other, "SELECT pg_notify($1, '')", channel)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(PROBE_TIMEOUT):
                        await stirred.wait()
        except SpringtideError as error:
            _log.info("%s: whether LISTEN works could not be tried: %s", self.name, error)
            return False
        if raw.is_closed():
            return False
        await raw.remove_listener(channel, arrive)
        if not arrived and self._warned != dsn:
            self._warned = dsn
            _log.warning(
                "%s: LISTEN does not work at %s, a transaction pooler: workers need the address of the server"
                " itself. Until they have it nothing wakes them, they poll every %g s",
                self.name,
                urlsplit(dsn).netloc.rpartition("@")[2],
                self._poll,
            )
        return True

    def _on_notice(self, connection: Any, pid: int, channel: str, payload: Any) -> None:
        self._heard(str(payload))
