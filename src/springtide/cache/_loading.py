"""One load: the right to it, the loader, and the value's way into both levels.

    leasing -> ours: loading -> filling -> done
       |         `---- refused, because a replica had not seen an invalidation: once more from the primary
       `----> another's: asking again until the value is there, or the lease is ours
                 `---- for longer than loads of this class take: loading without one

A lease is one process's right to load a value, so that of all processes one asks the database. It saves
work and decides nothing: whether a value may be kept is judged by the snapshot that it was read from
(`_fence`), but for classes without a database, where nothing but a lease can tell.

What a loader raises ends all who wait, and nothing of it is kept; a class with `stale_if_error` gives what
was there before. What Redis does ends nobody: a value that could not be kept is given out all the same.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from springtide.cache._fence import Refusal
from springtide.cache._flight import ABANDONED, Flight, Load
from springtide.cache._level2 import Entry, Found, Level2
from springtide.context import Consistency, RequestContext, activate
from springtide.db.seeing import Seen
from springtide.errors import (
    DatabaseUnavailable,
    DeadlineExceeded,
    LoadTimeout,
    RedisError,
    RedisUnavailable,
    ReplicaConflict,
)

if TYPE_CHECKING:
    from springtide.cache._place import Place
    from springtide.cache._reading import CacheClass
    from springtide.db import Database

__all__ = ["AWAY", "Loading"]

AWAY = (RedisError, RedisUnavailable)
"""What Redis may do; nobody is told."""

FIRST_PAUSE = 0.005
MAX_PAUSE = 0.05
"""Seconds between two looks whether the other process is ready; each times a factor in [0.5, 1.5)."""

LEAST_PATIENCE = 0.5
PATIENCE = 4.0
"""How long another process's load is waited for: so many times what loads of the class take, but at least
so many seconds; afterwards whoever had the lease is taken for dead."""

MEND = frozenset({Refusal.EARLY, Refusal.UNSEEN})
"""Refusals that the primary's snapshot may not meet."""


class Loading:
    """See the module. level: where to keep the values, None: nowhere. leased: ask for the right first.

    refresh: load although a value is there. consistency, within: of the reads, as `Database.seeing` has them.
    """

    def __init__(
        self,
        owner: CacheClass[Any],
        place: Place,
        level: Level2[Any] | None,
        context: RequestContext,
        *,
        consistency: Consistency,
        within: float | None,
        leased: bool,
        refresh: bool = False,
    ) -> None:
        self._owner = owner
        self._place = place
        self._level = level
        self._context = context
        self._consistency = consistency
        self._within = within
        self._leased = leased and level is not None
        self._refresh = refresh

    async def run(self, load: Load) -> None:
        """The body of a `Load`."""
        seconds = self._owner.definition.hard_timeout
        with activate(self._context):
            token, since = "", 0
            if self._leased:
                token, since = await self._lease(load)
                if not load.flights:
                    return
            timeout = asyncio.timeout(seconds)
            self._context.deadline = self._owner.clock.monotonic() + seconds
            try:
                async with timeout:
                    await self._load(load, token, since)
            except BaseException as error:
                if token and self._level is not None:
                    keys = [flight.key for flight in load.flights]
                    self._owner.beside(self._level.release(keys, token))
                if isinstance(error, DeadlineExceeded) or timeout.expired():
                    late = LoadTimeout(f"a load of {self._owner.name} took longer than {seconds:g} s")
                    late.__cause__ = error
                    error = late
                if not isinstance(error, Exception):
                    raise
                await self._fail(load, error)

    # -- the right -------------------------------------------------------------------------------------

    async def _lease(self, load: Load) -> tuple[str, int]:
        """Leave in `load` what is to be loaded now: token and sequence of its lease, "" without one."""
        owner, pause = self._owner, FIRST_PAUSE
        give_up = owner.clock.monotonic() + self._patience()
        while True:
            token, since, others = await self._ask(load.flights)
            ours = [flight for flight in load.flights if not flight.done and flight not in others]
            if ours or not others:
                if others:
                    owner.go_on(others, self, self._place)
                load.flights = tuple(ours)
                return token, since
            load.flights = tuple(others)
            if self._refresh:  # somebody does it
                for flight in others:
                    flight.finish(ABANDONED)
                load.flights = ()
                return "", 0
            lost = not self._place.trusted(self._level)
            if lost or owner.clock.monotonic() >= give_up:
                owner.stats.bypassed["lease"] += len(others)
                return "", 0
            owner.stats.waited += 1
            await owner.clock.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load
            pause = min(pause * 1.5, MAX_PAUSE)

    def _patience(self) -> float:
        stats, most = self._owner.stats, self._owner.definition.hard_timeout
        if not stats.loads:
            return most
        return min(most, max(LEAST_PATIENCE, PATIENCE * stats.load_seconds / stats.loads))

    async def _ask(self, flights: Sequence[Flight]) -> tuple[str, int, list[Flight]]:
        """Token, sequence, and whose loads are others'; values that are there by now end their flights."""
        assert self._level is not None
        hold = self._owner.definition.hard_timeout
        before = self._place.slot.generation
        try:
            keys = [flight.key for flight in flights]
            leased = await self._level.lease(keys, hold, refresh=self._refresh)
        except AWAY:
            self._owner.stats.away += 1
            return "", 0, []
        others: list[Flight] = []
        for flight, found in zip(flights, leased.found, strict=True):
            if isinstance(found, Found):
                if not self._refresh and self._owner.is_fresh(found) and self._place.trusted(self._level):
                    self._owner.keep(
                        self._place, flight, found.value, found.size, leased.sequence, before, self._level
                    )
                    self._owner.stats.l2_hits += 1
                    flight.finish(found.value)
                else:
                    others.append(flight)
            elif not found:
                others.append(flight)
        return leased.token, leased.sequence, others

    # -- loading and filling ---------------------------------------------------------------------------

    async def _load(self, load: Load, token: str, since: int) -> None:
        owner, level = self._owner, self._level
        flights = load.flights
        found, seen = await self._read(load, flights, self._consistency, self._within)
        flawed: list[Flight] = []
        if level is not None:
            flawed = await self._fill(level, flights, found, seen, token, since)
            if seen is None or not seen.standby:
                flawed = []
        for flight in flights:
            if flight not in flawed:
                flight.finish(found[flight.name])
        if level is None or not flawed:
            return
        owner.stats.reloads += 1
        load.turn = owner.another_turn()
        try:
            again, seen = await self._read(load, flawed, Consistency.STRONG, None)
        except Exception:  # counted; what was read before is as fresh as was asked for
            again = found
        else:
            await self._fill(level, flawed, again, seen, token, since)
        for flight in flawed:
            flight.finish(again[flight.name])

    async def _read(
        self, load: Load, flights: Sequence[Flight], consistency: Consistency, within: float | None
    ) -> tuple[dict[Any, Any], Seen | None]:
        """What the loader finds, and what the server had that it was read from."""
        owner, place = self._owner, self._place
        wanted = {flight.name: flight.arguments for flight in flights}
        async with load.turn:
            begun = owner.clock.monotonic()
            for flight in flights:
                flight.started = True
            try:
                if place.database is None or place.shard is None:
                    return await owner.loaded(None, wanted), None
                return await self._read_from(place.database, place.shard, wanted, consistency, within)
            except BaseException as error:
                owner.stats.failed[type(error).__name__] += 1
                raise
            finally:
                owner.stats.loads += 1
                owner.stats.load_seconds += owner.clock.monotonic() - begun

    async def _read_from(
        self,
        database: Database,
        shard: str,
        wanted: Mapping[Any, tuple[Any, ...]],
        consistency: Consistency,
        within: float | None,
    ) -> tuple[dict[Any, Any], Seen]:
        """On one server; when that was a replica and is lost meanwhile, once more on the primary: a statement
        without a cache would be asked again of another server as well."""
        standby = False
        try:
            async with database.seeing(shard, consistency=consistency, within=within) as sight:
                standby = sight.seen.standby
                return await self._owner.loaded(sight, wanted), sight.seen
        except (DatabaseUnavailable, ReplicaConflict):
            if not standby:
                raise
        async with database.seeing(shard, consistency=Consistency.STRONG) as sight:
            return await self._owner.loaded(sight, wanted), sight.seen

    async def _fill(
        self,
        level: Level2[Any],
        flights: Sequence[Flight],
        found: Mapping[Any, Any],
        seen: Seen | None,
        token: str,
        since: int,
    ) -> list[Flight]:
        """Keep what may be kept; those whose values were refused for what their snapshot lacked."""
        owner, definition = self._owner, self._owner.definition
        if seen is None and not token:
            return []  # nothing but a lease could tell
        entries, kept = [], []
        for flight in flights:
            value = found[flight.name]
            if value is None and definition.negative is None:
                continue
            tags = definition.tagger.of(value, flight.arguments)
            entries.append(Entry(flight.key, value, owner.life(value), token, tags))
            kept.append(flight)
        left = [flight.key for flight in flights if flight not in kept]
        if left and token:
            owner.beside(level.release(left, token))
        if not entries:
            return []
        try:
            outcomes = await level.fill_many(entries, seen=seen, since=since)
        except AWAY:
            owner.stats.away += 1
            return []
        flawed = []
        for flight, entry, outcome in zip(kept, entries, outcomes, strict=True):
            if outcome.refusal is None:
                owner.keep(
                    self._place, flight, entry.value, outcome.size, outcome.sequence, flight.generation, level
                )
                owner.stats.fills += 1
                continue
            owner.stats.refused[outcome.refusal.value] += 1
            if outcome.refusal in MEND:
                flawed.append(flight)
        return flawed

    async def _fail(self, load: Load, error: Exception) -> None:
        """The loader has failed: what was there before is given, where the class wants that."""
        owner = self._owner
        for flight in load.flights:
            if flight.done:
                continue
            old = await owner.old(self._level, flight)
            if old is ABANDONED:
                flight.fail(error)
            else:
                owner.stats.stale_served["error"] += 1
                flight.error = error
                flight.finish(old)
