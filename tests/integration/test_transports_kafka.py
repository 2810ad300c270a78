"""What is Kafka's own: what is committed, what moves with a partition, topics, a broker that says nothing.

On librdkafka's mock cluster, a faithful stand-in.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from uuid import UUID

import pytest
from confluent_kafka import Producer
from tests._kafka import KafkaStandIn
from tests.jobs_support import until
from tests.transports import fresh_name

from springtide.errors import TransportRefused, TransportUnavailable
from springtide.jobs.transports import Delivery, Message, _kafka_reader, kafka
from springtide.jobs.transports.kafka import KafkaTransport

LINE = "mail.main.1"


@pytest.fixture(scope="module")
def stand_in() -> Iterator[KafkaStandIn]:
    server = KafkaStandIn()
    try:
        yield server.start()
    finally:
        server.close()


@asynccontextmanager
async def running(
    server: KafkaStandIn, name: str, *, port: int | None = None
) -> AsyncIterator[KafkaTransport]:
    transport = KafkaTransport(f"kafka://127.0.0.1:{port or server.port}?session=2", name=name)
    await transport.start()
    try:
        yield transport
    finally:
        await transport.stop()


def message(number: int) -> Message:
    return Message(LINE, 1, UUID(int=number), 1)


async def receive(transport: KafkaTransport, count: int) -> list[Delivery]:
    found: list[Delivery] = []
    async with asyncio.timeout(60):
        while len(found) < count:
            found += await transport.receive([LINE], count - len(found), 1.0)
    return found


async def test_what_has_not_ended_comes_again_and_nothing_is_passed_over(stand_in: KafkaStandIn) -> None:
    """Of each partition the second message never ends: whoever comes next gets it, and what came after it
    once more; what came before it does not come again."""
    name = fresh_name()
    async with running(stand_in, name) as first:
        assert all(await first.publish([message(number) for number in range(200)]))
        found = await receive(first, 200)
        places: dict[object, list[Delivery]] = {}
        for one in found:
            places.setdefault(one.handle.place, []).append(one)
        assert len(places) > 1
        unended = [some[1] for some in places.values()]
        await first.ack([one for one in found if one not in unended])
    async with running(stand_in, name) as second:
        again = {one.message for one in await receive(second, 200 - len(places))}
        assert again == {one.message for some in places.values() for one in some[1:]}


async def test_who_asks_for_nothing_leaves_its_partitions_to_others(
    stand_in: KafkaStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker whose slots are all busy gets messages that it does not take: after some seconds they are
    another's, and when it asks again it gets its part again. What had ended stays ended."""
    monkeypatch.setattr(_kafka_reader, "LEAVE", 0.5)
    name = fresh_name()
    async with running(stand_in, name) as busy, running(stand_in, name) as other:
        assert await busy.receive([LINE], 1, 2.0) == []
        await busy.publish([message(number) for number in range(40)])
        some = await receive(busy, 10)
        await busy.ack(some)
        found = {one.message for one in await receive(other, 30)}
        assert found == {message(number) for number in range(40)} - {one.message for one in some}
        async with asyncio.timeout(60):
            while not await busy.receive([LINE], 40, 0.2):
                await other.receive([LINE], 40, 0.2)
                await busy.publish([message(number) for number in range(100, 140)])


async def test_what_is_given_back_is_handed_out_again(stand_in: KafkaStandIn) -> None:
    """At once and by who has it, for its partition is nobody else's; and it counts as not ended."""
    name = fresh_name()
    async with running(stand_in, name) as transport:
        await transport.publish([message(1)])
        await transport.give_back(await receive(transport, 1))
        (again,) = await receive(transport, 1)
        assert again.message == message(1) and await transport.depth(LINE) == 1
        await transport.ack([again])
        await until(lambda: nothing_left(transport))


async def nothing_left(transport: KafkaTransport) -> bool:
    return await transport.depth(LINE) == 0


async def test_what_is_none_of_ours_is_passed_over(stand_in: KafkaStandIn) -> None:
    """It is dropped, and keeps nothing of ours from being committed."""
    name = fresh_name()
    async with running(stand_in, name) as transport:
        assert await transport.depth(LINE) == 0
        stranger = Producer({"bootstrap.servers": f"127.0.0.1:{stand_in.port}"})
        for number in range(40):
            stranger.produce(f"{name}.jobs.{LINE}", b"hello %d" % number)
        assert await asyncio.to_thread(stranger.flush, 20) == 0
        await transport.publish([message(number) for number in range(100)])
        found = await receive(transport, 100)
        assert {one.message for one in found} == {message(number) for number in range(100)}
        await transport.ack(found)
        await until(lambda: nothing_left(transport))


async def test_a_broker_that_says_nothing_is_said(
    stand_in: KafkaStandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen, with its connections open: publishing and settling end within a bound, and work after it."""
    monkeypatch.setattr(kafka, "TIMEOUT", 1.0)
    name = fresh_name()
    async with running(stand_in, name) as transport:
        assert await transport.publish([message(1)]) == [True]
        found = await receive(transport, 1)
        stand_in.freeze()
        try:
            async with asyncio.timeout(60):
                with pytest.raises(TransportUnavailable):
                    await transport.publish([message(2)])
                with pytest.raises(TransportUnavailable):
                    await transport.depth(LINE)
        finally:
            stand_in.thaw()
        await transport.ack(found)
        async with asyncio.timeout(60):
            while True:
                try:
                    if await transport.publish([message(3)]) == [True]:
                        break
                except TransportUnavailable:
                    await asyncio.sleep(0.1)
            while message(3) not in [one.message for one in await receive(transport, 1)]:
                pass


async def test_a_driver_that_nobody_started_says_so(stand_in: KafkaStandIn) -> None:
    transport = KafkaTransport(f"kafka://127.0.0.1:{stand_in.port}", name="test")
    with pytest.raises(TransportUnavailable, match="it was not started"):
        await transport.publish([message(1)])


async def test_what_the_client_does_not_take_is_refused_at_start(stand_in: KafkaStandIn) -> None:
    """A certificate that is not there will not come by waiting."""
    url = f"kafka+ssl://127.0.0.1:{stand_in.port}?ssl_ca_certs=/nowhere/ca.pem"
    with pytest.raises(TransportRefused, match=r"url must be what the client takes, got .*ssl\.ca"):
        await KafkaTransport(url, name="test").start()
