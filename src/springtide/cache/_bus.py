"""Listen to the invalidations of all slots of one Redis, and prove to each that nothing was missed.

One connection of its own per server, whatever the number of slots. On it rounds of three commands, sent
together:

    XREAD        what is there: `complete` up to the moment when it was sent
    MGET         the sequences of slots without a relay, after that: what must have been heard
    XREAD BLOCK  what comes within `wait` seconds, so that an invalidation is heard when it is made

A Redis Cluster reads one stream per command and cannot wait for several, so there it is one XREAD and GET per
slot and a pause instead. What an answer means is decided in `_slot.py`; this file keeps the connections, and
begins anew whatever lost its thread: a gap, another server process, another epoch of the database.

A stream that was lost and made anew may count its entries from lower on, so that nothing is ever read there.
So a slot that is without proof for long looks again where its stream stands.

A reader that fails is made again after a pause with jitter. Nobody is told: proof is missing meanwhile.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from springtide.cache._names import Names, heard
from springtide.cache._scripts import FOLLOW
from springtide.cache._slot import Slot
from springtide.clock import Clock, SystemClock
from springtide.context import detached
from springtide.errors import RedisError, RedisUnavailable
from springtide.lifecycle import StartStop, Supervised
from springtide.signals import Sink

if TYPE_CHECKING:
    from springtide.redis import Link, Redis

__all__ = ["Bus"]

_log = logging.getLogger(__name__)

COUNT = 1000
"""Entries of one stream that one answer brings."""

GATHER = 0.01
"""Seconds that a round takes at least. What comes after silence is heard at once, what follows it together:
many writers do not keep every process busy with listening."""

PAUSE, LONGEST_PAUSE = 0.25, 2.0
"""Seconds before a reader that failed is made again: doubled each time, up to the longest."""

LOOK_AGAIN = 1.0
"""Seconds without proof after which a slot looks where its stream stands."""

LOOK = 0.25
"""Seconds between two looks at which servers there are to listen to."""


class _Followed:
    """A slot, how its scope is found, and which server process has it."""

    __slots__ = ("looked", "names", "run_id", "scope", "slot")

    def __init__(self, slot: Slot, scope: Callable[[str], str | None]) -> None:
        self.slot = slot
        self.scope = scope
        self.names: Names | None = None
        self.run_id = ""
        self.looked = 0.0


class Bus:
    """A lifecycle service. wait: seconds that a read waits for something to happen; proof is as old."""

    def __init__(
        self,
        redis: Redis,
        *,
        name: str = "bus",
        wait: float = 0.1,
        clock: Clock | None = None,
        sink: Sink | None = None,
    ) -> None:
        if not wait > 0:
            raise ValueError(f"wait must be > 0 seconds, got {wait}")
        self.name = name
        self._redis = redis
        self._wait = wait
        self._clustered = redis.address.kind == "cluster"
        self._clock = clock or SystemClock()
        self._followed: dict[str, _Followed] = {}
        self._readers: dict[str, asyncio.Task[None]] = {}
        self._pauses: dict[str, tuple[float, float]] = {}
        self._changed = asyncio.Event()
        self.rounds = 0
        """How often a server was asked."""
        self.restarts = 0
        """How often a reader failed."""
        self._task = Supervised(name, self._run, clock=self._clock, sink=sink)
        self._life = StartStop(name, self._task.start, self._close, sink=sink)

    @property
    def state(self) -> str:
        return self._life.state

    async def start(self) -> None:
        """Return at once: what has no proof yet is not used."""
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    def follow(self, slot: Slot, scope: Callable[[str], str | None]) -> None:
        """Feed the slot from now on. `scope` says what its keys are called for a run id of the server; None
        when that is not known now (the epoch of its database is not), and then nothing is held."""
        if slot.name in self._followed:
            raise ValueError(f"slot {slot.name} is followed already")
        self._followed[slot.name] = _Followed(slot, scope)
        self._changed.set()

    def leave(self, slot: Slot) -> None:
        """Feed it no more; what it holds goes."""
        if self._followed.pop(slot.name, None) is not None:
            slot.end()

    async def sequence(self, slot: Slot) -> int | None:
        """The slot's sequence in its scope, now: all that was invalidated before this was called is in it.
        None when nobody can say, or whoever says it may be a primary that has been replaced."""
        followed, link = self._followed.get(slot.name), self._redis.link(slot.name)
        if followed is None or link is None or not slot.scope or followed.scope(link.run_id) != slot.scope:
            return None
        try:
            answer = await link.send("GET", Names(slot.name, slot.scope).sequence)
        except (RedisError, RedisUnavailable):
            return None
        return int(answer or 0) if await self._redis.leads(link) else None

    # -- who reads where -------------------------------------------------------------------------------

    async def _run(self) -> None:
        while True:
            self._changed.clear()
            wanted: dict[str, str] = {}
            for name, followed in self._followed.items():
                if (link := self._redis.link(name)) is not None:
                    followed.run_id = link.run_id
                    wanted.setdefault(link.run_id, name)
            now = self._clock.monotonic()
            for run_id, name in wanted.items():
                if run_id not in self._readers and self._pauses.get(run_id, (0.0, 0.0))[0] <= now:
                    self._begin(run_id, name)
            for run_id in [run_id for run_id in self._pauses if run_id not in wanted]:
                del self._pauses[run_id]
            await self._until_changed(LOOK * random.uniform(0.8, 1.2))  # noqa: S311 - spreads load

    async def _until_changed(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            return

    def _begin(self, run_id: str, tag: str) -> None:
        loop = asyncio.get_running_loop()
        name = f"{self.name}:{run_id[:8]}"
        task = loop.create_task(self._listen(run_id, tag), name=name, context=detached())
        self._readers[run_id] = task

        def ended(task: asyncio.Task[None]) -> None:
            if self._readers.get(run_id) is task:
                del self._readers[run_id]
            error = None if task.cancelled() else task.exception()
            if error is not None and not isinstance(error, RedisUnavailable):
                _log.error("%s: reading failed, again in a moment", self.name, exc_info=error)
            self._changed.set()

        task.add_done_callback(ended)

    async def _close(self) -> None:
        await self._task.stop()
        readers = list(self._readers.values())
        for reader in readers:
            reader.cancel()
        if readers:
            await asyncio.wait(readers)
        for followed in self._followed.values():
            followed.slot.end()

    # -- one server ------------------------------------------------------------------------------------

    async def _listen(self, run_id: str, tag: str) -> None:
        """Read until the connection is lost, or somebody else has the slots."""
        link: Link | None = None
        try:
            link = await self._redis.reader(tag, block=self._wait)
            while link.alive and link.run_id == run_id and (mine := self._mine(run_id)):
                begun = self._clock.monotonic()
                await self._round(link, mine)
                self._pauses.pop(run_id, None)
                await self._clock.sleep(begun + GATHER - self._clock.monotonic())
        finally:
            if link is not None:
                link.close("the bus is done with it")
            self.restarts += 1
            pause = min(2 * self._pauses.get(run_id, (0.0, PAUSE / 2))[1], LONGEST_PAUSE)
            again = self._clock.monotonic() + pause * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load
            self._pauses[run_id] = (again, pause)

    def _mine(self, run_id: str) -> list[_Followed]:
        return [followed for followed in self._followed.values() if followed.run_id == run_id]

    async def _round(self, link: Link, mine: Sequence[_Followed]) -> None:
        self.rounds += 1
        await self._place(link, mine)
        listening = [_Heard(one.slot, one.names) for one in mine if one.slot.scope and one.names is not None]
        if not listening:
            await self._clock.sleep(self._wait)
            return
        sent = self._clock.monotonic()
        alone = [one for one in listening if not one.slot.relayed]
        if self._clustered:
            reads = [link.send(*_xread([one])) for one in listening]
            asks = [link.send("GET", one.names.sequence) for one in alone]
            for one, read in zip(listening, reads, strict=True):
                _feed([one], await read, sent)
            for one, ask in zip(alone, asks, strict=True):
                _ask(one, await ask, sent)
            await self._clock.sleep(self._wait / 2 * random.uniform(0.8, 1.2))  # noqa: S311 - spreads load
            return
        there = link.send(*_xread(listening))
        asked = link.send("MGET", *[one.names.sequence for one in alone]) if alone else None
        coming = link.send(*_xread(listening, block=self._wait))
        _feed(listening, await there, sent)
        if asked is not None:
            for one, answer in zip(alone, await asked, strict=True):
                _ask(one, answer, sent)
        _feed(listening, await coming, None)

    async def _place(self, link: Link, mine: Sequence[_Followed]) -> None:
        """Begin anew what has another scope now or has lost its thread; look again at what has no proof."""
        now = self._clock.monotonic()
        looks: list[tuple[_Followed, Names, asyncio.Future[Any]]] = []
        for one in mine:
            slot, scope = one.slot, one.scope(link.run_id)
            if scope is None:
                if slot.scope:
                    slot.end()
                continue
            if slot.scope == scope and (now < slot.good_until or now < one.looked + LOOK_AGAIN):
                continue
            one.looked = now
            names = one.names if slot.scope == scope and one.names is not None else Names(slot.name, scope)
            one.names = names
            looks.append((one, names, link.call(FOLLOW, (names.sequence,))))
        for one, names, look in looks:
            sequence, last_id = await look
            slot, position, entry_id = one.slot, int(sequence), last_id.decode()
            if one.names is not names or self._followed.get(slot.name) is not one:
                continue  # another server has it by now, or nobody wants it
            if slot.scope == names.scope:
                known = position == slot.position and _order(entry_id) == _order(slot.last_id)
                if known or (position >= slot.position and _order(entry_id) > _order(slot.last_id)):
                    continue  # it is only late: what it has not heard is there
                slot.gap()
            slot.begin(names.scope, position, entry_id, now)


class _Heard(NamedTuple):
    """A slot and what its keys were called when something was sent."""

    slot: Slot
    names: Names

    @property
    def holds(self) -> bool:
        """Whether it has neither lost its thread since nor found another."""
        return self.slot.scope == self.names.scope


def _xread(listening: Sequence[_Heard], *, block: float | None = None) -> list[Any]:
    waiting = [] if block is None else ["BLOCK", max(int(block * 1000), 1)]
    buses = [one.names.bus for one in listening]
    return ["XREAD", "COUNT", COUNT, *waiting, "STREAMS", *buses, *(one.slot.last_id for one in listening)]


def _feed(listening: Iterable[_Heard], answer: Any, sent: float | None) -> None:
    """Hear what a read brought. `sent`: when it was sent, if it brought all there was; None: it waited."""
    by_bus = {bytes(bus): entries for bus, entries in answer or ()}
    for one in listening:
        if not one.holds:
            continue
        entries = by_bus.get(one.names.bus.encode(), ())
        if not all(_hear(one.slot, entry_id.decode(), said) for entry_id, said in entries):
            _log.info("slot %s: its bus has a gap, so this process drops its values", one.slot.name)
        elif sent is not None and len(entries) < COUNT:
            one.slot.complete(sent)


def _hear(slot: Slot, entry_id: str, said: Sequence[bytes]) -> bool:
    if _order(entry_id) <= _order(slot.last_id):
        return True  # it was in the answer before
    try:
        entry = heard(dict(zip(said[::2], said[1::2], strict=True)))
    except ValueError as error:
        _log.warning("slot %s: %s", slot.name, error)
        return slot.gap()
    if entry.beat is not None:
        return slot.beat(entry_id, entry.sequence, entry.beat)
    return slot.void(entry_id, entry.sequence, entry.fields)


def _ask(one: _Heard, answer: bytes | None, sent: float) -> None:
    if one.holds and not one.slot.asked(None if answer is None else int(answer), sent):
        _log.info("slot %s: its bus lost an entry, so this process drops its values", one.slot.name)


def _order(entry_id: str) -> tuple[int, int]:
    moment, _, number = entry_id.partition("-")
    return int(moment), int(number)
