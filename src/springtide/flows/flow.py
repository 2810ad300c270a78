"""What a workflow is: a frozen struct that goes from step to step, and the steps in their order.

    PLACE = Workflow("orders.place", Order, [
        Step("reserve", Service.reserve, undo=Service.release),
        Step("charge", Service.charge, undo=Service.give_back),
        WaitFor("packed", event="parcel.packed", key=lambda order: str(order.id), timeout=86_400.0),
        Step("ship", Service.ship),
    ])
    Module(..., workflows=[PLACE])

A declaration is a value: nothing is registered by import. Steps are named in the database, as kinds of jobs:
`orders.place.charge` and `orders.place.charge.undo`; so each has its own attempts, limits and metrics, and
one that a release does not know is parked and visible like any job.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeAlias, TypeVar, get_args
from uuid import UUID

import msgspec

from springtide.context import Priority
from springtide.errors import JobError
from springtide.jobs import Effect, job
from springtide.outbox.kinds import check_counts, check_effect, check_method

if TYPE_CHECKING:
    from springtide.db import WriteTransaction

__all__ = ["Go", "Moved", "Node", "Pause", "Step", "StepRun", "WaitFor", "Workflow"]

D = TypeVar("D", bound=msgspec.Struct)

MAX_STEPS = 100
MAX_SECONDS = 10 * 366 * 86_400.0
UNDO_ATTEMPTS = 50

_NAME = re.compile(r"[a-z][a-z0-9_]{0,47}(\.[a-z][a-z0-9_]{0,47})?")
_STEP = re.compile(r"[a-z][a-z0-9_]{0,47}")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRun:
    """One run of a step, as its function sees it.

    `key` is the same for every run of the step in this flow, and unique over all flows: hand it to third
    parties as idempotency key. What undoes a step has a key of its own, and `do_key` is that of the step.
    """

    flow: UUID
    key: str
    do_key: str
    attempt: int
    max_attempts: int
    transaction: WriteTransaction | None = None

    @property
    def tx(self) -> WriteTransaction:
        """The transaction that records the step, for those declared with effect="transactional"."""
        if self.transaction is None:
            raise JobError('only a step with effect="transactional" has the transaction that records it')
        return self.transaction


Do: TypeAlias = Callable[[Any, Any, StepRun], Awaitable[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """A flow that moves: from state `before` to `state`, where `step` is the one that it is at (None: it has
    ended). `outcome` is that of the step before: see StepRecord; None: it will be asked again."""

    flow: UUID
    key: str | None
    data: Any
    before: str
    state: str
    step: str | None
    outcome: str | None
    reason: str | None


State: TypeAlias = Literal["running", "waiting", "undoing", "stuck", "done", "undone"]

STATES: tuple[State, ...] = get_args(State)

Follow: TypeAlias = "Callable[[WriteTransaction, Moved], Awaitable[None]]"


@dataclass(frozen=True, slots=True)
class Step:
    """`do` is called with the module's implementation, the flow's data and a StepRun; it returns the data for
    the steps after it, or None when they stay as they are.

    undo:   takes it back, when the flow is cancelled or a later step fails for good. It must bear that `do`
            did not happen or only in part, and keep a `do` that comes late from having an effect. None: there
            is nothing to take back.
    effect: "transactional": `do` and `undo` run in the write transaction that records them, `run.tx`: once or
            not at all. "any": they may run again after a crash, with the same `run.key`.
    max_attempts, max_run, backoff, max_backoff: of `do`, as jobs have them. After the last attempt the flow
            turns, and undoes this step, too: nobody knows how far it came. A step that knows that it had no
            effect and never will raises StepRefused: it turns at once and begins with the step before. One
            that does not know yet what became of it raises StepLater: it is asked again, and counts anew.
    undo_attempts: as many runs has `undo`, at most `max_backoff` apart; then the flow is stuck, visible, and
            goes on with `resume`.

    Raises JobError.
    """

    name: str
    do: Do
    undo: Do | None = field(default=None, kw_only=True)
    effect: Effect = field(default="any", kw_only=True)
    max_attempts: int = field(default=15, kw_only=True)
    max_run: float = field(default=60.0, kw_only=True)
    backoff: float = field(default=2.0, kw_only=True)
    max_backoff: float = field(default=3600.0, kw_only=True)
    undo_attempts: int = field(default=UNDO_ATTEMPTS, kw_only=True)

    def __post_init__(self) -> None:
        _check_step(self.name)
        for what, function in (("do", self.do), ("undo", self.undo)):
            if function is not None:
                check_method(f"step {self.name!r}", what, function, JobError)
        check_effect(f"step {self.name!r}", self.effect, JobError)
        check_counts(f"step {self.name!r}", JobError, undo_attempts=self.undo_attempts)
        if self.undo is None and self.undo_attempts != UNDO_ATTEMPTS:
            raise JobError(
                f"step {self.name!r}: undo_attempts is for undo, which is None, got {self.undo_attempts}"
            )


@dataclass(frozen=True, slots=True)
class WaitFor:
    """Wait for the event `event` that is sent with the key which `key` makes of the flow's data, in the
    bucket of the flow (`Flows.send`). One that came before is there; each is taken by one flow.

    timeout: seconds. Then the flow turns (`late="fail"`), or goes on without (`late="go_on"`). None: it waits
             for as long as it takes.
    payload: type of what is sent with it; `then` makes of the data and of this (None: it is late) the data
             for the steps after it. Without `then` they stay as they are.

    Raises JobError.
    """

    name: str
    event: str = field(kw_only=True)
    key: Callable[[Any], Any] = field(kw_only=True)
    timeout: float | None = field(kw_only=True)
    late: Literal["fail", "go_on"] = field(default="fail", kw_only=True)
    payload: Any = field(default=Any, kw_only=True)
    then: Callable[[Any, Any], Any] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _check_step(self.name)
        if not self.event:
            raise JobError(f"step {self.name!r}: event must not be empty")
        if self.timeout is not None and not 0 < self.timeout <= MAX_SECONDS:
            raise JobError(
                f"step {self.name!r}: timeout must be > 0 seconds and at most ten years, got {self.timeout}"
            )
        if self.late not in ("fail", "go_on"):
            raise JobError(f'step {self.name!r}: late must be "fail" or "go_on", got {self.late!r}')
        if self.late == "go_on" and self.timeout is None:
            raise JobError(
                f"step {self.name!r}: late is for when timeout has passed, which is None, got {self.late!r}"
            )
        if self.payload is not Any and self.then is None:
            raise JobError(f"step {self.name!r}: payload is for then, which is None, got {self.payload!r}")


@dataclass(frozen=True, slots=True)
class Pause:
    """Go on after `seconds`, or at the time that `until` makes of the flow's data.

    Raises JobError.
    """

    name: str
    seconds: float | None = field(default=None, kw_only=True)
    until: Callable[[Any], datetime] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        _check_step(self.name)
        if (self.seconds is None) == (self.until is None):
            raise JobError(f"step {self.name!r}: give either seconds or until")
        if self.seconds is not None and not 0 <= self.seconds <= MAX_SECONDS:
            raise JobError(
                f"step {self.name!r}: seconds must be >= 0 and at most ten years, got {self.seconds}"
            )


Node: TypeAlias = Step | WaitFor | Pause


class Go(msgspec.Struct, frozen=True):
    """The job of a step: which flow, and from where. Each step has a subclass, which is its kind."""

    bucket: int
    flow: UUID
    seq: int


@dataclass(frozen=True, slots=True)
class Workflow(Generic[D]):
    """The steps that flows of this kind go through, and the struct that they carry.

    version: raise it when steps are added, removed, renamed or put into another order, and list the old one
             beside it until its flows have ended: a flow keeps the version that it began with.
    keep:    seconds that a flow which has ended stays visible; the same in all versions of a kind.
    follow:  called in the transaction of every move, before it commits: what it writes is there if and only
             if the flow has moved. So rows of the module say where the flow is. What it raises undoes the
             move; keep it short. The start is no move: who starts a flow has its transaction.
    follows: the states into which moves are followed; None: all. Without "running" a step that is driven is
             recorded by one statement, where one comes after it at once.

    Raises JobError.
    """

    kind: str
    data: type[D]
    steps: Sequence[Node]
    version: int = field(default=1, kw_only=True)
    priority: Priority = field(default=Priority.NORMAL, kw_only=True)
    keep: float = field(default=30 * 86_400.0, kw_only=True)
    follow: Follow | None = field(default=None, kw_only=True)
    follows: Collection[State] | None = field(default=None, kw_only=True)
    decode: Callable[[bytes], D] = field(init=False, repr=False, compare=False)
    jobs: dict[str, type[Go]] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.kind):
            raise JobError(
                "a workflow's kind is one or two words of lower-case letters, digits and _ with a dot"
                f" between, such as orders.place, got {self.kind!r}"
            )
        check_counts(f"workflow {self.kind}", JobError, version=self.version)
        if not self.keep >= 0:
            raise JobError(f"workflow {self.kind}: keep must be >= 0 seconds, got {self.keep}")
        if unknown := sorted(set(self.follows or ()).difference(STATES)):
            raise JobError(
                f"workflow {self.kind}: follows must be of {', '.join(STATES)}, got {', '.join(unknown)}"
            )
        if self.follows is not None and self.follow is None:
            raise JobError(
                f"workflow {self.kind}: follows is for follow, which is None, got {', '.join(self.follows)}"
            )
        config = getattr(self.data, "__struct_config__", None)
        if config is None or not config.frozen:
            raise JobError(f"workflow {self.kind}: data must be a frozen msgspec.Struct, got {self.data!r}")
        object.__setattr__(self, "decode", msgspec.json.Decoder(self.data).decode)
        if not 1 <= len(self.steps) <= MAX_STEPS:
            raise JobError(
                f"workflow {self.kind}: it must have 1 to {MAX_STEPS} steps, got {len(self.steps)}"
            )
        names = [step.name for step in self.steps]
        for name in names:
            if names.count(name) > 1:
                raise JobError(f"workflow {self.kind}: step {name!r} is declared twice")
        for step in self.steps:
            try:
                self.jobs[step.name] = self._job(step, step.name)
                if isinstance(step, Step) and step.undo is not None:
                    self.jobs[f"{step.name}.undo"] = self._job(step, f"{step.name}.undo")
            except JobError as error:
                raise JobError(f"workflow {self.kind}: {error}") from error

    @property
    def name(self) -> str:
        """Kind and version: `orders.place/1`."""
        return f"{self.kind}/{self.version}"

    def followed(self, state: str) -> bool:
        """Whether somebody follows a move into this state. Pure."""
        return self.follow is not None and (self.follows is None or state in self.follows)

    def undoing(self, step: int) -> int | None:
        """The last step up to `step` that has something to undo; None: there is none. Pure."""
        for index in range(min(step, len(self.steps) - 1), -1, -1):
            found = self.steps[index]
            if isinstance(found, Step) and found.undo is not None:
                return index
        return None

    def _job(self, step: Node, what: str) -> Any:
        made: Any = msgspec.defstruct(f"Go_{what.replace('.', '_')}", [], bases=(Go,), frozen=True)
        kind, priority = f"{self.kind}.{what}", self.priority
        if not isinstance(step, Step):
            return job(kind=kind, version=self.version, priority=priority)(made)
        return job(
            kind=kind,
            version=self.version,
            priority=priority,
            max_attempts=step.max_attempts if what == step.name else step.undo_attempts,
            max_run=step.max_run,
            backoff=step.backoff,
            max_backoff=step.max_backoff,
        )(made)


def _check_step(name: str) -> None:
    if not _STEP.fullmatch(name):
        raise JobError(
            "a step's name must be lower-case letters, digits and _, at most 48, a letter first,"
            f" got {name!r}"
        )
