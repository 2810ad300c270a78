"""The loads of one class: begun for whoever found nothing, bounded and ended by the cache.

A load runs in a task and a context of its own, with what the first caller's session has seen and his ledger,
but neither his deadline (others wait with other ones) nor who he is: a value is the same for everybody.
What the load sees is no news for the session: a value from a cache has no position either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from springtide.cache._admission import Turn
from springtide.cache._flight import Flight, Load
from springtide.cache._loading import Loading
from springtide.cache._terms import Terms, of_refresh
from springtide.context import CausalityToken, Priority, Recall, RequestContext

if TYPE_CHECKING:
    from springtide.cache._keeping import Keeping
    from springtide.cache._place import Place
    from springtide.cache._stats import Stats
    from springtide.cache.classes import Definition
    from springtide.cache.tiered import Cache

__all__ = ["Loads"]


class Loads:
    """Of one class."""

    def __init__(self, cache: Cache, definition: Definition, keeping: Keeping, stats: Stats) -> None:
        self.definition = definition
        self.keeping = keeping
        self.stats = stats
        self.clock = cache.clock
        self.beside = cache.beside
        self._cache = cache

    def begin(
        self,
        place: Place,
        flights: Sequence[Flight],
        terms: Terms,
        *,
        caller: RequestContext | None,
        refresh: bool = False,
    ) -> None:
        """Bring these by one load on `terms`. refresh: load although a value is there."""
        context = RequestContext(priority=Priority.BULK if refresh else Priority.NORMAL)
        if caller is not None:
            context = RequestContext(
                request_id=caller.request_id,
                priority=caller.priority,
                trace=caller.trace,
                causality=_seen_by(caller),
                recall=None if caller.recall is None else _recalling(caller),
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

        load = Load(flights, loading.run, ended, self.turn(flights))
        self._cache.begin(load, self.definition.name)

    def turn(self, flights: Sequence[Flight]) -> Turn:
        """A place among all loads of the process, for a load of these."""
        return self._cache.admission.turn(hurried=any(flight.hurried for flight in flights))

    def refresh(self, place: Place, name: Any, arguments: tuple[Any, ...]) -> None:
        """Load a value anew that has just been given out old, unless somebody does."""
        key = self.definition.pattern.key(arguments)
        if key in place.flights:
            return
        flight = place.open(name, key, arguments, self.clock.monotonic())
        flight.wanted = True
        self.begin(place, (flight,), of_refresh(self.definition.parts), caller=None, refresh=True)


def _seen_by(caller: RequestContext) -> CausalityToken:
    """What a load of his has to have; a witness would be of no use to it, and its own is no news to him."""
    seen = CausalityToken(caller.causality.positions, None, caller.causality.marks)
    if caller.causality.pinned:
        seen.pinned = True
    return seen


def _recalling(caller: RequestContext) -> Recall:
    """A load is nobody's: what is kept of a client that brought no token is found by who that is."""

    async def recall(context: RequestContext) -> None:
        if caller.recall is not None:
            await caller.recall(caller)
        context.causality.merge(_seen_by(caller))
        context.recall = None

    return recall
