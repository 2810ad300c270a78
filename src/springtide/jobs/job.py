"""What a job is: a frozen struct with a kind and a version, and a handler that takes it.

    @job(kind="mail.welcome", version=1)
    class Welcome(msgspec.Struct, frozen=True):
        user_id: int

    Module(..., jobs=[Handler(Welcome, UserService.send_welcome)])

The kind is a name in the database, kept when the class is renamed or moved; the version is raised when older
code could not read the struct any more. A declaration is a value: nothing is registered by import, a module
lists its handlers.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar
from uuid import UUID

import msgspec

from springtide.context import Priority
from springtide.errors import JobError, JobLost
from springtide.jobs._inbox import MAX_PART_CHARS, enter_sql
from springtide.outbox.kinds import (
    KIND,
    MAX_RUN,
    Effect,
    Upcast,
    check_counts,
    check_handler,
    check_seconds,
    declared,
    declaring,
    is_named,
    is_number,
    priority_of,
)

if TYPE_CHECKING:
    from springtide.db import WriteTransaction

__all__ = ["Effect", "Handler", "JobKind", "Overload", "Run", "Upcast", "job", "kept", "kind_of"]

S = TypeVar("S", bound=msgspec.Struct)

Overload = Literal["refuse", "slow"]

MAX_PROGRESS_CHARS = 4000
MAX_WAIT = 5.0

_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
"""In JSON: after an even number of backslashes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobKind:
    """How jobs of one kind and version are run; made by `job`, which explains the options."""

    kind: str
    version: int
    max_attempts: int
    max_run: float
    backoff: float
    max_backoff: float
    priority: Priority
    result: bool = False
    concurrency: int | None = None
    rate: int | None = None
    per: float = 1.0
    max_age: float | None = None
    overload: Overload | None = None

    def __post_init__(self) -> None:
        if not is_named(KIND, self.kind):
            raise JobError(
                "a job's kind is 1 to 4 words of lower-case letters, digits and _ with dots between,"
                f" such as mail.welcome, got {self.kind!r}"
            )
        what = f"job {self.kind}"
        check_counts(what, JobError, version=self.version, max_attempts=self.max_attempts)
        if self.concurrency is not None:
            check_counts(what, JobError, concurrency=self.concurrency)
        if self.rate is not None:
            check_counts(what, JobError, rate=self.rate)
        check_seconds(what, JobError, most=MAX_RUN, max_run=self.max_run)
        check_seconds(what, JobError, backoff=self.backoff, max_backoff=self.max_backoff)
        check_seconds(what, JobError, most=86_400, per=self.per)
        if self.rate is None and self.per != 1:
            raise JobError(f"{what}: per is the time of a rate, and there is none, got {self.per}")
        if self.max_age is not None:
            check_seconds(what, JobError, max_age=self.max_age)
        if self.backoff > self.max_backoff:
            raise JobError(
                f"{what}: backoff must be <= max_backoff, got {self.backoff} and {self.max_backoff}"
            )
        if self.overload not in (None, "refuse", "slow"):
            raise JobError(f'job {self.kind}: overload must be "refuse" or "slow", got {self.overload!r}')
        if (self.max_age is None) != (self.overload is None):
            raise JobError(
                f"job {self.kind}: max_age and overload go together, got {self.max_age} and {self.overload!r}"
            )

    @property
    def limited(self) -> bool:
        """Whether there is a limit per limit key."""
        return self.concurrency is not None or self.rate is not None

    @property
    def name(self) -> str:
        """Kind and version as the claim compares them: `mail.welcome/1`."""
        return f"{self.kind}/{self.version}"


def job(
    *,
    kind: str,
    version: int = 1,
    max_attempts: int = 15,
    max_run: float = 60.0,
    backoff: float = 2.0,
    max_backoff: float = 3600.0,
    priority: Priority = Priority.NORMAL,
    result: bool = False,
    concurrency: int | None = None,
    rate: int | None = None,
    per: float = 1.0,
    max_age: float | None = None,
    overload: Overload | None = None,
) -> Callable[[type[S]], type[S]]:
    """Declare a frozen msgspec struct to be a job.

    max_attempts: runs before the job becomes a dead letter; runs that were cut off by a crash count.
    max_run:      seconds that one run may take, at most a week; it is the deadline of everything the handler
                  does.
    backoff:      seconds before the second run; doubled for each further one, up to `max_backoff`, and
                  multiplied by a uniform factor in [0.5, 1.5). The defaults try for about four hours.
    priority:     who is served first when not all can be; `enqueue` may say otherwise for one job.
    result:       what the handler returns is kept with the history, as JSON; see `springtide.jobs.result`.
    concurrency:  how many may run at once of one limit key (see `enqueue`), over all workers of a shard.
    rate, per:    how many of one limit key may begin in `per` seconds: so many at once after a pause, then
                  one every per / rate. A retry counts.
    max_age:      seconds that the oldest due job of the kind may wait on a shard; None: any.
    overload:     what becomes of producers beyond that: "refuse" raises QueueOverloaded, "slow" lets a write
                  return up to a second later; see `springtide.jobs.pressure`.

    Raises JobError.
    """
    spec = JobKind(
        kind=kind,
        version=version,
        max_attempts=max_attempts,
        max_run=max_run,
        backoff=backoff,
        max_backoff=max_backoff,
        priority=priority_of(f"job {kind}", priority, JobError),
        result=result,
        concurrency=concurrency,
        rate=rate,
        per=per,
        max_age=max_age,
        overload=overload,
    )

    return declaring("job", kind, spec, JobError)


def kind_of(job: object) -> JobKind:
    """The declaration of a job or of its class. Raises JobError when there is none."""
    return declared("job", job, JobKind, JobError)


class Run(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """One run of a job, as its handler sees it.

    `key` is the same for every run of the job and unique over all jobs of all modules: hand it to third
    parties as idempotency key. `attempt` begins with 1.
    """

    id: UUID
    key: str
    attempt: int
    max_attempts: int
    enqueued_at: datetime
    transaction: WriteTransaction | None = None
    keep: Callable[[str], Awaitable[bool]] | None = None

    @property
    def tx(self) -> WriteTransaction:
        """The transaction that finishes the job, for handlers declared with effect="transactional"."""
        if self.transaction is None:
            raise JobError('only a handler with effect="transactional" has the finishing transaction')
        return self.transaction

    async def once(self, tx: WriteTransaction, part: str = "") -> bool:
        """For effects that do not commit with the end of the job, on another shard: whether `tx` is the first
        that says so for this job and `part`. Then write the effect in it; when it is False, it is there.

        It is known for 30 days: a job that is run again after that repeats its effect. `part` tells the
        effects of one job in one bucket apart. Raises JobError.
        """
        if len(part) > MAX_PART_CHARS or "\0" in part:
            raise JobError(f"part must have at most {MAX_PART_CHARS} characters without NUL, got {part!r}")
        return bool(await tx.fetch(enter_sql(tx.database.schema), tx.bucket, self.id, part))

    async def progress(self, value: Any) -> None:
        """Keep how far this run is, any value that JSON has; `springtide.jobs.look` shows it until the job is
        done or discarded.

        Raises JobLost when the job is not this run's any more, JobError for what cannot be kept.
        """
        text = kept(value, "progress", MAX_PROGRESS_CHARS)
        if self.keep is None or not await self.keep(text):
            raise JobLost(f"the lease of job {self.id} was lost")


def kept(value: Any, what: str, most: int) -> str:
    """`value` as JSON that the database takes, of at most `most` characters. Raises JobError."""
    try:
        text = msgspec.json.encode(value).decode()
    except (TypeError, ValueError, OverflowError) as error:
        raise JobError(f"{what} cannot be kept as JSON: {error}") from error
    if len(text) > most:
        raise JobError(f"{what} has {len(text)} characters, more than {most}")
    if _NUL.search(text):
        raise JobError(f"{what} must be without NUL, got {text[:100]}")
    return text


@dataclass(frozen=True, slots=True)
class Handler(Generic[S]):
    """`method` runs jobs of the class `job`; its arguments are the module's implementation, job and Run.

    effect "any":           the job is finished after the method returned. A crash in between runs it again,
                            so what it does must bear to be done twice (use `run.key`).
    effect "transactional": the method runs inside a write transaction on the job's shard, `run.tx`, which
                            also finishes the job: both happen once or not at all. The module's own writes on
                            that shard join it. Keep such methods short, and call nobody outside.
    upcasts: older versions that are read, too: one for each version from the oldest to the one before the
             job's, applied one after the other.
    batch:   the method gets a list of up to so many jobs and a list of their runs. It returns None when all
             succeeded, else a list with None or an exception for each; what it raises ends all of them.
             Jobs of one batch are in one transaction, where the effect is transactional.
    wait:    seconds to wait for a batch to fill.

    Raises JobError.
    """

    job: type[S]
    method: Callable[[Any, S, Run], Awaitable[Any]] | Callable[[Any, list[S], list[Run]], Awaitable[Any]]
    effect: Effect = "any"
    upcasts: Sequence[Upcast] = field(default=(), kw_only=True)
    batch: int | None = field(default=None, kw_only=True)
    wait: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        spec = kind_of(self.job)
        check_handler(
            spec.name,
            self.job,
            JobError,
            newest=spec.version,
            method=self.method,
            effect=self.effect,
            upcasts=self.upcasts,
            batch=self.batch,
        )
        if not is_number(self.wait) or not 0 <= self.wait <= MAX_WAIT or (self.wait and self.batch is None):
            raise JobError(
                f"handler of {spec.name}: wait must be 0 to {MAX_WAIT:g} seconds, and 0 without batch,"
                f" got {self.wait!r}"
            )
        if self.batch is not None and spec.result:
            raise JobError(
                f"handler of {spec.name}: jobs that keep a result are run one by one, without batch"
            )

    @property
    def kind(self) -> JobKind:
        return kind_of(self.job)

    @property
    def names(self) -> list[str]:
        """Kind and version of all that it takes: the job's own, then those of its upcasts."""
        spec = self.kind
        return [spec.name, *(f"{spec.kind}/{upcast.version}" for upcast in self.upcasts)]
