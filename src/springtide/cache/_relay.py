"""Apply what committed writes have made stale, wherever the writer did not, and prove that it was done.

One relay leads per database and cache (`_leading`), on a connection of its own to the primary. It works in
*rounds* (`_rounds`), one at least about every `every` seconds:

    1  read the rows that have become visible, with the snapshot that they were read in
    2  void what they name, in every slot of their class
    3  delete them
    4  beat every slot: whatever was committed before step 1 began has been voided before this entry

The order is the proof. A row is deleted after it was applied, so a relay that dies in between leaves it to
the next one; voiding twice is voiding once. A beat comes after everything that it vouches for, and step 1 of
the next round comes after the answers to the beats of this one: so the snapshot of step 1 has all that was
voided before the slot's last round, which is what a slot needs to forget tombstones (`_fence.Rounds`). Where
a slot answers that it has lost them, the next round comes at once and brings it a new horizon.

What a reader may conclude from a beat: nothing about its own clock, unless it had read the bus up to its end
before the round named there began. `round_text` names the leader's run and the round, so the rounds of two
relays never prove anything together.

Rows that cannot be applied stay; no slot of their class is beaten then. A leader that reaches no Redis at all
steps down, since others may; while nobody does, everybody says how old the oldest row is.

A leader that was stopped and wakes up is none any more. Until it learns so it may void what is no longer
stale and beat a round that began long ago: the first costs loads, the second proves only what was true then,
and its rows it cannot delete, for its connection is gone.
"""

from __future__ import annotations

import functools
import logging
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import asyncpg

from springtide.cache._leading import Leading
from springtide.cache._rounds import MEASURE, Leadership, Targets, tell
from springtide.cache._rows import Rows
from springtide.clock import Clock, SystemClock
from springtide.context import Priority, RequestContext, activate
from springtide.db.pool import Pool
from springtide.errors import SpringtideError
from springtide.lifecycle import Supervised
from springtide.signals import NullSink, RelayChanged, RelayMeasured, Sink

if TYPE_CHECKING:
    from springtide.cache._level2 import Level2

__all__ = ["Relay"]

_log = logging.getLogger(__name__)


class Relay:
    """A lifecycle service: waits to lead, or leads, until it is stopped. It starts whether its database
    answers or not.

    name:      of the cache; its relays on one database are rivals for one lock.
    pool:      of the primary, for those who wait.
    dsn:       where the primary answers itself, past a pooler; asked before each leadership and each round.
    schemas:   of the databases on this cluster that have classes.
    slots:     the slots of all classes on this cluster, of a history of it (`Seen.epoch`); asked each round.
    strangers: the slots of a history that a class has or may have, by its name and schema, for rows of
               classes that `slots` does not name; None: those wait.
    every:     seconds between two rounds at most; after one with work, `busy`.
    silence:   seconds without a statement after which a leader is taken for stopped.
    challenge: seconds between two looks at who leads (times a random factor from 0.5 to 1.5).
    delay:     seconds from a snapshot of the primary until it is a slot's horizon; standbys have caught up
               and loads have ended by then.
    """

    def __init__(
        self,
        name: str,
        *,
        cluster: str,
        pool: Pool,
        dsn: Callable[[], str],
        schemas: Sequence[str],
        slots: Callable[[int], Targets],
        strangers: Callable[[int, str, str], Sequence[Level2[Any]] | None] | None = None,
        every: float = 0.25,
        busy: float = 0.1,
        silence: float = 2.0,
        challenge: float = 0.5,
        delay: float = 30.0,
        clock: Clock | None = None,
        sink: Sink | None = None,
    ) -> None:
        if not schemas:
            raise ValueError("schemas must be the schemas of at least one database, got none")
        if not 0 < busy <= every:
            raise ValueError(f"busy must be > 0 seconds and <= every, got {busy} and {every}")
        if silence < 4 * every:
            raise ValueError(f"silence must be >= 4 times every, got {silence} and {every}")
        if not challenge > 0:
            raise ValueError(f"challenge must be > 0 seconds, got {challenge}")
        self.name = f"cache relay {cluster}"
        self.leads = False
        """Whether this process is the leader, as far as it knows."""
        self._cluster = cluster
        self._pool = pool
        self._dsn = dsn
        self._schemas = tuple(schemas)
        self._slots = slots
        self._strangers = strangers
        self._every = every
        self._busy = busy
        self._challenge = challenge
        self._delay = delay
        self._silence = silence
        self._told = float("-inf")
        self._fault = ""
        self._clock = clock or SystemClock()
        self._sink = sink or NullSink()
        self._leading = Leading(
            f"springtide.cache.relay {name}",
            cluster=cluster,
            pool=pool,
            dsn=dsn,
            silence=silence,
            clock=self._clock,
        )
        self._draw = random.Random()  # noqa: S311 - spreads looks and rounds
        self._task = Supervised(
            self.name, self._run, backoff=0.2, max_backoff=2.0, clock=self._clock, sink=sink
        )

    @property
    def state(self) -> str:
        return self._task.state

    async def start(self) -> None:
        await self._task.start()

    async def stop(self) -> None:
        await self._task.stop()

    async def _run(self) -> None:
        while True:
            try:
                if not self._reaches(self._slots(self._pool.epoch or 0)):
                    await self._tell_the_oldest()
                elif not await self._leading.led():
                    await self._try_to_lead()
                self._fault = ""
            except (SpringtideError, asyncpg.PostgresError, TimeoutError, OSError) as error:
                if (fault := str(error)) != self._fault:  # the same again, twice a second, helps nobody
                    _log.warning("%s: %s", self.name, fault)
                    self._fault = fault
            await self._clock.sleep(self._challenge * self._draw.uniform(0.5, 1.5))

    async def _try_to_lead(self) -> None:
        async with self._leading.lead() as leader:
            if leader is None:
                return
            strangers = None
            if self._strangers is not None:
                strangers = functools.partial(self._strangers, leader.seen.epoch)
            rounds = Leadership(self._cluster, self._schemas, self._delay, self._clock, self._sink, strangers)
            _log.info("%s leads", self.name)
            self._enter(True)
            try:
                reached, hurried = self._clock.monotonic(), False
                while self._dsn() == leader.dsn:
                    targets = self._slots(leader.seen.epoch)
                    if self._reaches(targets):
                        reached = self._clock.monotonic()
                    elif self._clock.monotonic() - reached > self._silence:
                        _log.warning("%s steps down: no Redis answers here, but may elsewhere", self.name)
                        return
                    hurry = await rounds.one(leader, targets)
                    hurried = hurry and not hurried
                    if not hurried:
                        pause = self._busy if rounds.busy else self._every
                        await self._clock.sleep(pause * self._draw.uniform(0.8, 1.0))
            finally:
                self._enter(False)

    def _reaches(self, targets: Targets) -> bool:
        return any(slots is not None for slots in targets.values())

    async def _tell_the_oldest(self) -> None:
        """While no Redis can be reached here, somebody has to say what waits."""
        now = self._clock.monotonic()
        if now - self._told >= MEASURE:
            self._told = now
            with activate(RequestContext(deadline=now + MEASURE, priority=Priority.BULK)):
                oldest = await Rows(self._schemas).oldest(self._pool)
            tell(self._sink, RelayMeasured(self._cluster, 0, 0, oldest, 0.0, 0.0))

    def _enter(self, leads: bool) -> None:
        self.leads = leads
        self._sink.emit(RelayChanged(self._cluster, leads))
