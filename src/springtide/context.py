"""What travels with one request: deadline, causality token, priority, identity, trace and ledger.

Every layer reads it with `current()`; none passes these things as arguments. The object is shared by all
tasks that the request starts, so its ledger and token add up whatever runs concurrently.
Nothing here does I/O, and nothing here trusts a header: that is the first hop's duty.
"""

from __future__ import annotations

import contextvars
import enum
import math
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, Protocol

import msgspec

from springtide._marks import NO_CACHE, Mark, encode_marks, mark_in, merge_mark
from springtide.provenance import Provenance

__all__ = [
    "DOUBT",
    "CausalityToken",
    "Consistency",
    "Entry",
    "Identity",
    "Ledger",
    "Mark",
    "Part",
    "Position",
    "Priority",
    "Recall",
    "RequestContext",
    "Trace",
    "activate",
    "block_consistency",
    "current",
    "detached",
    "reading",
    "wanted_consistency",
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
    """Seconds, calls and rows added up under one label; `sites` is where repeated statements came from."""

    __slots__ = ("calls", "rows", "seconds", "sites")

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls = 0
        self.rows = 0
        self.sites: dict[str, int] | None = None

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

    def add(self, part: Part, seconds: float, label: str | None = None, rows: int = 0) -> Entry:
        """Add to the part and, where there is a label, to its entry, which is returned (else the part's)."""
        entry = self._parts.get(part)
        if entry is None:
            entry = self._parts[part] = Entry()
        entry.seconds += seconds
        entry.calls += 1
        entry.rows += rows
        if label is None:
            return entry
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
        return entry

    @property
    def parts(self) -> Mapping[Part, Entry]:
        return self._parts

    def labels(self, part: Part) -> Mapping[str, Entry]:
        return self._labels.get(part, {})

    def seconds(self, part: Part) -> float:
        entry = self._parts.get(part)
        return entry.seconds if entry is not None else 0.0


@dataclass(frozen=True, slots=True)
class Consistency:
    """How fresh a read has to be; see `springtide.db.consistency`. Use the constants or `bounded`.

    `staleness` is in seconds and belongs to `bounded` alone.
    """

    level: str
    staleness: float | None = None

    STRONG: ClassVar[Consistency]
    SESSION: ClassVar[Consistency]
    EVENTUAL: ClassVar[Consistency]

    @classmethod
    def bounded(cls, staleness: float) -> Consistency:
        if not (staleness > 0 and math.isfinite(staleness)):
            raise ValueError(f"staleness must be a finite number of seconds > 0, got {staleness}")
        return cls("bounded", staleness)

    @classmethod
    def parse(cls, text: str) -> Consistency:
        """`strong`, `session`, `eventual` or `bounded(2.5)`, as the topology writes it; else ValueError."""
        if text in ("strong", "session", "eventual"):
            return cls(text)
        if text.startswith("bounded(") and text.endswith(")"):
            return cls.bounded(float(text[len("bounded(") : -1]))
        raise ValueError(f"a consistency is strong, session, eventual or bounded(seconds), got {text!r}")


Consistency.STRONG = Consistency("strong")
Consistency.SESSION = Consistency("session")
Consistency.EVENTUAL = Consistency("eventual")


class Position(NamedTuple):
    """A place in one cluster's write-ahead log; positions of different epochs are ordered by epoch."""

    epoch: int
    lsn: int


UNREACHABLE_EPOCH = 2**32 - 1
"""The greatest timeline that PostgreSQL could count to; no server is on it."""

PINNED = "*"

LOST = f"{PINNED},{NO_CACHE}"
"""The text of a token of which is not known what it said: nobody but the primaries is sure to have it."""

DOUBT = "?"
"""The witness that no server is: what the session has seen goes beyond its position, nobody knows how far."""

NOWHERE = Position(0, 0)

_NONE: frozenset[str] = frozenset()

_POSITION = re.compile(r"([^:,]{1,128}):([0-9]{1,10}):([0-9A-F]{1,16})(?::([0-9a-f]{12}|\?))?")


class CausalityToken:
    """What a session has seen: cluster -> position. It only ever grows (merged by maximum).

    written: this request itself committed something (`wrote`); a position that was only read does not say so.
    pinned:  not all that the session has seen is known, so only the primaries are sure to have it. What one
             answers covers all that was seen before: from `cover` on, the pin is none for that cluster, or
             whoever lives long (a socket, a stream) would never leave the primaries again.

    Where exactly a replica was when it answered a read, nobody knows without asking it again. So a token also
    has a *witness* per cluster: the one run of a server whose answers the session has seen beyond its
    position. That server may go on answering, because within one run its state only moves forward; any other
    is asked again only when a position is known to cover all of it. Two witnesses at once are `DOUBT`.

    What it asks of caches after writes of its own are its marks (`_marks.py`).
    """

    __slots__ = (
        "_covered", "_pinned", "_positions", "_sights", "_witnesses", "grown", "leaning", "marks", "sighted",
        "version", "written",
    )  # fmt: skip

    def __init__(
        self,
        positions: Mapping[str, Position] | None = None,
        witnesses: Mapping[str, str] | None = None,
        marks: Mapping[str, Mark] | None = None,
    ) -> None:
        self.marks: dict[str, Mark] = dict(marks) if marks else {}
        """Slot of a cache -> what the session asks of it. Read only: see `mark`."""
        self._positions: dict[str, Position] = dict(positions) if positions else {}
        self._witnesses: dict[str, str] = dict(witnesses) if witnesses else {}
        self._sights: dict[str, int] = {}
        self._pinned = False
        self._covered: frozenset[str] = _NONE
        self.leaning: dict[str, str] = {}
        """cluster -> who was asked last: of this request alone, so that its reads at the same time agree."""
        self.written = False
        self.grown = 0
        """How often a position or a witness changed: whether there is news to tell. May be set back."""
        self.version = 0
        """How often anything changed: equal numbers mean that nothing did in between. Never set back."""
        self.sighted = 0
        """How often an answer was seen that no position covered yet, also from a witness that was known."""

    @property
    def pinned(self) -> bool:
        return self._pinned

    @pinned.setter
    def pinned(self, pinned: bool) -> None:
        self._pinned = pinned
        self._covered = _NONE
        self.version += 1

    def _grow(self) -> None:
        self.grown += 1
        self.version += 1

    def observe(self, cluster: str, position: Position) -> None:
        """The session has seen what the cluster had at `position`."""
        known = self._positions.get(cluster)
        if known is None or position > known:
            self._positions[cluster] = position
            self._grow()

    def saw(self, cluster: str, witness: str) -> None:
        """The session has seen an answer of `witness` (12 hexadecimal digits: one run of one server)."""
        self.sighted += 1
        self._sights[cluster] = self._sights.get(cluster, 0) + 1
        known = self._witnesses.get(cluster)
        if known != witness and known != DOUBT:
            self._witnesses[cluster] = witness if known is None else DOUBT
            self._grow()

    def doubt(self, cluster: str) -> None:
        """The session has seen more than can be said: its reads go to the primary until `cover`."""
        self.saw(cluster, DOUBT)

    def sights(self, cluster: str) -> int:
        """How often the session has seen an answer that no position covered yet; see `cover`."""
        return self._sights.get(cluster, 0)

    def cover(self, cluster: str, position: Position, *, sights: int | None = None) -> None:
        """All that the session has seen of the cluster lies before `position`: no witness is needed.

        `sights` is their number when the position was asked for: what has been seen since then, by a read at
        the same time, may lie behind it, and keeps its witness.
        """
        self.observe(cluster, position)
        if sights is not None and sights != self.sights(cluster):
            return
        if self._pinned:
            self._covered |= {cluster}
            self.version += 1
        if self._witnesses.pop(cluster, None) is not None:
            self._grow()

    def wrote(self, cluster: str, position: Position, *, sights: int | None = None) -> None:
        """The session has committed, and `position`, read on the primary after the commit, covers it."""
        self.cover(cluster, position, sights=sights)
        self.written = True

    def mark(self, slot: str, mark: Mark) -> None:
        """The session asks this of the slot, too."""
        if merge_mark(self.marks, slot, mark):
            self._grow()

    def invalidated(self, slot: str, mark: Mark) -> None:
        """The session has written and invalidated what the slot has of it: `mark`."""
        self.mark(slot, mark)
        self.written = True

    def merge(self, other: CausalityToken) -> None:
        for cluster, position in other._positions.items():
            self.observe(cluster, position)
        for cluster, witness in other._witnesses.items():
            self.saw(cluster, witness)
        for slot, mark in other.marks.items():
            self.mark(slot, mark)
        if other.pinned:
            self.pinned = True
        self.written = self.written or other.written

    def succeed(self, later: CausalityToken, version: int) -> None:
        """Take over `later`, which followed from what this was at `version`; merge if that has changed."""
        if self.version != version:
            self.merge(later)
            return
        if (self._positions, self._witnesses) != (later._positions, later._witnesses):
            self._positions, self._witnesses = dict(later._positions), dict(later._witnesses)
            self._grow()
        if self.marks != later.marks:
            self.marks = dict(later.marks)
            self._grow()
        self._pinned, self._covered = later._pinned, later._covered
        self.version += 1
        self.written = self.written or later.written

    def position(self, cluster: str) -> Position | None:
        """What a server has to have; of a pinned token a position that no replica ever reaches."""
        known = self._positions.get(cluster)
        if self._pinned and cluster not in self._covered:
            return Position(UNREACHABLE_EPOCH, known.lsn if known is not None else 0)
        return known

    @property
    def positions(self) -> Mapping[str, Position]:
        return self._positions

    @property
    def witnesses(self) -> Mapping[str, str]:
        return self._witnesses

    def covers(self, other: CausalityToken) -> bool:
        """Whether this one has every position and witness of `other`, or a later position."""
        return all(
            (known := self._positions.get(cluster)) is not None and known >= position
            for cluster, position in other._positions.items()
        ) and all(self._witnesses.get(cluster) in (w, DOUBT) for cluster, w in other._witnesses.items())

    def encode(self) -> str:
        """`main:1:16B3748,other:1:0`: cluster, epoch and hexadecimal log position; sorted by cluster.

        A witness is a fourth part. Marks follow. A pinned token ends with the part `*`. Whether it was
        written is of one request and is left out.
        """
        parts = []
        for name in sorted({**self._positions, **self._witnesses}):
            epoch, lsn = self._positions.get(name, NOWHERE)
            witness = self._witnesses.get(name)
            parts.append(
                f"{name}:{epoch}:{lsn:X}" if witness is None else f"{name}:{epoch}:{lsn:X}:{witness}"
            )
        parts += encode_marks(self.marks)
        return ",".join([*parts, PINNED] if self.pinned else parts)

    @classmethod
    def decode(cls, text: str) -> CausalityToken:
        """The inverse of `encode`. Raises ValueError naming the part that is malformed."""
        token = cls()
        if not text:
            return token
        for part in filter(None, text.split(",")):
            if part == PINNED:
                token.pinned = True
                continue
            if part[0] == "~":
                token.mark(*mark_in(part))
                continue
            match = _POSITION.fullmatch(part)
            if match is None:
                raise ValueError(f"a causality token is cluster:epoch:lsn, got {part!r}")
            cluster, epoch, lsn, witness = match.groups()
            position = Position(int(epoch), int(lsn, 16))
            if witness is None or position != NOWHERE:
                token.observe(cluster, position)
            if witness is not None:
                token.saw(cluster, witness)
        return token

    def __bool__(self) -> bool:
        return self.pinned or bool(self._positions or self._witnesses or self.marks)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, CausalityToken)
            and self._positions == other._positions
            and self._witnesses == other._witnesses
            and self.marks == other.marks
            and self.pinned == other.pinned
        )

    __hash__ = None  # type: ignore[assignment]  # mutable

    def __repr__(self) -> str:
        return f"CausalityToken({self.encode()!r})"


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks: `subject` is the user's id, `scheme` how it was proven ("token", "session", "key")."""

    subject: int
    scheme: str
    scopes: frozenset[str] = frozenset()


class Trace(msgspec.Struct, frozen=True, gc=False):
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


class Recall(Protocol):
    """See `RequestContext.recall`. Callable at any time and by several tasks; never raises."""

    async def __call__(self, context: RequestContext, /) -> None: ...


@dataclass(slots=True)
class RequestContext:
    """One request, job or call. `deadline` is `Clock.monotonic()` seconds, None when unbounded.

    known: who asks, for layers whose reading of it does not show in the answer; all else reads `identity`.
    provenance: what the answer is made of; None: nobody keeps answers, so nobody wants to know.
    unproven: its client brought nothing to believe, so with an identity it may have seen more than
            `causality` says; the slots of caches for which that has been made good since. None: it has
            brought a token, or nothing comes from a client here.
    settled: from this monotonic moment on no process has anything that its writes changed, though a cache
            could not be told of one. An answer to a client that may bring no token waits for it.
    consistency: how fresh its reads are unless they say otherwise themselves; None: as its databases say.
    granted: the subject whom the answer gives proof of who he is, such as a token; None: it gives none.
    recall: to be awaited with this context before the first session read that a replica could serve: it puts
            into `causality` what is kept elsewhere of a client that brought no token. None: there is nothing.
    """

    request_id: str = ""
    deadline: float | None = None
    priority: Priority = Priority.NORMAL
    known: Identity | None = None
    trace: Trace | None = None
    attempt: int = 1
    causality: CausalityToken = field(default_factory=CausalityToken)
    ledger: Ledger = field(default_factory=Ledger)
    recall: Recall | None = None
    granted: int | None = None
    unproven: set[str] | None = None
    settled: float = 0.0
    consistency: Consistency | None = None
    provenance: Provenance | None = None

    @property
    def identity(self) -> Identity | None:
        """Who asks. Whoever reads it may answer each client differently, also when it is nobody."""
        if self.provenance is not None:
            self.provenance.restrict("identity")
        return self.known

    @identity.setter
    def identity(self, identity: Identity | None) -> None:
        self.known = identity

    def remaining(self, now: float) -> float | None:
        """Seconds until the deadline, never below 0; None when there is none. `now` is monotonic."""
        return None if self.deadline is None else max(self.deadline - now, 0.0)


_current: contextvars.ContextVar[RequestContext | None] = contextvars.ContextVar(
    "springtide.request", default=None
)

current = _current.get
"""The context of the running request; None outside of one."""


_consistency: contextvars.ContextVar[Consistency | None] = contextvars.ContextVar(
    "springtide.consistency", default=None
)


block_consistency = _consistency.get
"""What the innermost `reading` block says; None outside of one."""


@contextmanager
def reading(consistency: Consistency) -> Iterator[None]:
    """Inside the block, and in the tasks started there, reads are of this consistency unless they say
    otherwise themselves."""
    token = _consistency.set(consistency)
    try:
        yield
    finally:
        _consistency.reset(token)


def wanted_consistency() -> Consistency | None:
    """What the innermost `reading` block says, else the request; None when nobody has said anything."""
    wanted = _consistency.get()
    if wanted is None and (context := _current.get()) is not None:
        return context.consistency
    return wanted


class _Active:
    """What `activate` returns: a class, because a generator would cost more than what it is around."""

    __slots__ = ("_context", "_token")

    def __init__(self, context: RequestContext) -> None:
        self._context = context

    def __enter__(self) -> RequestContext:
        self._token = _current.set(self._context)
        return self._context

    def __exit__(self, *_: object) -> None:
        _current.reset(self._token)


def activate(context: RequestContext) -> AbstractContextManager[RequestContext]:
    """Make `context` the current one inside the block and in the tasks started there."""
    return _Active(context)


def detached() -> contextvars.Context:
    """A copy of the caller's context without its request, for tasks that outlive it."""
    context = contextvars.copy_context()
    context.run(_current.set, None)
    context.run(_consistency.set, None)
    return context
