"""What of one class is kept, and for how long: values on their way into both levels, and old ones back out.

loaded or found -> first level, unless it was invalidated since (`Slot.admits`)
written         -> second level after COMMIT, then first
fails, is late  <- what was there before
"""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Any

import msgspec

from springtide.cache._flight import ABANDONED, Flight
from springtide.cache._level2 import Entry, Found, Level2
from springtide.cache._weight import weigher_of
from springtide.errors import RedisError, RedisUnavailable

if TYPE_CHECKING:
    from springtide.cache._memory import View
    from springtide.cache._place import Place
    from springtide.cache._stats import Stats
    from springtide.cache.classes import Definition
    from springtide.cache.hot import Tally
    from springtide.clock import Clock
    from springtide.db._invalidating import Recorded

__all__ = ["AWAY", "Keeping"]

_log = logging.getLogger(__name__)

UNREADABLE = "unreadable"
"""Why a value was not kept that does not come back from its bytes."""

AWAY = (RedisError, RedisUnavailable)
"""What Redis may do; nobody is told."""


class Keeping:
    """Of one class. view: its part of the first level; None: it has none."""

    def __init__(
        self, definition: Definition, view: View | None, stats: Stats, tally: Tally, clock: Clock
    ) -> None:
        self._definition = definition
        self._view = view
        self._stats = stats
        self._tally = tally
        self._monotonic = clock.monotonic
        self._weigh = weigher_of(definition.type)
        self._told = False

    def copied(self, place: Place, value: Any) -> tuple[Any, bool]:
        """The value as it is kept, and whether it can be."""
        if value is None:
            return None, True
        try:
            return place.codec.copied(value), True
        except (msgspec.MsgspecError, TypeError, ValueError, OverflowError, RecursionError) as error:
            self._stats.refused[UNREADABLE] += 1
            if not self._told:
                self._told = True
                name = self._definition.name
                _log.error("values of %s are loaded by each who asks: one cannot be kept: %s", name, error)
            return None, False

    def life(self, value: Any) -> float:
        """Seconds that the second level keeps a value, those included for which it is given out old."""
        fresh, _ = self._definition.lives(value)
        shortened = fresh * (1.0 - self._definition.jitter * random.random())  # noqa: S311 - spreads load
        return shortened + self._definition.grace

    def age(self, found: Found[Any]) -> float:
        """Seconds since it should have been loaded anew; <= 0: it is fresh."""
        return 0.0 if found.remaining is None else self._definition.grace - found.remaining

    def keep(
        self,
        place: Place,
        flight: Flight,
        value: Any,
        sequence: int,
        generation: int,
        level: Level2[Any],
    ) -> None:
        """Put into the first level what was good at `sequence`, unless it has been invalidated since."""
        if self._view is None:
            return
        slot = place.slot
        fields = place.fields_of(flight.key, self._definition.tagger.of(value, flight.arguments))
        if level.names.scope != slot.scope or not slot.admits(fields, sequence, generation):
            return
        _, seconds = self._definition.lives(value)
        fresh = self._monotonic() + seconds
        self._view.put(
            flight.name,
            value,
            slot=slot,
            fields=fields,
            fresh=fresh,
            stale=fresh + self._definition.stale_while_revalidate,
            bytes=0 if value is None else self._weigh(value),
            hold=flight.name in self._tally.hot,
        )

    async def keep_written(self, place: Place, flight: Flight, value: Any, recorded: Recorded) -> None:
        """What a transaction has written: after COMMIT, when its invalidations have been told."""
        level = place.level_now(recorded.seen.epoch)
        if level is None:
            return
        value, whole = self.copied(place, value)
        if not whole:
            return
        tags = self._definition.tagger.of(value, flight.arguments)
        entry = Entry(flight.key, value, self.life(value), "", tags)
        try:
            outcome = await level.put(entry, seen=recorded.seen, xid=recorded.xid)
        except AWAY:
            self._stats.away += 1
            return
        if outcome.refusal is not None:
            self._stats.refused[outcome.refusal.value] += 1
            return
        self._stats.fills += 1
        self.keep(place, flight, value, outcome.sequence, flight.generation, level)

    async def old(self, level: Level2[Any] | None, flight: Flight) -> Any:
        """What may be given out instead of a value that does not come; ABANDONED: nothing."""
        if flight.old is ABANDONED and self._definition.stale_if_error and level is not None:
            try:
                found = await level.old(flight.key)
            except AWAY:
                self._stats.away += 1
            else:
                if found is not None:
                    flight.old = found.value
        return flight.old
