"""The cache of one process: its classes, and what they share.

    cache = Cache("app")
    users = cache.define("user:{id}", User, database=db, load=load_user)
    async with cache:
        await users.get(7)

Classes are defined before the start, so that all that is wrong with one is said before anybody is served.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from springtide.cache._admission import Admission
from springtide.cache._flight import Load
from springtide.cache._keys import Pattern
from springtide.cache._reading import CacheClass
from springtide.cache.classes import Definition, Loader, Mark
from springtide.clock import Clock, SystemClock
from springtide.errors import CacheDefinitionError
from springtide.lifecycle import StartStop
from springtide.provenance import HttpPolicy
from springtide.signals import NullSink, Sink

if TYPE_CHECKING:
    from springtide.db import Database

__all__ = ["Cache"]

T = TypeVar("T")


class Cache:
    """Classes of cached values, of one process. A lifecycle service.

    ttl, l1: for classes that do not say it themselves, seconds.
    max_loads: loads under way at once; `max_waiting` more wait for their turn, and the next one is refused.
    """

    def __init__(
        self,
        name: str,
        *,
        ttl: float = 300.0,
        l1: float = 15.0,
        max_loads: int = 16,
        max_waiting: int = 1000,
        clock: Clock | None = None,
        sink: Sink | None = None,
    ) -> None:
        self.platform = name
        self.name = f"cache {name}"
        self.clock: Clock = clock or SystemClock()
        self.sink: Sink = sink or NullSink()
        self.admission = Admission(max_loads, max_waiting)
        self._ttl = ttl
        self._l1 = l1
        self._classes: dict[str, CacheClass[Any]] = {}
        self._loads: set[Load] = set()
        self._life = StartStop(self.name, self._open, self._close, sink=sink)

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

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def define(
        self,
        pattern: str,
        type: type[T],
        *,
        name: str | None = None,
        database: Database | None = None,
        load: Loader | None = None,
        load_many: Loader | None = None,
        key: Callable[..., Any] | Mark | None = None,
        ttl: float | None = None,
        jitter: float = 0.1,
        budget: float = 2.0,
        stale_while_revalidate: float = 0.0,
        stale_if_error: float = 0.0,
        negative: float | None = 5.0,
        tags: Callable[[T], Iterable[str]] | Sequence[str] = (),
        l1: float | Mark | None = None,
        soft_timeout: float | None = None,
        hard_timeout: float = 5.0,
        max_bytes: int = 1 << 20,
        http: HttpPolicy | None = None,
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
        l1:        seconds in this process's memory; 0: never, FORBIDDEN: never, for good. None: as the cache.
        soft_timeout: seconds after which an old value is given out, if there is one, while the load goes on.
        hard_timeout: seconds after which a load is given up (LoadTimeout).
        max_bytes: of a stored value; a larger one is loaded by each who asks.
        http:      what caches of HTTP answers may do with answers made of it; None: no shared one keeps them.

        Raises CacheDefinitionError.
        """
        try:
            parsed = Pattern(pattern)
        except ValueError as error:
            raise CacheDefinitionError(f"cache class {pattern!r}: pattern {error}, got {pattern!r}") from None
        definition = Definition(
            name=name or parsed.name,
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
        )
        self._check_new(definition)
        made: CacheClass[T] = CacheClass(self, definition)
        self._classes[definition.name] = made
        return made

    def _check_new(self, definition: Definition) -> None:
        if self.state in ("starting", "running"):
            raise CacheDefinitionError(
                f"cache class {definition.name!r}: classes are defined before {self.name!r} is started"
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

    def begin(self, load: Load, name: str) -> None:
        """Run `load` until it ends or the cache is stopped, in a context of its own: what a value is cannot
        depend on who asked for it first."""
        self._loads.add(load)
        load.start(f"{self.name}:{name}", contextvars.Context())

    def ended(self, load: Load) -> None:
        self._loads.discard(load)

    async def _open(self) -> None:
        return None

    async def _close(self) -> None:
        loads = list(self._loads)
        for load in loads:
            load.cancel()
        for load in loads:
            await load.gone()
