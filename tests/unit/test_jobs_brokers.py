"""What the drivers of brokers share: one connection that is made again, and messages nobody has taken yet."""

from __future__ import annotations

import asyncio
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.errors import TransportUnavailable
from springtide.jobs.transports import Delivery, Message
from springtide.jobs.transports._fetched import Fetched
from springtide.jobs.transports._reconnecting import FIRST_PAUSE, MOST_PAUSE, Reconnecting, pause
from springtide.testing.clock import ManualClock
from springtide.topology import loads


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_pauses_grow_to_a_bound_and_differ(failures: int, chance: float) -> None:
    """At least half of the full pause, at most all of it; never shorter for more failures at one chance."""
    found = pause(failures, chance)
    assert FIRST_PAUSE / 2 <= found <= MOST_PAUSE
    assert pause(failures + 1, chance) >= found
    assert pause(failures, 0.0) == pause(failures, 1.0) / 2


class World:
    """A broker that answers or not; counts attempts."""

    def __init__(self) -> None:
        self.up = False
        self.attempts = 0
        self.open: set[int] = set()

    async def opening(self) -> int:
        self.attempts += 1
        if not self.up:
            raise ConnectionRefusedError("nobody listens")
        self.open.add(self.attempts)
        return self.attempts

    async def closing(self, link: int) -> None:
        self.open.discard(link)

    def link(self, clock: ManualClock) -> Reconnecting[int]:
        return Reconnecting(
            "broker", self.opening, self.closing, self.open.__contains__, errors=(OSError,), clock=clock
        )


async def test_nobody_is_asked_again_before_the_pause_is_over() -> None:
    """After a failure whoever asks waits for the pause; when the broker is there, all share one connection;
    a dropped one is closed and not given to anybody again."""
    world, clock = World(), ManualClock()
    link = world.link(clock)
    with pytest.raises(TransportUnavailable, match="nobody listens"):
        await link.get(within=30)
    asking = [asyncio.ensure_future(link.get(within=30)) for _ in range(3)]
    for _ in range(20):
        await asyncio.sleep(0)
    assert world.attempts == 1
    world.up = True
    await clock.advance(FIRST_PAUSE)
    assert set(await asyncio.gather(*asking)) == {2}
    assert await link.get(within=30) == 2
    await link.drop(2, "it says nothing")
    assert (world.open, link.link) == (set(), None)
    assert await link.get(within=30) == 3
    await link.drop(2, "an old one: nothing happens")
    assert link.link == 3
    await link.close()
    assert world.open == set()


async def test_who_asks_waits_no_longer_than_it_said() -> None:
    world, clock = World(), ManualClock()
    link = world.link(clock)
    with pytest.raises(TransportUnavailable):
        await link.get(within=30)
    async with asyncio.timeout(30):
        with pytest.raises(TransportUnavailable, match="nobody listens"):
            await link.get(within=0.01)  # the clock stands still: the pause never ends
    assert world.attempts == 1


def delivery(line: str, number: int) -> Delivery:
    return Delivery(Message(line, 0, UUID(int=number), 1), number)


async def test_what_was_fetched_is_taken_in_the_order_of_lines_and_grows_stale() -> None:
    """Earlier lines first, the oldest of each first, no more than asked for; what nobody takes is stale."""
    clock = ManualClock()
    fetched = Fetched(clock)
    for number, line in enumerate(["b", "a", "b", "a"]):
        fetched.put(delivery(line, number))
    assert [found.handle for found in fetched.take(["a", "b"], 3)] == [1, 3, 0]
    assert (fetched.count("a"), fetched.count("b")) == (0, 1)
    assert not fetched.stale(2.0)
    await clock.advance(2.0)
    assert fetched.stale(2.0)
    fetched.put(delivery("a", 9))
    assert {found.handle for found in fetched.take_all()} == {2, 9}
    assert not fetched.stale(0.0) and fetched.take(["a", "b"], 3) == []


async def test_news_of_before_the_wait_end_it() -> None:
    """What came between a look and the wait is not slept over; a wait without news ends by itself."""
    fetched = Fetched(ManualClock())
    fetched.put(delivery("a", 1))
    async with asyncio.timeout(30):
        await fetched.news(1000)
        await fetched.news(0.01)
        fetched.wake()
        await fetched.news(1000)


def test_a_rabbitmq_that_could_never_take_a_message_is_refused() -> None:
    """Its empty server would be above the mark at which publishers wait."""
    base = 'name = "p"\napp = "a:b"\n[nodes.q]\nkind = "rabbitmq"\nmemory_bytes = '
    loads(base + str(256 * 2**20))
    with pytest.raises(Exception, match=r"nodes\.q\.memory_bytes.*must be >= 268435456 for rabbitmq"):
        loads(base + str(128 * 2**20))
