"""Keep one link to wherever a server is to be found, and offer it only while it answers.

    searching -> offered <-> tripped      it is late: not offered, but asked until it answers in time again
         ^          |           |
         +----------+-----------+         the link is lost

`link` is what may be used now, None at once when there is doubt: nobody waits for a time-out that can be
foreseen. Once a second the server is asked what it is, which finds dead peers on idle links and
primaries that were demoted; a finder that knows better (Sentinels) is asked too.

Pauses grow from FIRST_PAUSE to MAX_PAUSE, each times a uniform factor in [0.5, 1.5), and start small again
after a link was good for SETTLED seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from typing import Protocol

from springtide.clock import Clock
from springtide.errors import ConfigurationError, RedisUnavailable
from springtide.lifecycle import Supervised
from springtide.redis._address import Endpoint
from springtide.redis._connecting import Connector
from springtide.redis.link import Link
from springtide.signals import RedisChanged, Sink

__all__ = ["Finder", "Keeper"]

_log = logging.getLogger(__name__)

FIRST_PAUSE = 0.02
MAX_PAUSE = 1.0
LOOK_EVERY = 1.0
SETTLED = 5.0


class Finder(Protocol):
    """Says where the server is."""

    async def find(self) -> Endpoint:
        """Raises RedisUnavailable when nobody knows."""

    async def still(self, endpoint: Endpoint) -> bool:
        """False only when it is known that the server to use is another one."""


def _nothing() -> None:
    """Nobody wants to know."""


class Keeper:
    """See the module. `on_doubt` hears when the link is lost or late, or a slot is said to be elsewhere."""

    def __init__(
        self,
        name: str,
        finder: Finder,
        connect: Connector,
        *,
        clock: Clock,
        sink: Sink,
        on_doubt: Callable[[], None] | None = None,
    ) -> None:
        self.link: Link | None = None
        self.endpoint: Endpoint | None = None
        self._name = name
        self._finder = finder
        self._connect = connect
        self._clock = clock
        self._sink = sink
        self._on_doubt = on_doubt or _nothing
        self._pauses = 0
        self._reason: str | None = ""
        self._woken = asyncio.Event()
        self._first: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task = Supervised(f"{name}:keeper", self._run, clock=clock, sink=sink)

    async def start(self) -> None:
        """Return after the first attempt; a server that is not there now is looked for further on.

        Raises ConfigurationError when it is there and can never serve.
        """
        await self._task.start()
        try:
            await asyncio.shield(self._first)
        except BaseException:
            await self._task.stop()
            raise

    async def stop(self) -> None:
        await self._task.stop()

    async def _run(self) -> None:
        while True:
            try:
                endpoint = await self._finder.find()
                link = await self._connect(endpoint)
            except (RedisUnavailable, ConfigurationError) as error:
                self._attempted(error)
                self._tell("lost", str(error), getattr(error, "address", ""))
            except Exception as error:
                self._attempted(error)  # who starts must not wait for ever
                raise
            else:
                await self._keep(link, endpoint)
            await self._clock.sleep(self._pause())

    def _attempted(self, error: Exception | None) -> None:
        if not self._first.done():
            if error is None or isinstance(error, RedisUnavailable):
                self._first.set_result(None)
            else:
                self._first.set_exception(error)
                self._first.exception()  # seen: whoever started may be gone

    def _pause(self) -> float:
        ceiling: float = min(FIRST_PAUSE * 2 ** min(self._pauses, 16), MAX_PAUSE)
        self._pauses += 1
        return ceiling * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load, hides nothing

    def _tell(self, state: str, reason: str, address: str) -> None:
        if reason == self._reason:  # the same as before: once is enough
            return
        self._reason = reason
        self._sink.emit(RedisChanged(self._name, address, state, reason))
        level = logging.INFO if state == "serving" else logging.WARNING
        _log.log(level, "%s: %s %s%s", self._name, address, state, f": {reason}" if reason else "")

    async def _keep(self, link: Link, endpoint: Endpoint) -> None:
        self._woken.clear()
        link.on_trouble, link.on_moved = self._trouble, self._on_doubt
        try:
            self._offer(link, endpoint)
            self._attempted(None)
            await self._watch(link, endpoint)
        finally:
            self.link = None
            link.close()
        self._tell("lost", link.why, link.address)

    def _offer(self, link: Link, endpoint: Endpoint) -> None:
        if link.alive:
            link.untrip()
            self.link, self.endpoint = link, endpoint
            self._reason = None
            self._tell("serving", "", link.address)

    def _trouble(self, link: Link) -> None:
        self.link = None
        self._woken.set()
        self._on_doubt()

    async def _watch(self, link: Link, endpoint: Endpoint) -> None:
        good_since = self._clock.monotonic()
        while link.alive:
            if link.tripped:
                self._tell("silent", "it does not answer in time", link.address)
                await self._clock.sleep(self._pause())
            else:
                await self._idle(LOOK_EVERY * random.uniform(0.5, 1.5))  # noqa: S311 - see _pause
            answered = await self._look(link, endpoint)
            now = self._clock.monotonic()
            if not answered:
                link.trip()
            elif link.tripped:
                good_since = now
                self._offer(link, endpoint)
            elif now - good_since > SETTLED:
                self._pauses = 0

    async def _idle(self, seconds: float) -> None:
        self._woken.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()

    async def _look(self, link: Link, endpoint: Endpoint) -> bool:
        """True when the server answered in time; ends the link when its server is not the one to use."""
        try:
            why = await self._connect.changed(link)
        except RedisUnavailable:
            return False
        if why is None and not await self._finder.still(endpoint):
            why = "another server is the primary now"
        if why is not None:
            link.close(why)
        return link.alive
