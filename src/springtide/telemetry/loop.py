"""How late the event loop is: a sleeper that wakes up too late was kept waiting by somebody's code.

Lag is the time between when a sleep was due and when it ran. A loop that does not run at all is seen by
`lag()`, which counts a sleep that is overdue right now.
"""

from __future__ import annotations

from collections.abc import Callable

from springtide.clock import Clock, SystemClock
from springtide.lifecycle import Supervised
from springtide.signals import Sink

__all__ = ["LoopMonitor"]


class LoopMonitor:
    """A service that measures the lag every `every` seconds and hands it to `observe`."""

    def __init__(
        self,
        *,
        observe: Callable[[float], None] | None = None,
        every: float = 0.5,
        clock: Clock | None = None,
        sink: Sink | None = None,
    ) -> None:
        if every <= 0:
            raise ValueError(f"every must be > 0 seconds, got {every}")
        self.name = "loop monitor"
        self._every = every
        self._observe = observe
        self._clock = clock or SystemClock()
        self._due: float | None = None
        self._last = 0.0
        self._task = Supervised(self.name, self._run, clock=self._clock, sink=sink)

    @property
    def state(self) -> str:
        return self._task.state

    async def start(self) -> None:
        await self._task.start()

    async def stop(self) -> None:
        await self._task.stop()
        self._due = None
        self._last = 0.0

    def lag(self) -> float:
        """Seconds: the last measured lag, or how much the present sleep is overdue if that is more."""
        overdue = 0.0 if self._due is None else self._clock.monotonic() - self._due
        return max(self._last, overdue, 0.0)

    async def _run(self) -> None:
        while True:
            self._due = self._clock.monotonic() + self._every
            await self._clock.sleep(self._every)
            self._last = max(self._clock.monotonic() - self._due, 0.0)
            if self._observe is not None:
                self._observe(self._last)
