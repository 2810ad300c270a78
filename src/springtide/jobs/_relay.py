"""Give due jobs to the transport: any number of relays beside each other, in every worker that has one.

One round of a line:

    send      a batch of due rows becomes `sent` and is committed (SKIP LOCKED: no two relays take one row)
    publish   their messages; the next batch is sent meanwhile
    unsend    what was not confirmed is ready again; if this fails too, it is so after its time

A relay that dies between any two of these loses nothing: what is sent and never claimed becomes ready again.

Few jobs are ahead of the workers: at most AHEAD of each priority and line. The backlog stays in SQL, so what
is important passes it, a broker that loses its memory loses little, and what comes twice stays rare.
While the transport is away workers claim from SQL: what was sent and not claimed is ready again at once, and
nothing is sent but one job at a time, to find out whether publishing works again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence

import asyncpg

from springtide.clock import Clock
from springtide.context import Priority, RequestContext, activate
from springtide.errors import SpringtideError, TransportUnavailable
from springtide.jobs._carrier import PUBLISHING, Carrier
from springtide.jobs._line import Line
from springtide.jobs._sent import BATCH, Outgoing, Sending
from springtide.jobs._store import Claimed
from springtide.jobs.transports.seam import Message, line_name
from springtide.lifecycle import Group, Supervised
from springtide.signals import JobsSent, Sink

__all__ = ["Relay"]

_log = logging.getLogger(__name__)

AHEAD = 4000
"""Jobs of one priority and line that are sent and not claimed, at most (by each relay)."""

MANY, ENOUGH = 1000, 500
"""Jobs that one round sends at most; room for fewer is not worth one."""

FULL = 0.25
"""Seconds between two looks whether there is room again; until then it goes by what it has sent and what this
process has claimed."""

LEAVING = 2.0
"""Seconds that a batch has to be published when the relay stops."""

TIMEOUT = 5.0


class Relay:
    """A lifecycle service for all lines of a worker. `sent(line, count)` is called when rows were taken, and
    `recalled(shard, schema)` when some are ready again."""

    name = "jobs relay"

    def __init__(
        self,
        lines: Sequence[Line],
        carrier: Carrier,
        *,
        poll: float,
        sent: Callable[[Line, int], None],
        recalled: Callable[[str, str | None], None],
        clock: Clock,
        sink: Sink,
    ) -> None:
        self._lines = [
            _Line(line, carrier, poll=poll, sent=sent, recalled=recalled, clock=clock, sink=sink)
            for line in lines
        ]
        loops = [
            Supervised(f"{self.name} {one.where}", one.relay, max_backoff=5.0, clock=clock, sink=sink)
            for one in self._lines
        ]
        self._group = Group(self.name, loops, sink=sink)

    @property
    def state(self) -> str:
        return self._group.state

    async def start(self) -> None:
        await self._group.start()

    async def stop(self) -> None:
        await self._group.stop()

    def took(self, line: Line, claimed: Sequence[Claimed]) -> None:
        """These jobs of a line have been claimed here."""
        for one in self._lines:
            if one.line is line:
                one.took(claimed)

    def ring(self, shard: str, schema: str | None) -> None:
        """Rows of `schema` (None: of any) on `shard` may be due now."""
        for one in self._lines:
            if one.line.store.shard == shard and schema in (None, one.line.store.schema):
                one.rung.set()


class _Line:
    """The relay of one line."""

    def __init__(
        self,
        line: Line,
        carrier: Carrier,
        *,
        poll: float,
        sent: Callable[[Line, int], None],
        recalled: Callable[[str, str | None], None],
        clock: Clock,
        sink: Sink,
    ) -> None:
        self.line = line
        self.rung = asyncio.Event()
        self.where = f"{line.store.module} on {line.store.shard}"
        self._sending = Sending(line.store)
        self._carrier = carrier
        self._poll = poll
        self._sent = sent
        self._recalled = recalled
        self._clock = clock
        self._sink = sink
        self._rooms = [0, 0, 0]
        self._counted_at = float("-inf")
        self._has_recalled = False
        self._publishing: asyncio.Task[None] | None = None

    def took(self, claimed: Sequence[Claimed]) -> None:
        before = list(self._rooms)
        for job in claimed:
            self._rooms[job.priority] = min(self._rooms[job.priority] + 1, AHEAD)
        if any(old < ENOUGH <= new for old, new in zip(before, self._rooms, strict=True)):
            self.rung.set()

    def _count_again(self) -> None:
        self._rooms, self._counted_at = [0, 0, 0], float("-inf")

    async def relay(self) -> None:
        """For ever; raises what nobody expected."""
        try:
            while True:
                self.rung.clear()
                await self._wait(await self._round())
        finally:
            publishing, self._publishing = self._publishing, None
            if publishing is not None and not publishing.done():
                await asyncio.wait([publishing], timeout=LEAVING)
                publishing.cancel()

    async def _wait(self, seconds: float) -> None:
        """At most so long; less when the bell rings, unless something fails."""
        if self._carrier.pause(PUBLISHING):
            await self._clock.sleep(max(seconds, self._carrier.pause(PUBLISHING)))
        elif seconds > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self.rung.wait()

    async def _round(self) -> float:
        """Send and publish once; how many seconds there is nothing to do after that."""
        idle = self._poll * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load
        failing = self._carrier.pause(PUBLISHING) > 0
        try:
            with activate(RequestContext(deadline=self._clock.monotonic() + TIMEOUT)):
                if self._carrier.carries:
                    self._has_recalled = False
                else:
                    await self._recall()
                    self._count_again()
                    if not failing:  # nobody here receives what would be sent
                        return idle
                if min(self._rooms) < MANY and self._clock.monotonic() - self._counted_at >= FULL:
                    self._rooms = [AHEAD - count for count in await self._sending.ahead(AHEAD)]
                    self._counted_at = self._clock.monotonic()
                most = 1 if failing else MANY
                await self.line.ask()
                left = list(self._rooms)
                out = await self._sending.send(self.line.open, left, most)
        except (SpringtideError, asyncpg.PostgresError) as error:
            _log.warning("sending jobs of %s failed: %s", self.where, error)
            self._count_again()
            return idle
        for one in out:
            left[one.priority] -= 1
            self._rooms[one.priority] -= 1
        await self._published()
        if not out:
            if failing:
                self._carrier.nothing(self)
            return idle if min(left) > 0 else min(idle, FULL)
        self._sent(self.line, len(out))
        self._publishing = asyncio.get_running_loop().create_task(self._publish(out))
        if failing or len(out) < MANY:
            await self._published()
        if len(out) == most:
            return 0.0
        full = [room for room, rest in zip(self._rooms, left, strict=True) if rest <= 0]
        if not full:
            return idle
        return 0.0 if max(full) >= ENOUGH else min(idle, FULL)

    async def _published(self) -> None:
        """Wait for what is being published; a stop meanwhile does not cut it short. Raises its error once."""
        if self._publishing is not None:
            await asyncio.wait([self._publishing])
            publishing, self._publishing = self._publishing, None
            publishing.result()

    async def _recall(self) -> None:
        """Once each time that the transport is away."""
        if not self._has_recalled:
            while await self._sending.recall(everything=True) == BATCH:
                pass
            self._has_recalled = True
            self._recalled(self.line.store.shard, self.line.store.schema)

    async def _publish(self, out: Sequence[Outgoing]) -> None:
        store = self.line.store
        messages = [
            Message(
                line_name(store.module, store.shard, one.priority),
                one.bucket,
                one.id,
                one.turn,
                one.ordering_key,
            )
            for one in out
        ]
        begun = self._clock.monotonic()
        try:
            confirmed = await self._carrier.publish(messages, self)
        except Exception as error:  # a driver that breaks publishes nothing, and what was sent is ready again
            expected = isinstance(error, TransportUnavailable)
            _log.log(
                logging.INFO if expected else logging.ERROR,
                "%d jobs of %s could not be published: %s", len(out), self.where, error,
                exc_info=None if expected else error,
            )  # fmt: skip
            confirmed = [False] * len(out)
        lag = max(one.lag for one in out) + self._clock.monotonic() - begun
        refused = [one for one, sure in zip(out, confirmed, strict=True) if not sure]
        self._sink.emit(
            JobsSent(
                store.module,
                store.shard,
                len(out),
                len(out) - len(refused),
                sum(one.repeated for one in out),
                lag,
            )
        )
        if refused:
            self._count_again()
            deadline = self._clock.monotonic() + TIMEOUT
            try:
                with activate(RequestContext(deadline=deadline, priority=Priority.CRITICAL)):
                    await self._sending.unsend(refused)
            except (SpringtideError, asyncpg.PostgresError) as error:
                _log.info("%d jobs of %s are ready again later: %s", len(refused), self.where, error)
