"""How a read of a class finds its values.

    first level -> a flight of this process -> second level -> lease -> load -> fill

What may answer is decided anew in every turn (`_terms`): a flight may end with nothing, and the next turn
begins another one. Inside an open write of its database a class reads through the transaction, which must see
its own rows, and keeps nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from springtide.cache._admission import inside
from springtide.cache._edge import say_old, tell
from springtide.cache._flight import ABANDONED, Flight, leave, wait
from springtide.cache._keeping import AWAY, Keeping
from springtide.cache._keys import Argument
from springtide.cache._loader import loaded
from springtide.cache._loads import Loads
from springtide.cache._place import Place
from springtide.cache._terms import Terms, may_join, terms_of
from springtide.context import RequestContext, current, wanted_consistency
from springtide.errors import DeadlineExceeded

if TYPE_CHECKING:
    from springtide.cache._memory import View
    from springtide.cache._stats import Stats
    from springtide.cache.classes import Definition
    from springtide.cache.hot import Tally
    from springtide.cache.tiered import Cache

__all__ = ["Reading"]


class Reading:
    """Of one class. Names are what the first level calls a value; see `CacheClass.arguments_of`."""

    def __init__(
        self,
        cache: Cache,
        definition: Definition,
        view: View | None,
        keeping: Keeping,
        stats: Stats,
        tally: Tally,
    ) -> None:
        self._cache = cache
        self._definition = definition
        self._view = view
        self._keeping = keeping
        self._stats = stats
        self._tally = tally
        self._loads = Loads(cache, definition, keeping, stats)
        self._monotonic = cache.clock.monotonic

    async def find(self, groups: Mapping[Place, Mapping[Any, tuple[Argument, ...]]]) -> dict[Any, Any]:
        """The value of each name, None for what is not there."""
        if len(groups) == 1:
            ((place, names),) = groups.items()
            return await self._find(place, names)
        try:
            async with asyncio.TaskGroup() as group:
                parts = [group.create_task(self._find(place, names)) for place, names in groups.items()]
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None  # as if there were one shard: the others were given up
        found: dict[Any, Any] = {}
        for part in parts:
            found |= part.result()
        return found

    async def _find(self, place: Place, names: Mapping[Any, tuple[Argument, ...]]) -> dict[Any, Any]:
        context, since = current(), self._monotonic()
        if (write := place.writing()) is not None:
            self._stats.bypassed["write"] += len(names)
            found = await loaded(self._definition, write, names)
            self._tell(context, names, found, since)
            return found
        if context is not None and context.unproven is not None:
            await self._cache.prove(context, self._definition.budget, place.slot)
        found = {}
        while len(found) < len(names):
            terms = terms_of(
                self._definition.parts,
                place.slot,
                context=context,
                mark=self._cache.mark(context, place.slot),
                wanted=wanted_consistency(),
                kept=self._cache.redis is not None,
                now=self._monotonic(),
            )
            if terms.second:
                since = min(since, place.slot.proof)
            flights = await self._fly(place, terms, context, found, names)
            if flights:
                await self._arrive(place, flights, terms, context, found)
                since = min(since, min(flight.since for flight in flights))
        self._tell(context, names, found, since)
        return found

    def _tell(
        self,
        context: RequestContext | None,
        names: Mapping[Any, tuple[Argument, ...]],
        found: Mapping[Any, Any],
        since: float,
    ) -> None:
        """Say what the answer is made of. since: all of it is as the database had it then, or later."""
        if context is not None and context.provenance is not None:
            age = self._monotonic() - since
            for name, arguments in names.items():
                tell(context.provenance, self._definition, arguments, found[name], age)

    async def _fly(
        self,
        place: Place,
        terms: Terms,
        context: RequestContext | None,
        found: dict[Any, Any],
        names: Mapping[Any, tuple[Argument, ...]],
    ) -> list[Flight]:
        """Put into `found` what is there; the flights that bring the rest."""
        begun: list[Flight] = []
        try:
            joined = self._look(place, terms, context, found, names, begun)
            missing = await self._read(place, begun, found) if begun and terms.second else begun
            if missing:
                if terms.why:
                    self._stats.bypassed[terms.why] += len(missing)
                else:
                    self._stats.misses += len(missing)
                self._loads.begin(place, missing, terms, caller=context)
        except BaseException:  # whoever has joined one of them begins another one
            for flight in begun:
                if flight.load is None:
                    place.closed(flight)
                    flight.finish(ABANDONED)
            raise
        return joined + missing

    def _look(
        self,
        place: Place,
        terms: Terms,
        context: RequestContext | None,
        found: dict[Any, Any],
        names: Mapping[Any, tuple[Argument, ...]],
        begun: list[Flight],
    ) -> list[Flight]:
        """What is here: values of the first level, and flights to join. For the others `begun` takes flights
        that whoever comes may join, so each of them has to end."""
        now, parts = self._monotonic(), self._definition.parts
        joined: list[Flight] = []
        for name, arguments in names.items():
            if name in found:
                continue
            if terms.first and self._view is not None and (entry := self._view.get(name, now)) is not None:
                found[name] = entry.value
                self._stats.l1_hits += 1
                if self._stats.l1_hits >= self._tally.next_at:
                    self._tally.sample(name, self._stats.l1_hits)
                if now >= entry.fresh:
                    self._loads.refresh(place, name, arguments)
                continue
            key = self._definition.pattern.key(arguments)
            self._tally.note(name)
            flight = place.flights.get(key)
            if flight is not None and may_join(flight, parts, place.slot, terms, context, now):
                if inside():
                    flight.hurry()
                self._stats.joined += 1
                joined.append(flight)
                continue
            begun.append(place.open(name, key, arguments, now))
        return joined

    async def _read(self, place: Place, flights: list[Flight], found: dict[Any, Any]) -> list[Flight]:
        """Put into `found` what the second level has; the flights of what it has not."""
        level = place.level()
        if not place.trusted(level):
            return flights
        assert level is not None
        generation = place.slot.generation
        try:
            read = await level.read([flight.key for flight in flights])
        except AWAY:
            self._stats.away += 1
            return flights
        if not place.trusted(level):
            return flights
        missing: list[Flight] = []
        for flight, there in zip(flights, read.found, strict=True):
            if there is None:
                missing.append(flight)
                continue
            age = self._keeping.age(there)
            if age > self._definition.stale_while_revalidate:
                flight.old = there.value
                missing.append(flight)
                continue
            self._stats.l2_hits += 1
            found[flight.name] = there.value
            place.closed(flight)
            flight.finish(there.value)
            if age > 0:
                self._stats.stale_served["revalidate"] += 1
                self._loads.refresh(place, flight.name, flight.arguments)
            else:
                self._keeping.keep(place, flight, there.value, read.sequence, generation, level)
        return missing

    async def _arrive(
        self,
        place: Place,
        flights: list[Flight],
        terms: Terms,
        context: RequestContext | None,
        found: dict[Any, Any],
    ) -> None:
        """Wait for all, no longer than this caller has time; `found` takes what they bring."""
        soft = self._definition.soft_timeout
        if (
            soft is not None
            and terms.mark is None
            and not await wait(flights, self._left(context, soft), hold=True)
        ):
            try:
                for flight in flights:
                    if flight.done:
                        continue
                    if (old := await self._keeping.old(place.level(), flight)) is not ABANDONED:
                        self._stats.stale_served["soft"] += 1
                        flight.wanted = True
                        found[flight.name] = old
                        say_old(context)
            except BaseException:
                leave(flights)
                raise
            flights = [flight for flight in flights if flight.name not in found]
        if not await wait(flights, self._left(context)):
            raise DeadlineExceeded(f"waiting for a load of {self._definition.name}")
        now, parts = self._monotonic(), self._definition.parts
        for flight in flights:
            self._stats.overdue += flight.began < now - self._definition.budget
            if flight.began < now - parts.trusted:
                say_old(context)  # it took what the budget leaves for whoever keeps the answer
            if flight.error is not None and terms.mark is not None:
                raise flight.error  # what was there before may be what this session has changed
            value = flight.future.result()
            if flight.error is not None:
                say_old(context)
            if value is not ABANDONED:
                found[flight.name] = value

    def _left(self, context: RequestContext | None, most: float | None = None) -> float | None:
        remaining = context.remaining(self._monotonic()) if context is not None else None
        if remaining is None or most is None:
            return most if remaining is None else remaining
        return min(remaining, most)
