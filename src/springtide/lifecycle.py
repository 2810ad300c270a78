"""One start/stop contract, the one periodic loop, supervised tasks.

A service is new -> starting -> running -> stopping -> stopped, and may be started again.
`start` and `stop` are idempotent and may be called concurrently, in any order, and cancelled at any await:
whoever comes while a change is under way waits for it. A start that fails leaves nothing behind.
`stop` during `start` ends the start; of a start and a stop that overlap, the later call wins, and the
earlier one returns once it was overruled. Nothing is ever half open.
Services belong to nobody's request: what they start does not see the context of whoever started them.

The shape follows River's start/stop contract; the tests run its stress test against every service.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Protocol

from springtide.clock import Clock, SystemClock
from springtide.context import detached
from springtide.signals import NullSink, ServiceChanged, Sink, TaskFailed

__all__ = ["Group", "Periodic", "Service", "StartStop", "Supervised"]

_log = logging.getLogger(__name__)


class Service(Protocol):
    @property
    def name(self) -> str:
        """For people: shown in logs and errors."""

    async def start(self) -> None:
        """Return when the service works; raise when it cannot."""

    async def stop(self) -> None:
        """Return when nothing of the service is left."""


class StartStop:
    """The contract as a part: a service holds one and forwards `start` and `stop` to it.

    `opening` acquires everything or raises and leaves nothing; `closing` releases everything. Each runs in
    its own task, so that a cancelled caller never leaves a change half done.
    """

    def __init__(
        self,
        name: str,
        opening: Callable[[], Coroutine[Any, Any, None]],
        closing: Callable[[], Coroutine[Any, Any, None]],
        *,
        sink: Sink | None = None,
    ) -> None:
        self.name = name
        self.state = "new"
        self._opening = opening
        self._closing = closing
        self._sink = sink or NullSink()
        self._change: asyncio.Task[None] | None = None
        self._ending = False
        self._stops = 0

    @property
    def running(self) -> bool:
        return self.state == "running"

    async def start(self) -> None:
        stops = self._stops
        while self.state != "running" and self._stops == stops:
            if self._change is None:
                self._change = self._spawn(self._opening(), "start")
            change, starting = self._change, self.state == "starting" and not self._ending
            await _outcome(change)
            if starting and self._stops == stops:
                change.result()  # raises what the opening raised
            elif starting and not change.cancelled() and (error := change.exception()) is not None:
                raise error

    async def stop(self) -> None:
        self._stops += 1
        while self.state not in ("new", "stopped", "failed"):
            if self._change is None:
                self._change = self._spawn(self._closing(), "stop")
            elif self.state == "starting" and not self._ending:
                self._ending = True
                self._change.cancel()  # once: a second one would cut short how the opening cleans up
            change, stopping = self._change, self.state == "stopping"
            await _outcome(change)
            if stopping:
                change.result()
                return  # it was down; who starts it again came later
            if change.cancelled() or change.exception() is not None:
                return

    def _spawn(self, body: Coroutine[Any, Any, None], verb: str) -> asyncio.Task[None]:
        self._ending = False
        self._enter("starting" if verb == "start" else "stopping")
        loop = asyncio.get_running_loop()
        task = loop.create_task(body, name=f"{self.name}:{verb}", context=detached())
        task.add_done_callback(self._settle)
        return task

    def _settle(self, task: asyncio.Task[None]) -> None:
        self._change = None
        error = None if task.cancelled() else task.exception()
        if self.state == "stopping":
            self._enter("stopped", error)
        elif error is not None:
            self._enter("failed", error)
        elif task.cancelled():
            self._enter("stopped" if self._ending else "failed")
        elif self._ending:  # it opened in spite of the stop
            self._change = self._spawn(self._closing(), "stop")
        else:
            self._enter("running")

    def _enter(self, state: str, error: BaseException | None = None) -> None:
        self.state = state
        self._sink.emit(ServiceChanged(self.name, state, repr(error) if error is not None else None))


async def _outcome(task: asyncio.Task[None]) -> None:
    """Wait for `task` without passing the waiter's cancellation on to it; its result stays with the task."""
    await asyncio.wait([task])


async def _finish(body: Coroutine[Any, Any, None]) -> None:
    """Run `body` to its end even if the caller is cancelled meanwhile; that is raised after it."""
    task = asyncio.get_running_loop().create_task(body)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # seen; the cancellation is what the caller must hear of
        raise cancelled
    task.result()


def _ours(task: asyncio.Task[Any] | None) -> bool:
    """True when the running task was asked to end; a CancelledError without that came from inside."""
    return task is not None and task.cancelling() > 0


class Group:
    """Services started in order and stopped in reverse; a failed start stops what had started."""

    def __init__(self, name: str, services: Sequence[Service], *, sink: Sink | None = None) -> None:
        self.name = name
        self._services = tuple(services)
        self._started: list[Service] = []
        self._life = StartStop(name, self._open, self._close, sink=sink)

    @property
    def state(self) -> str:
        return self._life.state

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    async def _open(self) -> None:
        try:
            for service in self._services:
                self._started.append(service)
                await service.start()
        except BaseException:
            with contextlib.suppress(ExceptionGroup):  # logged each; why the start failed matters more
                await _finish(self._close())
            raise

    async def _close(self) -> None:
        errors: list[Exception] = []
        while self._started:
            service = self._started.pop()
            try:
                await service.stop()
            except Exception as error:  # the others must be stopped all the same
                _log.exception("stopping %s failed", service.name)
                errors.append(error)
        if errors:
            raise ExceptionGroup(f"{self.name}: {len(errors)} services failed to stop", errors)


class Supervised:
    """One task that should run for ever; when it raises it is started again.

    Delay before start n: min(backoff * 2**(n-1), max_backoff), multiplied by a uniform factor in
    [0.5, 1.5), which keeps a fleet from retrying in step. A run longer than `max_backoff` resets n.
    A body that returns is done, and one that fails while it is stopped has failed for the last time.
    """

    def __init__(
        self,
        name: str,
        body: Callable[[], Awaitable[None]],
        *,
        backoff: float = 0.1,
        max_backoff: float = 30.0,
        clock: Clock | None = None,
        sink: Sink | None = None,
    ) -> None:
        if not 0 < backoff <= max_backoff:
            raise ValueError(f"backoff must be > 0 and <= max_backoff, got {backoff} and {max_backoff}")
        self.name = name
        self._body = body
        self._backoff = backoff
        self._max_backoff = max_backoff
        self._clock = clock or SystemClock()
        self._sink = sink or NullSink()
        self._task: asyncio.Task[None] | None = None
        self._life = StartStop(name, self._open, self._close, sink=sink)

    @property
    def state(self) -> str:
        return self._life.state

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    async def _open(self) -> None:
        # an opening runs detached from any request, and what it starts inherits that
        self._task = asyncio.get_running_loop().create_task(self._run(), name=self.name)

    async def _close(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _run(self) -> None:
        me = asyncio.current_task()
        failures = 0
        while not _ours(me):  # a body that lost its cancellation is not started again
            begun = self._clock.monotonic()
            try:
                await self._body()
                return
            except (Exception, asyncio.CancelledError) as error:
                if _ours(me):
                    if isinstance(error, Exception):  # it failed on its way out: nobody else would hear of it
                        self._sink.emit(TaskFailed(self.name, repr(error), None))
                        _log.exception("%s failed while it was stopped", self.name)
                        return
                    raise
                if self._clock.monotonic() - begun > self._max_backoff:
                    failures = 0
                failures += 1
                ceiling = min(self._backoff * 2 ** min(failures - 1, 32), self._max_backoff)
                delay = ceiling * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load, hides nothing
                self._sink.emit(TaskFailed(self.name, repr(error), delay))
                _log.exception("%s failed, next try in %.1f s", self.name, delay)
            await self._clock.sleep(delay)


class Periodic:
    """Call `body` every `every` seconds, jittered; a call that raises is logged and the next one comes.

    Each pause is every * uniform(1 - jitter, 1 + jitter), the first one before the first call unless that
    comes `at_once`. Calls never overlap.
    """

    def __init__(
        self,
        name: str,
        body: Callable[[], Awaitable[None]],
        *,
        every: float,
        jitter: float = 0.1,
        at_once: bool = False,
        clock: Clock | None = None,
        sink: Sink | None = None,
    ) -> None:
        if every <= 0:
            raise ValueError(f"every must be > 0 seconds, got {every}")
        if not 0 <= jitter < 1:
            raise ValueError(f"jitter must be in [0, 1), got {jitter}")
        self.name = name
        self._body = body
        self._every = every
        self._jitter = jitter
        self._at_once = at_once
        self._clock = clock or SystemClock()
        self._sink = sink or NullSink()
        self._task = Supervised(name, self._loop, clock=self._clock, sink=sink)

    @property
    def state(self) -> str:
        return self._task.state

    async def start(self) -> None:
        await self._task.start()

    async def stop(self) -> None:
        await self._task.stop()

    async def _loop(self) -> None:
        me = asyncio.current_task()
        pausing = not self._at_once
        while not _ours(me):
            if pausing:
                pause = self._every * random.uniform(1 - self._jitter, 1 + self._jitter)  # noqa: S311
                await self._clock.sleep(pause)
            pausing = True
            try:
                await self._body()
            except (Exception, asyncio.CancelledError) as error:
                if _ours(me):
                    raise
                self._sink.emit(TaskFailed(self.name, repr(error), self._every))
                _log.exception("%s failed, next call in about %.1f s", self.name, self._every)
