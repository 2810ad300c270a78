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
import secrets
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from springtide.cache._fence import Refusal
from springtide.cache._flight import ABANDONED, Flight, Load
from springtide.cache._keeping import AWAY
from springtide.cache._level2 import BATCH, Entry, Level2
from springtide.cache._loader import loaded
from springtide.context import Consistency, RequestContext, activate
from springtide.db.seeing import Seen
from springtide.errors import (
    DatabaseUnavailable,
    DeadlineExceeded,
    LoadTimeout,
    ReplicaConflict,
)

if TYPE_CHECKING:
    from springtide.cache._loads import Loads
    from springtide.cache._place import Place
    from springtide.db import Database

__all__ = ["Loading"]

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
        owner: Loads,
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
        definition = self._owner.definition
        seconds = definition.hard_timeout
        with activate(self._context):
            since = 0
            if self._leased:
                try:
                    since = await self._lease(load)
                except BaseException:
                    self._release(load.flights)
                    raise
                if not load.flights:
                    return
            timeout = asyncio.timeout(seconds)
            self._context.deadline = self._owner.clock.monotonic() + seconds
            try:
                async with timeout:
                    await self._load(load, since)
            except BaseException as error:
                self._release(load.flights)
                if isinstance(error, DeadlineExceeded) or timeout.expired():
                    late = LoadTimeout(f"a load of {definition.name} took longer than {seconds:g} s")
                    late.__cause__ = error
                    error = late
                if not isinstance(error, Exception):
                    raise
                await self._fail(load, error)

    # -- the right -------------------------------------------------------------------------------------

    async def _lease(self, load: Load) -> int:
        """Leave in `load` what is to be loaded now; the sequence that came with the leases."""
        owner, pause = self._owner, FIRST_PAUSE
        give_up = owner.clock.monotonic() + self._patience()
        while True:
            since, others = await self._ask(load.flights)
            theirs = set(others)
            ours = [flight for flight in load.flights if not flight.done and flight not in theirs]
            if ours or not others:
                if others:
                    owner.go_on(others, self, self._place)
                load.flights = tuple(ours)
                return since
            load.flights = tuple(others)
            if self._refresh:  # somebody does it
                for flight in others:
                    flight.finish(ABANDONED)
                load.flights = ()
                return 0
            lost = not self._place.trusted(self._level)
            if lost or owner.clock.monotonic() >= give_up:
                owner.stats.bypassed["lease"] += len(others)
                return 0
            owner.stats.waited += 1
            await owner.clock.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load
            pause = min(pause * 1.5, MAX_PAUSE)

    def _patience(self) -> float:
        stats, most = self._owner.stats, self._owner.definition.hard_timeout
        if not stats.loads:
            return most
        return min(most, max(LEAST_PATIENCE, PATIENCE * stats.load_seconds / stats.loads))

    async def _ask(self, flights: Sequence[Flight]) -> tuple[int, list[Flight]]:
        """The sequence, and whose loads are others'; values that are there by now end their flights."""
        others: list[Flight] = []
        since = 0
        try:
            for at in range(0, len(flights), BATCH):
                part = flights[at : at + BATCH]
                sequence, useless = await self._ask_for(part, others, refresh=self._refresh)
                if useless:  # it is there, and too old or nothing that we can read
                    await self._ask_for(useless, others, refresh=True)
                since = min(since, sequence) if since else sequence
        except AWAY:
            self._owner.stats.away += 1
        return since, others

    async def _ask_for(
        self, flights: Sequence[Flight], others: list[Flight], *, refresh: bool
    ) -> tuple[int, list[Flight]]:
        assert self._level is not None
        owner, level, place = self._owner, self._level, self._place
        generation = place.slot.generation
        keys = [flight.key for flight in flights]
        token = secrets.token_hex(8)
        for (
            flight
        ) in flights:  # before it is asked for: who is cancelled meanwhile gives back what he may get
            flight.lease = token
        try:
            leased = await level.lease(keys, owner.definition.hard_timeout, refresh=refresh, token=token)
        except BaseException:
            self._release(flights)
            raise
        useless: list[Flight] = []
        for at, (flight, found) in enumerate(zip(flights, leased.found, strict=True)):
            if found is not True:
                flight.lease = ""
            if found is True:
                flight.known = leased.known[at] if leased.known else None
            elif found is False:
                others.append(flight)
            elif found is None or owner.keeping.age(found) > 0:
                useless.append(flight)
            elif not place.trusted(level):
                others.append(flight)
            else:
                owner.keeping.keep(place, flight, found.value, leased.sequence, generation, level)
                owner.stats.l2_hits += 1
                flight.finish(found.value)
        return leased.sequence, useless

    def _release(self, flights: Sequence[Flight]) -> None:
        """Whoever asks next for what was not kept may load it at once."""
        by_lease: dict[str, list[str]] = {}
        for flight in flights:
            if flight.lease:
                by_lease.setdefault(flight.lease, []).append(flight.key)
                flight.lease = ""
        for token, keys in by_lease.items():
            if self._level is not None:
                self._owner.beside(self._level.release(keys, token))

    # -- loading and filling ---------------------------------------------------------------------------

    async def _load(self, load: Load, since: int) -> None:
        owner, level = self._owner, self._level
        flights = load.flights
        found, seen = await self._read(load, flights, self._consistency, self._within)
        flawed: list[Flight] = []
        if level is not None:
            flawed = await self._fill(level, flights, found, seen, since)
            if seen is None or not seen.standby:
                flawed = []
        broken = set(flawed)
        whole = [flight for flight in flights if flight not in broken]
        self._release(whole)
        for flight in whole:
            flight.finish(found[flight.name])
        if level is None or not flawed:
            return
        owner.stats.reloads += 1
        load.turn = owner.turn(flawed)
        try:
            again, seen = await self._read(load, flawed, Consistency.STRONG, None)
        except Exception:  # counted; what was read before is as fresh as was asked for
            again = found
        else:
            await self._fill(level, flawed, again, seen, since)
        self._release(flawed)
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
                    return await loaded(owner.definition, None, wanted), None
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
                return await loaded(self._owner.definition, sight, wanted), sight.seen
        except (DatabaseUnavailable, ReplicaConflict):
            if not standby:
                raise
        async with database.seeing(shard, consistency=Consistency.STRONG) as sight:
            return await loaded(self._owner.definition, sight, wanted), sight.seen

    async def _fill(
        self,
        level: Level2[Any],
        flights: Sequence[Flight],
        found: Mapping[Any, Any],
        seen: Seen | None,
        since: int,
    ) -> list[Flight]:
        """Keep what may be kept; those whose values were refused for what their snapshot lacked."""
        owner, definition = self._owner, self._owner.definition
        entries, offered = [], []
        for flight in flights:
            value = found[flight.name]
            if value is None and definition.negative is None:
                continue
            if seen is None and not flight.lease:
                continue  # nothing but a lease could tell
            value, whole = owner.keeping.copied(self._place, value)
            if not whole:
                continue
            tags = definition.tagger.of(value, flight.arguments)
            life = owner.keeping.life(value)
            entries.append(Entry(flight.key, value, life, flight.lease, tags, flight.known))
            offered.append(flight)
        if not entries:
            return []
        try:
            outcomes = await level.fill_many(entries, seen=seen, since=since)
        except AWAY:
            owner.stats.away += 1
            return []
        flawed = []
        for flight, entry, outcome in zip(offered, entries, outcomes, strict=True):
            if outcome.refusal is None:
                flight.lease = ""
                generation = flight.generation
                owner.keeping.keep(self._place, flight, entry.value, outcome.sequence, generation, level)
                owner.stats.fills += 1
                continue
            owner.stats.refused[outcome.refusal.value] += 1
            if outcome.refusal in MEND:
                flawed.append(flight)
        return flawed

    async def _fail(self, load: Load, error: Exception) -> None:
        """The loader has failed: what was there before is given, where the class wants that."""
        owner = self._owner
        left = [flight for flight in load.flights if not flight.done]
        olds = await asyncio.gather(*(owner.keeping.old(self._level, flight) for flight in left))
        for flight, old in zip(left, olds, strict=True):
            if old is ABANDONED:
                flight.fail(error)
            else:
                owner.stats.stale_served["error"] += 1
                flight.error = error
                flight.finish(old)
