"""One run of one job: decode it, call its handler, judge how that ended.

The handler runs in a task of its own inside a new request context, which can be cancelled (max_run, lost
lease, shutdown): the task ends with the judgement, and whoever made it writes down how the run ended. A
transactional handler's run is finished inside its own transaction. The context has seen what the request had
that enqueued the job, and all that the job's shard had when it was claimed: the handler's session reads find
what the job is about, on any server.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec

from springtide.clock import Clock
from springtide.context import Priority, RequestContext, activate
from springtide.db import Bucket, Database
from springtide.errors import DeadlineExceeded, JobError, JobFailed, JobLost
from springtide.jobs import _retry
from springtide.jobs._heart import Lease
from springtide.jobs._loads import Tally
from springtide.jobs._store import Claimed, Ending, Store
from springtide.jobs.job import Handler, JobKind, Run, kept
from springtide.outbox import kinds
from springtide.outbox.envelope import Envelope

if TYPE_CHECKING:
    from springtide.db import WriteTransaction

__all__ = ["DONE", "JobRun", "Outcome", "Route", "Unread", "decoder", "judge"]

Outcome = tuple[str, Ending | None, BaseException | None]

DONE = Ending("done")

WELL: Outcome = ("done", DONE, None)
WELL_TRANSACTED: Outcome = ("done", None, None)

_PRIORITIES = tuple(Priority)

MAX_RESULT_CHARS = 65_536


class Unread:
    """A job that is not run: its outcome is a dead letter that says `text`."""

    def __init__(self, text: str, error: BaseException | None) -> None:
        self.outcome: Outcome = ("dead", Ending("dead", error=text), error)


class Route:
    """How jobs of one kind and version (`name`, None: the handler's newest) are run in one module."""

    __slots__ = (
        "batch",
        "database",
        "decode",
        "handler",
        "implementation",
        "kind",
        "method",
        "tally",
        "transactional",
    )

    def __init__(
        self, handler: Handler[Any], database: Database, implementation: Any, *, name: str | None = None
    ) -> None:
        self.handler = handler
        self.kind: JobKind = handler.kind
        self.transactional = handler.effect == "transactional"
        self.batch = handler.batch
        self.method: Callable[..., Awaitable[Any]] = handler.method
        self.decode = decoder(handler, name or handler.kind.name)
        self.database = database
        self.implementation = implementation
        self.tally = Tally()


def decoder(handler: Handler[Any], name: str) -> Callable[[bytes], Any]:
    """What reads a payload of the kind and version `name`, one of the handler's names."""
    version = int(name.rpartition("/")[2])
    return kinds.decoder(handler.job, handler.kind.version, handler.upcasts, version)


class JobRun:
    """A claimed job on its way. `ended_by` is why we cancelled its handler: lost, returned, overrun.

    `task` is the one that runs it; it is cancelled by `cancel` and `overrun` alone, and when it is `shared`
    with a batch, not because one of the batch is lost. `limit` is how many seconds it may take. It has
    its slot since `asked`, when its claim was sent.
    """

    __slots__ = (
        "_clock", "asked", "begun", "claimed", "context", "ended_by", "id", "lease", "limit", "result",
        "route", "shared", "store", "task",
    )  # fmt: skip

    def __init__(
        self,
        claimed: Claimed,
        route: Route,
        store: Store,
        lease: Lease,
        *,
        clock: Clock,
        begun: float | None = None,
        asked: float | None = None,
    ) -> None:
        self.claimed = claimed
        self.route = route
        self.store = store
        self.lease = lease
        self.ended_by: str | None = None
        self.context: RequestContext | None = None
        self.task: asyncio.Task[Any] | None = None
        self.begun = clock.monotonic() if begun is None else begun
        self.asked = self.begun if asked is None else asked
        self.id = str(claimed.run.id)
        self.limit = route.kind.max_run
        if claimed.remaining is not None:
            self.limit = max(min(self.limit, claimed.remaining), 0.0)
        self.result: str | None = None
        self.shared = False
        self._clock = clock

    def cancel(self, reason: str) -> None:
        """End the handler because the run is `lost` or must be `returned`; a lost run stays lost."""
        if self.ended_by != "lost":
            self.ended_by = reason
        if self.task is not None and not (self.shared and reason == "lost"):
            self.task.cancel()

    def overrun(self) -> None:
        """`max_run` has passed; whoever made the task looks at the clock."""
        if self.ended_by is None:
            self.ended_by = "overrun"
        if self.task is not None:
            self.task.cancel()

    async def perform(self) -> Outcome:
        """Outcome, what is to be written (None: nothing, or it is written already) and the error."""
        if self.task is None:
            self.task = asyncio.current_task()
        opened = self.open()
        if isinstance(opened, Unread):
            return opened.outcome
        job, context = opened
        route = self.route
        try:
            with activate(context):
                if route.transactional:
                    await self._transact(job)
                elif route.kind.result:
                    self._return(await route.method(route.implementation, job, self.view()))
                else:
                    await route.method(route.implementation, job, self.view())
        except asyncio.CancelledError as error:
            if self.ended_by is None and self.task is not None and self.task.cancelling():
                raise  # the loop is closing
            return self.judged(error)
        except Exception as error:
            return self.judged(error)
        return WELL_TRANSACTED if route.transactional else WELL

    def open(self) -> tuple[Any, RequestContext] | Unread:
        """The job and the context to run it in, or why it is not run at all."""
        claimed, name = self.claimed, f"{self.claimed.kind}/{self.claimed.version}"
        if claimed.remaining is not None and claimed.remaining <= 0:
            return Unread("DeadlineExceeded: its deadline had passed before it was run", None)
        try:
            envelope = Envelope.load(claimed.context)
            job = self.route.decode(claimed.payload)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            return Unread(f"cannot be read as {name}: {_retry.describe(error)}", error)
        except Exception as error:  # an upcast's
            return Unread(f"cannot be made of {name}: {_retry.describe(error)}", error)
        self.context = context = envelope.open(
            deadline=self._clock.monotonic() + self.limit,
            priority=_PRIORITIES[claimed.priority],
            attempt=claimed.run.attempt,
        )
        if claimed.position is not None:
            context.causality.cover(self.store.cluster, claimed.position)
        return job, context

    def view(self, tx: WriteTransaction | None = None) -> Run:
        """What the handler sees of it."""
        claimed = self.claimed
        return Run(
            id=claimed.run.id,
            key=f"{self.store.module}:{self.id}",
            attempt=claimed.run.attempt,
            max_attempts=claimed.max_attempts,
            enqueued_at=claimed.enqueued_at,
            transaction=tx,
            keep=self._keep,
        )

    async def _keep(self, progress: str) -> bool:
        return await self.store.report(self.claimed.run, self.lease.worker, progress)

    def judged(self, error: BaseException | None) -> Outcome:
        """What it means that the handler ended with `error`."""
        return judge(
            self.route.kind,
            self.claimed.run.attempt,
            self.claimed.max_attempts,
            error,
            ended_by=self.ended_by,
            transactional=self.route.transactional,
        )

    async def _transact(self, job: Any) -> None:
        claimed, route = self.claimed, self.route
        async with route.database.write(Bucket(claimed.run.bucket)) as tx:
            self._return(await route.method(route.implementation, job, self.view(tx)))
            ending = DONE if self.result is None else Ending("done", result=self.result)
            key = claimed.ordering_key
            if not await self.store.end(claimed.run, self.lease.worker, ending, tx, ordering_key=key):
                raise JobLost(f"the lease of job {self.id} was lost; its effect was rolled back")

    def _return(self, value: Any) -> None:
        """Keep what the handler returned, where that is asked for."""
        if not self.route.kind.result:
            return
        try:
            self.result = kept(value, "its result", MAX_RESULT_CHARS)
        except JobError as error:  # it would be the same the next time
            raise JobFailed(str(error)) from error


def judge(
    spec: JobKind,
    attempt: int,
    max_attempts: int,
    error: BaseException | None,
    *,
    ended_by: str | None,
    transactional: bool,
    spread: float | None = None,
) -> Outcome:
    """What a run's end means; pure with `spread`, which is drawn when it is None. Success counts even when it
    came after we had cancelled."""
    if error is None:
        return WELL_TRANSACTED if transactional else WELL
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
    if spread is None:
        spread = random.uniform(0.5, 1.5)  # noqa: S311 - spreads retries
    return "retry", Ending("ready", error=text, delay=_retry.delay(spec, attempt, error, spread)), error
