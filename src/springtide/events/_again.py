"""A dead letter that somebody wants to be tried again: one call of its handler, beside its lane.

waiting -> taken -> handled: gone
                 |-> failed: dead as before, with the new error
                 |-> broken off at shutdown: waiting
                 `-> its worker is gone: dead as before, and says so; it is tried when somebody asks again

So an event that kills its worker kills one each time that a person asks for it, and not one after the other.
It was left behind by its lane, so it comes after events that followed it. The end is guarded by a token, as
in lanes; with a transactional handler it is part of the handler's transaction.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import asyncpg

from springtide.clock import Clock
from springtide.context import Ledger, RequestContext, activate
from springtide.errors import EventLost, SpringtideError
from springtide.events._log import Dead
from springtide.events._route import GRACE, Opened, Route
from springtide.outbox.retry import describe
from springtide.signals import EventsHandled, Sink

__all__ = ["Again"]

_log = logging.getLogger(__name__)


class Again:
    again = False
    """Nothing follows a dead letter."""

    def __init__(self, route: Route, dead: Dead, *, clock: Clock, sink: Sink) -> None:
        self.group = dead.group
        self._route = route
        self._dead = dead
        self._clock = clock
        self._sink = sink
        self._returned = False
        self._task: asyncio.Task[Any] | None = None

    def __str__(self) -> str:
        return f"group {self._dead.group}, dead letter {self._dead.event.pos} of {self._route.log.module}"

    def stop(self) -> None:
        """It is one call."""

    def cancel(self) -> None:
        self._returned = True
        if self._task is not None:
            self._task.cancel()

    async def run(self) -> None:
        self._task = asyncio.current_task()
        try:
            await self._run()
        except EventLost:
            _log.warning("%s: somebody else has it", self)
        except (SpringtideError, asyncpg.PostgresError, OSError) as error:
            _log.warning("%s: how the try ended is not written down: %s", self, error)

    async def _run(self) -> None:
        dead, store = self._dead, self._route.log
        begun, seen = self._clock.monotonic(), list[RequestContext]()
        error: BaseException | None = None
        reader = self._route.readers[dead.event.kind]
        try:
            await self._route.call(
                reader,
                [Opened(reader, dead.event)],
                attempt=dead.attempt,
                furthest=0,
                position=dead.position,
                moving=lambda tx: store.settle(dead, queries=tx),
                told=seen.append,
            )
        except asyncio.CancelledError:
            if not self._returned:
                raise
            with activate(RequestContext(deadline=self._clock.monotonic() + GRACE)):
                await store.put_back(dead)
            return
        except EventLost:
            raise
        except Exception as failure:
            error = failure
        outcome = "done" if error is None else "dead"
        if not (error is None and reader.transactional):
            with activate(RequestContext(deadline=self._clock.monotonic() + GRACE)):
                text = None if error is None else describe(error)
                if not await store.settle(dead, text):
                    outcome = "lost"
        self._tell(begun, seen, outcome, error)

    def _tell(
        self, begun: float, seen: list[RequestContext], outcome: str, error: BaseException | None
    ) -> None:
        event, context = self._dead.event, seen[0] if seen else None
        self._sink.emit(
            EventsHandled(
                self._route.log.module,
                self._dead.group,
                event.kind,
                event.version,
                event.pos,
                1,
                self._dead.attempt,
                outcome,
                0.0,
                self._clock.monotonic() - begun,
                context.request_id if context is not None else "",
                context.trace if context is not None else None,
                context.ledger if context is not None else Ledger(),
                describe(error) if error is not None else None,
            )
        )
