"""Wake up at a planned time, more exactly than an event loop does by itself.

asyncio and uvloop round timers up to whole milliseconds, which a latency measured from its planned send time
would contain. On Linux the pacer waits on a timerfd (CLOCK_MONOTONIC, absolute) watched by the loop: some
tens of microseconds late on an idle machine. Elsewhere it falls back to the loop's own timers.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import sys
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["LoopPacer", "Pacer", "TimerPacer", "pacer"]

_CLOCK_MONOTONIC = 1
_ABSOLUTE = 1


class Pacer(Protocol):
    async def until(self, when: float) -> None:
        """Return as soon as possible after `when`, in seconds of `time.monotonic()`."""

    def close(self) -> None: ...


class LoopPacer:
    """The loop's own timers: at most about a millisecond late."""

    async def until(self, when: float) -> None:
        while (rest := when - time.monotonic()) > 0:  # noqa: ASYNC110 - waits for a time, not a state
            await asyncio.sleep(rest)

    def close(self) -> None:
        return None


class _Spec(ctypes.Structure):
    _fields_ = (("interval", ctypes.c_long * 2), ("value", ctypes.c_long * 2))


class TimerPacer:
    """A timerfd; for one waiter at a time. Raises OSError where the system has none."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._set: Callable[..., int] = libc.timerfd_settime
        fd = libc.timerfd_create(_CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create failed")
        self._fd: int | None = fd
        self._loop = loop
        self._spec = _Spec()
        self._waiter: asyncio.Future[None] | None = None
        loop.add_reader(fd, self._expired)

    async def until(self, when: float) -> None:
        if self._fd is None:
            raise RuntimeError("the pacer is closed")
        if self._waiter is not None:
            raise RuntimeError("a TimerPacer has one waiter at a time")
        if when <= time.monotonic():
            return
        nanoseconds = int(when * 1e9) + 1  # never early
        self._spec.value[:] = [nanoseconds // 1_000_000_000, nanoseconds % 1_000_000_000]
        self._waiter = self._loop.create_future()
        try:
            if self._set(self._fd, _ABSOLUTE, ctypes.byref(self._spec), None) != 0:
                raise OSError(ctypes.get_errno(), "timerfd_settime failed")
            await self._waiter
        finally:
            self._waiter = None

    def _expired(self) -> None:
        assert self._fd is not None
        try:
            os.read(self._fd, 8)
        except BlockingIOError:
            return  # armed again since it fired
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def close(self) -> None:
        fd, self._fd = self._fd, None
        if fd is not None:
            self._loop.remove_reader(fd)
            os.close(fd)


def pacer() -> Pacer:
    """The best one that this system offers, on the running loop."""
    return TimerPacer(asyncio.get_running_loop()) if sys.platform == "linux" else LoopPacer()
