"""How many loads this process has under way at once, and how many may wait.

A level that is gone, cold or flushed turns every read into a load. What then reaches the database is bounded
here: `most` loads at a time, `queue` that wait in the order in which they came, and the next one is turned
away (`LoadsSaturated`). How long one waits is bounded by its own time.

A load that another load waits for passes at once, also when it stood in line already: it would wait for a
place that whoever waits for it holds. So loads that begin others may be more than `most`, never stuck.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from types import TracebackType

from springtide.errors import LoadsSaturated

__all__ = ["Admission", "Turn", "inside"]

_inside: contextvars.ContextVar[bool] = contextvars.ContextVar("springtide.cache.loading", default=False)

inside = _inside.get
"""Whether this is the context of a load."""


class Admission:
    """Counts `running` loads, those `waiting` and how many were `refused`."""

    def __init__(self, most: int, queue: int) -> None:
        if most < 1:
            raise ValueError(f"max_loads must be >= 1, got {most}")
        if queue < 0:
            raise ValueError(f"max_waiting must be >= 0, got {queue}")
        self.most = most
        self.queue = queue
        self.running = 0
        self.refused = 0
        self._line: deque[Turn] = deque()

    @property
    def waiting(self) -> int:
        return len(self._line)

    def turn(self, *, hurried: bool = False) -> Turn:
        """`async with` it around a load, in the load's own task. hurried: another load waits for it."""
        return Turn(self, hurried)


class Turn:
    """One load's place: new -> (in line ->) running -> over."""

    __slots__ = ("_admission", "_granted", "_hurried", "_token")

    def __init__(self, admission: Admission, hurried: bool) -> None:
        self._admission = admission
        self._hurried = hurried
        self._granted: asyncio.Future[None] | None = None
        self._token: contextvars.Token[bool] | None = None

    def hurry(self) -> None:
        """Another load waits for this one: it waits no longer."""
        self._hurried = True
        if self._granted is not None and not self._granted.done():
            self._admission._line.remove(self)
            self._admission.running += 1
            self._granted.set_result(None)

    async def __aenter__(self) -> None:
        admission = self._admission
        if self._hurried or admission.running < admission.most:
            admission.running += 1
        else:
            await self._queue(admission)
        self._token = _inside.set(True)

    async def _queue(self, admission: Admission) -> None:
        if len(admission._line) >= admission.queue:
            admission.refused += 1
            raise LoadsSaturated(
                f"{admission.running} loads of cached values are under way and {len(admission._line)} wait",
                retry_after=1.0,
            )
        self._granted = asyncio.get_running_loop().create_future()
        admission._line.append(self)
        try:
            await self._granted
        except asyncio.CancelledError:
            if not self._granted.cancelled():
                self._release()  # it was given the place in the moment in which it left
            elif self in admission._line:
                admission._line.remove(self)
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _inside.reset(self._token)
        self._release()

    def _release(self) -> None:
        admission = self._admission
        admission.running -= 1
        while admission._line and admission.running < admission.most:
            granted = admission._line.popleft()._granted
            if granted is not None and not granted.done():  # else its load has just been cancelled
                admission.running += 1
                granted.set_result(None)
