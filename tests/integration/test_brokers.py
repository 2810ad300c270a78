"""RabbitMQ and NATS broken under their drivers: killed, frozen, cut off, emptied; how much they hand out."""

from __future__ import annotations

import asyncio
import importlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

import pytest
from aiormq import Connection
from nats.aio.client import Client
from tests._brokers import NatsBroker, RabbitBroker
from tests.integration.test_transports_drivers import messages, nothing_left, publish, receive, running
from tests.jobs_support import until
from tests.transports import fresh_name

from springtide.errors import TransportUnavailable
from springtide.jobs.transports import Transport
from springtide.jobs.transports.seam import line_name
from springtide.testing.faults import FaultProxy

pytestmark = [
    pytest.mark.parametrize(
        "broker",
        [
            pytest.param("rabbitmq", marks=pytest.mark.needs("rabbitmq-server")),
            pytest.param("nats", marks=pytest.mark.needs("nats-server")),
        ],
        indirect=True,
    ),
    pytest.mark.timeout(600),
]

Broker = RabbitBroker | NatsBroker

LINE = line_name("mail", "main", 1)


def ids(*numbers: int) -> set[UUID]:
    return {UUID(int=number) for number in numbers}


async def refused(transport: Transport, number: int) -> None:
    """Publish until nobody confirms any more, within a bound."""
    async with asyncio.timeout(60):
        with pytest.raises(TransportUnavailable):
            while True:
                await transport.publish(messages(LINE, number))


async def test_what_was_confirmed_survives_kill_9(broker: Broker) -> None:
    """The broker is killed right after the last of many confirms, and has all of them when it is back."""
    name, sent = fresh_name(), messages(LINE, *range(1, 1001))
    async with running(broker, name) as transport:
        for start in range(0, 1000, 250):
            await publish(transport, sent[start : start + 250])
        broker.kill()
        broker.start()
        found = {one.message for one in await receive(transport, 1000, lines=[LINE])}
        assert found == set(sent)


async def test_a_frozen_broker_is_away_until_it_thaws(broker: Broker) -> None:
    """SIGSTOP: connections stand and nothing answers. Callers are told within a bound, not kept; afterwards
    it serves, and nothing that it had confirmed is missing."""
    name = fresh_name()
    async with running(broker, name) as transport:
        await publish(transport, messages(LINE, 1))
        broker.freeze()
        try:
            await refused(transport, 2)
        finally:
            broker.thaw()
        await publish(transport, messages(LINE, 3))
        found: set[UUID] = set()
        while not found >= ids(1, 3):
            got = await receive(transport, 1, lines=[LINE])
            found |= {one.message.id for one in got}
            await transport.ack(got)


async def test_a_partition_is_told_and_ends(broker: Broker) -> None:
    """Bytes stop both ways while connections stand, then nobody can connect; it goes on by itself after."""
    name = fresh_name()
    async with FaultProxy(target=broker.port) as wires, running(broker, name, port=wires.port) as transport:
        await publish(transport, messages(LINE, 1))
        wires.stall()
        await refused(transport, 2)
        wires.refuse()
        wires.cut()
        await refused(transport, 2)
        wires.resume()
        await publish(transport, messages(LINE, 3))
        found: set[UUID] = set()
        while not found >= ids(1, 3):
            got = await receive(transport, 1, lines=[LINE])
            found |= {one.message.id for one in got}
            await transport.ack(got)


async def test_a_worker_holds_no_more_than_it_has_room_for(broker: Broker) -> None:
    """One that asked for three and has settled none leaves the others to another worker, at once."""
    name = fresh_name()
    async with running(broker, name) as busy, running(broker, name) as free:
        await publish(busy, messages(LINE, *range(1, 11)))
        mine = await receive(busy, 3, lines=[LINE], most=3)
        theirs = await receive(free, 7, lines=[LINE], most=7)
        assert len(mine) == 3
        assert {one.message.id for one in (*mine, *theirs)} == ids(*range(1, 11))
        await busy.ack(mine)
        await free.ack(theirs)


async def test_what_came_and_nobody_takes_goes_to_others(broker: Broker) -> None:
    """A worker that became busy while it waited gives back what came meanwhile; its own jobs do not move."""
    name = fresh_name()
    async with running(broker, name) as busy, running(broker, name) as other:
        await publish(other, messages(LINE, 1))
        first = await receive(busy, 1, lines=[LINE], most=5)  # it may have four more, and never asks again
        waiting = asyncio.ensure_future(busy.receive([LINE], 4, 60.0))
        await asked(broker, name)
        await publish(other, messages(LINE, 2))
        second = await waiting
        await publish(other, messages(LINE, 3, 4))
        found = await receive(other, 2, lines=[LINE])
        assert {one.message.id for one in (*first, *second)} == ids(1, 2)
        assert {one.message.id for one in found} == ids(3, 4)
        await busy.ack([*first, *second])
        await other.ack(found)


async def test_a_queue_that_somebody_deletes_is_made_again(broker: Broker) -> None:
    """Under a receiver that waits, and under a sender: what is published afterwards comes."""
    name = fresh_name()
    async with running(broker, name) as transport:
        await publish(transport, messages(LINE, 1))
        await transport.ack(await receive(transport, 1, lines=[LINE]))
        waiting = asyncio.ensure_future(receive(transport, 1, lines=[LINE]))
        await asked(broker, name)
        await delete(broker, name)
        await publish(transport, messages(LINE, 2))
        (got,) = await waiting
        assert got.message.id == UUID(int=2)
        await transport.ack([got])
        async with running(broker, name) as sender:  # which nobody helps: it has to see it itself
            await publish(sender, messages(LINE, 3))
            await transport.ack(await receive(transport, 1, lines=[LINE]))
            await transport.stop()
            await delete(broker, name)
            await publish(sender, messages(LINE, 4))
            await sender.ack(await receive(sender, 1, lines=[LINE]))


async def test_what_is_none_of_ours_is_dropped(broker: Broker) -> None:
    """It is settled for good, and what comes after it is received."""
    name = fresh_name()
    async with running(broker, name) as transport:
        await publish(transport, messages(LINE, 1))
        await put(broker, name, b"hello")
        await publish(transport, messages(LINE, 2))
        found = await receive(transport, 2, lines=[LINE])
        assert {one.message.id for one in found} == ids(1, 2)
        await transport.ack(found)
        await until(lambda: nothing_left(transport, LINE))


async def test_what_a_worker_has_in_hand_does_not_come_again(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A job longer than the broker would wait for its end is renewed meanwhile, and nobody else gets it."""
    driver = importlib.import_module(f"springtide.jobs.transports.{broker.kind}")
    if hasattr(driver, "ACK_WAIT"):
        monkeypatch.setattr(driver, "ACK_WAIT", 2.0)
    name = fresh_name()
    async with running(broker, name) as working, running(broker, name) as other:
        await publish(other, messages(LINE, 1))
        mine = await receive(working, 1, lines=[LINE])
        end = time.monotonic() + 5.0
        while time.monotonic() < end:
            assert await other.receive([LINE], 1, 0.5) == []
        await working.ack(mine)


@asynccontextmanager
async def amqp(broker: Broker) -> AsyncIterator[Connection]:
    connection = Connection(broker.url())
    await connection.connect()
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def nats(broker: Broker) -> AsyncIterator[Client]:
    client = Client()
    await client.connect(broker.url())
    try:
        yield client
    finally:
        await client.close()


async def asked(broker: Broker, name: str) -> None:
    """Return when the broker knows that somebody waits for messages of the line."""
    async with asyncio.timeout(60):
        if broker.kind == "rabbitmq":
            async with amqp(broker) as connection:
                channel = await connection.channel()
                while not (await channel.queue_declare(f"{name}.jobs.{LINE}", passive=True)).consumer_count:
                    await asyncio.sleep(0.05)
        else:
            async with nats(broker) as client:
                streams, stream = client.jetstream(), f"{name}-jobs-{LINE.replace('.', '=')}"
                while not (await streams.consumer_info(stream, "workers")).num_waiting:
                    await asyncio.sleep(0.05)


async def delete(broker: Broker, name: str) -> None:
    """What an operator might do to the line's queue."""
    if broker.kind == "rabbitmq":
        async with amqp(broker) as connection:
            await (await connection.channel()).queue_delete(f"{name}.jobs.{LINE}")
    else:
        async with nats(broker) as client:
            await client.jetstream().delete_stream(f"{name}-jobs-{LINE.replace('.', '=')}")


async def put(broker: Broker, name: str, body: bytes) -> None:
    """Something that is no message of a job, into the line's queue."""
    if broker.kind == "rabbitmq":
        async with amqp(broker) as connection:
            await (await connection.channel()).basic_publish(body, routing_key=f"{name}.jobs.{LINE}")
    else:
        async with nats(broker) as client:
            await client.jetstream().publish(f"springtide.{name}.jobs.{LINE}", body)
