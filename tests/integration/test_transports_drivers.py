"""What every driver gives, on a real broker or its stand-in: the promises of the seam, one by one.

What a broker does by itself is asked of those that say they do it; the others are covered by SQL
(tests/integration/test_transports.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from uuid import UUID

import pytest
from tests._servers import not_asked
from tests.jobs_support import until
from tests.transports import Broker, connect, fresh_name, params

from springtide.errors import TransportUnavailable
from springtide.jobs.transports import Delivery, Message, Transport
from springtide.jobs.transports.seam import check, line_name
from springtide.testing.faults import FaultProxy

pytestmark = pytest.mark.parametrize("broker", params(), indirect=True)

FIRST, LAST = line_name("mail", "main", 0), line_name("mail", "main", 2)


def messages(line: str, *numbers: int, turn: int = 1) -> list[Message]:
    return [Message(line, number % 4, UUID(int=number), turn, f"key {number % 7}") for number in numbers]


@asynccontextmanager
async def running(broker: Broker, name: str, *, port: int | None = None) -> AsyncIterator[Transport]:
    transport = connect(broker, name, port=port)
    check(transport)
    await transport.start()
    try:
        yield transport
    finally:
        await transport.stop()


async def receive(
    transport: Transport, count: int, *, lines: Sequence[str] = (FIRST, LAST), most: int = 1000
) -> list[Delivery]:
    """At least `count` messages; a broker that is coming back is asked again."""
    found: list[Delivery] = []
    async with asyncio.timeout(60):
        while len(found) < count:
            try:
                got = await transport.receive(lines, most, 1.0)
            except TransportUnavailable:
                await asyncio.sleep(0.1)
                continue
            assert len(got) <= most
            found += got
    return found


async def publish(transport: Transport, some: Sequence[Message]) -> None:
    """Again until the broker has confirmed all."""
    left = list(some)
    async with asyncio.timeout(60):
        while left:
            try:
                confirmed = await transport.publish(left)
            except TransportUnavailable:
                await asyncio.sleep(0.1)
                continue
            assert len(confirmed) == len(left)
            left = [message for message, sure in zip(left, confirmed, strict=True) if not sure]


async def test_each_message_is_received_once_and_gone_when_settled(broker: Broker) -> None:
    """Two receivers share what was published before either came, whole; nothing settled is left."""
    count = 300 if broker.real else 30  # a stand-in takes its time with each
    name, sent = fresh_name(), messages(FIRST, *range(1, count + 1)) + messages(LAST, *range(301, 331))
    async with running(broker, name) as sender, running(broker, name) as other:
        await publish(sender, sent)
        found: list[Delivery] = []
        while len(found) < len(sent):
            for transport in (sender, other):
                got = list(await transport.receive([FIRST, LAST], 40, 1.0))
                assert len(got) <= 40
                await transport.ack(got)
                found += got
        assert sorted(one.message for one in found) == sorted(sent)
        assert await sender.receive([FIRST, LAST], 10, 0.2) == []
        for line in (FIRST, LAST):
            await until(lambda line=line: nothing_left(sender, line))


async def nothing_left(transport: Transport, line: str) -> bool:
    """Nothing that the broker knows of; it may act on what was settled a moment later."""
    return await transport.depth(line) in (0, None)


async def test_earlier_lines_first(broker: Broker) -> None:
    """While the first line has messages, they are received before those of the last."""
    name = fresh_name()
    async with running(broker, name) as transport:
        await publish(transport, messages(LAST, *range(1, 9)))
        await publish(transport, messages(FIRST, *range(11, 19)))
        await until(lambda: _both_there(transport))
        first = await receive(transport, 8, most=8)
        assert {one.message.line for one in first[:8]} == {FIRST}
        rest = await receive(transport, 8 - (len(first) - 8))
        await transport.ack([*first, *rest])


async def _both_there(transport: Transport) -> bool:
    depths = [await transport.depth(line) for line in (FIRST, LAST)]
    return all(depth is None or depth >= 8 for depth in depths)


async def test_a_wait_ends_with_the_first_message(broker: Broker) -> None:
    """A receiver that waits has a message when it comes, not when its wait is over; else it gets []."""
    name = fresh_name()
    async with running(broker, name) as transport, running(broker, name) as sender:
        assert await transport.receive([FIRST], 5, 0.1) == []
        waiting = asyncio.ensure_future(receive(transport, 1))
        await publish(sender, messages(FIRST, 1))
        (got,) = await waiting
        assert got.message == messages(FIRST, 1)[0]
        await transport.ack([got])


async def test_what_is_given_back_comes_to_another(broker: Broker) -> None:
    """At a drain others get what was received and not begun; what stops gives back what it had."""
    name = fresh_name()
    async with running(broker, name) as other:
        async with running(broker, name) as leaving:
            await publish(leaving, messages(FIRST, 1, 2))
            got = await receive(leaving, 2, lines=[FIRST])
            await leaving.give_back(got[:1])
        found = await receive(other, 2, lines=[FIRST])
        assert {one.message.id for one in found} == {UUID(int=1), UUID(int=2)}
        await other.ack(found)


async def test_in_order(broker: Broker) -> None:
    """One line is received in the order of publishing, where the broker says so."""
    name, sent = fresh_name(), messages(FIRST, *range(1, 201))
    async with running(broker, name) as transport:
        if not transport.capabilities.ordered:
            pytest.skip("SQL orders what has an ordering key")
        for start in range(0, 200, 50):
            await publish(transport, sent[start : start + 50])
        found = await receive(transport, 200, lines=[FIRST], most=30)
        assert [one.message for one in found] == sent
        await transport.ack(found)


async def test_once_when_published_twice(broker: Broker) -> None:
    """A message that is published again is there once, where the broker says so; one of another turn is not
    the same."""
    name = fresh_name()
    async with running(broker, name) as transport:
        if not transport.capabilities.deduplicates:
            pytest.skip("the claim drops the second one")
        await publish(transport, messages(FIRST, 1))
        await publish(transport, messages(FIRST, 1))
        await publish(transport, messages(FIRST, 1, turn=2))
        found = await receive(transport, 2, lines=[FIRST])
        found += await transport.receive([FIRST], 10, 0.5)
        assert [one.message.turn for one in found] == [1, 2]
        await transport.ack(found)


async def test_what_a_dead_receiver_had_comes_again(broker: Broker) -> None:
    """A receiver whose wires are cut, and which never comes back, keeps nothing: where the broker says so."""
    name = fresh_name()
    async with FaultProxy(target=broker.port) as wires, running(broker, name) as other:
        if not other.capabilities.redelivers:
            pytest.skip("SQL sends again what was not claimed")
        async with running(broker, name, port=wires.port) as dying:
            await publish(other, messages(FIRST, 1, 2))
            await receive(dying, 2, lines=[FIRST])
            wires.refuse()
            wires.cut()
            found = await receive(other, 2, lines=[FIRST])
            assert {one.message.id for one in found} == {UUID(int=1), UUID(int=2)}
            await other.ack(found)


async def test_a_broker_that_is_away_is_said_and_found_again(
    broker: Broker, request: pytest.FixtureRequest
) -> None:
    """Killed, it makes every call raise TransportUnavailable within a bound; started again, it serves, and
    what it had confirmed is there again where it says so."""
    name = fresh_name()
    async with running(broker, name) as transport:
        await publish(transport, messages(FIRST, 1))
        assert (await receive(transport, 1))[0].message.id == UUID(int=1)
        await publish(transport, messages(LAST, 2))
        broker.kill()
        async with asyncio.timeout(60):
            with pytest.raises(TransportUnavailable):
                while True:
                    await transport.publish(messages(LAST, 3))
            with pytest.raises(TransportUnavailable):
                while True:
                    await transport.receive([FIRST, LAST], 1, 0.1)
            with pytest.raises(TransportUnavailable):  # again: nobody takes silence for an answer
                await transport.receive([FIRST, LAST], 1, 0.0)
        broker.start()
        if not broker.real:
            not_asked(request, "whether what was confirmed is there after a restart: its memory is lost")
        elif transport.capabilities.survives_restart:
            assert UUID(int=2) in {one.message.id for one in await receive(transport, 1, lines=[LAST])}
        await publish(transport, messages(FIRST, 4))
        async with asyncio.timeout(60):
            while UUID(int=4) not in {one.message.id for one in await receive(transport, 1)}:
                pass


async def test_it_starts_while_the_broker_is_away(broker: Broker) -> None:
    """A driver starts without its broker, and serves when that is there."""
    async with FaultProxy(target=broker.port) as wires:
        wires.refuse()
        async with running(broker, fresh_name(), port=wires.port) as transport:
            with pytest.raises(TransportUnavailable):
                await transport.receive([FIRST], 1, 0.1)
            wires.resume()
            await publish(transport, messages(FIRST, 1))
            await transport.ack(await receive(transport, 1))
