"""Attempts to connect, and what is known from the last one.

failures counts attempts in a row; error is the last failure, None after a success; hopeless says that
waiting does not mend it; pause is how long to wait before the next attempt:
min(BACKOFF * 2**(failures - 1), MAX_BACKOFF, max_pause), times a uniform factor in [0.5, 1].

Behind a pooler it connects to that one alone (`via`); `target` is then the server that the pooler leads to as
far as is known, "" until somebody has said.

A standby says what it is when it is connected to (`in_hot_standby`), so leaving it costs no round trip.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping

import asyncpg
from asyncpg import exceptions as pg

from springtide.clock import Clock
from springtide.db._link import ASYNCPG_ERRORS, STATEMENTS, Link, RawConnection, open_link
from springtide.db._pooled import PooledLink, never_lets_in
from springtide.signals import NullSink, Sink

__all__ = ["HOPELESS", "Connector"]

CONNECT_TIMEOUT = 5.0
BACKOFF = 0.05
MAX_BACKOFF = 0.5

HOPELESS = (
    pg.InvalidAuthorizationSpecificationError,
    pg.InvalidCatalogNameError,
    pg.InsufficientPrivilegeError,
    pg.CantChangeRuntimeParamError,
    pg.UndefinedObjectError,
    pg.InvalidParameterValueError,
    asyncpg.InterfaceError,
    ValueError,
)
"""Wrong name, password, database, setting or URL."""


class Connector:
    def __init__(
        self,
        dsn: str,
        *,
        cluster: str,
        max_age: float,
        max_pause: float,
        clock: Clock,
        sink: Sink,
        server_settings: Mapping[str, str],
        primary_only: bool = False,
        pooled: bool = False,
        prepared_statements: bool = True,
    ) -> None:
        self.dsn: str | None = dsn
        self.via = dsn if pooled else None
        self.target: str | None = "" if pooled else dsn
        self._last = dsn
        self._cluster = cluster
        self._max_age = max_age
        self._max_pause = max_pause
        self._clock = clock
        self._sink = None if isinstance(sink, NullSink) else sink
        self._settings = {"application_name": "springtide", **server_settings}
        self._primary_only = primary_only
        self._kind = PooledLink if pooled else Link
        self._statements = STATEMENTS if prepared_statements else 0
        self.check: Callable[[RawConnection], Awaitable[None]] | None = None
        self.failures = 0
        self.error: BaseException | None = None
        self.hopeless = False
        self.pause = 0.0

    def address(self) -> str:
        """Where it connects to now, or did last."""
        return self._last

    def aim(self, dsn: str | None, error: BaseException | None) -> None:
        """Connect to `dsn` from now on; None: to nobody, because of `error`."""
        self.dsn = dsn
        self._last = dsn or self._last
        self.failures = 0
        self.error = error
        self.hopeless = False

    async def attempt(self, generation: int) -> Link | None:
        """Connect, within CONNECT_TIMEOUT; None when it failed. There must be a `dsn`."""
        assert self.dsn is not None
        try:
            link = await open_link(
                self.dsn,
                cluster=self._cluster,
                timeout=CONNECT_TIMEOUT,
                clock=self._clock,
                sink=self._sink,
                server_settings=self._settings,
                generation=generation,
                max_age=self._max_age * random.uniform(0.8, 1.0),  # noqa: S311 - spreads load
                kind=self._kind,
                statements=self._statements,
            )
            if self._primary_only and link.standby:
                link.close()
                raise ConnectionRefusedError(f"the server of {self._cluster} is a standby")
            if self.check is not None:
                await self._show(link, self.check)
        except (TimeoutError, *ASYNCPG_ERRORS, OSError, ValueError) as error:
            self.failures += 1
            self.error = error
            self.hopeless = isinstance(error, HOPELESS) or never_lets_in(error)
            ceiling = min(BACKOFF * 2 ** min(self.failures - 1, 10), MAX_BACKOFF, self._max_pause)
            self.pause = ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load
            return None
        self.failures = 0
        self.error = None
        self.hopeless = False
        return link

    async def _show(self, link: Link, check: Callable[[RawConnection], Awaitable[None]]) -> None:
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                await check(link.raw)
        except BaseException:
            link.close()
            raise
