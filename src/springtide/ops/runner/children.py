"""Keep one program running: started, watched, started again when it ends.

new -> starting -> running <-> restarting -> (retiring ->) stopping -> stopped, or failed when it never became
ready. Retiring, it ends by itself when it has finished what it does, and is not started again.

Until it was ready for the first time, `max_attempts` crashes end it with the last error, and any other
failure (no rights, no room) at once: something is wrong that waiting does not mend. After that it is started
again for ever, with growing pauses: a platform that serves must not end because one of its processes has a
bad hour.
"""

from __future__ import annotations

import asyncio
import logging
import random
import signal
from collections.abc import Awaitable, Callable

from springtide.clock import Clock, SystemClock
from springtide.errors import ProcessCrashed, RunnerError
from springtide.lifecycle import StartStop
from springtide.ops.runner.home import NodeState
from springtide.ops.runner.processes import adopt
from springtide.ops.runner.programs import Program

__all__ = ["Child"]

_log = logging.getLogger(__name__)


class Child:
    """A supervised program. `changed` is called after each change of state, `restarted` after a restart.

    `ended` is awaited as soon as the program has ended, without a pause. `before` is awaited before each
    restart and may change what the program is to do; RunnerError from it counts as a start that failed.

    Pause before restart n: backoff * 2**(n-1), at most `max_backoff`, times a factor in [0.5, 1.5).
    A run longer than `max_backoff` counts as healthy and starts the series anew.
    """

    def __init__(
        self,
        program: Program,
        kind: str,
        *,
        changed: Callable[[], None],
        restarted: Callable[[], None] | None = None,
        ended: Callable[[], Awaitable[None]] | None = None,
        before: Callable[[], Awaitable[None]] | None = None,
        max_attempts: int = 3,
        backoff: float = 0.2,
        max_backoff: float = 15.0,
        clock: Clock | None = None,
    ) -> None:
        if max_attempts < 1:
            raise ValueError(f"max_attempts must be >= 1, got {max_attempts}")
        if not 0 < backoff <= max_backoff:
            raise ValueError(f"backoff must be > 0 and <= max_backoff, got {backoff} and {max_backoff}")
        self.program = program
        self.kind = kind
        self.restarts = 0
        self.failed_at = float("-inf")
        """When it last ended or could not be started, in monotonic seconds of the clock."""
        self._changed = changed
        self._restarted = restarted
        self._ended = ended
        self._before = before
        self._max_attempts = max_attempts
        self._backoff = backoff
        self._max_backoff = max_backoff
        self._clock = clock or SystemClock()
        self._state = "new"
        self._error: str | None = None
        self._since = self._clock.now()
        self._watch: asyncio.Task[None] | None = None
        self._life = StartStop(program.name, self._open, self._close)

    @property
    def name(self) -> str:
        return self.program.name

    @property
    def failure(self) -> str | None:
        """Why the last run or start ended; None while it runs well."""
        return self._error

    @property
    def running(self) -> bool:
        return self._state == "running"

    def state(self) -> NodeState:
        running = self.running
        return NodeState(
            name=self.name,
            kind=self.kind,
            state=self._state,
            identity=self.program.identity if running else None,
            address=self.program.address if running else None,
            since=self._since,
            restarts=self.restarts,
            error=self._error,
        )

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    def restart(self) -> None:
        """Ask the process to end, for a change that it reads at its start only; the watch starts it again."""
        if self._state == "running" and (process := adopt(self.program.identity)) is not None:
            process.send(signal.SIGTERM)

    async def retire(self, sig: signal.Signals, seconds: float) -> None:
        """Tell the program by `sig` to finish what it does and end; return when it has, or was stopped after
        `seconds`. A stop meanwhile stops it at once."""
        try:
            if self._life.running:
                await self._unwatch()
                self._enter("retiring")
                process = await asyncio.to_thread(adopt, self.program.identity)
                if process is not None and process.send(sig):
                    async with asyncio.timeout(seconds):
                        await self.program.wait()
        except (TimeoutError, RunnerError) as error:
            _log.warning("%s did not end by itself: %s", self.name, str(error) or f"not within {seconds:g} s")
        finally:
            await self.stop()

    async def _open(self) -> None:
        self._enter("starting")
        try:
            await self._first_start()
        except BaseException:
            await self.program.stop()  # a start whose caller is cancelled may go on by itself
            self._enter("failed")
            raise
        self._error = None
        self._enter("running")
        self._watch = asyncio.get_running_loop().create_task(self._keep(), name=f"watch {self.name}")
        self._watch.add_done_callback(self._unwatched)

    async def _first_start(self) -> None:
        for attempt in range(1, self._max_attempts + 1):
            try:
                await self.program.start()
                return
            except ProcessCrashed as error:
                self._error = str(error)
                if attempt == self._max_attempts:
                    raise
                _log.warning("%s: start %d failed, trying again", self.name, attempt)
            await self._clock.sleep(self._pause(attempt))

    async def _close(self) -> None:
        self._enter("stopping")
        await self._unwatch()
        try:
            await self.program.stop()
        finally:
            self._enter("stopped")

    async def _unwatch(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            await asyncio.wait([watch])

    async def _keep(self) -> None:
        failures = 0
        while True:
            begun = self._clock.monotonic()
            status = await self.program.wait()
            failures = 0 if self._clock.monotonic() - begun > self._max_backoff else failures
            self._fail(f"ended with {_ending(status)}")
            if self._ended is not None:
                try:
                    await self._ended()
                except (RunnerError, OSError) as error:
                    self._fail(str(error))
            while True:
                failures += 1
                await self._clock.sleep(self._pause(failures))
                try:
                    if self._before is not None:
                        await self._before()
                    await self.program.stop()  # what the dead process left
                    await self.program.start()
                    break
                except (RunnerError, OSError) as error:
                    self._fail(str(error))
            self.restarts += 1
            self._error = None
            self._enter("running")
            _log.info("%s runs again", self.name)
            if self._restarted is not None:
                self._restarted()

    def _unwatched(self, watch: asyncio.Task[None]) -> None:
        """Nothing ends the watch but a stop; a fault of ours that does must not go unheard."""
        if not watch.cancelled() and (error := watch.exception()) is not None:
            _log.critical("%s is not watched any more", self.name, exc_info=error)
            self._error = f"it is not watched any more: {error!r}"
            self._enter("failed")

    def _pause(self, failures: int) -> float:
        ceiling = min(self._backoff * 2.0 ** min(failures - 1, 16), self._max_backoff)
        return ceiling * random.uniform(0.5, 1.5)  # noqa: S311 - spreads restarts, hides nothing

    def _fail(self, error: str) -> None:
        self._error = error
        self.failed_at = self._clock.monotonic()
        _log.error("%s %s", self.name, error)
        self._enter("restarting")

    def _enter(self, state: str) -> None:
        self._state = state
        self._since = self._clock.now()
        self._changed()


def _ending(status: int | None) -> str:
    if status is None:
        return "an unknown exit status"
    return f"signal {-status}" if status < 0 else f"exit status {status}"
