"""One class: how a caller gets a value of it.

Inside an open write of its database a class reads through the transaction, which must see its own rows, and
keeps nothing. Else whoever wants a value joins the load that is under way for it, or begins one. A load that
began longer ago than a kept value may be old is not joined: what it has read may be older than that.

A load runs in a task and a context of its own, with what the first caller's session has seen and his ledger,
but neither his deadline (others wait with other ones) nor who he is: a value is the same for everybody.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from springtide.cache._admission import inside
from springtide.cache._edge import tell
from springtide.cache._flight import Flight, Load, wait
from springtide.cache._keys import Argument
from springtide.cache._stats import Stats
from springtide.cache.classes import EACH, Definition
from springtide.context import Consistency, RequestContext, activate, current
from springtide.db import Queries, Reader, WriteTransaction
from springtide.errors import DeadlineExceeded, LoadTimeout

if TYPE_CHECKING:
    from springtide.cache.tiered import Cache

__all__ = ["CacheClass"]

T = TypeVar("T")


class CacheClass(Generic[T]):
    """Made by `Cache.define`."""

    def __init__(self, cache: Cache, definition: Definition) -> None:
        self.definition = definition
        self.name = definition.name
        self.database = definition.database
        self.stats = Stats()
        self._cache = cache
        self._clock = cache.clock
        self._flights: dict[Any, Flight] = {}
        self._single = len(definition.pattern.arguments) == 1
        self._each = definition.key is EACH

    def __repr__(self) -> str:
        return f"CacheClass({self.name!r}, {self.definition.pattern.text!r})"

    def key(self, *key: Argument) -> str:
        """The name of the value: the pattern with these arguments."""
        return self.definition.pattern.key(key)

    async def get(self, *key: Argument) -> T | None:
        """The value, None when there is nothing.

        Raises what its loader raises, LoadTimeout, LoadsSaturated and DeadlineExceeded.
        """
        self._refuse_each()
        name = key[0] if self._single and len(key) == 1 else key
        found: T | None = (await self._find({name: key}))[name]
        return found

    async def get_many(self, keys: Iterable[Any]) -> dict[Any, T]:
        """The values that there are, by key, in the order of `keys`: arguments, or tuples of several.

        What has to be loaded is loaded at once, by `load_many` where the class has it. Raises as `get`.
        """
        self._refuse_each()
        wanted = {key: (key,) if self._single else tuple(key) for key in keys}
        found = await self._find(wanted)
        return {key: value for key in wanted if (value := found[key]) is not None}

    async def get_each(self, *key: Argument) -> list[T | None]:
        """The value of every shard, in their order, for a class of `key=EACH`. Raises as `get`."""
        if not self._each or self.database is None:
            raise TypeError(f"{self.name} has one value per key: get gives it")
        shards = self.database.shards.shards
        found = await self._find({(shard, *key): key for shard in shards})
        return list(found.values())

    def _refuse_each(self) -> None:
        if self._each:
            raise TypeError(f"{self.name} has a value on every shard: get_each gives them")

    # -- finding ---------------------------------------------------------------------------------------

    async def _find(self, wanted: Mapping[Any, tuple[Argument, ...]]) -> dict[Any, Any]:
        """The value of each name, None for what is not there."""
        found: dict[Any, Any] = {}
        flights: dict[Any, Flight] = {}
        missing: dict[str | None, dict[Any, tuple[Argument, ...]]] = {}
        now = self._clock.monotonic()
        for name, arguments in wanted.items():
            flight = None
            shard = self._shard(name, arguments)
            if self._write_on(shard) is None and (flight := self._joinable(name, now)) is not None:
                flights[name] = flight
                self.stats.joined += 1
            else:
                self.definition.pattern.key(arguments)  # what is wrong with it is said before it is begun
                missing.setdefault(shard, {})[name] = arguments
        for shard, names in missing.items():
            if (write := self._write_on(shard)) is not None:
                self.stats.bypassed["write"] += len(names)
                found |= await self._loaded(write, names)
            else:
                begun = [Flight(name, arguments, now) for name, arguments in names.items()]
                flights.update((flight.name, flight) for flight in begun)
                self._begin(begun, shard)
        if flights:
            await self._arrive(list(flights.values()))
        values = {name: flights[name].future.result() if name in flights else found[name] for name in wanted}
        if (context := current()) is not None and (provenance := context.provenance) is not None:
            now = self._clock.monotonic()
            for name, value in values.items():
                age = now - flights[name].began if name in flights else 0.0
                tell(provenance, self.definition, wanted[name], value, age)
        return values

    def _write_on(self, shard: str | None) -> WriteTransaction | None:
        if self.database is None or shard is None:
            return None
        return self.database.writing(shard)

    def _shard(self, name: Any, arguments: Sequence[Argument]) -> str | None:
        if self.database is None:
            return None
        if self._each:
            shard: str = name[0]
            return shard
        return self.database.shards.shard_of(self.definition.bucket_key(arguments))

    def _joinable(self, name: Any, now: float) -> Flight | None:
        flight = self._flights.get(name)
        if flight is None or now - flight.began > self.definition.parts.trusted:
            return None
        if flight.load is not None and inside():
            flight.load.turn.hurry()
        return flight

    async def _arrive(self, flights: Sequence[Flight]) -> None:
        """Wait for all, no longer than this caller has time."""
        context = current()
        remaining = context.remaining(self._clock.monotonic()) if context is not None else None
        if not await wait(flights, remaining):
            raise DeadlineExceeded(f"waiting for a load of {self.name}")

    # -- loading ---------------------------------------------------------------------------------------

    def _begin(self, flights: Sequence[Flight], shard: str | None) -> None:
        for flight in flights:
            self._flights[flight.name] = flight
        consistency, context = self._consistency(), self._context()

        async def body(load: Load) -> None:
            with activate(context):
                await self._load(load, shard, consistency)

        turn = self._cache.admission.turn(hurried=inside())
        self._cache.begin(Load(flights, body, self._ended, turn), self.name)

    def _ended(self, load: Load) -> None:
        self._cache.ended(load)
        for flight in load.flights:
            if self._flights.get(flight.name) is flight:
                del self._flights[flight.name]

    def _context(self) -> RequestContext:
        """See the module."""
        context = RequestContext(deadline=self._clock.monotonic() + self.definition.hard_timeout)
        caller = current()
        if caller is not None:
            context.request_id = caller.request_id
            context.priority = caller.priority
            context.trace = caller.trace
            context.causality = caller.causality
            context.ledger = caller.ledger
        return context

    def _consistency(self) -> Consistency:
        """How fresh a load reads: what the session has seen, and what the budget leaves for a replica."""
        context = current()
        if context is not None and context.causality:
            return Consistency.SESSION
        lag = self.definition.parts.replica
        return Consistency.bounded(lag) if lag else Consistency.STRONG

    async def _load(self, load: Load, shard: str | None, consistency: Consistency) -> None:
        wanted = {flight.name: flight.arguments for flight in load.flights}
        begun = self._clock.monotonic()
        timeout = asyncio.timeout(self.definition.hard_timeout)
        try:
            async with timeout, load.turn:
                begun = self._clock.monotonic()
                source = None
                if self.database is not None and shard is not None:
                    source = Reader(self.database, shard, consistency)
                found = await self._loaded(source, wanted)
        except BaseException as error:
            self.stats.failed[type(error).__name__] += 1
            if isinstance(error, TimeoutError) and timeout.expired():
                seconds = self.definition.hard_timeout
                raise LoadTimeout(f"a load of {self.name} took longer than {seconds:g} s") from error
            raise
        finally:
            self.stats.loads += 1
            self.stats.load_seconds += self._clock.monotonic() - begun
        for flight in load.flights:
            flight.finish(found.get(flight.name))

    async def _loaded(
        self, source: Queries | None, wanted: Mapping[Any, tuple[Argument, ...]]
    ) -> dict[Any, Any]:
        """What the loader finds, by name."""
        definition = self.definition
        first = () if source is None else (source,)
        found: dict[Any, Any] = {}
        if definition.load is not None and (len(wanted) == 1 or definition.load_many is None):
            for name, arguments in wanted.items():
                found[name] = await definition.load(*first, *arguments)
        else:
            assert definition.load_many is not None
            names = {arguments[0] if self._single else arguments: name for name, arguments in wanted.items()}
            answer = await definition.load_many(*first, list(names))
            found = {name: answer.get(key) for key, name in names.items()}
        for value in found.values():
            if value is not None and not isinstance(value, definition.kinds):
                raise TypeError(f"the loader of {self.name} gave {type(value).__name__}: {value!r:.100}")
        return found
