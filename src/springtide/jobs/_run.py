"""One run of one job: decode it, call its handler, judge how that ended.

The handler runs in a task of its own inside a new request context, which can be cancelled (max_run, lost
lease, shutdown): the task ends with the judgement, and whoever made it writes down how the run ended. A
transactional handler's run is finished inside its own transaction. The context has seen what the request had
that enqueued the job, and all that the job's shard had when it was claimed: the handler's session reads find
what the job is about, on any server.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from typing import Any

import msgspec

from springtide.clock import Clock
from springtide.context import Priority, RequestContext, activate
from springtide.db import Bucket, Database
from springtide.errors import DeadlineExceeded, JobFailed, JobLost
from springtide.jobs import _retry
from springtide.jobs._heart import Lease
from springtide.jobs._store import Claimed, Ending, Store
from springtide.jobs.job import Handler, JobKind, Run
from springtide.outbox.envelope import Envelope

__all__ = ["JobRun", "Outcome", "Route", "judge"]

Outcome = tuple[str, Ending | None, BaseException | None]


class Route:
    """How jobs of one kind and version are run in one module."""

    __slots__ = ("database", "decode", "handler", "implementation", "kind")

    def __init__(self, handler: Handler[Any], database: Database, implementation: Any) -> None:
        self.handler = handler
        self.kind: JobKind = handler.kind
        self.decode = msgspec.json.Decoder(handler.job).decode
        self.database = database
        self.implementation = implementation


class JobRun:
    """A claimed job on its way. `ended_by` is why we cancelled its handler: lost, returned, overrun.

    `task` is the one that runs `perform`; it is cancelled by `cancel` alone.
    """

    __slots__ = ("_clock", "_timer", "begun", "claimed", "context", "ended_by", "lease", "route", "store",
                 "task")  # fmt: skip

    def __init__(self, claimed: Claimed, route: Route, store: Store, lease: Lease, *, clock: Clock) -> None:
        self.claimed = claimed
        self.route = route
        self.store = store
        self.lease = lease
        self.ended_by: str | None = None
        self.context: RequestContext | None = None
        self.task: asyncio.Task[Any] | None = None
        self.begun = clock.monotonic()
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None

    def cancel(self, reason: str) -> None:
        """End the handler because the run is `lost` or must be `returned`; a lost run stays lost."""
        if self.ended_by != "lost":
            self.ended_by = reason
        if self.task is not None:
            self.task.cancel()

    def _overrun(self) -> None:
        if self.ended_by is None:
            self.ended_by = "overrun"
        if self.task is not None:
            self.task.cancel()

    async def perform(self) -> Outcome:
        """Outcome, what is to be written (None: nothing, or it is written already) and the error."""
        claimed, spec = self.claimed, self.route.kind
        if self.task is None:
            self.task = asyncio.current_task()
        try:
            envelope = Envelope.load(claimed.context)
            job = self.route.decode(claimed.payload)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            text = f"cannot be read as {spec.name}: {_retry.describe(error)}"
            return "dead", Ending("dead", error=text), error
        self.context = context = envelope.open(
            deadline=self._clock.monotonic() + spec.max_run,
            priority=Priority(claimed.priority),
            attempt=claimed.run.attempt,
        )
        if claimed.position is not None:
            context.causality.cover(self.store.cluster, claimed.position)
        self._timer = asyncio.get_running_loop().call_later(spec.max_run, self._overrun)
        try:
            await self._handle(job, context)
        except asyncio.CancelledError as error:
            if self.ended_by is None and self.task is not None and self.task.cancelling():
                raise  # the loop is closing
            return self.judged(error)
        except Exception as error:
            return self.judged(error)
        finally:
            self._timer.cancel()
        return self.judged(None)

    def judged(self, error: BaseException | None) -> Outcome:
        """What it means that the handler ended with `error`."""
        return judge(
            self.route.kind,
            self.claimed.run.attempt,
            self.claimed.max_attempts,
            error,
            ended_by=self.ended_by,
            transactional=self.route.handler.effect == "transactional",
            spread=random.uniform(0.5, 1.5),  # noqa: S311 - spreads retries
        )

    async def _handle(self, job: Any, context: RequestContext) -> None:
        claimed, route = self.claimed, self.route
        run = Run(
            id=claimed.run.id,
            key=f"{self.store.module}:{claimed.run.id}",
            attempt=claimed.run.attempt,
            max_attempts=claimed.max_attempts,
            enqueued_at=claimed.enqueued_at,
        )
        method = route.handler.method
        with activate(context):
            if route.handler.effect == "any":
                await method(route.implementation, job, run)
                return
            async with route.database.write(Bucket(claimed.run.bucket)) as tx:
                await method(route.implementation, job, dataclasses.replace(run, transaction=tx))
                if not await self.store.end(claimed.run, self.lease.worker, Ending("done"), tx):
                    raise JobLost(f"the lease of job {run.id} was lost; its effect was rolled back")


def judge(
    spec: JobKind,
    attempt: int,
    max_attempts: int,
    error: BaseException | None,
    *,
    ended_by: str | None,
    transactional: bool,
    spread: float,
) -> Outcome:
    """What a run's end means; pure. Success counts even when it came after we had cancelled."""
    if error is None:
        return "done", None if transactional else Ending("done"), None
    cancelled = isinstance(error, asyncio.CancelledError)
    if isinstance(error, JobLost) or ended_by == "lost":
        return "lost", None, error
    if ended_by == "returned" and not isinstance(error, JobFailed):
        # whatever it raised came with the cancellation; a failure of its own will show again
        return "returned", Ending("ready", uncounted=True), None
    if cancelled and ended_by == "overrun":
        error = DeadlineExceeded(f"running the job {spec.name} (max_run {spec.max_run:g} s)")
    text = _retry.describe(error)
    if isinstance(error, JobFailed) or attempt >= max_attempts:
        return "dead", Ending("dead", error=text), error
    return "retry", Ending("ready", error=text, delay=_retry.delay(spec, attempt, error, spread)), error
