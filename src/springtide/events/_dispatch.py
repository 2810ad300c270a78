"""Number what was appended, and give lanes with something to do to turns.

Every worker does both for every log that it knows: a ring of the bell or `poll` seconds begin a *round*. It
numbers until nothing is left, then claims as many lanes as there are free slots. Where another worker is
numbering, the round comes again a moment later. Rounds of a log begin at least SPACING apart, so that under
load each numbers many events at once; without events a round is two statements that write nothing.

A turn that leaves its lane with more to do begins the next round. Dead letters that somebody wants to be
tried again have the slots first, and are looked for once in half of `poll`, however often the bell rings.

One group has all slots but one where there are others (and two slots), so that handlers which hang hold up
their own group.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import secrets
import socket
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import asyncpg

from springtide.clock import Clock
from springtide.context import RequestContext, activate, detached
from springtide.errors import SpringtideError
from springtide.events._again import Again
from springtide.events._log import Log
from springtide.events._route import Route
from springtide.events._turn import Turn
from springtide.lifecycle import StartStop, Supervised
from springtide.signals import Sink, TaskFailed

__all__ = ["Dispatcher", "Line"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

STATEMENT_TIMEOUT = 10.0

SPACING = 0.005
"""Least seconds between the beginnings of two rounds."""

BUSY = 0.02
"""Seconds until the next round where somebody else is numbering."""

WHOLE = 60.0
"""Seconds after which numbering looks from the beginning once, whatever its floor says."""

MAX_PAUSE = 10.0
"""Longest pause, in seconds, between rounds of a log that fails."""

CANCEL_TIMEOUT = 2.0
"""Seconds that cancelled handlers have at shutdown."""


class Line:
    """One log, and the groups that this worker handles of it."""

    def __init__(self, log: Log, routes: Mapping[str, Route]) -> None:
        self.log = log
        self.routes = dict(routes)
        self.groups = sorted(routes)
        self.names = [name for group in self.groups for name in routes[group].names]
        self.registered = False
        self.missed = False
        self.rung = asyncio.Event()
        self.whole_at = 0.0
        self.letters_at = 0.0


class Dispatcher:
    """A lifecycle service; see the module. At most `slots` turns run at once, over all logs."""

    def __init__(
        self,
        lines: Sequence[Line],
        *,
        slots: int,
        poll: float,
        drain: float,
        label: str,
        clock: Clock,
        sink: Sink,
    ) -> None:
        self.name = "events dispatch"
        self._lines = list(lines)
        self._slots = slots
        self._poll = poll
        self._drain = drain
        self._label = label
        self._clock = clock
        self._sink = sink
        self._worker = ""
        self._taken = 0
        self._held = Counter[tuple[str, str]]()
        groups = {(line.log.module, group) for line in self._lines for group in line.groups}
        self._share = max(slots - 1, 1) if len(groups) > 1 else slots
        self._draining = False
        self._turns: dict[asyncio.Task[Any], Turn | Again] = {}
        self._claims: set[asyncio.Task[Any]] = set()
        self._loops = [
            Supervised(
                f"{self.name} {line.log.module} {line.log.shard}",
                lambda line=line: self._tend(line),  # type: ignore[misc]  # the line of this loop
                clock=clock,
                sink=sink,
            )
            for line in self._lines
        ]
        self._life = StartStop(self.name, self._open, self._close, sink=sink)

    @property
    def state(self) -> str:
        return self._life.state

    @property
    def running(self) -> int:
        """How many lanes are in hand now."""
        return len(self._turns)

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    def ring(self, shard: str, schema: str | None) -> None:
        """Events of `schema` (None: of any) on `shard` may have been appended now."""
        for line in self._lines:
            if line.log.shard == shard and schema in (None, line.log.schema):
                line.rung.set()

    async def _open(self) -> None:
        self._worker = f"{self._label}@{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._draining = False
        for line in self._lines:
            line.log.floor.forget()
            line.registered = False
        for loop in self._loops:
            await loop.start()

    async def _close(self) -> None:
        self._draining = True
        for turn in self._turns.values():
            turn.stop()
        for loop in self._loops:
            await loop.stop()
        await self._ended(self._clock.monotonic() + self._drain)
        for turn in self._turns.values():
            turn.cancel()
        await self._ended(self._clock.monotonic() + CANCEL_TIMEOUT)
        for task, turn in self._turns.items():
            _log.error("%s ignores its cancellation; its lease will run out", turn)
            task.cancel()

    async def _ended(self, until: float) -> None:
        """Wait for claims and turns under way, at most until `until`."""
        while tasks := [*self._claims, *self._turns]:
            if (left := until - self._clock.monotonic()) <= 0:
                return
            await asyncio.wait(tasks, timeout=left)

    # -- rounds ----------------------------------------------------------------------------------------

    async def _tend(self, line: Line) -> None:
        failures = 0
        while True:
            line.rung.clear()
            begun = self._clock.monotonic()
            try:
                pause = await self._round(line)
                failures = 0
            except (SpringtideError, asyncpg.PostgresError, OSError) as error:
                failures += 1
                pause = min(self._poll * 2 ** min(failures, 10), MAX_PAUSE)
                what = f"events of {line.log.module} on {line.log.shard}"
                self._sink.emit(TaskFailed(what, repr(error), pause))
                _log.warning("%s: %s", what, error)
                await self._clock.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause * random.uniform(0.5, 1.5)):  # noqa: S311 - see above
                    await line.rung.wait()
            left = begun + SPACING - self._clock.monotonic()
            if left > 0:
                await self._clock.sleep(left)

    async def _round(self, line: Line) -> float:
        """Number and claim; how many seconds until the next round, if nobody rings before."""
        if not line.registered:
            await self._register(line)
        now = self._clock.monotonic()
        if now >= line.whole_at:
            line.log.floor.forget()
            line.whole_at = now + WHOLE * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load
        busy = not await self._number(line)
        if line.groups:
            if now >= line.letters_at and await self._begin(line, again=True):
                line.letters_at = now + self._poll / 2
            await self._begin(line, again=False)
        return BUSY if busy else self._poll

    async def _register(self, line: Line) -> None:
        for name in line.groups:
            group = line.routes[name].group
            if await self._ask(line.log.register(name, group.kinds, group.ignores, group.start)):
                _log.info("group %s begins at %s in %s", name, group.start, line.log.module)
        line.registered = True

    async def _number(self, line: Line) -> bool:
        """Until nothing is left; False when somebody else is about it."""
        while True:
            look = await self._ask(line.log.number())
            if look is None:
                return False
            if not look.full:
                return True

    async def _begin(self, line: Line, *, again: bool) -> bool:
        """Claim lanes (or dead letters that are to be tried again) for the free slots, and begin turns; False
        when there are none.

        A claim under way is not cancelled with the loop: what it has claimed would wait for its lease to end.
        """
        free = self._slots - self._taken
        if free <= 0:
            line.missed = True
            return False
        room = {group: self._share - self._held[line.log.module, group] for group in line.groups}
        groups = [group for group in line.groups if room[group] > 0]
        if not groups:
            return False
        most = min(free, *(room[group] for group in groups))
        self._taken += free
        body = self._claim(line, groups, most, again)
        task = asyncio.get_running_loop().create_task(
            body, name=f"{line.log.module} claim", context=detached()
        )
        self._claims.add(task)
        task.add_done_callback(lambda done: self._claimed(line, free, most, done))
        await asyncio.shield(task)
        return True

    async def _claim(self, line: Line, groups: Sequence[str], most: int, again: bool) -> list[Turn | Again]:
        clock, sink = self._clock, self._sink
        if again:
            letters = await self._ask(line.log.again(groups, line.names, most))
            return [Again(line.routes[dead.group], dead, clock=clock, sink=sink) for dead in letters]
        asked, leases = clock.monotonic(), [line.routes[group].lease for group in groups]
        lanes = await self._ask(line.log.claim(groups, leases, line.names, most, self._worker))
        return [Turn(line.routes[lane.group], lane, asked=asked, clock=clock, sink=sink) for lane in lanes]

    def _claimed(self, line: Line, reserved: int, most: int, done: asyncio.Task[list[Turn | Again]]) -> None:
        self._claims.discard(done)
        self._taken -= reserved
        if not done.cancelled() and done.exception() is None:
            for turn in done.result():
                self._spawn(line, turn)
            line.missed = line.missed or len(done.result()) == most
        self._freed()

    def _spawn(self, line: Line, turn: Turn | Again) -> None:
        group = (line.log.module, turn.group)

        def ended(task: asyncio.Task[None]) -> None:
            self._taken -= 1
            if self._held[group] >= self._share:  # it found no room for more
                for other in self._lines:
                    other.missed = other.missed or (other.log.module == group[0] and group[1] in other.routes)
            self._held[group] -= 1
            del self._turns[task]
            if not task.cancelled() and (error := task.exception()) is not None:
                self._sink.emit(TaskFailed(str(turn), repr(error), None))
                _log.error("%s broke", turn, exc_info=error)
            line.missed = line.missed or turn.again
            self._freed()

        self._taken += 1
        self._held[group] += 1
        task = asyncio.get_running_loop().create_task(turn.run(), name=str(turn), context=detached())
        self._turns[task] = turn
        task.add_done_callback(ended)
        if self._draining:
            turn.stop()

    def _freed(self) -> None:
        """There is a slot: those who found none, or left something, come again."""
        if self._taken < self._slots:
            for line in self._lines:
                if line.missed:
                    line.missed = False
                    line.rung.set()

    async def _ask(self, statement: Coroutine[Any, Any, T]) -> T:
        with activate(RequestContext(deadline=self._clock.monotonic() + STATEMENT_TIMEOUT)):
            return await statement
