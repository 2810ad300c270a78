"""When a transport counts as away, by a clock that the test moves."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence

import pytest

from springtide.errors import TransportUnavailable
from springtide.jobs._carrier import AWAY_AFTER, Carrier
from springtide.jobs.transports import Delivery, Message
from springtide.jobs.transports.redis import RedisTransport
from springtide.signals import NullSink
from springtide.testing.clock import ManualClock

NOWHERE = "redis://127.0.0.1:1/0"
TIMEOUT = AWAY_AFTER + 1.0


class Frozen(RedisTransport):
    """Takes everything for `TIMEOUT` seconds, and then raises, but while it `answers`."""

    def __init__(self, clock: ManualClock) -> None:
        super().__init__(NOWHERE, name="test", clock=clock)
        self.answers = False

    async def publish(self, messages: Sequence[Message]) -> Sequence[bool]:
        await self._freeze()
        return [True]

    async def receive(self, lines: Collection[str], most: int, wait: float) -> Sequence[Delivery]:
        await self._freeze()
        return []

    async def _freeze(self) -> None:
        if not self.answers:
            await self._clock.sleep(TIMEOUT)
            raise TransportUnavailable(self.name, "no answer")


@pytest.mark.parametrize("meanwhile", [False, True], ids=["nobody answered", "another was answered"])
@pytest.mark.parametrize("what", ["publishing", "receiving"])
async def test_a_call_that_took_long_to_fail_has_failed_for_long(what: str, meanwhile: bool) -> None:
    """A broker that hangs is away when the first call ends that it kept for `AWAY_AFTER` seconds; not if it
    answered another in that time."""
    clock = ManualClock()
    transport = Frozen(clock)
    carrier = Carrier(transport, changed=lambda _: None, clock=clock, sink=NullSink())

    async def call() -> None:
        if what == "publishing":
            await carrier.publish([], "a relay")
        else:
            await carrier.receive(["line"], 1, 0.0)

    first = asyncio.create_task(call())
    await clock.until_sleeping()
    await clock.advance(TIMEOUT - 1.0)
    if meanwhile:
        transport.answers = True
        await call()
    assert carrier.carries
    await clock.advance(1.0)
    with pytest.raises(TransportUnavailable):
        await first
    assert carrier.pause(what) > 0
    assert carrier.carries == meanwhile
