"""Claim due jobs as slots become free, run them, write how they ended; drain at the end.

One loop for all databases of the process. A claim asks for at most the free slots, divided among the lines
(one module's jobs on one shard) that may have something; lines take turns, and each has one claim under way
at most, so neither a full nor a frozen database keeps the others waiting.
A line is due when its bell rang, when its last claim was filled, or when its polling time has come.

running -> draining: no more claims; what a claim still brings is handed back; running jobs get `drain`
seconds, then they are cancelled and handed back. A handler that ignores that is left behind with its lease
running out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import secrets
import socket
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import asyncpg

from springtide.clock import Clock
from springtide.context import Priority, RequestContext, activate, detached
from springtide.errors import SpringtideError
from springtide.jobs._heart import GRACE, Heart, Lease
from springtide.jobs._run import JobRun, Route
from springtide.jobs._store import Claimed, Ending, RunName, Store
from springtide.lifecycle import StartStop, Supervised
from springtide.signals import JobFinished, Sink, TaskFailed

__all__ = ["Dispatcher", "Line"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

STATEMENT_TIMEOUT = 5.0
"""Seconds that a claim or the end of a run may take before it counts as failed."""

MAX_PAUSE = 10.0
"""Longest pause, in seconds, between claims on a database that fails."""

CANCEL_TIMEOUT = 2.0
"""Seconds that cancelled handlers have at shutdown."""


class Line:
    """One module's jobs on one shard, as the dispatcher sees them."""

    def __init__(self, store: Store, routes: Mapping[str, Route]) -> None:
        self.store = store
        self.routes = dict(routes)
        self.names = sorted(routes)
        self.due_at = 0.0
        self.claiming = False
        self.rung = False
        self.failures = 0


class Dispatcher:
    """A lifecycle service; see the module. `name` is shown as the worker that holds a job."""

    def __init__(
        self,
        lines: Sequence[Line],
        *,
        slots: int,
        lease: float,
        poll: float,
        drain: float,
        label: str,
        clock: Clock,
        sink: Sink,
    ) -> None:
        self.name = "jobs dispatch"
        self.heart: Heart  # set by the worker, which makes both
        self._lines = list(lines)
        self._slots = slots
        self._lease = lease
        self._poll = poll
        self._drain = drain
        self._label = label
        self._clock = clock
        self._sink = sink
        self._worker = ""
        self._draining = False
        self._reserved = 0
        self._runs: dict[tuple[str, RunName], tuple[JobRun, asyncio.Task[None]]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._wake = asyncio.Event()
        self._loop = Supervised(f"{self.name} loop", self._dispatch, clock=clock, sink=sink)
        self._life = StartStop(self.name, self._open, self._close, sink=sink)

    @property
    def state(self) -> str:
        return self._life.state

    @property
    def running(self) -> int:
        """How many jobs run now."""
        return len(self._runs)

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    def ring(self, shard: str, schema: str | None) -> None:
        """Rows of `schema` (None: of any) on `shard` may be due now."""
        for line in self._lines:
            if line.store.shard == shard and schema in (None, line.store.schema):
                line.rung = True
                line.due_at = 0.0
        self._wake.set()

    def lose(self, leases: list[Lease]) -> None:
        """These runs are not ours any more: their handlers are cancelled."""
        for lease in leases:
            found = self._runs.get((lease.store.schema, lease.run))
            if found is not None and found[0].lease is lease:
                if found[0].ended_by != "lost":
                    _log.warning("the lease of job %s was lost; its handler is cancelled", lease.run.id)
                found[0].cancel("lost")

    async def _open(self) -> None:
        # a name per start: (attempt, worker) must name one run, also after attempts were handed back
        self._worker = f"{self._label}@{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._draining = False
        for line in self._lines:
            line.due_at = 0.0
        await self._loop.start()

    async def _close(self) -> None:
        self._draining = True
        await self._loop.stop()
        until = self._clock.monotonic() + self._drain
        await self._finished(until)
        for run, _ in list(self._runs.values()):
            run.cancel("returned")
        await self._finished(self._clock.monotonic() + CANCEL_TIMEOUT)
        for run, task in list(self._runs.values()):
            _log.error(
                "job %s of kind %s ignores its cancellation; it is left behind, and its lease will run out",
                run.claimed.run.id,
                run.route.kind.name,
            )
            task.cancel()
        tasks = list(self._tasks)
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_TIMEOUT)

    async def _finished(self, until: float) -> None:
        """Wait for claims under way and running jobs, at most until `until`."""
        while self._tasks and (remaining := until - self._clock.monotonic()) > 0:
            await asyncio.wait(list(self._tasks), timeout=remaining)

    # -- claiming --------------------------------------------------------------------------------------

    async def _dispatch(self) -> None:
        while True:
            self._wake.clear()
            now = self._clock.monotonic()
            free = self._slots - len(self._runs) - self._reserved
            due = [line for line in self._lines if not line.claiming and line.due_at <= now]
            while due and free > 0:
                share = -(-free // len(due))
                line = due.pop(0)
                free -= share
                self._lines.remove(line)
                self._lines.append(line)  # who was served last comes last
                self._begin_claim(line, share)
            waiting = [line.due_at for line in self._lines if not line.claiming]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(min(waiting) - now, 0.0) if waiting and free > 0 else None):
                    await self._wake.wait()

    def _begin_claim(self, line: Line, share: int) -> None:
        line.claiming, line.rung = True, False
        self._reserved += share
        task = self._spawn(self._claim(line, share), f"{line.store.module} claim")
        task.add_done_callback(lambda done: self._claimed(line, share, done))

    async def _claim(self, line: Line, share: int) -> tuple[float, list[Claimed]]:
        asked = self._clock.monotonic()
        with activate(RequestContext(deadline=asked + STATEMENT_TIMEOUT)):
            return asked, await line.store.claim(line.names, share, self._worker, self._lease)

    def _claimed(self, line: Line, share: int, done: asyncio.Task[tuple[float, list[Claimed]]]) -> None:
        self._reserved -= share
        line.claiming = False
        self._wake.set()
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        now = self._clock.monotonic()
        if error is not None:
            line.failures += 1
            pause = min(self._poll * 2 ** min(line.failures, 10), MAX_PAUSE)
            line.due_at = now + pause * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load
            what = f"claiming jobs of {line.store.module} on {line.store.shard}"
            self._sink.emit(TaskFailed(what, repr(error), line.due_at - now))
            unexpected = not isinstance(error, SpringtideError | asyncpg.PostgresError)
            _log.warning("%s failed: %s", what, error, exc_info=error if unexpected else None)
            return
        asked, claimed = done.result()
        line.failures = 0
        more = line.rung or len(claimed) == share
        line.due_at = now if more else now + self._poll * random.uniform(0.5, 1.5)  # noqa: S311 - see above
        for job in claimed:
            self._begin_run(line, job, asked)

    def _begin_run(self, line: Line, claimed: Claimed, asked: float) -> None:
        route = line.routes[f"{claimed.kind}/{claimed.version}"]
        lease = Lease(
            line.store,
            claimed.run,
            self._worker,
            until=asked + self._lease,
            renew_until=asked + route.kind.max_run + GRACE,
        )
        run = JobRun(claimed, route, line.store, lease, clock=self._clock)
        if self._draining:
            run.cancel("returned")
        self.heart.hold(lease)
        task = self._spawn(self._run(run), f"job {route.kind.name}")
        task.add_done_callback(self._broken)
        self._runs[line.store.schema, claimed.run] = (run, task)

    # -- running ---------------------------------------------------------------------------------------

    async def _run(self, run: JobRun) -> None:
        begun = self._clock.monotonic()
        try:
            outcome, ending, error = await run.perform()
            seconds = self._clock.monotonic() - begun
            if ending is not None and not await self._write(run, ending):
                outcome = "lost"
            with activate(run.context):  # log lines carry the request and the trace
                self._tell(run, outcome, ending, error, seconds)
        finally:
            self.heart.release(run.lease)
            del self._runs[run.store.schema, run.claimed.run]
            self._wake.set()

    async def _write(self, run: JobRun, ending: Ending) -> bool:
        """Write how the run ended, again and again while the lease lasts; False when it is not ours."""
        pause = 0.1
        while True:
            deadline = self._clock.monotonic() + STATEMENT_TIMEOUT
            try:
                with activate(RequestContext(deadline=deadline, priority=Priority.CRITICAL)):
                    return await run.store.end(run.claimed.run, run.lease.worker, ending)
            except (SpringtideError, asyncpg.PostgresError) as error:
                if run.ended_by == "lost" or self._clock.monotonic() > run.lease.until:
                    _log.warning("how job %s ended could not be written: %s", run.claimed.run.id, error)
                    return False
            await self._clock.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load
            pause = min(pause * 2, 2.0)

    def _tell(
        self, run: JobRun, outcome: str, ending: Ending | None, error: BaseException | None, seconds: float
    ) -> None:
        claimed, context = run.claimed, run.context
        text = ending.error if ending is not None else repr(error) if error is not None else None
        name = f"job {claimed.kind}/{claimed.version} {claimed.run.id}"
        attempt = f"run {claimed.run.attempt} of {claimed.max_attempts}"
        if outcome == "dead":
            _log.error("%s is a dead letter after %s: %s", name, attempt, text, exc_info=error)
        elif outcome == "retry" and ending is not None:
            _log.warning("%s: %s failed, next in %.1f s: %s", name, attempt, ending.delay, text)
        elif outcome == "lost":
            _log.warning("%s: %s was lost, whoever has the job finishes it", name, attempt)
        self._sink.emit(
            JobFinished(
                run.store.module,
                claimed.kind,
                claimed.version,
                str(claimed.run.id),
                claimed.run.attempt,
                outcome,
                claimed.waited,
                seconds,
                context.request_id,
                context.trace,
                context.ledger,
                text,
            )
        )

    def _spawn(self, body: Coroutine[Any, Any, T], what: str) -> asyncio.Task[T]:
        """Run `body` beside the loop; bounded by the slots and the lines."""
        task = asyncio.get_running_loop().create_task(body, name=what, context=detached())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _broken(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._sink.emit(TaskFailed(task.get_name(), repr(error), None))
            _log.error("%s broke; its lease will run out", task.get_name(), exc_info=error)
