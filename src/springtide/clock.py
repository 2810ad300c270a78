"""Time as a dependency, so that tests decide how it passes.

Durations and deadlines use `monotonic()`; `now()` is only for what people and other machines read.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol

__all__ = ["Clock", "SystemClock"]


class Clock(Protocol):
    def monotonic(self) -> float:
        """Seconds from an arbitrary origin; never goes backwards."""

    def now(self) -> float:
        """Seconds since 1970-01-01 UTC; may jump."""

    async def sleep(self, seconds: float) -> None:
        """Return after `seconds` (at once when <= 0)."""


class SystemClock:
    __slots__ = ()

    monotonic = staticmethod(time.monotonic)
    now = staticmethod(time.time)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(max(seconds, 0.0))
