"""What travels with one request: deadline, causality token, priority, identity, trace and ledger.

Every layer reads it with `current()`; none passes these things as arguments. The object is shared by all
tasks that the request starts, so its ledger and token add up whatever runs concurrently.
Nothing here does I/O, and nothing here trusts a header: that is the first hop's duty.
"""

from __future__ import annotations

import contextvars
import enum
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

__all__ = [
    "CausalityToken",
    "Entry",
    "Identity",
    "Ledger",
    "Part",
    "Position",
    "Priority",
    "RequestContext",
    "Trace",
    "activate",
    "current",
    "detached",
]

MAX_STATEMENTS = 64
"""Distinct labels that one ledger keeps per part; more are added up under `OTHER`."""

OTHER = "(other)"


class Priority(enum.IntEnum):
    """Who is served first when not all can be; lower is more important."""

    CRITICAL = 0
    NORMAL = 1
    BULK = 2


class Part(enum.StrEnum):
    """Where a request's time can go. The values are the labels of metrics and of `Server-Timing`."""

    ADMISSION = "admission"
    POOL = "pool"
    SQL = "sql"
    CACHE_L1 = "l1"
    CACHE_L2 = "l2"
    CALL = "call"
    HASH = "hash"
    SERIALISE = "serialise"
    CPU = "cpu"


class Entry:
    """Seconds, calls and rows added up under one label."""

    __slots__ = ("calls", "rows", "seconds")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls = 0
        self.rows = 0

    def __repr__(self) -> str:
        return f"Entry(seconds={self.seconds:.6f}, calls={self.calls}, rows={self.rows})"


class Ledger:
    """Where the time of one request went, in seconds per part, and per label within a part.

    Concurrent work is added up, so the parts may exceed the wall time. Labels per part are bounded:
    past `MAX_STATEMENTS` distinct ones, the rest is kept under `OTHER`.
    """

    __slots__ = ("_labels", "_parts")

    def __init__(self) -> None:
        self._parts: dict[Part, Entry] = {}
        self._labels: dict[Part, dict[str, Entry]] = {}

    def add(self, part: Part, seconds: float, label: str | None = None, rows: int = 0) -> None:
        entry = self._parts.get(part)
        if entry is None:
            entry = self._parts[part] = Entry()
        entry.seconds += seconds
        entry.calls += 1
        entry.rows += rows
        if label is None:
            return
        labels = self._labels.get(part)
        if labels is None:
            labels = self._labels[part] = {}
        entry = labels.get(label)
        if entry is None:
            if len(labels) >= MAX_STATEMENTS:
                label = OTHER
            entry = labels.setdefault(label, Entry())
        entry.seconds += seconds
        entry.calls += 1
        entry.rows += rows

    @property
    def parts(self) -> Mapping[Part, Entry]:
        return self._parts

    def labels(self, part: Part) -> Mapping[str, Entry]:
        return self._labels.get(part, {})

    def seconds(self, part: Part) -> float:
        entry = self._parts.get(part)
        return entry.seconds if entry is not None else 0.0


class Position(NamedTuple):
    """A place in one cluster's write-ahead log; positions of different epochs are ordered by epoch."""

    epoch: int
    lsn: int


_POSITION = re.compile(r"([^:,]{1,128}):([0-9]{1,10}):([0-9A-F]{1,16})")


class CausalityToken:
    """What a session has seen: cluster -> position. It only ever grows (merged by maximum)."""

    __slots__ = ("_positions",)

    def __init__(self, positions: Mapping[str, Position] | None = None) -> None:
        self._positions: dict[str, Position] = dict(positions or {})

    def observe(self, cluster: str, position: Position) -> None:
        known = self._positions.get(cluster)
        if known is None or position > known:
            self._positions[cluster] = position

    def merge(self, other: CausalityToken) -> None:
        for cluster, position in other._positions.items():
            self.observe(cluster, position)

    def position(self, cluster: str) -> Position | None:
        return self._positions.get(cluster)

    def encode(self) -> str:
        """`main:1:16B3748,other:1:0`: cluster, epoch and hexadecimal log position; sorted by cluster."""
        return ",".join(f"{name}:{p.epoch}:{p.lsn:X}" for name, p in sorted(self._positions.items()))

    @classmethod
    def decode(cls, text: str) -> CausalityToken:
        """The inverse of `encode`. Raises ValueError naming the part that is malformed."""
        token = cls()
        for part in filter(None, text.split(",")):
            match = _POSITION.fullmatch(part)
            if match is None:
                raise ValueError(f"a causality token is cluster:epoch:lsn, got {part!r}")
            cluster, epoch, lsn = match.groups()
            token.observe(cluster, Position(int(epoch), int(lsn, 16)))
        return token

    def __bool__(self) -> bool:
        return bool(self._positions)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CausalityToken) and self._positions == other._positions

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"CausalityToken({self.encode()!r})"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks: `subject` is the user's id, `scheme` how it was proven ("token", "session", "key")."""

    subject: int
    scheme: str
    scopes: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Trace:
    """W3C trace context: 32 and 16 hexadecimal digits, and whether the caller sampled it."""

    trace_id: str
    span_id: str
    parent_id: str | None = None
    sampled: bool = False
    state: str = ""

    @classmethod
    def new(cls) -> Trace:
        return cls(trace_id=secrets.token_hex(16), span_id=secrets.token_hex(8))

    def child(self) -> Trace:
        return Trace(self.trace_id, secrets.token_hex(8), self.span_id, self.sampled, self.state)

    @property
    def traceparent(self) -> str:
        return f"00-{self.trace_id}-{self.span_id}-{'01' if self.sampled else '00'}"


@dataclass(slots=True)
class RequestContext:
    """One request, job or call. `deadline` is `Clock.monotonic()` seconds, None when unbounded."""

    request_id: str = ""
    deadline: float | None = None
    priority: Priority = Priority.NORMAL
    identity: Identity | None = None
    trace: Trace | None = None
    attempt: int = 1
    causality: CausalityToken = field(default_factory=CausalityToken)
    ledger: Ledger = field(default_factory=Ledger)

    def remaining(self, now: float) -> float | None:
        """Seconds until the deadline, never below 0; None when there is none. `now` is monotonic."""
        return None if self.deadline is None else max(self.deadline - now, 0.0)


_current: contextvars.ContextVar[RequestContext | None] = contextvars.ContextVar(
    "springtide.request", default=None
)

current = _current.get
"""The context of the running request; None outside of one."""


@contextmanager
def activate(context: RequestContext) -> Iterator[RequestContext]:
    """Make `context` the current one inside the block and in the tasks started there."""
    token = _current.set(context)
    try:
        yield context
    finally:
        _current.reset(token)


def detached() -> contextvars.Context:
    """A copy of the caller's context without its request, for tasks that outlive it."""
    context = contextvars.copy_context()
    context.run(_current.set, None)
    return context
