"""Claim due jobs as slots become free, run them, write how they ended; drain at the end.

One loop for all databases of the process. A claim asks for at most the free slots, divided among the lines
(one module's jobs on one shard) that may have something; lines take turns, and each has one claim under way
at most (and one ahead: `_room.py`), so neither a full nor a frozen database keeps the others waiting.
A line is due when its bell rang, when its last claim was filled (as soon as half of the slots are free, or
GATHER seconds later), or when its polling time has come.
A slot is free again when the handler has ended; how it ended is written meanwhile, for at most as many runs
as there are slots (or jobs ahead). While a transport brings jobs (`_receive.py`), nothing is claimed
here.

Beside its claims a line moves its cursor (`_readings.py`).

running (-> retiring) -> draining: no more claims. Retiring, what a claim still brings is run, and all jobs
are finished, however long they take. Draining, it is handed back; running jobs get `drain` seconds, then they
are cancelled and handed back. A handler that ignores that is left behind with its lease running out.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import secrets
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

import asyncpg

from springtide.clock import Clock
from springtide.context import Priority, RequestContext, activate, detached
from springtide.errors import SpringtideError
from springtide.jobs._finish import Finisher, results
from springtide.jobs._hands import Hands
from springtide.jobs._heart import Heart, Lease
from springtide.jobs._line import Line
from springtide.jobs._readings import Readings
from springtide.jobs._room import Room
from springtide.jobs._run import JobRun
from springtide.jobs._store import Claimed
from springtide.lifecycle import StartStop, Supervised
from springtide.signals import Sink, TaskFailed

__all__ = ["Dispatcher"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

STATEMENT_TIMEOUT = 5.0
"""Seconds that a claim may take before it counts as failed."""

GATHER = 0.005
"""Seconds at most that a line which has more to do waits until half of the slots are free: a claim costs
about as much for one job as for ten."""

MAX_PAUSE = 10.0
"""Longest pause, in seconds, between claims on a database that fails."""

RETIRED_LOOK = 0.1
"""Seconds between two looks whether anything runs, when nothing more is claimed."""

CANCEL_TIMEOUT = 2.0
"""Seconds that cancelled handlers have at shutdown."""


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
        self._lease = lease
        self._poll = poll
        self._drain = drain
        self._label = label
        self._clock = clock
        self._sink = sink
        self._worker = ""
        self._hands = Hands(
            lease=lease,
            heart=lambda: self.heart,
            changed=self._wake_up,
            let_go=self._let_go,
            clock=clock,
            sink=sink,
        )
        limited = any(line.limits is not None for line in lines)
        self.room = Room(slots, self._hands, limited=limited, freed=self._wake_up, clock=clock)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._wake = asyncio.Event()
        self._readings = Readings(spawn=self._spawn, wake=self._wake.set, clock=clock)
        self.relay: Callable[[str, str | None], None] | None = None  # set by the worker, which makes both
        self.freed = asyncio.Event()
        """Set when there may be more free slots."""
        self._carried = False
        self._loop = Supervised(f"{self.name} loop", self._dispatch, clock=clock, sink=sink)
        self._life = StartStop(self.name, self._open, self._close, sink=sink)

    @property
    def state(self) -> str:
        return self._life.state

    @property
    def running(self) -> int:
        """How many jobs run now, or are about to."""
        return len(self._hands) + self.room.kept

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    async def retire(self) -> None:
        """Claim no more until the next start; return when nothing runs."""
        self.room.retire()
        while len(self._hands) or self.room.reserved:
            await self._clock.sleep(RETIRED_LOOK)

    def ring(self, shard: str, schema: str | None) -> None:
        """Rows of `schema` (None: of any) on `shard` may be due now."""
        for line in self._lines:
            if line.store.shard == shard and schema in (None, line.store.schema):
                line.rung = True
                if not line.filled:  # else it is due soon anyway
                    line.due_at = 0.0
                if line.store.cursor.pending:
                    line.read_at = 0.0
        if self.relay is not None:
            self.relay(shard, schema)
        self._wake.set()

    def lose(self, leases: list[Lease]) -> None:
        """These runs are not ours any more: their handlers are cancelled."""
        for lease in leases:
            found = self._hands.of(lease)
            if found is not None:
                if found.ended_by != "lost":
                    _log.warning("the lease of job %s was lost; its handler is cancelled", lease.run.id)
                found.cancel("lost")

    # -- for a receiver --------------------------------------------------------------------------------

    @property
    def worker(self) -> str:
        """Its name since it was started."""
        return self._worker

    def carry(self, carried: bool) -> None:
        """From now on a transport brings what is to be run, or does not any more."""
        self._carried = carried
        for line in self._lines:
            line.due_at = 0.0
        self._wake_up()

    def took(self, line: Line, count: int) -> None:
        """Ready rows of `line` are not ready any more: its cursor moves soon."""
        self._readings.claimed(line, count)
        self._wake.set()

    # -- life ------------------------------------------------------------------------------------------

    async def _open(self) -> None:
        # a name per start: (attempt, worker) must name one run, also after attempts were handed back
        self._worker = f"{self._label}@{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.room.open()
        self._hands.open(self._worker)
        for line in self._lines:
            line.due_at = 0.0
            line.asked, line.open = False, list(line.names)
            self._readings.open(line)
            line.finisher = Finisher(
                line.store, self._worker, spawn=self._spawn, written=self._hands.written, clock=self._clock
            )
        await self._loop.start()

    async def _close(self) -> None:
        self.room.drain()
        await self._loop.stop()
        until = self._clock.monotonic() + self._drain
        await self._finished(until)
        for run in self._hands.unended:
            run.cancel("returned")
        await self._finished(self._clock.monotonic() + CANCEL_TIMEOUT)
        unended = self._hands.unended
        for run in self._hands.runs:
            _log.error(
                "job %s of kind %s %s; it is left behind, and its lease will run out",
                run.claimed.run.id,
                run.route.kind.name,
                "ignores its cancellation" if run in unended else "cannot be finished",
            )
            if run.task is not None:
                run.task.cancel()
        tasks = self._under_way()
        if tasks:
            await asyncio.wait(tasks, timeout=CANCEL_TIMEOUT)

    def _under_way(self) -> list[asyncio.Task[Any]]:
        return [*self._tasks, *self._hands.tasks]

    async def _finished(self, until: float) -> None:
        """Wait for claims under way and running jobs, at most until `until`."""
        while (tasks := self._under_way()) and (remaining := until - self._clock.monotonic()) > 0:
            await asyncio.wait(tasks, timeout=remaining)

    # -- claiming --------------------------------------------------------------------------------------

    async def _dispatch(self) -> None:
        while True:
            self._wake.clear()
            now = self._clock.monotonic()
            free = self._begin_claims(now)
            self.room.begin()
            for line in self._lines:
                self._readings.look(line, now)
            waiting = [line.due_at for line in self._lines if line.open and not line.claiming and free > 0]
            waiting += [line.read_at for line in self._lines if not line.reading]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(min(waiting) - now, 0.0) if waiting else None):
                    await self._wake.wait()

    def _begin_claims(self, now: float) -> int:
        """Claim for the lines that are due; how many slots are free after that."""
        if self._carried:
            return 0
        free = self.room.free
        many = 2 * free >= self.room.slots
        due = [
            line
            for line in self._lines
            if line.open and not line.claiming and (line.due_at <= now or (line.filled and many))
        ]
        while due and free > 0:
            share = -(-free // len(due))
            line = due.pop(0)
            free -= share
            self._lines.remove(line)
            self._lines.append(line)  # who was served last comes last
            self._begin_claim(line, share)
        return free

    def _let_go(self, run: JobRun) -> None:
        """Jobs that waited for this one may go, or itself again; those of limited kinds by one statement per
        turn."""
        claimed, at_once = run.claimed, run.route.kind.concurrency
        if claimed.ordering_key is not None or claimed.limit_key is None:
            self.ring(run.store.shard, run.store.schema)
        if claimed.limit_key is None or at_once is None:
            return
        line = next(line for line in self._lines if line.store is run.store)
        begun = bool(line.ended)
        line.ended[claimed.kind, claimed.limit_key] = at_once
        if not begun:
            self._spawn(self._let(line), f"{line.store.module} let")

    async def _let(self, line: Line) -> None:
        """What could not be let go is found by upkeep."""
        keys, line.ended = line.ended, {}
        try:
            with activate(RequestContext(deadline=self._clock.monotonic() + STATEMENT_TIMEOUT)):
                let = await line.store.let(keys)
            if let:
                self.ring(line.store.shard, line.store.schema)
        except (SpringtideError, asyncpg.PostgresError) as error:
            _log.info("%s: limited jobs wait for the next upkeep: %s", line.store.module, error)

    def _wake_up(self) -> None:
        self._wake.set()
        self.freed.set()

    def _begin_claim(self, line: Line, share: int, *, ahead: bool = False) -> None:
        line.claiming += 1
        line.rung = False
        self.room.reserve(share)
        # a limit counts what runs, so it has to see what ends
        ending = line.finisher.take() if line.limits is None and line.asked else []
        line.finisher.hold(ahead)
        task = self._spawn(self._claim(line, share, ending), f"{line.store.module} claim")
        task.add_done_callback(lambda done: self._claimed(line, share, done))

    async def _claim(self, line: Line, share: int, ending: list[JobRun]) -> tuple[float, list[Claimed]]:
        asked = self._clock.monotonic()
        store, urgent = line.store, Priority.CRITICAL if ending else Priority.NORMAL
        with activate(RequestContext(deadline=asked + STATEMENT_TIMEOUT, priority=urgent)):
            await line.ask()
            wanted = line.open, share, self._worker, self._lease
            if ending:
                runs = [run.claimed.run for run in ending]
                try:
                    ended, met = await store.turn(runs, results(ending), *wanted)
                except Exception as error:  # what it is shows again, and is judged, by the claim alone
                    _log.info("%s: %d jobs are finished one by one: %r", store.module, len(runs), error)
                    line.finisher.turned(ending, ())
                else:
                    await self._go_ahead(line, share, len(met))
                    line.finisher.turned(ending, ended)
                    return asked, await store.complete(met, *wanted)
            met = await store.meet(*wanted, line.limits)
            await self._go_ahead(line, share, len(met))
            return asked, await store.complete(met, *wanted, line.limits)

    async def _go_ahead(self, line: Line, share: int, met: int) -> None:
        """Where jobs are swift, send the next claim before what this one `met` is read and begun; not where
        other lines have something, too: their claims and jobs go on beside those of this one anyway."""
        if self._carried or not self.room.swift or met < share or line.claiming > 1 or not line.open:
            return
        now = self._clock.monotonic()
        alone = not any(
            other.open and (other.filled or other.due_at <= now) for other in self._lines if other is not line
        )
        if alone and (room := self.room.ahead) > 0:
            self._begin_claim(line, min(room, self.room.most // 2), ahead=True)
            for _ in range(2):  # until it is begun, and what it has written is sent
                await asyncio.sleep(0)

    def _claimed(self, line: Line, share: int, done: asyncio.Task[tuple[float, list[Claimed]]]) -> None:
        line.claiming -= 1
        if not line.claiming:
            line.finisher.hold(False)
        self.room.reserve(-share)  # who waits for a slot may have found all of them reserved for this claim
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        now = self._clock.monotonic()
        if error is not None:
            line.filled = False
            line.failures += 1
            pause = min(self._poll * 2 ** min(line.failures, 10), MAX_PAUSE)
            line.due_at = now + pause * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load
            what = f"claiming jobs of {line.store.module} on {line.store.shard}"
            self._sink.emit(TaskFailed(what, repr(error), line.due_at - now))
            unexpected = not isinstance(error, SpringtideError | asyncpg.PostgresError)
            _log.warning("%s failed: %s", what, error, exc_info=error if unexpected else None)
            return
        asked, claimed = done.result()
        line.failures, line.filled = 0, len(claimed) == share
        if line.filled:
            line.due_at = now + GATHER
        elif line.rung:
            line.due_at = now
        else:
            line.due_at = now + self._poll * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load
        if claimed:
            self._readings.claimed(line, len(claimed))
        self.room.take(line, claimed, asked)

    def _spawn(self, body: Coroutine[Any, Any, T], what: str) -> asyncio.Task[T]:
        """Run `body` beside the loop; bounded by the slots and the lines."""
        task = asyncio.get_running_loop().create_task(body, name=what, context=detached())
        self._tasks.add(task)
        task.add_done_callback(self._ran)
        return task

    def _ran(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
