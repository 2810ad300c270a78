"""What a class of cached values is: what its keys are, how values are loaded, how old they may get.

Two things limit how old a value can be, and they are kept apart:

    budget    seconds that may pass after a write that invalidates the value, until nobody is given the old
              one any more. It is a sum, and a definition whose sum exceeds it is refused:
              relay    two of its rounds: until a write is known whose process died before it could tell
              bus      how long a process may go on without proof that it has heard everything
              replica  how far behind a replica may be that a value is loaded from; what the budget leaves
              edge     how long shared caches keep the answer
              Where a value was loaded from matters to those who wait for the load. What is kept has all that
              was committed before the last proof, whichever server it came from: so where the bus is late,
              what the replica may be behind is the bus's as well (`Budget.kept`)
    ttl       seconds that a value is kept when no invalidation covers what changed; jittered

A class has at most one database, whose snapshots judge its fills. A definition is a value; nothing here does
I/O.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from springtide.cache._keys import Argument, Pattern
from springtide.cache._tags import Tags
from springtide.cache._values import fault_of, kinds_of
from springtide.db import Database
from springtide.errors import CacheDefinitionError
from springtide.provenance import HttpPolicy

__all__ = ["BUS", "EACH", "FORBIDDEN", "RELAY", "Budget", "Definition", "Loader"]

RELAY = 0.5
"""Seconds: two rounds of the relay."""

BUS = 0.5
"""Seconds that a process trusts what it has, at least, after the last proof that it has heard everything."""

KEPT = 2.0
"""Seconds that a larger budget does not exceed there: a write that no cache could be told of may have to wait
until nobody gives out what it changed (`_session.missed`)."""

LEAST_REPLICA = 0.05
"""Seconds of lag below which nobody can prove that a replica is fresh enough: then the primary is read."""

MAX_SECONDS = 30 * 86_400.0

MAX_BYTES = 64 << 20

MAX_COPIES = 4
"""A session's mark names each of them, and a session carries eight marks."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,60}")

Loader = Callable[..., Any]


class Mark:
    """A word that stands for itself."""

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return self._name


FORBIDDEN: Final = Mark("FORBIDDEN")
"""`l1=FORBIDDEN`: values of this class are never in a process's memory, whatever a topology says; for
balances, stock and permissions."""

EACH: Final = Mark("EACH")
"""`key=EACH`: every shard has a value of its own under the same key, and `get_each` gives all of them."""


@dataclass(frozen=True, slots=True)
class Budget:
    """The parts in seconds; `total` is what the definition allows."""

    total: float
    relay: float
    bus: float
    edge: float

    @property
    def replica(self) -> float:
        """What is left for the replica that a load reads from; 0.0: only the primary is read."""
        left = round(self.total - self.relay - self.bus - self.edge, 6)
        return left if left >= LEAST_REPLICA else 0.0

    @property
    def trusted(self) -> float:
        """How long after a load has begun one may still join it: what it reads may be older by `replica`."""
        return self.relay + self.bus

    @property
    def kept(self) -> float:
        """How old proof may be for a kept value to be given out. Where the machine is busy all proofs are
        late, and what is loaded for the lack of one makes it busier: so this is as long as the budget allows.
        """
        return max(self.trusted, min(self.inside, KEPT)) if self.relay else self.trusted

    @property
    def inside(self) -> float:
        """How old a value may be when it leaves this process."""
        return self.trusted + self.replica

    @property
    def least(self) -> float:
        return round(self.relay + self.bus + self.edge, 6)

    def sum(self) -> str:
        """The parts as an addition."""
        parts = (
            (self.relay, "relay    two rounds, until it tells what a writer that died could not"),
            (self.bus, "bus      without proof that every invalidation was heard"),
            (0.0, "replica  loads from the primary alone"),
            (self.edge, "edge     kept by shared caches (http)"),
        )
        lines = [
            f"  {'+' if place else ' '} {seconds:6.2f} s  {what}"
            for place, (seconds, what) in enumerate(parts)
        ]
        return "\n".join([*lines, f"  = {self.least:6.2f} s"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """All options of `Cache.define`, checked. Raises CacheDefinitionError."""

    name: str
    pattern: Pattern
    type: Any
    database: Database | None
    load: Loader | None
    load_many: Loader | None
    key: Callable[..., Any] | Mark | None
    ttl: float
    jitter: float
    budget: float
    stale_while_revalidate: float
    stale_if_error: float
    negative: float | None
    tags: Callable[..., Iterable[str]] | Sequence[str]
    l1: float | Mark
    soft_timeout: float | None
    hard_timeout: float
    max_bytes: int
    http: HttpPolicy | None
    copies: int
    parts: Budget = field(init=False)
    tagger: Tags = field(init=False)
    kinds: tuple[type, ...] = field(init=False)

    def __post_init__(self) -> None:
        name: Any = self.name
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            self._refuse("name", "must be 1 to 60 letters, digits and _ . -")
        if (fault := fault_of(self.type)) is not None:
            self._refuse("type", fault)
        object.__setattr__(self, "kinds", kinds_of(self.type))
        database: Any = self.database
        if database is not None and not isinstance(database, Database):
            self._refuse("database", "must be a Database (a module's `context.db`) or None")
        self._check_loaders()
        self._check_key()
        self._check_times()
        http: Any = self.http
        if http is not None and not isinstance(http, HttpPolicy):
            self._refuse("http", "must be an HttpPolicy or None")
        edge = self.http.staleness if self.http is not None else 0.0
        relay = RELAY if self.database is not None else 0.0
        parts = Budget(self.budget, relay, BUS, edge)
        if parts.least > self.budget:
            self._refuse("budget", self._too_small(parts))
        object.__setattr__(self, "parts", parts)
        if callable(self.tags):
            self._check_takes("tags", 1, "value")
        try:
            object.__setattr__(self, "tagger", Tags(self.tags, self.pattern, self.kinds))
        except ValueError as error:
            self._refuse("tags", str(error))

    def _too_small(self, parts: Budget) -> str:
        change = f"raise budget to {parts.least:g}"
        room = round(self.budget - parts.relay - parts.bus, 6)
        if parts.edge and room >= 0:
            change += f", or lower what http lets caches keep from {parts.edge:g} to at most {room:g} s"
        return f"must be >= the sum of its parts, so {change}:\n{parts.sum()}\n"

    def _refuse(self, key: str, rule: str) -> None:
        raise CacheDefinitionError(
            f"cache class {self.name!r}: {key} {rule}{'' if rule.endswith(chr(10)) else ', '}"
            f"got {key} = {getattr(self, key)!r}"
        )

    def _check_loaders(self) -> None:
        if self.load is None and self.load_many is None:
            self._refuse("load", "or load_many must say how a value is loaded")
        arguments = len(self.pattern.arguments)
        source = 0 if self.database is None else 1
        if self.load is not None:
            self._check_loader(
                "load", source + arguments, "source, " * source + ", ".join(self.pattern.arguments)
            )
        if self.load_many is not None:
            if not arguments:
                self._refuse("load_many", "must be None for a pattern without arguments")
            self._check_loader("load_many", source + 1, "source, " * source + "keys")

    def _check_loader(self, key: str, count: int, takes: str) -> None:
        loader = getattr(self, key)
        if not callable(loader) or inspect.isgeneratorfunction(loader) or inspect.isasyncgenfunction(loader):
            self._refuse(key, "must be an async function that returns the value, or for load_many a mapping")
        self._check_takes(key, count, takes.rstrip(", "))

    def _check_takes(self, key: str, count: int, takes: str) -> None:
        if key in ("key", "tags") and inspect.iscoroutinefunction(getattr(self, key)):
            self._refuse(key, "must be made by a function that is not async")
        try:
            inspect.signature(getattr(self, key)).bind(*range(count))
        except TypeError:
            self._refuse(key, f"must take ({takes})")
        except ValueError:  # a signature that nobody knows
            return

    def _check_key(self) -> None:
        if self.database is None:
            if self.key is not None:
                self._refuse("key", "must be None without a database: it names a bucket of one")
        elif self.key is None:
            if len(self.pattern.arguments) != 1:
                self._refuse(
                    "key",
                    f"must say which bucket {self.pattern.text!r} is in:"
                    " a function of its arguments, or EACH",
                )
        elif self.key is not EACH and not callable(self.key):
            self._refuse("key", "must be a function of the pattern's arguments, or EACH")
        if callable(self.key):
            self._check_takes("key", len(self.pattern.arguments), ", ".join(self.pattern.arguments))

    def _check_times(self) -> None:
        def between(key: str, least: float, *, open_end: bool = False, most: float = MAX_SECONDS) -> None:
            value = getattr(self, key)
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or not (least < value if open_end else least <= value) or value > most:
                off = " (None: off)" if key == "negative" else ""
                bound = f"{most:,.10g}".replace(",", "_")
                self._refuse(
                    key, f"must be a number {'> ' if open_end else '>= '}{least:g} and <= {bound}{off}"
                )

        between("ttl", 0.0, open_end=True)
        between("jitter", 0.0, most=0.5)
        between("budget", 0.0, open_end=True)
        between("stale_while_revalidate", 0.0)
        between("stale_if_error", 0.0)
        between("hard_timeout", 0.0, open_end=True, most=3600.0)
        if type(self.max_bytes) is not int or not 64 <= self.max_bytes <= MAX_BYTES:
            self._refuse("max_bytes", f"must be a whole number from 64 to {MAX_BYTES}")
        if type(self.copies) is not int or not 1 <= self.copies <= MAX_COPIES:
            self._refuse("copies", f"must be a whole number from 1 to {MAX_COPIES}")
        if self.copies > 1 and self.database is None:
            self._refuse("copies", "must be 1 without a database: nobody but its relay tells every copy")
        if self.negative is not None:
            between("negative", 0.0, open_end=True)
        if self.l1 is not FORBIDDEN:
            between("l1", 0.0)
        if self.soft_timeout is not None:
            between("soft_timeout", 0.0, most=self.hard_timeout)
            if not (self.stale_while_revalidate or self.stale_if_error):
                self._refuse(
                    "soft_timeout",
                    "needs stale_while_revalidate or stale_if_error: else there is nothing old to give",
                )

    @property
    def single(self) -> bool:
        """Whether a key is one argument, which then stands for itself."""
        return len(self.pattern.arguments) == 1

    def fits(self, value: Any) -> bool:
        """Whether a value is of the class's type, as far as can be seen from outside.

        A struct that is one of a derived class is none: others would read from Redis what the declared class
        has of it. Nor is True a number.
        """
        kind = type(value)
        if kind in self.kinds or self.kinds == (object,):
            return True
        return isinstance(value, self.kinds) and kind is not bool and not issubclass(kind, msgspec.Struct)

    @property
    def in_memory(self) -> bool:
        """Whether the first level keeps values of it."""
        return self.l1 is not FORBIDDEN and float(self.l1) > 0  # type: ignore[arg-type]

    @property
    def grace(self) -> float:
        """Seconds that a value stays in the second level when it is not fresh any more."""
        return max(self.stale_while_revalidate, self.stale_if_error)

    def lives(self, value: Any) -> tuple[float, float]:
        """Seconds that a value is fresh in the second level, and in the first one beyond that: together no
        more than its ttl, since it may go from one to the other in its last moment."""
        ttl = self.ttl if value is not None or self.negative is None else min(self.ttl, self.negative)
        first = min(float(self.l1), ttl / 2) if self.in_memory else 0.0  # type: ignore[arg-type]
        return ttl - first, first

    def bucket_key(self, arguments: Sequence[Argument]) -> Any:
        """What names the bucket of a value, as `Database.read` takes it."""
        return arguments[0] if self.key is None else self.key(*arguments)  # type: ignore[operator]
