"""Write down how runs ended: those of one line that are done at about the same time in one statement.

A run that is done waits for the statement that is under way at most; when that has ended, all that came
meanwhile go together. The next claim takes them along if there is one at once (`take`, `turned`). What such a
statement could not write (the row is locked, the lease was lost, the server did not answer) and every other
ending is written alone, again and again while the lease lasts; but what is handed back goes back together.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection, Coroutine, Sequence
from typing import Any, Protocol
from uuid import UUID

import asyncpg

from springtide.clock import Clock
from springtide.context import Priority, RequestContext, activate
from springtide.errors import SpringtideError
from springtide.jobs._run import JobRun
from springtide.jobs._store import Ending, Store

__all__ = ["Finisher", "results"]

_log = logging.getLogger(__name__)

STATEMENT_TIMEOUT = 5.0
"""Seconds that the end of a run may take before it counts as failed."""

MAX_BATCH = 500


class Spawn(Protocol):
    def __call__(self, body: Coroutine[Any, Any, Any], what: str) -> asyncio.Task[Any]: ...


class Finisher:
    """The ends of the runs of one line. `written(run, held)` is called when a run's end is in the database,
    with False when it was not ours any more. `spawn` makes the tasks."""

    def __init__(
        self,
        store: Store,
        worker: str,
        *,
        spawn: Spawn,
        written: Callable[[JobRun, bool], None],
        clock: Clock,
    ) -> None:
        self.store = store
        self._worker = worker
        self._spawn = spawn
        self._written = written
        self._clock = clock
        self._waiting: list[JobRun] = []
        self._returned: list[JobRun] = []
        self._writing = self._held = False

    def hold(self, held: bool) -> None:
        """While `held`, runs that are done (none of an ordering key) wait for a caller to `take` them."""
        self._held = held
        if self._waiting and not held:
            self._write()

    def done(self, run: JobRun) -> None:
        """The handler has succeeded."""
        self._waiting.append(run)
        if not self._held or run.claimed.ordering_key is not None:
            self._write()

    def _write(self) -> None:
        if not self._writing:
            self._writing = True
            asyncio.get_running_loop().call_soon(self._begin)

    def take(self) -> list[JobRun]:
        """Runs that are done and not being written: the caller writes them and says `turned`. None that let
        others of their key go."""
        taken = [run for run in self._waiting if run.claimed.ordering_key is None][:MAX_BATCH]
        if len(taken) == len(self._waiting):
            self._waiting = []
        elif taken:
            gone = set(taken)
            self._waiting = [run for run in self._waiting if run not in gone]
        return taken

    def turned(self, runs: Sequence[JobRun], ids: Collection[UUID]) -> None:
        """The ends of those of `runs` with these ids are in the database; the others are written alone."""
        for run in runs:
            if run.claimed.run.id in ids:
                self._written(run, True)
            else:
                self.end(run, Ending("done", result=run.result))

    def _begin(self) -> None:
        if self._waiting and not (
            self._held and all(run.claimed.ordering_key is None for run in self._waiting)
        ):
            self._spawn(self._write_together(), f"{self.store.module} finish")
        else:
            self._writing = False  # a claim has taken them

    def end(self, run: JobRun, ending: Ending) -> None:
        if not ending.uncounted:
            self._end(run, ending)
            return
        self._returned.append(run)
        if len(self._returned) == 1:
            self._spawn(self._hand_back(), f"{self.store.module} hand back")

    def _end(self, run: JobRun, ending: Ending) -> None:
        task = self._spawn(self._repeat(run, ending), f"{self.store.module} end")
        task.add_done_callback(lambda done: self._ended(run, done))

    def _ended(self, run: JobRun, task: asyncio.Task[bool]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("job %s cannot be ended; its lease will run out", run.claimed.run.id, exc_info=error)
        self._written(run, not task.cancelled() and task.exception() is None and task.result())

    async def _write_together(self) -> None:
        try:
            while self._waiting:
                runs, self._waiting = self._waiting[:MAX_BATCH], self._waiting[MAX_BATCH:]
                try:
                    deadline = self._clock.monotonic() + STATEMENT_TIMEOUT
                    with activate(RequestContext(deadline=deadline, priority=Priority.CRITICAL)):
                        ids = await self.store.finish(
                            [run.claimed.run for run in runs],
                            self._worker,
                            results(runs),
                            ordered=any(run.claimed.ordering_key is not None for run in runs),
                        )
                except Exception as error:  # what it is shows again, and is judged, one by one
                    _log.info("%s: %d jobs are finished one by one: %r", self.store.module, len(runs), error)
                    ids = set()
                self.turned(runs, ids)
        finally:
            self._writing = False

    async def _hand_back(self) -> None:
        """What is handed back in one turn of the loop goes together."""
        await asyncio.sleep(0)
        runs, self._returned = self._returned, []
        try:
            deadline = self._clock.monotonic() + STATEMENT_TIMEOUT
            with activate(RequestContext(deadline=deadline, priority=Priority.CRITICAL)):
                ids = await self.store.hand_back([run.claimed.run for run in runs], self._worker)
        except Exception as error:  # as above
            _log.info("%s: %d jobs are handed back one by one: %r", self.store.module, len(runs), error)
            ids = set()
        for run in runs:
            if run.claimed.run.id in ids:
                self._written(run, True)
            else:
                self._end(run, Ending("ready", uncounted=True))

    async def _repeat(self, run: JobRun, ending: Ending) -> bool:
        """Again and again while the lease lasts; False when the job is not ours."""
        pause = 0.1
        while True:
            deadline = self._clock.monotonic() + STATEMENT_TIMEOUT
            try:
                with activate(RequestContext(deadline=deadline, priority=Priority.CRITICAL)):
                    return await self.store.end(
                        run.claimed.run, run.lease.worker, ending, ordering_key=run.claimed.ordering_key
                    )
            except (SpringtideError, asyncpg.PostgresError) as error:
                if run.ended_by == "lost" or self._clock.monotonic() > run.lease.until:
                    _log.warning("how job %s ended could not be written: %s", run.claimed.run.id, error)
                    return False
            await self._clock.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load
            pause = min(pause * 2, 2.0)


def results(runs: Sequence[JobRun]) -> list[str | None] | None:
    """What they returned, as `Store.finish` takes it."""
    return [run.result for run in runs] if any(run.result is not None for run in runs) else None
