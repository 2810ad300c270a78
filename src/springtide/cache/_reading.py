"""One class: how a caller gets a value of it.

    first level -> a flight of this process -> second level -> lease -> load -> fill

Both levels answer only while the slot is proven (`_slot`) and the session asks for no more (`_session`); a
read that asks for more than the budget gives (`strong`, `bounded` by less) is loaded. Inside an open write of
its database a class reads through the transaction, which must see its own rows, and keeps nothing.

A load runs in a task and a context of its own, with what the first caller's session has seen and his ledger,
but neither his deadline (others wait with other ones) nor who he is: a value is the same for everybody.
What the load sees is no news for the session: a value from a cache has no position either.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

from springtide._marks import NEITHER, Mark
from springtide.cache._admission import Turn, inside
from springtide.cache._codec import Codec
from springtide.cache._edge import tell
from springtide.cache._flight import ABANDONED, Flight, Load, wait
from springtide.cache._keys import Argument
from springtide.cache._level2 import Entry, Found, Level2
from springtide.cache._loading import AWAY, Loading
from springtide.cache._names import tag_field, tag_name
from springtide.cache._place import Place
from springtide.cache._stats import Stats
from springtide.cache.classes import EACH, Definition
from springtide.cache.hot import Tally
from springtide.context import (
    CausalityToken,
    Consistency,
    Priority,
    RequestContext,
    block_consistency,
    current,
    wanted_consistency,
)
from springtide.db import Queries, WriteTransaction, open_writes
from springtide.errors import DeadlineExceeded

if TYPE_CHECKING:
    from springtide.cache._memory import View
    from springtide.cache.tiered import Cache

__all__ = ["CacheClass"]

T = TypeVar("T")

MOST_USES = 3


class Terms(NamedTuple):
    """What may answer one caller, and how fresh a load of his has to be.

    why: the reason that neither level may. mark: what his session asks of the slot after a write of its own.
    consistency, within: of his loads, as `Database.seeing` has them.
    """

    first: bool
    second: bool
    why: str
    mark: Mark | None
    consistency: Consistency
    within: float | None


class CacheClass(Generic[T]):
    """Made by `Cache.define`."""

    def __init__(self, cache: Cache, definition: Definition, view: View | None) -> None:
        self.definition = definition
        self.name = definition.name
        self.database = definition.database
        self.clock = cache.clock
        self.stats = Stats()
        self.tally = Tally()
        self.view = view
        """Its values in this process's memory; None: they are not kept there."""
        self.beside = cache.beside
        self._cache = cache
        self._monotonic = cache.clock.monotonic
        self._entries = view.entries if view is not None else {}
        self._single = len(definition.pattern.arguments) == 1
        self._each = definition.key is EACH
        codec: Codec[T] = Codec(
            definition.type,
            salt=f"{definition.pattern.text} {definition.tagger.text}",
            max_bytes=definition.max_bytes,
        )
        shards = (None,) if self.database is None else self.database.shards.shards
        self.places: Mapping[str | None, Place] = {
            shard: Place(
                definition,
                shard,
                copy=cache.turn % definition.copies,
                platform=cache.platform,
                redis=cache.redis,
                view=view,
                codec=codec,
                clock=cache.clock,
            )
            for shard in shards
        }
        """By shard; None without a database."""

    def __repr__(self) -> str:
        return f"CacheClass({self.name!r}, {self.definition.pattern.text!r})"

    @property
    def proven(self) -> float:
        """Seconds for which what is kept may be given out yet, of the worst of its slots; < 0: it may not."""
        return min(place.slot.good_until for place in self.places.values()) - self._monotonic()

    def key(self, *key: Argument) -> str:
        """The name of the value: the pattern with these arguments."""
        return self.definition.pattern.key(key)

    # -- for callers -----------------------------------------------------------------------------------

    async def get(self, *key: Argument) -> T | None:
        """The value, None when there is nothing.

        Raises what its loader raises, LoadTimeout, LoadsSaturated and DeadlineExceeded.
        """
        name: Any = key[0] if len(key) == 1 else key
        entry = self._entries.get(name)
        if entry is not None and not open_writes():
            now = self._monotonic()
            if now < entry.fresh and now < entry.slot.good_until and block_consistency() is None:
                context = current()
                if context is None or not (
                    context.causality.marks
                    or context.consistency is not None
                    or context.provenance is not None
                    or (context.unproven is not None and context.known is not None)
                ):
                    if entry.uses < MOST_USES:
                        entry.uses += 1
                    stats = self.stats
                    hits = stats.l1_hits = stats.l1_hits + 1
                    if hits >= self.tally.next_at:
                        self.tally.sample(name, hits)
                    hit: T | None = entry.value
                    return hit
        self._refuse_each()
        found: T | None = (await self._find({name: key}))[name]
        return found

    async def get_many(self, keys: Iterable[Any]) -> dict[Any, T]:
        """The values that there are, by key, in the order of `keys`: arguments, or tuples of several.

        One question to the second level for all; what has to be loaded is loaded at once, by `load_many`
        where the class has it. Raises as `get`.
        """
        self._refuse_each()
        wanted = {key: (key,) if self._single else tuple(key) for key in keys}
        found = await self._find(wanted)
        return {key: value for key in wanted if (value := found[key]) is not None}

    async def get_each(self, *key: Argument) -> list[T | None]:
        """The value of every shard, in their order, for a class of `key=EACH`. Raises as `get`."""
        if not self._each or self.database is None:
            raise TypeError(f"{self.name} has one value per key: get gives it")
        found = await self._find({(shard, *key): key for shard in self.database.shards.shards})
        return list(found.values())

    def put(self, tx: WriteTransaction, value: T | None, *key: Argument) -> None:
        """Write through: `tx` makes this the value of `key`. It is invalidated with the write and kept after
        its COMMIT; never when the block is undone.

        The value has to consist of rows that `tx` itself wrote or locked (or `tx` is "repeatable read"): what
        others commit meanwhile in rows that it only read is not in it. Raises as `tx.invalidate`.
        """
        tx.invalidate(self, *key)
        if value is None and self.definition.negative is None:
            return
        if value is not None and not isinstance(value, self.definition.kinds):
            raise TypeError(f"{self.name} has values of another type, got {value!r:.100}")

        async def fill() -> None:
            await self._fill_written(tx, value, key)

        tx.on_commit(fill)

    async def invalidate(self, *key: Argument, tags: Sequence[str] = ()) -> None:
        """For a class without a database: its value of `key`, and those with one of `tags`, are not good any
        more. In one with a database `tx.invalidate` does that with the write.

        Raises RedisUnavailable or RedisError when other processes could not be told: then they have what they
        had for as long as its class keeps it, unless this is called again.
        """
        if self.database is not None:
            raise TypeError(
                f"{self.name} has a database: invalidate in the write, `tx.invalidate({self.name}, ...)`"
            )
        await self._cache.invalidate(self, self.fields(key, tags))

    def fields(self, key: tuple[Argument, ...], tags: Sequence[str]) -> list[str]:
        """What these are called among invalidations."""
        if tags and not self.definition.tagger.any:
            raise TypeError(f"{self.name} is defined without tags, got {list(tags)!r}")
        pattern = self.definition.pattern
        if not key and not tags and pattern.arguments:
            raise TypeError(f"{self.name}: a key or tags must say what is not good any more")
        named = [f"k:{pattern.key(key)}"] if key or not pattern.arguments else []
        return [*named, *(tag_field(tag_name(tag)) for tag in tags)]

    def arguments_of(self, name: Any) -> tuple[Argument, ...]:
        """The arguments of what `get` and the first level call `name`."""
        if self._each:
            return tuple(name[1:])
        return (name,) if self._single else tuple(name)

    def takes(self, arguments: Sequence[Argument]) -> bool:
        """Whether these are arguments of the class as it is now."""
        try:
            self.definition.pattern.key(arguments)
        except (TypeError, ValueError):
            return False
        return True

    def places_of(self, key: Sequence[Argument]) -> list[Place]:
        """Where the value of `key` is: one place, or each shard's."""
        if self._each:
            return list(self.places.values())
        return [self._place(key[0] if self._single else tuple(key), key)]

    async def learn(self) -> None:
        """Ask each database which history it is on, where nobody has yet: values are kept of one that is
        known. Raises what a read does."""
        for place in self.places.values():
            if place.database is not None and place.shard is not None and place.epoch is None:
                async with place.database.seeing(place.shard, consistency=Consistency.STRONG):
                    pass

    async def warm(self, keys: Sequence[tuple[Argument, ...]]) -> None:
        """Read these as any caller does, so that this process has them. Raises as `get_many`."""
        if self._each:
            for key in keys:
                await self.get_each(*key)
        else:
            await self.get_many([key[0] for key in keys] if self._single else keys)

    def check_shard(self, key: tuple[Argument, ...], shard: str) -> None:
        """Raises ValueError when the value of `key` is on another shard."""
        if self.database is None or self._each or not key:
            return
        place = self._place(key[0] if self._single else key, key)
        if place.shard != shard:
            raise ValueError(
                f"{self.name}: {self.key(*key)!r} is on shard {place.shard!r}, and the write is on {shard!r}"
            )

    # -- finding ---------------------------------------------------------------------------------------

    def _refuse_each(self) -> None:
        if self._each:
            raise TypeError(f"{self.name} has a value on every shard: get_each gives them")

    async def _find(self, wanted: Mapping[Any, tuple[Argument, ...]]) -> dict[Any, Any]:
        """The value of each name, None for what is not there."""
        if len(wanted) == 1:
            ((name, arguments),) = wanted.items()
            return await self._find_at(self._place(name, arguments), wanted)
        groups: dict[Place, dict[Any, tuple[Argument, ...]]] = {}
        for name, arguments in wanted.items():
            groups.setdefault(self._place(name, arguments), {})[name] = arguments
        if len(groups) == 1:
            ((place, names),) = groups.items()
            return await self._find_at(place, names)
        async with asyncio.TaskGroup() as group:
            parts = [group.create_task(self._find_at(place, names)) for place, names in groups.items()]
        found: dict[Any, Any] = {}
        for part in parts:
            found |= part.result()
        return {name: found[name] for name in wanted}

    def _place(self, name: Any, arguments: Sequence[Argument]) -> Place:
        if self.database is None:
            return self.places[None]
        if self._each:
            return self.places[name[0]]
        return self.places[self.database.shards.shard_of(self.definition.bucket_key(arguments))]

    async def _find_at(self, place: Place, names: Mapping[Any, tuple[Argument, ...]]) -> dict[Any, Any]:
        if (write := place.writing()) is not None:
            self.stats.bypassed["write"] += len(names)
            return await self.loaded(write, names)
        context = current()
        if context is not None and context.unproven is not None:
            await self._cache.prove(context, self, place.slot)
        found: dict[Any, Any] = {}
        while len(found) < len(names):
            terms = self._terms(place, context)
            flights = await self._fly(place, terms, context, found, names)
            if flights:
                await self._arrive(place, flights, terms, context, found)
        if context is not None and context.provenance is not None:
            self._tell(context, place, names, found)
        return found

    def _terms(self, place: Place, context: RequestContext | None) -> Terms:
        """What may answer this caller now."""
        parts = self.definition.parts
        within: float | None = parts.replica or None
        if within is None:
            consistency = Consistency.STRONG
        elif context is not None and (context.causality or context.recall is not None):
            consistency = Consistency.SESSION
        else:
            consistency, within = Consistency.bounded(within), None
        mark = self._cache.mark(context, place.slot)
        wanted = wanted_consistency()
        if wanted is not None and (
            wanted.level == "strong" or (wanted.staleness is not None and wanted.staleness < parts.inside)
        ):
            return Terms(False, False, wanted.level, mark, wanted, None)
        slot = place.slot
        if self._cache.redis is None:
            why = "off"
        elif not self._monotonic() < slot.good_until:
            why = "unproven"
        elif mark is not None and mark.scope == NEITHER:
            why = "mark"
        else:
            first = mark is None or mark.is_met(slot.scope, slot.position)
            return Terms(first, True, "", mark, consistency, within)
        return Terms(False, False, why, mark, consistency, within)

    async def _fly(
        self,
        place: Place,
        terms: Terms,
        context: RequestContext | None,
        found: dict[Any, Any],
        names: Mapping[Any, tuple[Argument, ...]],
    ) -> list[Flight]:
        """Put into `found` what is there; the flights that bring the rest."""
        now = self._monotonic()
        joined: list[Flight] = []
        begun: list[Flight] = []
        for name, arguments in names.items():
            if name in found:
                continue
            if terms.first and self.view is not None and (entry := self.view.get(name, now)) is not None:
                found[name] = entry.value
                self.stats.l1_hits += 1
                if self.stats.l1_hits >= self.tally.next_at:
                    self.tally.sample(name, self.stats.l1_hits)
                if now >= entry.fresh:
                    self._refresh(place, name, arguments)
                continue
            key = self.definition.pattern.key(arguments)
            self.tally.note(name)
            flight = place.flights.get(key)
            if flight is not None and self._may_join(place, flight, terms, context, now):
                self.stats.joined += 1
                joined.append(flight)
                continue
            begun.append(self._new_flight(place, name, key, arguments, now))
        if begun and terms.second:
            begun = await self._read(place, begun, found)
        if begun:
            if terms.why:
                self.stats.bypassed[terms.why] += len(begun)
            else:
                self.stats.misses += len(begun)
            self._begin(place, begun, terms, caller=context)
        return joined + begun

    def _new_flight(
        self, place: Place, name: Any, key: str, arguments: tuple[Any, ...], now: float
    ) -> Flight:
        flight = Flight(name, key, arguments, now)
        slot = place.slot
        flight.scope, flight.position, flight.generation = slot.scope, slot.position, slot.generation
        place.flights[key] = flight
        return flight

    def _may_join(
        self, place: Place, flight: Flight, terms: Terms, context: RequestContext | None, now: float
    ) -> bool:
        """Whether what the flight reads is new enough for this caller."""
        if terms.why in ("strong", "bounded"):
            return False
        if now >= place.slot.good_until and now - flight.began > self.definition.parts.trusted:
            return False
        session = context is not None and (context.causality or context.known is not None)
        if terms.why == "off" and flight.started and session:
            return False  # without Redis nobody hears what it wrote elsewhere: it is read after it has asked
        if terms.mark is not None and not terms.mark.is_met(flight.scope, flight.position):
            return False
        if (terms.mark is not None or terms.why == "off") and context is not None:
            if context.recall is not None:
                return False  # what this session has seen is not known here yet: its own load asks for it
            seen = flight.token
            for cluster, position in context.causality.positions.items():
                if seen is None or (known := seen.position(cluster)) is None or known < position:
                    return False
        if flight.load is not None and inside():
            flight.load.turn.hurry()
        return True

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
            self.stats.away += 1
            return flights
        except BaseException:
            for flight in flights:
                place.closed(flight)
                flight.finish(ABANDONED)
            raise
        if not place.trusted(level):
            return flights
        missing: list[Flight] = []
        for flight, there in zip(flights, read.found, strict=True):
            if there is None:
                missing.append(flight)
                continue
            age = self._age(there)
            if age > self.definition.stale_while_revalidate:
                flight.old = there.value
                missing.append(flight)
                continue
            self.stats.l2_hits += 1
            found[flight.name] = there.value
            place.closed(flight)
            flight.finish(there.value)
            if age > 0:
                self.stats.stale_served["revalidate"] += 1
                self._refresh(place, flight.name, flight.arguments)
            else:
                self.keep(place, flight, there.value, there.size, read.sequence, generation, level)
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
        soft = self.definition.soft_timeout
        if (
            soft is not None
            and terms.mark is None
            and not await wait(flights, self._left(context, soft), hold=True)
        ):
            for flight in flights:
                if not flight.done and (old := await self.old(place.level(), flight)) is not ABANDONED:
                    self.stats.stale_served["soft"] += 1
                    flight.wanted = True
                    found[flight.name] = old
                    _say_old(context)
            flights = [flight for flight in flights if flight.name not in found]
        if not await wait(flights, self._left(context)):
            raise DeadlineExceeded(f"waiting for a load of {self.name}")
        late = self._monotonic() - self.definition.budget
        for flight in flights:
            self.stats.overdue += flight.began < late
            if flight.error is not None and terms.mark is not None:
                raise flight.error  # what was there before may be what this session has changed
            value = flight.future.result()
            if flight.error is not None:
                _say_old(context)
            if value is not ABANDONED:
                found[flight.name] = value

    def _left(self, context: RequestContext | None, most: float | None = None) -> float | None:
        remaining = context.remaining(self._monotonic()) if context is not None else None
        if remaining is None or most is None:
            return most if remaining is None else remaining
        return min(remaining, most)

    def _tell(
        self, context: RequestContext, place: Place, names: Mapping[Any, Any], found: Mapping[Any, Any]
    ) -> None:
        """Say what an answer is made of."""
        assert context.provenance is not None
        parts = self.definition.parts
        age = parts.replica + min(max(self._monotonic() - place.slot.proof, 0.0), parts.trusted)
        for name, arguments in names.items():
            tell(context.provenance, self.definition, arguments, found[name], age)

    # -- loading ---------------------------------------------------------------------------------------

    def _begin(
        self,
        place: Place,
        flights: Sequence[Flight],
        terms: Terms,
        *,
        caller: RequestContext | None,
        refresh: bool = False,
    ) -> None:
        context = RequestContext(priority=Priority.BULK if refresh else Priority.NORMAL)
        if caller is not None:
            token = CausalityToken(caller.causality.positions, None, caller.causality.marks)
            if caller.causality.pinned:
                token.pinned = True
            context = RequestContext(
                request_id=caller.request_id,
                priority=caller.priority,
                trace=caller.trace,
                causality=token,
                recall=caller.recall,
                ledger=caller.ledger,
            )
        for flight in flights:
            flight.token = context.causality
        loading = Loading(
            self,
            place,
            place.level(),
            context,
            consistency=terms.consistency,
            within=terms.within,
            leased=terms.second,
            refresh=refresh,
        )
        self.go_on(flights, loading, place)

    def go_on(self, flights: Sequence[Flight], loading: Loading, place: Place) -> None:
        """Bring these by a load of their own."""

        def ended(load: Load) -> None:
            self._cache.ended(load)
            for flight in load.begun:
                if flight.load is load:
                    place.closed(flight)

        load = Load(flights, loading.run, ended, self.another_turn(hurried=inside()))
        self._cache.begin(load, self.name)

    def another_turn(self, *, hurried: bool = False) -> Turn:
        return self._cache.admission.turn(hurried=hurried)

    def _refresh(self, place: Place, name: Any, arguments: tuple[Argument, ...]) -> None:
        """Load a value anew that has just been given out old, unless somebody does."""
        key = self.definition.pattern.key(arguments)
        if key in place.flights:
            return
        flight = self._new_flight(place, name, key, arguments, self._monotonic())
        flight.wanted = True
        lag = self.definition.parts.replica
        consistency = Consistency.bounded(lag) if lag else Consistency.STRONG
        terms = Terms(False, True, "", None, consistency, None)
        self._begin(place, (flight,), terms, caller=None, refresh=True)

    async def loaded(
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
            names = {args[0] if self._single else args: name for name, args in wanted.items()}
            answer = await definition.load_many(*first, list(names))
            found = {name: answer.get(key) for key, name in names.items()}
        for value in found.values():
            if value is not None and not isinstance(value, definition.kinds):
                raise TypeError(f"the loader of {self.name} gave {type(value).__name__}: {value!r:.100}")
        return found

    # -- what is kept ----------------------------------------------------------------------------------

    def life(self, value: Any) -> float:
        """Seconds that the second level keeps a value, those included for which it is given out old."""
        fresh, _ = self.definition.lives(value)
        shortened = fresh * (1.0 - self.definition.jitter * random.random())  # noqa: S311 - spreads load
        return shortened + self.definition.grace

    def _age(self, found: Found[Any]) -> float:
        """Seconds since it should have been loaded anew; <= 0: it is fresh."""
        return 0.0 if found.remaining is None else self.definition.grace - found.remaining

    def is_fresh(self, found: Found[Any]) -> bool:
        return self._age(found) <= 0

    def keep(
        self,
        place: Place,
        flight: Flight,
        value: Any,
        size: int,
        sequence: int,
        generation: int,
        level: Level2[Any],
    ) -> None:
        """Put into the first level what was good at `sequence`, unless it has been invalidated since."""
        if self.view is None:
            return
        slot = place.slot
        fields = place.fields_of(flight.key, self.definition.tagger.of(value, flight.arguments))
        if level.names.scope != slot.scope or not slot.admits(fields, sequence, generation):
            return
        _, seconds = self.definition.lives(value)
        fresh = self._monotonic() + seconds
        self.view.put(
            flight.name,
            value,
            slot=slot,
            fields=fields,
            fresh=fresh,
            stale=fresh + self.definition.stale_while_revalidate,
            bytes=size,
            hold=flight.name in self.tally.hot,
        )

    async def old(self, level: Level2[Any] | None, flight: Flight) -> Any:
        """What may be given out instead of a value that does not come; ABANDONED: nothing."""
        if flight.old is ABANDONED and self.definition.stale_if_error and level is not None:
            try:
                found = await level.old(flight.key)
            except AWAY:
                self.stats.away += 1
            else:
                if found is not None:
                    flight.old = found.value
        return flight.old

    async def _fill_written(self, tx: WriteTransaction, value: T | None, key: tuple[Argument, ...]) -> None:
        """After COMMIT, when its invalidations have been told."""
        place, recorded = self.places[tx.shard], tx.recorded
        assert recorded is not None
        level = place.level_now(recorded.seen.epoch)
        if level is None:
            return
        tags = self.definition.tagger.of(value, key)
        generation = place.slot.generation
        entry = Entry(self.definition.pattern.key(key), value, self.life(value), "", tags)
        try:
            outcome = await level.put(entry, seen=recorded.seen, xid=recorded.xid)
        except AWAY:
            self.stats.away += 1
            return
        if outcome.refusal is not None:
            self.stats.refused[outcome.refusal.value] += 1
            return
        self.stats.fills += 1
        name: Any = (tx.shard, *key) if self._each else key[0] if self._single else key
        flight = Flight(name, entry.name, key, self._monotonic())
        self.keep(place, flight, value, outcome.size, outcome.sequence, generation, level)


def _say_old(context: RequestContext | None) -> None:
    """A value that may be older than the budget went into the answer."""
    if context is not None and context.provenance is not None:
        context.provenance.outdated()
