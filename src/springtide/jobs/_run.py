"""One run of one job: decode it, call its handler, judge how that ended.

The handler runs in a task of its own inside a new request context, so that it can be cancelled (max_run, lost
lease, shutdown) while the run itself goes on to write how it ended. A transactional handler's run is finished
inside its own transaction. The context has seen what the request had that enqueued the job, and all that the
job's shard had when it was claimed: the handler's session reads find what the job is about, on any server.
"""

from __future__ import annotations

import asyncio
import dataclasses
import random
from typing import Any

import msgspec

from springtide.clock import Clock
from springtide.context import Priority, RequestContext, activate, detached
from springtide.db import Bucket, Database
from springtide.errors import DeadlineExceeded, JobFailed, JobLost
from springtide.jobs import _retry
from springtide.jobs._heart import Lease
from springtide.jobs._store import Claimed, Ending, Store
from springtide.jobs.job import Handler, JobKind, Run
from springtide.outbox.envelope import Envelope

__all__ = ["JobRun", "Route", "judge"]


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
    """A claimed job on its way. `ended_by` is why we cancelled its handler: lost, returned, overrun."""

    def __init__(self, claimed: Claimed, route: Route, store: Store, lease: Lease, *, clock: Clock) -> None:
        self.claimed = claimed
        self.route = route
        self.store = store
        self.lease = lease
        self.ended_by: str | None = None
        self.context: RequestContext = RequestContext()
        self._clock = clock
        self._handling: asyncio.Task[None] | None = None

    def cancel(self, reason: str) -> None:
        """End the handler because the run is `lost` or must be `returned`; a lost run stays lost."""
        if self.ended_by != "lost":
            self.ended_by = reason
        if self._handling is not None:
            self._handling.cancel()

    async def perform(self) -> tuple[str, Ending | None, BaseException | None]:
        """Outcome, what is to be written (None: nothing, or it is written already) and the error."""
        claimed, spec = self.claimed, self.route.kind
        try:
            envelope = Envelope.load(claimed.context)
            job = self.route.decode(claimed.payload)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            text = f"cannot be read as {spec.name}: {_retry.describe(error)}"
            return "dead", Ending("dead", error=text), error
        self.context = envelope.open(
            deadline=self._clock.monotonic() + spec.max_run,
            priority=Priority(claimed.priority),
            attempt=claimed.run.attempt,
        )
        if claimed.position is not None:
            self.context.causality.cover(self.store.cluster, claimed.position)
        if self.ended_by is None:
            context = detached()
            self._handling = handling = asyncio.get_running_loop().create_task(
                self._handle(job), name=f"job {spec.name} {claimed.run.id}", context=context
            )
            done, _ = await asyncio.wait([handling], timeout=spec.max_run)
            if not done:
                if self.ended_by is None:
                    self.ended_by = "overrun"
                handling.cancel()
                await asyncio.wait([handling])
            error_: BaseException | None = (
                asyncio.CancelledError() if handling.cancelled() else handling.exception()
            )
        else:
            error_ = asyncio.CancelledError()
        return judge(
            spec,
            claimed.run.attempt,
            claimed.max_attempts,
            error_,
            ended_by=self.ended_by,
            transactional=self.route.handler.effect == "transactional",
            spread=random.uniform(0.5, 1.5),  # noqa: S311 - spreads retries
        )

    async def _handle(self, job: Any) -> None:
        claimed, route = self.claimed, self.route
        run = Run(
            id=claimed.run.id,
            key=f"{self.store.module}:{claimed.run.id}",
            attempt=claimed.run.attempt,
            max_attempts=claimed.max_attempts,
            enqueued_at=claimed.enqueued_at,
        )
        method = route.handler.method
        with activate(self.context):
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
) -> tuple[str, Ending | None, BaseException | None]:
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
