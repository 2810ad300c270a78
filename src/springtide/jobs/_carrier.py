"""What a worker knows of its transport: whether it carries, or is away and jobs are to be claimed from SQL.

    carrying -> away      publishing or receiving has failed for AWAY_AFTER seconds, with no success between;
                          a call that fails after a while has failed since it began
    away -> carrying      the failing one works again; or none of those whose messages it did not take has any
                          now (they were claimed from SQL): the next message finds out

Publishing and receiving are told apart: a broker that takes nothing more may still give, and the other way
round. A driver that raises what it should not is away, too: jobs do not wait until it is mended. Whoever is
away is asked again by those who would use it, with growing pauses (`pause`).
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Collection, Sequence

from springtide.clock import Clock
from springtide.errors import TransportUnavailable
from springtide.jobs.transports.seam import Delivery, Message, Transport, check, emulated
from springtide.signals import Sink, TransportChanged

__all__ = ["AWAY_AFTER", "Carrier"]

_log = logging.getLogger(__name__)

AWAY_AFTER = 5.0
"""Seconds of failures after which workers claim from SQL."""

LEAST_PAUSE, MOST_PAUSE = 0.1, 5.0

PUBLISHING, RECEIVING = "publishing", "receiving"


class Carrier:
    """A lifecycle service around `transport`. `changed` is called when it is away now, or carries again.

    Raises TransportRefused when the transport lacks what nothing can replace.
    """

    def __init__(
        self, transport: Transport, *, changed: Callable[[bool], None], clock: Clock, sink: Sink
    ) -> None:
        check(transport)
        self.name = f"jobs transport {transport.name}"
        self.carries = True
        self._transport = transport
        self._changed = changed
        self._clock = clock
        self._sink = sink
        self._failing: dict[str, tuple[float, int]] = {}
        self._worked: dict[str, float] = {}
        self._refused: set[object] = set()

    async def start(self) -> None:
        self._failing.clear()
        self._worked.clear()
        self._refused.clear()
        self.carries = True
        self._changed(True)
        if missing := emulated(self._transport.capabilities):
            _log.info("%s: %s", self.name, "; ".join(missing))
        await self._transport.start()

    async def stop(self) -> None:
        await self._transport.stop()

    def pause(self, what: str) -> float:
        """Seconds until the next try after a failure; 0 while nothing fails."""
        if what not in self._failing:
            return 0.0
        ceiling = min(LEAST_PAUSE * 2.0 ** min(self._failing[what][1] - 1, 10), MOST_PAUSE)
        return ceiling * random.uniform(0.5, 1.5)  # noqa: S311 - spreads load

    async def publish(self, messages: Sequence[Message], who: object) -> Sequence[bool]:
        """As the transport's, for `who`; what it confirms none of counts as a failure."""
        begun = self._clock.monotonic()
        try:
            confirmed = await self._transport.publish(messages)
        except Exception as error:
            self._refused.add(who)
            self._failed(PUBLISHING, begun, _why(error))
            raise
        if any(confirmed):
            self._works(PUBLISHING)
        else:
            self._refused.add(who)
            self._failed(PUBLISHING, begun, "it confirms nothing")
        return confirmed

    def nothing(self, who: object) -> None:
        """`who` has nothing to publish now."""
        self._refused.discard(who)
        if not self._refused:
            self._works(PUBLISHING)

    async def receive(self, lines: Collection[str], most: int, wait: float) -> Sequence[Delivery]:
        begun = self._clock.monotonic()
        try:
            deliveries = await self._transport.receive(lines, most, wait)
        except Exception as error:
            self._failed(RECEIVING, begun, _why(error))
            raise
        self._works(RECEIVING)
        return deliveries

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """Best effort: what comes again finds its job claimed."""
        try:
            await self._transport.ack(deliveries)
        except TransportUnavailable as error:
            _log.info("%s: %d messages may come again: %s", self.name, len(deliveries), error)

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        """Best effort: what is not given back comes again, or is sent again."""
        try:
            await self._transport.give_back(deliveries)
        except TransportUnavailable as error:
            _log.info("%s: %d messages were not given back: %s", self.name, len(deliveries), error)

    def _works(self, what: str) -> None:
        if what == PUBLISHING:
            self._refused.clear()
        self._worked[what] = self._clock.monotonic()
        if self._failing.pop(what, None) is not None and not self._failing:
            self._become(True, f"{what} works again")

    def _failed(self, what: str, begun: float, why: str) -> None:
        since, failures = self._failing.get(what, (max(begun, self._worked.get(what, begun)), 0))
        self._failing[what] = since, failures + 1
        if self._clock.monotonic() - since >= AWAY_AFTER:
            self._become(False, f"{what}: {why}")

    def _become(self, carries: bool, reason: str) -> None:
        if self.carries == carries:
            return
        self.carries = carries
        if carries:
            _log.info("%s carries again: %s", self.name, reason)
        else:
            _log.warning("%s is away, jobs are claimed from the database: %s", self.name, reason)
        self._sink.emit(TransportChanged(self._transport.name, carries, reason))
        self._changed(carries)


def _why(error: Exception) -> str:
    return str(error) if isinstance(error, TransportUnavailable) else repr(error)
