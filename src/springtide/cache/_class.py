"""A class of cached values as its callers have it: get, put, invalidate; and as operators do.

`CacheClass.get` is the hot path. A hit in this process's memory is found here, in one look-up and one
question for the time; everything else goes to `_reading`, which asks the same again, and more.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from springtide.cache._codec import Codec
from springtide.cache._flight import Flight
from springtide.cache._keeping import Keeping
from springtide.cache._keys import Argument
from springtide.cache._memory import MOST_USES
from springtide.cache._names import tag_field, tag_name
from springtide.cache._place import Place
from springtide.cache._reading import Reading
from springtide.cache._stats import Stats
from springtide.cache.classes import EACH, Definition
from springtide.cache.hot import Tally
from springtide.context import Consistency, block_consistency, current
from springtide.db import WriteTransaction, open_writes

if TYPE_CHECKING:
    from springtide.cache._memory import View
    from springtide.cache.tiered import Cache

__all__ = ["CacheClass"]

T = TypeVar("T")


class CacheClass(Generic[T]):
    """Made by `Cache.define`."""

    def __init__(self, cache: Cache, definition: Definition, view: View | None) -> None:
        self.definition = definition
        self.name = definition.name
        self.database = definition.database
        self.stats = Stats()
        self.tally = Tally()
        self.view = view
        """Its values in this process's memory; None: they are not kept there."""
        self._cache = cache
        self._monotonic = cache.clock.monotonic
        self._single = definition.single
        self._each = definition.key is EACH
        self._entries = view.entries if view is not None and not self._each else {}
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
        self._keeping = Keeping(definition, view, self.stats, self.tally, cache.clock)
        self._reading = Reading(cache, definition, view, self._keeping, self.stats, self.tally)

    def __repr__(self) -> str:
        return f"CacheClass({self.name!r}, {self.definition.pattern.text!r})"

    # -- for callers -----------------------------------------------------------------------------------

    async def get(self, *key: Argument) -> T | None:
        """The value, None when there is nothing.

        An argument that equals another one, as True does 1, may find in memory what that has, and is refused
        elsewhere. Raises what its loader raises, LoadTimeout, LoadsSaturated and DeadlineExceeded.
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
        found: T | None = (await self._reading.find({self._place(name, key): {name: key}}))[name]
        return found

    async def get_many(self, keys: Iterable[Any]) -> dict[Any, T]:
        """The values that there are, by key, in the order of `keys`: arguments, or tuples of several.

        One question to the second level for all; what has to be loaded is loaded at once, by `load_many`
        where the class has it. Raises as `get`.
        """
        self._refuse_each()
        wanted = {key: (key,) if self._single else self._several(key) for key in self._listed(keys)}
        found = await self._reading.find(self._groups(wanted))
        return {key: value for key in wanted if (value := found[key]) is not None}

    async def get_each(self, *key: Argument) -> list[T | None]:
        """The value of every shard, in their order, for a class of `key=EACH`. Raises as `get`."""
        if not self._each or self.database is None:
            raise TypeError(f"{self.name} has one value per key: get gives it")
        wanted = {(shard, *key): key for shard in self.database.shards.shards}
        found = await self._reading.find(self._groups(wanted))
        return [found[name] for name in wanted]

    def put(self, tx: WriteTransaction, value: T | None, *key: Argument) -> None:
        """Write through: `tx` makes this the value of `key`. It is invalidated with the write and kept after
        its COMMIT; never when the block is undone, or when `tx` invalidates it again after that.

        The value has to consist of rows that `tx` itself wrote or locked (or `tx` is "repeatable read"): what
        others commit meanwhile in rows that it only read is not in it. Raises as `tx.invalidate`.
        """
        if value is not None and not self.definition.fits(value):
            raise TypeError(f"{self.name} has values of another type, got {value!r:.100}")
        tx.invalidate(self, *key)
        if value is None and self.definition.negative is None:
            return
        place = self.places[tx.shard]
        fields = place.fields_of(self.key(*key), self.definition.tagger.of(value, key))
        put = self._cache.telling.put(tx, place.slot.name, fields)

        async def fill() -> None:
            """After COMMIT, when its invalidations have been told."""
            if not put.good or (recorded := tx.recorded) is None:
                return  # it was changed again; nobody keeps anything
            name: Any = (tx.shard, *key) if self._each else key[0] if self._single else key
            flight = Flight(name, self.key(*key), key, self._monotonic())
            flight.generation = place.slot.generation
            await self._keeping.keep_written(place, flight, value, recorded)

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

    # -- names -----------------------------------------------------------------------------------------

    def key(self, *key: Argument) -> str:
        """The name of the value: the pattern with these arguments."""
        return self.definition.pattern.key(key)

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

    # -- places ----------------------------------------------------------------------------------------

    @property
    def proven(self) -> float:
        """Seconds for which what is kept may be given out yet, of the worst of its slots; < 0: it may not."""
        return min(place.slot.good_until for place in self.places.values()) - self._monotonic()

    @property
    def gaps(self) -> int:
        """How often its slots had lost their thread, and what they held was dropped."""
        return sum(place.slot.gaps for place in self.places.values())

    def places_of(self, key: Sequence[Argument]) -> list[Place]:
        """Where the value of `key` is: one place, or each shard's."""
        if self._each:
            return list(self.places.values())
        return [self._place(key[0] if self._single else tuple(key), key)]

    def check_shard(self, key: tuple[Argument, ...], shard: str) -> None:
        """Raises ValueError when the value of `key` is on another shard."""
        if self.database is None or self._each or not key:
            return
        place = self._place(key[0] if self._single else key, key)
        if place.shard != shard:
            raise ValueError(
                f"{self.name}: {self.key(*key)!r} is on shard {place.shard!r}, and the write is on {shard!r}"
            )

    def _place(self, name: Any, arguments: Sequence[Argument]) -> Place:
        if self.database is None:
            return self.places[None]
        if self._each:
            return self.places[name[0]]
        return self.places[self.database.shards.shard_of(self.definition.bucket_key(arguments))]

    def _groups(
        self, wanted: Mapping[Any, tuple[Argument, ...]]
    ) -> dict[Place, dict[Any, tuple[Argument, ...]]]:
        groups: dict[Place, dict[Any, tuple[Argument, ...]]] = {}
        for name, arguments in wanted.items():
            groups.setdefault(self._place(name, arguments), {})[name] = arguments
        return groups

    def _listed(self, keys: Iterable[Any]) -> Iterable[Any]:
        if isinstance(keys, str):
            raise TypeError(f"{self.name} has many keys in a list, got the text {keys!r:.100}")
        return keys

    def _several(self, key: Any) -> tuple[Argument, ...]:
        if not isinstance(key, tuple):
            pattern = self.definition.pattern
            takes = ", ".join(pattern.arguments) or "no argument"
            raise TypeError(f"{pattern.text} takes tuples of {takes}, got {key!r:.100}")
        return key

    def _refuse_each(self) -> None:
        if self._each:
            raise TypeError(f"{self.name} has a value on every shard: get_each gives them")

    # -- before the first reader -----------------------------------------------------------------------

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
