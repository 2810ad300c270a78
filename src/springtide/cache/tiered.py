"""The cache of one process: its classes, and what they share.

    cache = Cache("app", redis="redis://localhost:6379")
    users = cache.define("user:{id}", User, database=db, load=load_user)
    async with cache:
        await users.get(7)

Classes are defined before the start, so that all that is wrong with one is said before anybody is served.
Without Redis nothing is kept, because nobody would say when a value is not good any more: then the same calls
load, once for all who want the same value at once, and invalidations are not written down either. So all
processes of a platform have a cache, or none has: one that has keeps what another one without it changed.

It is also what writes tell of their invalidations (`db._invalidating.Invalidations`); see `_telling`.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from springtide._marks import Mark, mark_of
from springtide.cache import _session
from springtide.cache._admission import Admission
from springtide.cache._bus import Bus
from springtide.cache._class import CacheClass
from springtide.cache._flight import Load
from springtide.cache._keeping import AWAY
from springtide.cache._keys import Pattern
from springtide.cache._memory import Memory
from springtide.cache._relays import relays_of
from springtide.cache._slot import Slot
from springtide.cache._telling import Telling
from springtide.cache.classes import Definition, Loader
from springtide.cache.classes import Mark as Word
from springtide.clock import Clock, SystemClock
from springtide.context import RequestContext
from springtide.errors import (
    CacheDefinitionError,
    ConfigurationError,
    RedisUnavailable,
)
from springtide.lifecycle import Group, Service, StartStop
from springtide.provenance import HttpPolicy
from springtide.signals import NullSink, Sink

if TYPE_CHECKING:
    from springtide.db import Database, WriteTransaction
    from springtide.db._invalidating import Recorded
    from springtide.redis import Redis

__all__ = ["Cache"]

T = TypeVar("T")


class Cache:
    """Classes of cached values, of one process. A lifecycle service.

    name:     of the platform: caches of other names share nothing, also in one Redis.
    redis:    the second level, a URL or a client that somebody else starts; None: nothing is kept.
    l1_bytes: memory of the first level for all classes; 0: there is none.
    ttl, l1:  of classes that do not say it themselves, seconds.
    max_loads: loads under way at once; `max_waiting` more wait for their turn, and the next one is refused.
    turn:     which copy this process reads, of classes that have several; None: one by chance.
    dsns:     shard -> where its primary answers itself, past a pooler; None: where its pool leads.
    """

    def __init__(
        self,
        name: str,
        *,
        redis: Redis | str | None = None,
        l1_bytes: int = 64 << 20,
        ttl: float = 300.0,
        l1: float = 15.0,
        max_loads: int = 16,
        max_waiting: int = 1000,
        turn: int | None = None,
        dsns: Mapping[str, str] | None = None,
        clock: Clock | None = None,
        sink: Sink | None = None,
    ) -> None:
        self.platform = name
        self.name = f"cache {name}"
        self.clock: Clock = clock or SystemClock()
        self.sink: Sink = sink or NullSink()
        self.admission = Admission(max_loads, max_waiting)
        self.memory = Memory(l1_bytes, clock=self.clock) if l1_bytes else None
        self._own: list[Service] = []
        if isinstance(redis, str):
            from springtide.redis import Redis

            redis = Redis(redis, name="cache-redis", clock=self.clock, sink=self.sink)
            self._own.append(redis)
        self.redis = redis
        self._bus: Bus | None = None
        if redis is not None:
            self._bus = Bus(redis, name=f"{self.name} bus", clock=self.clock, sink=self.sink)
        self.telling = Telling(redis, self.clock)
        self._ttl = ttl
        self._l1 = l1
        self._dsns = dsns
        self.turn = random.randrange(1 << 16) if turn is None else turn  # noqa: S311 - spreads load
        self._classes: dict[str, CacheClass[Any]] = {}
        self._loads: set[Load] = set()
        self._beside: set[asyncio.Task[None]] = set()
        self._parts: Group | None = None
        self._life = StartStop(self.name, self._open, self._close, sink=sink)

    # -- life ------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        return self._life.state

    @property
    def classes(self) -> Mapping[str, CacheClass[Any]]:
        """All classes by name."""
        return self._classes

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    async def __aenter__(self) -> Cache:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def _open(self) -> None:
        parts: list[Service] = [*self._own]
        if self._bus is not None and self.redis is not None:
            relays = relays_of(
                self.platform,
                self._classes.values(),
                redis=self.redis,
                dsns=self._dsns,
                clock=self.clock,
                sink=self.sink,
            )
            parts += [self._bus, *relays]
        self._parts = Group(f"{self.name} parts", parts)
        await self._parts.start()

    async def _close(self) -> None:
        loads = list(self._loads)
        for load in loads:
            load.cancel()
        for load in loads:
            await load.gone()
        beside = list(self._beside)
        if beside:
            await asyncio.wait(beside)  # each is one question to Redis, which has its own time
        parts, self._parts = self._parts, None
        if parts is not None:
            await parts.stop()
        if self.memory is not None:
            self.memory.clear()

    @property
    def line(self) -> tuple[int, int, int]:
        """Loads under way, those that wait for their turn, and how many were turned away."""
        return self.admission.running, self.admission.waiting, self.admission.refused

    @property
    def restarts(self) -> int:
        """How often a listener to invalidations had to begin anew."""
        return 0 if self._bus is None else self._bus.restarts

    async def check(self) -> None:
        """Raises RedisUnavailable while the second level does not answer; for health pages."""
        if self.redis is not None and self.redis.link() is None:
            raise RedisUnavailable(self.redis.name, "it does not answer; values are loaded")

    # -- classes ---------------------------------------------------------------------------------------

    def define(
        self,
        pattern: str,
        type: type[T],
        *,
        name: str | None = None,
        database: Database | None = None,
        load: Loader | None = None,
        load_many: Loader | None = None,
        key: Callable[..., Any] | Word | None = None,
        ttl: float | None = None,
        jitter: float = 0.1,
        budget: float = 2.0,
        stale_while_revalidate: float = 0.0,
        stale_if_error: float = 0.0,
        negative: float | None = 5.0,
        tags: Callable[[T], Iterable[str]] | Sequence[str] = (),
        l1: float | Word | None = None,
        soft_timeout: float | None = None,
        hard_timeout: float = 5.0,
        max_bytes: int = 1 << 20,
        http: HttpPolicy | None = None,
        copies: int = 1,
    ) -> CacheClass[T]:
        """A family of values with one policy; before the start, once per pattern.

        pattern:   `user:{id}`; arguments are ints or strs, or one of both: `{id:int}`, `{name:str}`.
        type:      of the values: frozen msgspec structs, numbers, texts, bytes, tuples of them.
        name:      for people and metrics; None: made of the pattern (`user`).
        load:      `async def load(source, id) -> T | None`; `source` reads from the server whose snapshot the
                   value is judged by. Without a database there is none: `load(id)`.
        load_many: `async def load_many(source, ids) -> Mapping[id, T]`: many at once; the ids are tuples
                   where the pattern has several arguments.
        key:       which bucket a value is in, made of the arguments; None: the only argument itself. EACH:
                   every shard has a value of its own (`get_each`).
        ttl:       seconds that a value is kept, each shortened by up to `jitter` of it; None: as the cache.
        budget:    seconds after an invalidating write until nobody is given the old value; see `classes`.
        stale_while_revalidate: seconds past the ttl for which a value is given out while it is loaded anew.
        stale_if_error: seconds for which an old value is given out when the loader fails.
        negative:  seconds that "nothing there" is kept; None: it is not.
        tags:      what else invalidates a value, see `_tags`.
        l1:        seconds in this process's memory, within the ttl, and at most half of it; 0: never,
                   FORBIDDEN: never, for good. None: as the cache.
        soft_timeout: seconds after which an old value is given out, if there is one, while the load goes on.
        hard_timeout: seconds after which a load is given up (LoadTimeout).
        max_bytes: of a stored value; a larger one is loaded by each who asks.
        http:      what caches of HTTP answers may do with answers made of it; None: no shared one keeps them.
        copies:    in Redis, on nodes of their own where there are several: a process reads one, a write
                   invalidates all. For a class that is read more often than one node can answer.

        Raises CacheDefinitionError.
        """
        try:
            parsed = Pattern(pattern)
        except ValueError as error:
            raise CacheDefinitionError(
                f"cache class {pattern!r:.60}: pattern {error}, got pattern = {pattern!r:.200}"
            ) from None
        definition = Definition(
            name=parsed.name if name is None else name,
            pattern=parsed,
            type=type,
            database=database,
            load=load,
            load_many=load_many,
            key=key,
            ttl=self._ttl if ttl is None else ttl,
            jitter=jitter,
            budget=budget,
            stale_while_revalidate=stale_while_revalidate,
            stale_if_error=stale_if_error,
            negative=negative,
            tags=tags,
            l1=self._l1 if l1 is None else l1,
            soft_timeout=soft_timeout,
            hard_timeout=hard_timeout,
            max_bytes=max_bytes,
            http=http,
            copies=copies,
        )
        self._check_new(definition)
        if database is not None and database.invalidations is None:
            database.invalidations = self  # of an application that puts it together by hand
        view = None
        if self.memory is not None and self._bus is not None and definition.in_memory:
            view = self.memory.view(definition.name)
        made: CacheClass[T] = CacheClass(self, definition, view)
        if self._bus is not None:
            for place in made.places.values():
                _ = place.epoch  # asked before the pool connects, each connection tells it
                self._bus.follow(place.slot, place.scope)
        self._classes[definition.name] = made
        return made

    def _check_new(self, definition: Definition) -> None:
        if self.state in ("starting", "running", "stopping"):
            raise CacheDefinitionError(
                f"cache class {definition.name!r}: classes are defined before {self.name!r} is started"
            )
        database = definition.database
        if database is not None and database.invalidations not in (None, self):
            raise CacheDefinitionError(
                f"cache class {definition.name!r}: database {database.name!r} tells its invalidations to"
                " another cache; build it with invalidations=None, or with this one"
            )
        shape = definition.pattern.literals
        for other in self._classes.values():
            if other.name == definition.name:
                raise CacheDefinitionError(
                    f"cache class {other.name!r} is defined already, by {other.definition.pattern.text!r};"
                    f" give {definition.pattern.text!r} a `name` of its own"
                )
            if other.definition.pattern.literals == shape:
                raise CacheDefinitionError(
                    f"cache class {definition.name!r}: pattern {definition.pattern.text!r} makes the keys of"
                    f" {other.name!r}, whose pattern is {other.definition.pattern.text!r}"
                )

    # -- for classes -----------------------------------------------------------------------------------

    def begin(self, load: Load, name: str) -> None:
        """Run `load` until it ends or the cache is stopped, in a context of its own: what a value is cannot
        depend on who asked for it first."""
        self._loads.add(load)
        load.start(f"{self.name}:{name}", contextvars.Context())

    def ended(self, load: Load) -> None:
        self._loads.discard(load)

    def beside(self, work: Coroutine[Any, Any, None]) -> None:
        """Do this, for which nobody waits."""
        task = asyncio.get_running_loop().create_task(_quietly(work), context=contextvars.Context())
        self._beside.add(task)
        task.add_done_callback(self._beside.discard)

    def mark(self, context: RequestContext | None, slot: Slot) -> Mark | None:
        """What the session asks of the slot after a write of its own; None: nothing (any more)."""
        if context is None or not context.causality.marks:
            return None
        mark = mark_of(context.causality.marks, slot.name)
        return mark if mark is not None and mark.until > self.clock.now() else None

    async def prove(self, context: RequestContext, budget: float, slot: Slot) -> None:
        """Give a client that brought no token what it has to ask of the slot."""
        if self._bus is not None:
            await _session.prove(context, slot, self._bus.sequence, now=self.clock.now(), budget=budget)

    # -- invalidations ---------------------------------------------------------------------------------

    def fields_of(
        self, tx: WriteTransaction, cls: Any, key: tuple[Any, ...], tags: Sequence[str]
    ) -> tuple[str, Iterable[str]]:
        """See `Invalidations`. Raises TypeError, ValueError and ConfigurationError."""
        if not isinstance(cls, CacheClass) or self._classes.get(cls.name) is not cls:
            raise TypeError(f"only classes of {self.name!r} can be invalidated, got {cls!r}")
        if cls.database is not tx.database:
            raise ConfigurationError(
                f"{cls.name} is a class of database {getattr(cls.database, 'name', None)!r},"
                f" and the write is one of {tx.database.name!r}"
            )
        return self.telling.fields_of(tx, cls, key, tags)

    async def void(
        self, tx: WriteTransaction, recorded: Recorded, fields: Mapping[str, Sequence[str]]
    ) -> None:
        """See `Invalidations`."""
        by_class = {self._classes[name]: named for name, named in fields.items()}
        await self.telling.committed(tx, recorded, by_class)

    async def invalidate(self, cls: CacheClass[Any], named: Sequence[str]) -> None:
        """See `CacheClass.invalidate`."""
        await self.telling.invalidate(cls, named)


async def _quietly(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except AWAY:
        return
