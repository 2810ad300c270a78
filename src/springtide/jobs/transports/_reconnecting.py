"""One connection of a driver: made when it is asked for, made again when it was lost, never in a hurry.

    none -> connecting -> connected -> lost -> none

After a failure the next attempt waits: FIRST_PAUSE, doubled up to MOST_PAUSE, half of it at random, so that
the processes of a platform do not come back to a broker all at once. Who asks meanwhile waits no longer than
it said. There is no task of its own: nobody asks, nobody connects.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from springtide.clock import Clock
from springtide.errors import TransportUnavailable

__all__ = ["Reconnecting", "pause"]

L = TypeVar("L")

FIRST_PAUSE = 0.1
MOST_PAUSE = 5.0


def pause(failures: int, chance: float) -> float:
    """Seconds after so many failures in a row; `chance` is in 0..1."""
    full = min(FIRST_PAUSE * 2.0 ** min(failures - 1, 30), MOST_PAUSE)
    return full * (0.5 + chance / 2)


class Reconnecting(Generic[L]):
    """`opening` raises one of `errors` when it cannot, and leaves nothing; `closing` raises nothing."""

    def __init__(
        self,
        who: str,
        opening: Callable[[], Awaitable[L]],
        closing: Callable[[L], Awaitable[None]],
        alive: Callable[[L], bool],
        *,
        errors: tuple[type[Exception], ...],
        clock: Clock,
    ) -> None:
        self._who = who
        self._opening = opening
        self._closing = closing
        self._alive = alive
        self._errors = errors
        self._clock = clock
        self._lock = asyncio.Lock()
        self._link: L | None = None
        self._failures = 0
        self._not_before = 0.0
        self._why = "nobody is connected"

    @property
    def link(self) -> L | None:
        """The connection, if there is one that works."""
        return self._link if self._link is not None and self._alive(self._link) else None

    async def get(self, *, within: float) -> L:
        """The connection. Raises TransportUnavailable when there is none in `within` seconds."""
        if (link := self.link) is not None:
            return link
        try:
            async with asyncio.timeout(within), self._lock:
                if (link := self.link) is not None:
                    return link
                await self._forget()
                await self._clock.sleep(self._not_before - self._clock.monotonic())
                return await self._connect()
        except TimeoutError:
            raise TransportUnavailable(self._who, self._why, retry_after=MOST_PAUSE) from None

    async def drop(self, link: L, why: str) -> None:
        """Do not use `link` again: it does not do what it should."""
        async with self._lock:
            if link is self._link:
                self._why = why
                await self._forget()

    async def close(self) -> None:
        async with self._lock:
            await self._forget()

    async def _connect(self) -> L:
        try:
            self._link = await self._opening()
        except BaseException as error:
            self._failures += 1
            self._not_before = self._clock.monotonic() + pause(self._failures, random.random())  # noqa: S311
            if not isinstance(error, self._errors):
                raise
            self._why = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise TransportUnavailable(self._who, self._why, retry_after=MOST_PAUSE) from error
        self._failures = 0
        return self._link

    async def _forget(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await self._closing(link)
