"""Attempts to connect, and what is known from the last one.

failures counts attempts in a row; error is the last failure, None after a success; hopeless says that
waiting does not mend it; pause is how long to wait before the next attempt:
min(BACKOFF * 2**(failures - 1), MAX_BACKOFF, max_pause), times a uniform factor in [0.5, 1].
"""

from __future__ import annotations

import random
from collections.abc import Mapping

import asyncpg
from asyncpg import exceptions as pg

from springtide.clock import Clock
from springtide.db._link import ASYNCPG_ERRORS, Link, open_link
from springtide.signals import NullSink, Sink

__all__ = ["Connector"]

CONNECT_TIMEOUT = 5.0
BACKOFF = 0.05
MAX_BACKOFF = 0.5

_HOPELESS = (
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
    ) -> None:
        self._dsn = dsn
        self._cluster = cluster
        self._max_age = max_age
        self._max_pause = max_pause
        self._clock = clock
        self._sink = None if isinstance(sink, NullSink) else sink
        self._settings = {"application_name": "springtide", **server_settings}
        self.failures = 0
        self.error: BaseException | None = None
        self.hopeless = False
        self.pause = 0.0

    def address(self) -> str:
        """Where it connects to now."""
        return self._dsn

    async def attempt(self, generation: int) -> Link | None:
        """Connect, within CONNECT_TIMEOUT; None when it failed."""
        try:
            link = await open_link(
                self._dsn,
                cluster=self._cluster,
                timeout=CONNECT_TIMEOUT,
                clock=self._clock,
                sink=self._sink,
                server_settings=self._settings,
                generation=generation,
                max_age=self._max_age * random.uniform(0.8, 1.0),  # noqa: S311 - spreads load
            )
        except (TimeoutError, *ASYNCPG_ERRORS, OSError, ValueError) as error:
            self.failures += 1
            self.error = error
            self.hopeless = isinstance(error, _HOPELESS)
            ceiling = min(BACKOFF * 2 ** min(self.failures - 1, 10), MAX_BACKOFF, self._max_pause)
            self.pause = ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load
            return None
        self.failures = 0
        self.error = None
        self.hopeless = False
        return link
