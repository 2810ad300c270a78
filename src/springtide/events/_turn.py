"""One turn of a worker in one lane of one group: read on, call handlers, move on, leave.

    claimed -> (read -> handle ...) -> left, further on
                          |-> left, to be tried again after a pause        the handler raised
                          |-> left to somebody who can read it (`needs`)   no handler here for kind or version
                          |-> left until a person says what to do          a dead letter of on_dead="block"
                          `-> lost                                         somebody else has the lane

Events are handled one after the other in the order of their positions, whatever happens: the lane waits for
the first one that fails. Transactional handlers move the group on in their own transaction. What others have
handled is written down at least every SETTLE seconds, and whenever the turn ends; a crash in between delivers
it again. A turn that was claimed with more than one attempt is *careful*: one event per call and per step, so
that an attempt which kills its worker counts for the event that did it.

No call begins unless the lease outlasts it: a worker that was frozen finds that out before it does more.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine, Sequence
from datetime import datetime
from typing import Any, TypeVar

import asyncpg

from springtide.clock import Clock
from springtide.context import Ledger, Position, RequestContext, activate
from springtide.errors import EventFailed, EventLost, SpringtideError
from springtide.events._log import Lane, Stored
from springtide.events._route import GRACE, Opened, Reader, Route, Unreadable
from springtide.outbox.retry import describe, pause
from springtide.signals import EventsHandled, Sink

__all__ = ["READ", "Turn"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

READ = 100
"""Events that one statement reads at most."""

BUDGET = 2.0
"""Seconds after which a lane is left, so that others have their turn; never before it has moved."""

SETTLE = 0.1
"""Seconds that handled events may be not yet written down."""

STATEMENT_TIMEOUT = GRACE


class Turn:
    """A turn of `group`. `asked` is when the claim was sent, monotonic: the lease counts from there. `again`
    tells afterwards whether there may be more to do at once."""

    def __init__(self, route: Route, lane: Lane, *, asked: float, clock: Clock, sink: Sink) -> None:
        self.again = False
        self.group = lane.group
        self._route = route
        self._store = route.log
        self._group = route.group
        self._lane = lane
        self._clock = clock
        self._sink = sink
        self._until = asked + route.lease
        self._begun = asked
        self._pos = lane.pos
        self._at: datetime = lane.at
        self._attempt = lane.attempt
        self._careful = lane.attempt > 1
        self._unwritten = False
        self._tried = False
        self._settled = asked
        self._position: Position | None = None
        self._stopping = False
        self._returned = False
        self._task: asyncio.Task[Any] | None = None

    def __str__(self) -> str:
        return (
            f"group {self._group.name}, {self._store.module} on {self._store.shard}, lane {self._lane.lane}"
        )

    def stop(self) -> None:
        """Begin no further call."""
        self._stopping = True

    def cancel(self) -> None:
        """End the call under way; the lane is left at once."""
        self._stopping = self._returned = True
        if self._task is not None:
            self._task.cancel()

    async def run(self) -> None:
        self._task = asyncio.current_task()
        try:
            while await self._some():
                pass
        except EventLost:
            _log.warning("%s: somebody else has it; the turn ends", self)
        except asyncio.CancelledError:
            if not self._returned:
                raise  # the loop is closing
            await self._give_back()
        except (SpringtideError, asyncpg.PostgresError, OSError) as error:
            _log.warning("%s: the turn ends: %s", self, error)
            await self._give_back(delay=1.0)

    async def _some(self) -> bool:
        """Handle what one statement reads; whether to go on."""
        read = await self._ask(
            self._store.read(self._group.name, self._lane.lane, self._pos, self._at, self._route.kinds, READ)
        )
        self._position = read.position
        wanted = (read.kinds | set(self._route.kinds)) - self._route.ignores
        events = list(read.events)
        while events:
            late = self._pos > self._lane.pos and self._clock.monotonic() - self._begun > BUDGET
            if self._stopping or late:
                self.again = True
                await self._leave(attempt=max(self._attempt - 1, 0))  # none was begun
                return False
            first = events[0]
            if first.kind not in wanted:
                self._pos, self._at, self._unwritten = first.pos, first.at, True
                del events[0]
                continue
            reader = self._route.readers.get(first.kind)
            if reader is None or first.version not in reader.decode:
                await self._leave_to_others(f"{first.kind}/{first.version}")
                return False
            done = await self._handle(reader, events)
            if not done:
                return False
            del events[:done]
        if len(read.events) < READ:
            await self._leave()
            return False
        if self._unwritten and self._clock.monotonic() - self._settled > SETTLE:
            await self._settle()
        return True

    # -- handling --------------------------------------------------------------------------------------

    async def _handle(self, reader: Reader, events: Sequence[Stored]) -> int:
        """Handle the first of `events`, or as many as its handler takes; how many, 0: the turn ended."""
        first = events[0]
        if self._attempt > self._group.max_attempts:
            return await self._dead(first, "its worker ended in the middle of each run")
        try:
            batch = self._gather(reader, events)
        except Unreadable as error:
            return await self._dead(first, str(error))
        if self._until - self._clock.monotonic() < self._group.max_run or (
            self._unwritten and reader.transactional
        ):
            await self._settle()  # also renews the lease, or finds that it is lost
        last = batch[-1].stored
        begun = self._clock.monotonic()
        seen: list[RequestContext] = []

        async def moving(tx: Any) -> bool:
            return await self._store.move(
                self._lane, last.pos, last.at, attempt=1, lease=self._route.lease, queries=tx
            )

        try:
            await self._route.call(
                reader,
                batch,
                attempt=self._attempt,
                furthest=self._lane.furthest,
                position=self._position,
                moving=moving,
                told=seen.append,
            )
        except asyncio.CancelledError as error:
            if self._returned:
                self._tell(batch, begun, seen, "returned", None)
                raise
            if self._task is not None and self._task.cancelling():
                raise  # the loop is closing
            return await self._failed(batch, begun, seen, error)
        except EventLost as error:
            self._tell(batch, begun, seen, "lost", error)
            raise
        except Exception as error:
            return await self._failed(batch, begun, seen, error)
        self._tell(batch, begun, seen, "done", None)
        self._pos, self._at, self._attempt = last.pos, last.at, 1
        if reader.transactional:
            self._until, self._settled = begun + self._route.lease, self._clock.monotonic()
            self._unwritten = False
        else:
            self._unwritten = True
            if self._careful or self._clock.monotonic() - self._settled > SETTLE:
                await self._settle()
        return len(batch)

    def _gather(self, reader: Reader, events: Sequence[Stored]) -> list[Opened]:
        """The first events that go into one call. Raises Unreadable when not even the first one does."""
        most = 1 if self._careful or reader.batch is None else reader.batch
        batch = [Opened(reader, events[0])]
        for stored in events[1:most]:
            if stored.kind != events[0].kind or stored.version not in reader.decode:
                break
            try:
                batch.append(Opened(reader, stored))
            except Unreadable:
                break
        return batch

    async def _failed(
        self, batch: Sequence[Opened], begun: float, seen: Sequence[RequestContext], error: BaseException
    ) -> int:
        alone, text = len(batch) == 1, describe(error)
        self._tried = True
        if alone and (isinstance(error, EventFailed) or self._attempt >= self._group.max_attempts):
            self._tell(batch, begun, seen, "dead", error)
            return await self._dead(batch[0].stored, text)
        self._tell(batch, begun, seen, "retry", error)
        delay = 0.0
        if alone or not isinstance(error, EventFailed):
            delay = pause(
                self._attempt,
                error,
                backoff=self._group.backoff,
                max_backoff=self._group.max_backoff,
                spread=random.uniform(0.5, 1.5),  # noqa: S311 - spreads retries
            )
        await self._leave(attempt=self._attempt, delay=delay, error=text)
        self.again = not delay
        return 0

    async def _dead(self, event: Stored, text: str) -> int:
        """The event cannot be handled: set it aside and go on, or block the lane."""
        name = f"{event.kind}/{event.version} {event.id}"
        attempt = min(self._attempt, self._group.max_attempts)
        if self._group.on_dead == "block":
            _log.error("%s is blocked by event %s at %d: %s", self, name, event.pos, text)
            await self._leave(attempt=attempt, error=text, blocked=True)
            return 0
        _log.error("%s: event %s at %d is a dead letter: %s", self, name, event.pos, text)
        asked = self._clock.monotonic()
        buried = self._store.bury(self._lane, event, attempt=attempt, error=text, lease=self._route.lease)
        if not await self._ask(buried):
            await self._leave()  # raises EventLost; else the last call's COMMIT had no answer, and succeeded
            self.again = True
            return 0
        self._moved(asked)
        self._pos, self._at, self._attempt, self._tried = event.pos, event.at, 1, False
        return 1

    # -- the lane --------------------------------------------------------------------------------------

    async def _settle(self) -> None:
        asked = self._clock.monotonic()
        moved = self._store.move(
            self._lane, self._pos, self._at, attempt=self._attempt, lease=self._route.lease
        )
        if not await self._ask(moved):
            raise EventLost(str(self))
        self._moved(asked)

    def _moved(self, asked: float) -> None:
        self._until, self._settled, self._unwritten = asked + self._route.lease, asked, False

    async def _leave(self, **how: Any) -> None:
        if not await self._ask(self._store.leave(self._lane, self._pos, self._at, **how)):
            raise EventLost(str(self))

    async def _leave_to_others(self, name: str) -> None:
        text = f"no handler for {name} here; the lane waits for a worker that has one"
        _log.warning("%s: %s", self, text)
        await self._leave(attempt=max(self._attempt - 1, 0), error=text, needs=name)

    async def _give_back(self, delay: float | None = None) -> None:
        """As well as it can be done: otherwise the lease runs out. A try that failed counts, also when that
        could not be written down at once: perhaps it is what took the database away."""
        try:
            await self._leave(attempt=max(self._attempt - (not self._tried), 0), delay=delay)
        except EventLost:
            pass
        except (SpringtideError, asyncpg.PostgresError, OSError) as error:
            _log.info("%s: left behind until its lease has run out: %s", self, error)

    async def _ask(self, statement: Coroutine[Any, Any, T]) -> T:
        with activate(RequestContext(deadline=self._clock.monotonic() + STATEMENT_TIMEOUT)):
            return await statement

    def _tell(
        self,
        batch: Sequence[Opened],
        begun: float,
        seen: Sequence[RequestContext],
        outcome: str,
        error: BaseException | None,
    ) -> None:
        first = batch[0].stored
        context = seen[0] if seen else None
        seconds = self._clock.monotonic() - begun
        self._sink.emit(
            EventsHandled(
                self._store.module,
                self._group.name,
                first.kind,
                first.version,
                first.pos,
                len(batch),
                self._attempt,
                outcome,
                max(self._clock.now() - seconds - first.appended_at.timestamp(), 0.0),
                seconds,
                context.request_id if context is not None else "",
                context.trace if context is not None else None,
                context.ledger if context is not None else Ledger(),
                describe(error) if error is not None else None,
            )
        )
