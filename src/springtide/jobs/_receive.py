"""Take jobs that a transport brings: receive as many as there are free slots, claim them in SQL, settle.

    received -> claimed   the row is ours, leased as any other: the message has done its duty and is settled.
                          Whatever happens to the run is SQL's, on every transport alike
             -> waiting   its order or a limit says later, or nobody here knows its kind: SQL has it; settled
             -> dropped   somebody had it before (the message came twice, or late); settled
             -> locked    somebody has the row locked and it is still sent: given back after a moment
             -> unclaimed the claim failed: given back

A message is settled after the claim is committed, not after the run: the lease says from then on who has the
job, and no broker has to wait for a long run. Those that come again find nothing to claim.

While the transport is away it is asked again and again without waiting, and keeps no slot from claims in SQL:
one whose receiving fails is asked also when all slots are busy, or it would stay away as long as they are.
What such a look brings goes back if there is no room for it.
Stopping: what is being received is given back; nothing is claimed any more.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence
from uuid import UUID

import asyncpg

from springtide.clock import Clock
from springtide.context import RequestContext, activate, detached
from springtide.errors import SpringtideError, TransportUnavailable
from springtide.jobs._carrier import RECEIVING, Carrier
from springtide.jobs._dispatch import Dispatcher
from springtide.jobs._line import Line
from springtide.jobs._sent import Sending
from springtide.jobs._store import Claimed
from springtide.jobs.transports.seam import Delivery, line_name
from springtide.lifecycle import StartStop
from springtide.signals import JobsReceived, Sink, TaskFailed

__all__ = ["Receiver"]

_log = logging.getLogger(__name__)

WAIT = 1.0
"""Seconds that one call waits for messages."""

PRIORITIES = 3

STATEMENT_TIMEOUT = 5.0

LOCKED = 0.2
"""Seconds after which a message whose row is locked is given back."""

UNCLAIMED = 1.0
"""Seconds of rest after a claim that failed."""

STOPPING = 5.0


class Receiver:
    """A lifecycle service for all lines of a worker. `took(line, jobs)` is called after each claim."""

    name = "jobs receiver"

    def __init__(
        self,
        lines: Sequence[Line],
        carrier: Carrier,
        dispatcher: Dispatcher,
        *,
        lease: float,
        took: Callable[[Line, Sequence[Claimed]], None],
        clock: Clock,
        sink: Sink,
    ) -> None:
        self._lines = list(lines)
        self._by_name = {
            line_name(line.store.module, line.store.shard, priority): line
            for line in lines
            for priority in range(PRIORITIES)
        }
        self._sending = {line: Sending(line.store) for line in lines}
        self._carrier = carrier
        self._dispatcher = dispatcher
        self._lease = lease
        self._took = took
        self._clock = clock
        self._sink = sink
        self._stopping = False
        self._loop: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._failed_at = float("-inf")
        self._life = StartStop(self.name, self._open, self._close, sink=sink)

    @property
    def state(self) -> str:
        return self._life.state

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    async def _open(self) -> None:
        self._stopping = False
        self._loop = asyncio.get_running_loop().create_task(self._run(), name=self.name)

    async def _close(self) -> None:
        self._stopping = True
        self._dispatcher.freed.set()
        until = self._clock.monotonic() + STOPPING
        while tasks := {task for task in (self._loop, *self._tasks) if task is not None and not task.done()}:
            if (left := until - self._clock.monotonic()) <= 0:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
                break
            await asyncio.wait(tasks, timeout=left)
        self._loop = None

    # -- receiving -------------------------------------------------------------------------------------

    async def _run(self) -> None:
        """Until it stops; a driver that breaks is asked again."""
        while not self._stopping:
            pause = 0.0
            try:
                pause = await self._receive()
            except Exception as error:
                pause = 1.0
                self._sink.emit(TaskFailed(self.name, repr(error), pause))
                _log.exception("%s failed, next try in %.1f s", self.name, pause)
            if pause and not self._stopping:
                await self._clock.sleep(pause)

    async def _receive(self) -> float:
        """Once; how many seconds to rest after it."""
        self._dispatcher.freed.clear()
        room, carries = self._dispatcher.room, self._carrier.carries
        free = room.ahead
        looking = not carries and self._carrier.pause(RECEIVING) > 0
        if free < room.least and not looking:
            await self._dispatcher.freed.wait()
            return 0.0
        asked = free if carries else 1
        kept = 0 if looking else asked
        room.reserve(kept)
        try:
            received = await self._carrier.receive(self._names(), asked, WAIT if carries else 0.0)
        except TransportUnavailable:
            return self._carrier.pause(RECEIVING)
        finally:
            room.reserve(-kept)
        if not received:
            return 0.0 if carries else max(self._carrier.pause(RECEIVING), 0.1)
        if looking and room.free < len(received):
            await self._carrier.give_back(received)
            return 0.0
        room.reserve(len(received))
        lines: dict[Line, list[Delivery]] = {}
        for delivery in received:
            lines.setdefault(self._by_name[delivery.message.line], []).append(delivery)
        for line, some in lines.items():
            task = asyncio.get_running_loop().create_task(
                self._claim(line, some), name=f"{line.store.module} claim", context=detached()
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        rest = self._failed_at + UNCLAIMED - self._clock.monotonic()
        return max(rest, 0.0)

    def _names(self) -> list[str]:
        """What is important first; the lines of one priority take turns."""
        self._lines.append(self._lines.pop(0))
        return [
            line_name(line.store.module, line.store.shard, priority)
            for priority in range(PRIORITIES)
            for line in self._lines
        ]

    # -- claiming --------------------------------------------------------------------------------------

    async def _claim(self, line: Line, received: Sequence[Delivery]) -> None:
        """Their slots are reserved, and given back here."""
        ids: dict[UUID, int] = {one.message.id: one.message.bucket for one in received}
        asked = self._clock.monotonic()
        back: list[Delivery] = list(received)
        try:
            if not self._stopping:
                with activate(RequestContext(deadline=asked + STATEMENT_TIMEOUT)):
                    await line.ask()
                    claim = await self._sending[line].claim(
                        [(bucket, id) for id, bucket in ids.items()],
                        line.open,
                        line.names,
                        self._dispatcher.worker,
                        self._lease,
                        line.limits,
                    )
                back = [one for one in received if one.message.id in claim.locked]
                self._dispatcher.room.take(line, claim.jobs, asked)
                self._took(line, claim.jobs)
                store = line.store
                waiting = claim.waiting + len(claim.parked)
                dropped = claim.dropped + len(received) - len(ids)
                self._sink.emit(JobsReceived(store.module, store.shard, len(claim.jobs), waiting, dropped))
                for name in sorted(set(claim.parked)):
                    _log.warning("a job of kind %s is parked: no handler in %s", name, store.module)
        except (SpringtideError, asyncpg.PostgresError) as error:
            self._failed_at = self._clock.monotonic()
            what = f"claiming jobs of {line.store.module} on {line.store.shard}"
            self._sink.emit(TaskFailed(what, repr(error), UNCLAIMED))
            _log.warning("%s failed: %s", what, error)
        finally:
            self._dispatcher.room.reserve(-len(received))
        if len(back) < len(received):
            kept = set(map(id, back))
            await self._carrier.ack([one for one in received if id(one) not in kept])
        if back:
            if not self._stopping:
                await self._clock.sleep(LOCKED * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load
            await self._carrier.give_back(back)
