"""The jobs that a worker has in hand: begun alone or in batches, watched for their time, ended, told.

in hand -> (gathering ->) running -> ended -> written, and out of hand. A slot is free again once the handler
has ended. A run whose task breaks goes out of hand unwritten: its lease runs out.

Most handlers end in the turn of the loop that began them. So jobs that were claimed together share a task as
long as none of them waits (`_turns.py`), and a timer for their `max_run`, which looks at those that are left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from springtide.clock import Clock
from springtide.context import RequestContext, activate, detached
from springtide.jobs import _batch
from springtide.jobs._finish import Finisher
from springtide.jobs._heart import GRACE, Heart, Lease
from springtide.jobs._run import JobRun, Outcome, Route
from springtide.jobs._store import Claimed, Ending
from springtide.jobs._turns import Row
from springtide.jobs.job import JobKind
from springtide.signals import JobFinished, NullSink, Sink, TaskFailed

__all__ = ["Hands"]

_log = logging.getLogger(__name__)

ALONE_FROM = 3
"""The attempt from which a job of a batched kind is in a batch of its own: one that kills its worker takes no
others to the dead letters with it."""

FRESH = 1.0
"""Seconds for which the pace of jobs that have ended is that of the next ones."""

OVERRUN_AFTER = 0.05
"""Seconds after a claim when its jobs are first looked at for their `max_run`."""


class Hands:
    """`changed` is called whenever a slot became free; `let_go(run)` when others
    may be claimed because of it, or itself."""

    def __init__(
        self,
        *,
        lease: float,
        heart: Callable[[], Heart],
        changed: Callable[[], None],
        let_go: Callable[[JobRun], None],
        clock: Clock,
        sink: Sink,
    ) -> None:
        self.worker = ""
        self.draining = False
        self.tasks: set[asyncio.Task[object]] = set()
        self._lease = lease
        self._heart = heart
        self._changed = changed
        self._let_go = let_go
        self._clock = clock
        self._sink = sink
        self._unheard = isinstance(sink, NullSink)  # of what goes well nothing is said then
        self._runs: dict[Lease, JobRun] = {}
        self._ended: dict[JobRun, tuple[Outcome, float]] = {}
        self._finishers: dict[JobRun, Finisher] = {}
        self._gathering: dict[tuple[Finisher, JobKind], list[JobRun]] = {}
        self._empty = detached()
        self._begun = 0
        """How many were begun since all had ended, the first of them at `_begun_at`."""
        self._begun_at, self._ended_at = 0.0, float("-inf")
        self._paces = 0.0, 0.0
        """Of the two times before."""

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def busy(self) -> int:
        """Slots that are taken."""
        return len(self._runs) - len(self._ended)

    @property
    def pace(self) -> float:
        """Jobs a second, from the first that was begun until all had ended: the better of the last two times;
        less where those that run take longer; 0 where it is too long ago to say something of what comes."""
        now = self._clock.monotonic()
        if now - (self._begun_at if self.busy else self._ended_at) >= FRESH:
            return 0.0
        if self.busy:
            return min(max(self._paces), _pace(self._begun, now - self._begun_at))
        return max(_pace(self._begun, self._ended_at - self._begun_at), self._paces[1])

    @property
    def unwritten(self) -> int:
        """Runs that have ended, which the database does not know yet."""
        return len(self._ended)

    @property
    def unended(self) -> list[JobRun]:
        return [run for run in self._runs.values() if run not in self._ended]

    @property
    def runs(self) -> list[JobRun]:
        return list(self._runs.values())

    def open(self, worker: str) -> None:
        """Begin to work under this name."""
        self.worker, self.draining = worker, False
        self._empty = detached()

    def drain(self) -> None:
        """Whatever comes from now on is handed back; what gathers begins."""
        self.draining = True
        for key, runs in list(self._gathering.items()):
            self._begin_batch(key, runs)

    def of(self, lease: Lease) -> JobRun | None:
        return self._runs.get(lease)

    # -- beginning -------------------------------------------------------------------------------------

    def take(
        self,
        claimed: Sequence[tuple[Claimed, Route]],
        finisher: Finisher,
        asked: float,
        *,
        back: bool = False,
    ) -> None:
        """Begin what a claim that was sent at `asked` has brought; `back`: hand it back."""
        heart, now, until = self._heart(), self._clock.monotonic(), asked + self._lease
        back = back or self.draining or now > until  # somebody else may have them by now
        if not back:
            if not self.busy:
                self._begin_again(now)
            self._begun += len(claimed)
        alone = []
        for job, route in claimed:
            lease = Lease(
                finisher.store,
                job.run,
                self.worker,
                until=until,
                renew_until=asked + route.kind.max_run + GRACE,
            )
            run = JobRun(job, route, finisher.store, lease, clock=self._clock, begun=now, asked=asked)
            route.tally.begin(asked)
            self._runs[lease] = run
            self._finishers[run] = finisher
            heart.hold(lease)
            if back:
                run.cancel("returned")
                self._end(run, run.judged(asyncio.CancelledError()))
            elif route.batch is not None:
                lease.renew_until += route.handler.wait
                self._gather((finisher, route.kind), run)
            else:
                alone.append(run)
        if alone:
            self._begin(alone)
            self._watch(alone)

    def _begin_again(self, now: float) -> None:
        last = _pace(self._begun, self._ended_at - self._begun_at)
        self._paces = (self._paces[1], last) if now - self._ended_at < FRESH else (0.0, 0.0)
        self._begun, self._begun_at = 0, now

    def _begin(self, runs: Iterable[JobRun]) -> None:
        row = Row(runs, ended=self._end, rest=self._begin, empty=self._empty)
        task = asyncio.get_running_loop().create_task(row.perform(), name="jobs", context=self._empty.copy())
        self.tasks.add(task)
        task.add_done_callback(lambda done: self._rowed(row, done))

    def _gather(self, key: tuple[Finisher, JobKind], run: JobRun) -> None:
        if run.claimed.run.attempt >= ALONE_FROM:
            self._begin_together([run])
            return
        runs = self._gathering.setdefault(key, [])
        runs.append(run)
        if len(runs) == run.route.batch:
            self._begin_batch(key, runs)
        elif len(runs) == 1:
            loop = asyncio.get_running_loop()
            loop.call_later(run.route.handler.wait, self._begin_batch, key, runs)

    def _begin_batch(self, key: tuple[Finisher, JobKind], runs: list[JobRun]) -> None:
        if self._gathering.get(key) is not runs:
            return  # it was full, and began
        del self._gathering[key]
        self._begin_together(runs)

    def _begin_together(self, runs: list[JobRun]) -> None:
        for run in runs:
            run.begun, run.shared = self._clock.monotonic(), len(runs) > 1
        task = asyncio.get_running_loop().create_task(
            _batch.perform(runs), name=f"jobs {runs[0].route.kind.name}", context=self._empty.copy()
        )
        for run in runs:
            run.task = task
        self.tasks.add(task)
        task.add_done_callback(lambda done: self._performed(runs, done))
        self._watch(runs)

    def _watch(self, runs: list[JobRun]) -> None:
        runs = [run for run in runs if run.limit > 0]  # what is too late ends by itself, unrun
        if runs:
            first = min(OVERRUN_AFTER, *(run.limit for run in runs))
            asyncio.get_running_loop().call_later(first, self._guard, runs)

    def _guard(self, runs: list[JobRun]) -> None:
        """End those of `runs` whose time is up; look at the others when the next one's is."""
        left = [run for run in runs if run.lease in self._runs and run not in self._ended]
        now = self._clock.monotonic()
        for run in left:
            if now >= run.begun + run.limit:
                run.overrun()
        soonest = min((run.begun + run.limit for run in left if run.ended_by is None), default=None)
        if soonest is not None:
            asyncio.get_running_loop().call_later(max(soonest - now, 0.001), self._guard, left)

    # -- ending ----------------------------------------------------------------------------------------

    def _rowed(self, row: Row, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if task.cancelled() or task.exception() is None:
            # cancelled with jobs left: the loop is closing
            self._abandon([*([row.now] if row.now is not None else []), *row.left])
            return
        if row.now is not None:
            self._abandon([row.now])
        self._broke(task)
        if row.left:
            self._begin(row.left)

    def _performed(self, runs: list[JobRun], task: asyncio.Task[list[Outcome]]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is None:
            for run, outcome in zip(runs, task.result(), strict=True):
                self._end(run, outcome)
            return
        self._abandon(runs, cancelled=task.cancelled())
        if not task.cancelled():
            self._broke(task)

    def _abandon(self, runs: Sequence[JobRun], *, cancelled: bool = True) -> None:
        for run in runs:
            if run.lease not in self._runs:
                continue
            if cancelled and run.ended_by is not None and run not in self._ended:  # before its first step
                self._end(run, run.judged(asyncio.CancelledError()))
            else:
                self._forget(run)

    def _broke(self, task: asyncio.Task[Any]) -> None:
        self._sink.emit(TaskFailed(task.get_name(), repr(task.exception()), None))
        _log.error("%s broke; its lease will run out", task.get_name(), exc_info=task.exception())

    def _end(self, run: JobRun, outcome: Outcome) -> None:
        now = self._clock.monotonic()
        if outcome[0] != "returned":
            self._ended_at = now
        self._ended[run] = outcome, now - run.begun
        run.route.tally.end(run.asked, now, counts=outcome[0] not in ("lost", "returned"))
        self._changed()
        ending = outcome[1]
        if ending is None:
            self.written(run, True)
        elif ending.state == "done":
            self._finishers[run].done(run)
        else:
            self._finishers[run].end(run, ending)

    def written(self, run: JobRun, held: bool) -> None:
        """How a run ended is in the database; `held` False: it was not ours any more."""
        (outcome, ending, error), seconds = self._ended[run]
        self._forget(run)
        if not held:
            outcome = "lost"
        keyed = run.claimed.ordering_key is not None or run.claimed.limit_key is not None
        if keyed or (outcome == "returned" and not self.draining):
            self._let_go(run)
        if self._unheard and outcome == "done":
            return
        text = ending.error if ending is not None else repr(error) if error is not None else None
        context = run.context if run.context is not None else RequestContext()
        if outcome not in ("done", "returned"):
            with activate(context):  # log lines carry the request and the trace
                _report(run, outcome, ending, error, text)
        self._sink.emit(
            JobFinished(
                run.store.module,
                run.claimed.kind,
                run.claimed.version,
                run.id,
                run.claimed.run.attempt,
                outcome,
                run.claimed.waited,
                seconds,
                context.request_id,
                context.trace,
                context.ledger,
                text,
            )
        )

    def _forget(self, run: JobRun) -> None:
        self._heart().release(run.lease)
        del self._runs[run.lease], self._finishers[run]
        if self._ended.pop(run, None) is None:
            self._ended_at = self._clock.monotonic()
            run.route.tally.end(run.asked, run.asked, counts=False)
        self._changed()


def _pace(count: int, seconds: float) -> float:
    return count / max(seconds, 1e-6)


def _report(
    run: JobRun, outcome: str, ending: Ending | None, error: BaseException | None, text: str | None
) -> None:
    claimed = run.claimed
    name = f"job {claimed.kind}/{claimed.version} {run.id}"
    attempt = f"run {claimed.run.attempt} of {claimed.max_attempts}"
    if outcome == "dead":
        _log.error("%s is a dead letter after %s: %s", name, attempt, text, exc_info=error)
    elif outcome == "retry" and ending is not None:
        _log.warning("%s: %s failed, next in %.1f s: %s", name, attempt, ending.delay, text)
    elif outcome == "lost":
        _log.warning("%s: %s was lost, whoever has the job finishes it", name, attempt)
