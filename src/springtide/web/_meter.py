"""How much CPU one request used, measured by stepping its handler.

A coroutine runs in steps, from one suspension to the next. Timing each step with the thread's CPU clock gives
what the request itself cost, without its waits and without what other requests did in between. A timer around
the whole `await` would give wall time, and one around the call only the making of the coroutine object.

`time.thread_time` and not `perf_counter`: on a busy machine the latter also counts the time in which the
kernel ran somebody else. It costs two system calls per step (bench.web prints the price).
Not counted: tasks that the handler starts, and work in threads.
"""

from __future__ import annotations

from collections.abc import Awaitable, Generator
from time import thread_time
from typing import Any

__all__ = ["Meter"]


class Meter:
    """Awaits `body` and adds up the CPU seconds of its steps; `seconds()` may be asked at any time."""

    __slots__ = ("_begun", "_body", "_total")

    def __init__(self, body: Awaitable[object]) -> None:
        self._body = body
        self._total = 0.0
        self._begun: float | None = None

    def seconds(self) -> float:
        """CPU seconds so far; the running step is included when asked from inside it."""
        return self._total if self._begun is None else self._total + thread_time() - self._begun

    def __await__(self) -> Generator[Any, Any, None]:
        stepper = self._body.__await__()
        send = getattr(stepper, "send", None) or _ignoring(stepper)
        value: Any = None
        thrown: BaseException | None = None
        while True:
            self._begun = begun = thread_time()
            try:
                if thrown is None:
                    waits_for = send(value)
                else:
                    error, thrown = thrown, None
                    waits_for = stepper.throw(error)
            except StopIteration:
                return
            finally:
                self._total += thread_time() - begun
                self._begun = None
            try:
                value = yield waits_for
            except GeneratorExit:
                stepper.close()
                raise
            except BaseException as error:  # a cancellation, or what the awaited future raised
                thrown = error


def _ignoring(stepper: Any) -> Any:
    """`send` for an awaitable whose iterator is not a generator: it can only be stepped."""
    return lambda _value: next(stepper)
