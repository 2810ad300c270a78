"""One class on one shard: its slot, its level in Redis, and the loads under way for its keys.

What an invalidation that is heard does to this process is done here: entries of the first level go, and
whoever comes next does not join a load that began before. A tag may be that of any value under way, so it
ends joining for all of them; who waits already goes on waiting, for he came before.

The level is made for one link to one run of Redis and one history of the database. Where either is another,
another one is made: what is under other keys is out of reach, hence never wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from springtide.cache._flight import Flight
from springtide.cache._level2 import Level2
from springtide.cache._names import Names, scope_name, slot_name
from springtide.cache._slot import EVERYTHING, Slot

if TYPE_CHECKING:
    from springtide.cache._codec import Codec
    from springtide.cache._memory import View
    from springtide.cache.classes import Definition
    from springtide.clock import Clock
    from springtide.db import WriteTransaction
    from springtide.redis import Link, Redis

__all__ = ["Place"]


class Place:
    """See the module. shard: None without a database. redis: None: nothing is kept.

    copy: which of the class's copies this process reads and fills. Every copy is a slot of its own, with its
    own bus and tombstones; who invalidates tells all of them (`levels_now`), and the relay beats all.
    """

    def __init__(
        self,
        definition: Definition,
        shard: str | None,
        *,
        copy: int = 0,
        platform: str,
        redis: Redis | None,
        view: View | None,
        codec: Codec[Any],
        clock: Clock,
    ) -> None:
        self.definition = definition
        self.database = definition.database
        self.shard = shard
        self.flights: dict[str, Flight] = {}
        """key -> the load that whoever comes may join."""
        self.slot = Slot(
            slot_name(definition.name, shard or "", copy=copy),
            share=definition.parts.kept,
            relayed=shard is not None,
            heard=self.hear,
        )
        self.view = view
        self.names = [slot_name(definition.name, shard or "", copy=n) for n in range(definition.copies)]
        """The slots of all copies."""
        self._platform = platform
        self._redis = redis
        self.codec = codec
        self._monotonic = clock.monotonic
        self._levels: dict[str, tuple[Link, int, Level2[Any]]] = {}

    @property
    def epoch(self) -> int | None:
        """The history of the database that values are of; 0 without one, None while it is not known."""
        if self.database is None or self.shard is None:
            return 0
        return self.database.epoch(self.shard)

    def scope(self, run_id: str) -> str | None:
        """What the keys in this run of Redis are called; None while that is not known."""
        epoch = self.epoch
        return None if epoch is None else self._scope(run_id, epoch)

    def _scope(self, run_id: str, epoch: int) -> str:
        schema = "" if self.database is None else self.database.schema
        return scope_name(self._platform, run_id, self.shard or "", epoch, schema)

    def level(self) -> Level2[Any] | None:
        """The second level as it can be reached now; None: it cannot."""
        return None if (epoch := self.epoch) is None else self.level_now(epoch)

    def level_now(self, epoch: int) -> Level2[Any] | None:
        """The level of this history, whatever else is known of the database."""
        return self._level_of(self.slot.name, epoch)

    def levels_now(self, epoch: int) -> dict[str, Level2[Any] | None]:
        """Those of all copies, by slot."""
        return {name: self._level_of(name, epoch) for name in self.names}

    def link_now(self, slot: str) -> Link | None:
        """What serves the keys of a copy now."""
        return None if self._redis is None else self._redis.link(f"{{{slot}}}")

    def _level_of(self, slot: str, epoch: int) -> Level2[Any] | None:
        link = self.link_now(slot)
        if link is None:
            return None
        known = self._levels.get(slot)
        if known is not None and known[0] is link and known[1] == epoch:
            return known[2]
        definition = self.definition
        made: Level2[Any] = Level2(
            link,
            Names(slot, self._scope(link.run_id, epoch)),
            self.codec,
            cluster=self.shard,
            epoch=None if self.shard is None else epoch,
            tagged=definition.tagger.any,
            aged=definition.grace > 0,
            life=definition.ttl + definition.grace,
            aside=definition.stale_if_error,
        )
        self._levels[slot] = (link, epoch, made)
        return made

    def trusted(self, level: Level2[Any] | None) -> bool:
        """Whether what `level` has may be given out: all that has been voided there was heard lately."""
        slot = self.slot
        return level is not None and level.names.scope == slot.scope and self._monotonic() < slot.good_until

    def writing(self) -> WriteTransaction | None:
        """The write on this shard that is open in this task."""
        if self.database is None or self.shard is None:
            return None
        return self.database.writing(self.shard)

    def fields_of(self, key: str, tags: Iterable[str]) -> tuple[str, ...]:
        """What invalidates a value."""
        return (f"k:{key}", *(f"t:{tag}" for tag in tags))

    def hear(self, fields: Sequence[str], sequence: int) -> None:
        """These were invalidated."""
        view, flights = self.view, self.flights
        for field in fields:
            if field == EVERYTHING:
                if view is not None:
                    view.clear()
                flights.clear()
                continue
            if view is not None:
                view.void(field)
            if field[0] == "k":
                flights.pop(field[2:], None)
            else:
                flights.clear()

    def open(self, name: Any, key: str, arguments: tuple[Any, ...], now: float) -> Flight:
        """A new way to a value, which whoever comes may join from now on."""
        flight = Flight(name, key, arguments, now)
        slot = self.slot
        flight.scope, flight.position, flight.generation = slot.scope, slot.position, slot.generation
        flight.since = now - self.definition.parts.replica
        if now < slot.good_until:
            flight.since = min(flight.since, slot.proof)  # it may find it kept
        self.flights[key] = flight
        return flight

    def closed(self, flight: Flight) -> None:
        """Nobody may join it any more."""
        if self.flights.get(flight.key) is flight:
            del self.flights[flight.key]
