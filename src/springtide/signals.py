"""What layers say about themselves: frozen facts with fixed fields, handed to a sink.

A layer emits and forgets: `Sink.emit` is synchronous, quick and never raises. Metrics, logs and the doctor
are sinks; a layer does not know which are listening. Durations are float seconds.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from springtide.context import Ledger, Trace

__all__ = [
    "BehindFailed",
    "BehindFlushed",
    "BehindWaiting",
    "CacheHitRateChanged",
    "CausalityChecked",
    "ConnectionClosed",
    "ConnectionOpened",
    "EventsHandled",
    "FanOut",
    "FlowMoved",
    "FlowsMeasured",
    "GroupMeasured",
    "IdempotencyChecked",
    "JobFinished",
    "JobsMeasured",
    "JobsReceived",
    "JobsSent",
    "LoadMeasured",
    "LogKept",
    "LogMeasured",
    "NullSink",
    "PartOmitted",
    "PolicyLowered",
    "PoolWaited",
    "PrimaryChanged",
    "QuorumChanged",
    "RedisChanged",
    "ReplicaChanged",
    "RequestFinished",
    "ScheduleFired",
    "ServerBarred",
    "ServiceChanged",
    "SessionChanged",
    "Signal",
    "Sink",
    "StatementFinished",
    "StatementRepeated",
    "StatementSlow",
    "TaskFailed",
    "TransportChanged",
    "WorkersWanted",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServiceChanged:
    """A service reached `state`: starting, running, stopping, stopped or failed."""

    service: str
    state: str
    error: str | None = None


@dataclass(frozen=True, slots=True)
class TaskFailed:
    """A supervised task raised; it is started again after `retry_in` seconds, None means never."""

    task: str
    error: str
    retry_in: float | None


@dataclass(frozen=True, slots=True)
class PoolWaited:
    """A caller had to queue for a connection. `outcome`: acquired, timeout, saturated or cancelled."""

    cluster: str
    priority: str
    seconds: float
    outcome: str


@dataclass(frozen=True, slots=True)
class CacheHitRateChanged:
    """The hit rate of a class, over the last minute, fell below what is wanted of it, or is there again."""

    cls: str
    rate: float
    wanted: float
    low: bool


@dataclass(frozen=True, slots=True)
class ConnectionOpened:
    cluster: str
    seconds: float


@dataclass(frozen=True, slots=True)
class ConnectionClosed:
    """`reason`: aged, idle, generation, broken, cancelled, replaced or shutdown."""

    cluster: str
    reason: str
    age: float


@dataclass(frozen=True, slots=True)
class StatementFinished:
    """One statement ended. `statement` is its fingerprint, `error` a SQLSTATE or exception name."""

    cluster: str
    statement: str
    seconds: float
    rows: int
    error: str | None


@dataclass(frozen=True, slots=True)
class StatementRepeated:
    """One request has run `statement` `calls` times until now, most of them from `site` (N+1)."""

    cluster: str
    statement: str
    calls: int
    site: str


@dataclass(frozen=True, slots=True)
class StatementSlow:
    """A statement took as long as is told; `plan` is that of the same one asked again, None without one."""

    cluster: str
    statement: str
    seconds: float
    plan: str | None
    request_id: str


@dataclass(frozen=True, slots=True)
class RequestFinished:
    """One HTTP request was answered, or its client left (`status` 499). `route` is the template.

    `path` (without the query) and `client` are for the access log alone: they have no bound.
    """

    method: str
    route: str
    status: int
    seconds: float
    request_id: str
    ledger: Ledger
    trace: Trace | None
    error: str | None
    path: str = ""
    client: str | None = None


@dataclass(frozen=True, slots=True)
class JobFinished:
    """One run of a job ended. `waited` is how long it was due before it began, `seconds` how long it ran.

    `outcome`: done, retry, dead (a dead letter), lost (by then it was not this worker's), returned
    (handed back at shutdown) or expired (its worker stopped renewing the lease: it is ready again).
    """

    module: str
    kind: str
    version: int
    job_id: str
    attempt: int
    outcome: str
    waited: float
    seconds: float
    request_id: str
    trace: Trace | None
    ledger: Ledger
    error: str | None


@dataclass(frozen=True, slots=True)
class JobsMeasured:
    """How many jobs of one kind one shard has in each state; `age` is how long the oldest due one waits.

    Counts are of at most `jobs.MEASURED` rows per shard and state. `held` are those that wait for others of
    their ordering or limit key, `sent` those that a transport has, `paused` those that are set aside because
    their kind is paused (`stopped`).
    """

    module: str
    shard: str
    kind: str
    ready: int
    running: int
    parked: int
    dead: int
    age: float
    held: int = 0
    sent: int = 0
    paused: int = 0
    stopped: bool = False


@dataclass(frozen=True, slots=True)
class LoadMeasured:
    """How much work one kind brings on one shard: jobs that are due now or soon, that come per second, and
    seconds that one has a slot; None when nothing of the kind has run yet."""

    module: str
    shard: str
    kind: str
    waiting: int
    arrival: float
    service: float | None


@dataclass(frozen=True, slots=True)
class WorkersWanted:
    """How many workers the jobs of all modules need, within the bounds, and how many slots it is made of."""

    workers: int
    slots: float


@dataclass(frozen=True, slots=True)
class JobsSent:
    """The relay has sent due jobs of one shard; the transport confirmed so many of them.

    repeated: how many had been sent before and not claimed in time. lag: how many seconds the oldest of them
    had been due, when it was confirmed or not.
    """

    module: str
    shard: str
    sent: int
    confirmed: int
    repeated: int
    lag: float


@dataclass(frozen=True, slots=True)
class JobsReceived:
    """A worker has looked at jobs that a transport brought for one shard.

    claimed: to be run. waiting: to be run later, or parked. dropped: they were claimed before, or are gone.
    """

    module: str
    shard: str
    claimed: int
    waiting: int
    dropped: int


@dataclass(frozen=True, slots=True)
class TransportChanged:
    """A transport carries jobs for this worker, or is away: then the worker claims from SQL."""

    transport: str
    carries: bool
    reason: str


@dataclass(frozen=True, slots=True)
class ScheduleFired:
    """A schedule's slots came: `runs` jobs were enqueued and `skipped` slots passed over, as it says.

    `late` is how many seconds after the newest slot that was.
    """

    module: str
    schedule: str
    runs: int
    skipped: int
    late: float


@dataclass(frozen=True, slots=True)
class EventsHandled:
    """One call of a group's handler ended, for `count` events of one kind in `seconds`; the first of them had
    waited `waited` seconds since it was appended.

    `outcome`: done, retry, dead (a dead letter, or its lane is blocked), lost (by then the lane was not this
    worker's) or returned (handed back at shutdown).
    """

    module: str
    group: str
    kind: str
    version: int
    position: int
    count: int
    attempt: int
    outcome: str
    waited: float
    seconds: float
    request_id: str
    trace: Trace | None
    ledger: Ledger
    error: str | None


@dataclass(frozen=True, slots=True)
class GroupMeasured:
    """How far a group is behind in the log of a shard: `waiting` events, the oldest of them numbered `age`
    seconds ago; `blocked` lanes that wait for somebody, and dead letters. `module` is the log's."""

    module: str
    shard: str
    group: str
    waiting: int
    age: float
    blocked: int
    dead: int


@dataclass(frozen=True, slots=True)
class LogMeasured:
    """The last position of a log; events that are not numbered yet, and how old the oldest is."""

    module: str
    shard: str
    position: int
    waiting: int
    age: float


@dataclass(frozen=True, slots=True)
class LogKept:
    """A day of a log was due to be dropped, and `groups` had not passed all of it: it is kept for them, or
    `dropped` all the same, as the log was told to."""

    module: str
    shard: str
    groups: tuple[str, ...]
    dropped: bool


@dataclass(frozen=True, slots=True)
class FlowMoved:
    """A workflow's step was recorded. `outcome`: done, refused, failed, late, cancelled, undone, stuck or
    resumed; `state` is what the flow is in since then."""

    module: str
    kind: str
    version: int
    flow_id: str
    step: str
    outcome: str
    state: str


@dataclass(frozen=True, slots=True)
class FlowsMeasured:
    """How many flows of one kind that have not ended one shard has in each state."""

    module: str
    shard: str
    kind: str
    running: int
    waiting: int
    undoing: int
    stuck: int


@dataclass(frozen=True, slots=True)
class IdempotencyChecked:
    """What became of one request with an idempotency key.

    `outcome`: begun, taken_over (after a crash), replayed, in_flight, reused (refused: another body), lost
    (its lease ended first), released (it failed, the key is free again) or resolved (an unknown COMMIT).
    One request may have two: how it began and how it ended, where that is not by being done.
    """

    module: str
    outcome: str


@dataclass(frozen=True, slots=True)
class SessionChanged:
    """`count` sessions were opened, rotated, revoked or expired (deleted), or a cookie was refused.

    `event`: opened, rotated, revoked, expired, unknown (a cookie without a session) or replaced (a cookie
    from before a rotation, after its grace: a stolen one looks like this).
    """

    event: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class CausalityChecked:
    """`count` causality tokens were not believed, or what clients without any have seen was kept or asked.

    `event`: malformed, foreign (another platform's key), forged or expired: as if there were none. pinned: a
    browser has too many answers under way and reads from the primaries. kept, recalled: for identities;
    not_kept, not_recalled: the database that keeps it was away; unsure: it has lost some by a restart (the
    last two read from the primaries).
    """

    event: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class PartOmitted:
    """A page was answered without a part that it can do without; `reason` is the name of what failed."""

    part: str
    reason: str


@dataclass(frozen=True, slots=True)
class BehindFlushed:
    """One transaction applied `rows` changes of `keys` keys; the oldest had waited `waited` seconds."""

    database: str
    name: str
    rows: int
    keys: int
    waited: float


@dataclass(frozen=True, slots=True)
class BehindFailed:
    """The changes of one key could not be applied; they are kept and tried again."""

    database: str
    name: str
    error: str


@dataclass(frozen=True, slots=True)
class BehindWaiting:
    """So many changes wait on a shard to be applied: `rows`, counted up to a bound."""

    database: str
    shard: str
    name: str
    rows: int


@dataclass(frozen=True, slots=True)
class PolicyLowered:
    """An answer of `route` may be kept for less than was declared, or said by its headers; see `reason`."""

    route: str
    reason: str


@dataclass(frozen=True, slots=True)
class RedisChanged:
    """What `redis` has of the server at `address`: serving, silent (connected, not in time) or lost."""

    redis: str
    address: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class RelayChanged:
    """This process applies, or applies no more, what writes on the cluster have made stale in caches."""

    cluster: str
    leads: bool


@dataclass(frozen=True, slots=True)
class RelayMeasured:
    """What the relay of the cluster has done since the last time: rounds, and rows applied; `strangers` of
    them were of classes that its process does not know.

    oldest: seconds since the oldest row was written that waits now. latest: the same of the oldest that was
    applied. longest: seconds between the beginnings of two rounds, at most.
    """

    cluster: str
    rounds: int
    rows: int
    oldest: float
    latest: float
    longest: float
    strangers: int = 0


@dataclass(frozen=True, slots=True)
class ReplicaChanged:
    """A replica is now joining, serving, lagging or ejected for this process; `reason` is for people."""

    cluster: str
    node: str
    state: str
    reason: str


@dataclass(frozen=True, slots=True)
class PrimaryChanged:
    """This process has found another primary, or the same one on a new timeline (`epoch`)."""

    cluster: str
    node: str
    epoch: int


@dataclass(frozen=True, slots=True)
class ServerBarred:
    """A server of the cluster is used for nothing by this process: `why` is rival, superseded or stranger.
    None: it is no such thing any more, or is gone."""

    cluster: str
    node: str
    why: str | None


@dataclass(frozen=True, slots=True)
class QuorumChanged:
    """The primary `node` of a cluster with a database of durability "quorum" does not wait for a standby at
    COMMIT (`waits` False: such writes are refused), or does so again."""

    cluster: str
    node: str
    waits: bool


Signal = (
    ServiceChanged
    | TaskFailed
    | PoolWaited
    | PrimaryChanged
    | QuorumChanged
    | RedisChanged
    | RelayChanged
    | RelayMeasured
    | ReplicaChanged
    | ServerBarred
    | ConnectionOpened
    | ConnectionClosed
    | StatementFinished
    | StatementRepeated
    | StatementSlow
    | RequestFinished
    | JobFinished
    | JobsMeasured
    | ScheduleFired
    | JobsReceived
    | JobsSent
    | LoadMeasured
    | WorkersWanted
    | TransportChanged
    | EventsHandled
    | GroupMeasured
    | LogMeasured
    | LogKept
    | FlowMoved
    | FlowsMeasured
    | IdempotencyChecked
    | SessionChanged
    | CausalityChecked
    | PartOmitted
    | PolicyLowered
    | BehindFlushed
    | BehindWaiting
    | BehindFailed
    | CacheHitRateChanged
)


class Sink(Protocol):
    def emit(self, signal: Signal) -> None:
        """Take note of `signal`; must return within microseconds and must not raise."""


class NullSink:
    """Hears nothing; the default of every layer used alone."""

    __slots__ = ()

    def emit(self, signal: Signal) -> None:
        return None


class FanOut:
    """Hands every signal to several sinks; one that raises is logged and does not stop the others."""

    __slots__ = ("_sinks",)

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self._sinks = tuple(sinks)

    def emit(self, signal: Signal) -> None:
        for sink in self._sinks:
            try:
                sink.emit(signal)
            except Exception:  # a faulty observer must not fail the observed
                _log.exception("sink %r failed on %s", sink, type(signal).__name__)
