"""Every error that Springtide raises, under one root.

    SpringtideError
    ├── ConfigurationError            the application or its topology cannot run as written
    │   ├── TopologyError             springtide.toml: all faults at once, with lines
    │   ├── StageNotBuilt             the topology asks for parts that do not exist yet
    │   ├── ModuleError               a module's declaration breaks its boundary
    │   ├── JobError                  a job is declared, handled or enqueued as it cannot run
    │   ├── TransportRefused          a broker or its driver cannot carry jobs: key, value and rule
    │   ├── EventError                an event or a group is declared, or an event published, as it cannot be
    │   ├── CacheDefinitionError      a class of cached values is defined as it cannot be kept
    │   ├── SessionStateRefused       a statement would leave something in a session that a pooler shares
    │   └── MigrationError            migrations on disk and in the database disagree
    ├── RunnerError                   a local process could not be started, adopted or stopped
    │   ├── ProcessCrashed            it ended before it was ready; another try may help
    │   └── CgroupError               CPU and memory limits cannot be set here
    ├── LoadError                     a seeding or a load run could not begin, or its own code failed
    │   └── AlreadySeeded             the platform has data, and a seed is for an empty one
    ├── DeadlineExceeded              the request's time is used up
    ├── BodyTooLarge                  a request's body passes the limit
    ├── Unavailable                   try again later; carries retry_after
    │   ├── PoolTimeout               no connection within acquire_timeout
    │   ├── PoolSaturated             too many callers wait for a connection already
    │   ├── PoolClosed                the pool is stopping or was never started
    │   ├── DatabaseUnavailable       no connection to the server can be made or kept
    │   ├── MembersUnknown            nobody says which servers a cluster has now
    │   ├── RedisUnavailable          no answer of a Redis server, or none in time; says who and why
    │   ├── QueueOverloaded           jobs of a kind wait longer than it allows: no more are taken now
    │   ├── TransportUnavailable      the broker that carries jobs does not answer; they wait in SQL
    │   ├── LoadTimeout               the loader of a cached value took longer than its class allows
    │   ├── LoadsSaturated            too many loads of cached values wait for their turn already
    │   ├── ReplicaConflict           a replica ended a snapshot, because replay could not wait for it
    │   └── StalenessUnknown          no server can prove that a read would be fresh enough
    ├── DatabaseError                 the database answered, and the answer is a problem
    │   ├── RoleChanged               the server stopped being a primary (SQLSTATE 25006)
    │   ├── CommitUnknown             COMMIT was sent, its outcome is not known
    │   ├── AlreadyReserved           a value that must be unique belongs to somebody else
    │   ├── WrongShard                one transaction touched keys of two shards
    │   ├── NotScatterable            rows of several shards cannot be merged as asked
    │   └── IdSpaceExhausted          a bucket has used every id below 2**53
    ├── RedisError                    a Redis server answered with an error
    ├── JobFailed                     raised by a job's handler: trying again cannot help
    ├── JobLost                       the worker does not own this run of the job any more
    ├── EventFailed                   raised by an event's handler: trying again cannot help
    ├── EventLost                     the worker does not hold this lane of the group any more
    ├── StepRefused                   raised by a step of a workflow: it had no effect and never will
    ├── StepLater                     raised by a step of a workflow: it does not know yet, ask again
    ├── InvalidToken                  a signed token is malformed, expired or not ours
    ├── InvalidCursor                 a pagination cursor was not made by this query
    ├── IdempotencyError              an idempotency key cannot be used, or not now
    │   ├── IdempotencyKeyInvalid     it is missing or malformed
    │   ├── IdempotencyKeyReused      it came before, with another body
    │   ├── IdempotencyInFlight       the request that came before is still at work; carries retry_after
    │   └── IdempotencyLost           a duplicate took over, because this request outlived its lease
    └── SessionError                  a session cannot be used as asked
        ├── SessionEnded              it is unknown, expired, revoked or was replaced
        └── CsrfRefused               the request does not prove that our own page sent it

Each message is one sentence from the caller's side; data are attributes; causes are chained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from springtide import _toml

__all__ = [
    "AlreadyReserved",
    "AlreadySeeded",
    "BodyTooLarge",
    "CacheDefinitionError",
    "CgroupError",
    "CommitUnknown",
    "ConfigurationError",
    "CsrfRefused",
    "DatabaseError",
    "DatabaseUnavailable",
    "DeadlineExceeded",
    "IdSpaceExhausted",
    "EventError",
    "EventFailed",
    "EventLost",
    "IdempotencyError",
    "IdempotencyInFlight",
    "IdempotencyKeyInvalid",
    "IdempotencyKeyReused",
    "IdempotencyLost",
    "InvalidCursor",
    "InvalidToken",
    "JobError",
    "JobFailed",
    "JobLost",
    "LoadError",
    "LoadTimeout",
    "LoadsSaturated",
    "MembersUnknown",
    "MigrationError",
    "ModuleError",
    "NotScatterable",
    "PoolClosed",
    "PoolSaturated",
    "PoolTimeout",
    "ProcessCrashed",
    "QueueOverloaded",
    "RedisError",
    "RedisUnavailable",
    "ReplicaConflict",
    "RoleChanged",
    "RunnerError",
    "SessionEnded",
    "SessionError",
    "SessionStateRefused",
    "SpringtideError",
    "StageNotBuilt",
    "StalenessUnknown",
    "StepLater",
    "StepRefused",
    "TopologyError",
    "TopologyFault",
    "TransportRefused",
    "TransportUnavailable",
    "Unavailable",
    "WrongShard",
]


MAX_SHOWN = 101
"""Characters of a faulty value that a message shows."""

CLOSING = '"]}'


class SpringtideError(Exception):
    """The root of the tree; never raised itself."""


class ConfigurationError(SpringtideError):
    """The application or its topology cannot run as written."""


@dataclass(frozen=True, slots=True)
class TopologyFault:
    """One fault: `line` 1-based or None when the key is absent, `key` dotted, `rule` what must hold.

    Shown with the value as the file would spell it, cut off when it is long.
    """

    line: int | None
    key: str
    value: object
    rule: str

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line is not None else ""
        if self.value is None:
            return f"{where}{self.key}: {self.rule}"
        got = _toml.value(self.value)
        if len(got) > MAX_SHOWN:
            got = f"{got[: MAX_SHOWN - 1]}…{got[-1] if got[-1] in CLOSING else ''}"
        return f"{where}{self.key}: {self.rule}, got {got}"


class TopologyError(ConfigurationError):
    """springtide.toml breaks its rules; `faults` lists every one, in file order."""

    def __init__(self, source: str, faults: Sequence[TopologyFault]) -> None:
        self.source = source
        self.faults = tuple(faults)
        lines = "\n".join(f"  {fault}" for fault in self.faults)
        noun = "fault" if len(self.faults) == 1 else "faults"
        super().__init__(f"{source}: {len(self.faults)} {noun}\n{lines}")


class StageNotBuilt(ConfigurationError):
    """The topology needs `missing` parts, which this version of Springtide does not have."""

    def __init__(self, stage: int | None, missing: Sequence[str]) -> None:
        self.stage = stage
        self.missing = tuple(missing)
        subject = f"stage {stage}" if stage is not None else "this topology"
        super().__init__(f"{subject} needs {', '.join(self.missing)}, which this version does not have yet")


class ModuleError(ConfigurationError):
    """A module's declaration breaks its boundary."""


class JobError(ConfigurationError):
    """A job is declared, handled or enqueued in a way that it cannot run."""


class TransportRefused(ConfigurationError):
    """A broker, or its driver, cannot carry jobs: `key` has `value`, and `rule` says what it must be."""

    def __init__(self, transport: str, key: str, value: object, rule: str) -> None:
        self.transport = transport
        self.key = key
        self.value = value
        self.rule = rule
        super().__init__(f"{transport}: {key} {rule}, got {value!r}")


class EventError(ConfigurationError):
    """An event or a group is declared, or an event published, in a way that it cannot be."""


class CacheDefinitionError(ConfigurationError):
    """A class of cached values is defined as it cannot be kept; the message names class, option and rule."""


class SessionStateRefused(ConfigurationError):
    """`what` keeps something in its session, which behind a transaction pooler somebody else has next."""

    def __init__(self, what: str, instead: str) -> None:
        self.what = what
        direct = "run it on a direct connection: Pool(url of the server itself)"
        super().__init__(
            f"{what} keeps state in its session, and behind a transaction pooler the session is somebody "
            f"else's after each transaction: {f'{instead}, or {direct}' if instead else direct}"
        )


class MigrationError(ConfigurationError):
    """Migrations on disk and in the database disagree, or one of them failed."""


class RunnerError(SpringtideError):
    """A local process could not be started, adopted or stopped."""


class ProcessCrashed(RunnerError):
    """A local process ended before it was ready; the message has the last lines of its log."""


class CgroupError(RunnerError):
    """CPU and memory limits cannot be set here; the message says why."""


class LoadError(SpringtideError):
    """A seeding or a load run could not begin, or was ended by a fault in its own code."""


class AlreadySeeded(LoadError):
    """The platform has data, and a seed is for an empty one."""


class DeadlineExceeded(SpringtideError):
    """The request's time is used up; `during` says what it was spent on last."""

    def __init__(self, during: str) -> None:
        self.during = during
        super().__init__(f"the deadline passed while {during}")


class BodyTooLarge(SpringtideError):
    """The body of a request passes `limit` bytes; the rest of it is not read."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(f"the body of this request may have at most {limit} bytes")


class Unavailable(SpringtideError):
    """A dependency cannot take this request now; `retry_after` in seconds is a hint, None means unknown."""

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        self.retry_after = retry_after
        super().__init__(message)


class PoolTimeout(Unavailable):
    """No connection became free within the acquire time-out."""


class PoolSaturated(Unavailable):
    """The queue for connections is full; the caller was turned away at once."""


class PoolClosed(Unavailable):
    """The pool is stopping or was never started."""


class DatabaseUnavailable(Unavailable):
    """No connection to the server can be made or kept; nothing was committed by this call."""


class MembersUnknown(Unavailable):
    """The source of a cluster's members cannot tell now which servers it has."""


class RedisUnavailable(Unavailable):
    """No answer of the Redis server at `address`, or none in time: `what`. Whether it acted is not known."""

    def __init__(self, address: str, what: str, *, retry_after: float | None = None) -> None:
        self.address = address
        self.what = what
        super().__init__(f"redis {address}: {what}", retry_after=retry_after)


class QueueOverloaded(Unavailable):
    """The oldest job of `kind` waits for `age` seconds, more than its `limit`: this one was not enqueued."""

    def __init__(self, kind: str, *, age: float, limit: float, retry_after: float) -> None:
        self.kind = kind
        self.age = age
        self.limit = limit
        super().__init__(
            f"jobs of kind {kind} wait for {age:.0f} s, more than {limit:g} s: no more are taken now",
            retry_after=retry_after,
        )


class TransportUnavailable(Unavailable):
    """The broker that carries jobs does not answer, or not in time. Nothing is lost: jobs are in SQL."""

    def __init__(self, transport: str, what: str, *, retry_after: float | None = None) -> None:
        self.transport = transport
        self.what = what
        super().__init__(f"{transport}: {what}", retry_after=retry_after)


class LoadTimeout(Unavailable):
    """The loader of a cached value took longer than its class allows; nothing was kept."""


class LoadsSaturated(Unavailable):
    """So many loads of cached values wait for their turn that another one was turned away at once."""


class ReplicaConflict(Unavailable):
    """A replica ended a snapshot, because its replay could not wait for it any longer; begin it again."""


class StalenessUnknown(Unavailable):
    """No replica can prove that what it has is fresh enough, and the primary does not answer."""


class DatabaseError(SpringtideError):
    """The database answered, and the answer is a problem."""


class RoleChanged(DatabaseError):
    """The server stopped being a primary; every connection to it is being retired."""


class CommitUnknown(DatabaseError):
    """COMMIT was sent and its outcome is not known: do not retry blindly, look at the data."""


class AlreadyReserved(DatabaseError):
    """`value` of `kind` belongs to somebody else."""

    def __init__(self, kind: str, value: str) -> None:
        self.kind = kind
        self.value = value
        super().__init__(f"{kind} {value!r} is already taken")


class WrongShard(DatabaseError):
    """One transaction touched keys that live on two shards."""


class NotScatterable(DatabaseError):
    """What a statement answers on several shards cannot be merged as asked."""


class IdSpaceExhausted(DatabaseError):
    """A bucket has used every id below 2**53."""


class RedisError(SpringtideError):
    """The Redis server at `address` answered with an error, `what`; `code` is the first word of it."""

    def __init__(self, address: str, what: str) -> None:
        self.address = address
        self.what = what
        self.code = what.partition(" ")[0]
        super().__init__(f"redis {address}: {what}")


class JobFailed(SpringtideError):
    """Raised by a job's handler to say that trying again cannot help: the job becomes a dead letter."""


class StepRefused(SpringtideError):
    """Raised by a step of a workflow: it had no effect and never will, so the steps before it are undone.

    undo: nobody knows how far it came: it is undone with them.
    data: the flow's data for what undoes the steps; None: as they are.
    """

    def __init__(self, message: str, *, undo: bool = False, data: object | None = None) -> None:
        self.undo = undo
        self.data = data
        super().__init__(message)


class StepLater(SpringtideError):
    """Raised by a step of a workflow that does not know yet what became of it: it is asked again after
    `seconds`, or when the flow is woken. That is no failure, and no attempt is counted."""

    def __init__(self, seconds: float) -> None:
        if not seconds >= 0:
            raise ValueError(f"seconds must be >= 0, got {seconds}")
        self.seconds = seconds
        super().__init__(f"it is asked again in {seconds:g} s")


class JobLost(SpringtideError):
    """The worker does not own this run of the job any more; its transactional effect was rolled back."""


class EventFailed(SpringtideError):
    """Raised by an event's handler to say that trying again cannot help: the event becomes a dead letter."""


class EventLost(SpringtideError):
    """The worker does not hold this lane of the group any more; its transactional effect was rolled back."""


class InvalidToken(SpringtideError):
    """A signed token is malformed, expired, or was not signed by us for this use."""


class InvalidCursor(SpringtideError):
    """A pagination cursor was not made by this query."""


class IdempotencyError(SpringtideError):
    """An idempotency key cannot be used as it was sent, or not now; nothing was changed by this request."""


class IdempotencyKeyInvalid(IdempotencyError):
    """The idempotency key is missing where one is needed, or malformed."""


class IdempotencyKeyReused(IdempotencyError):
    """The key came before with another body: each request of its own needs a key of its own."""

    def __init__(self) -> None:
        super().__init__("this idempotency key was used for a request with another body")


class IdempotencyInFlight(IdempotencyError):
    """A request with this key is still at work; ask again after `retry_after` seconds."""

    def __init__(self, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__("a request with this idempotency key is still at work")


class IdempotencyLost(IdempotencyError):
    """This request outlived its lease and a duplicate took the key over: its transaction was rolled back."""

    def __init__(self, retry_after: float) -> None:
        self.retry_after = retry_after
        super().__init__("this request took too long, and a duplicate of it has taken over")


class SessionError(SpringtideError):
    """A session cannot be used as asked."""


class SessionEnded(SessionError):
    """The session is unknown, expired, revoked, or its cookie was replaced by another one."""


class CsrfRefused(SessionError):
    """The request does not prove that a page of this application sent it; the message says what is wrong."""
