"""The fault proxy does what its tests rely on: bytes pass unchanged until a fault is set."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from springtide.testing.faults import FaultProxy

GONE = (ConnectionError, asyncio.IncompleteReadError)
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    """In front of a server that answers every line with the same line."""

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(line)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    before = asyncio.all_tasks()
    async with server:
        async with FaultProxy(target=server.sockets[0].getsockname()[1]) as proxy:
            yield proxy
        async with asyncio.timeout(2):
            while (
                asyncio.all_tasks() - before - {asyncio.current_task()}
            ):  # the proxy's tasks are gone, the server's end by themselves
                await asyncio.sleep(0.001)


async def connect(proxy: FaultProxy) -> Streams:
    return await asyncio.open_connection("127.0.0.1", proxy.port)


async def say(streams: Streams, text: bytes) -> bytes:
    reader, writer = streams
    writer.write(text + b"\n")
    return (await reader.readline()).rstrip()


async def hang_up(*connections: Streams) -> None:
    for _, writer in connections:
        writer.transport.abort()
    await asyncio.sleep(0)


async def test_bytes_pass_in_order(proxy: FaultProxy) -> None:
    """Large and small, both ways."""
    client = await connect(proxy)
    for text in (b"a", b"x" * 60_000, b"b"):
        assert await say(client, text) == text
    assert proxy.accepted == 1
    await hang_up(client)


async def test_cut_breaks_off_and_refuse_lets_nobody_in(proxy: FaultProxy) -> None:
    """The oldest alone, or all; new connections still come in unless they are refused."""
    first, second = await connect(proxy), await connect(proxy)
    assert await say(first, b"1") == b"1" and await say(second, b"2") == b"2"
    proxy.cut(1)
    with pytest.raises(GONE):
        await first[0].readexactly(1)
    assert await say(second, b"3") == b"3"
    proxy.refuse()
    proxy.cut()
    with pytest.raises(GONE):
        await second[0].readexactly(1)
    with pytest.raises(GONE):
        third = await connect(proxy)
        third[1].write(b"x\n")
        await third[0].readexactly(1)
    proxy.resume()
    fourth = await connect(proxy)
    assert await say(fourth, b"4") == b"4"
    await hang_up(first, second, third, fourth)


async def test_stall_holds_and_slow_delays(proxy: FaultProxy) -> None:
    """What was held arrives after `resume`, and nothing is lost."""
    client = await connect(proxy)
    assert await say(client, b"1") == b"1"
    proxy.stall()
    answer = asyncio.create_task(say(client, b"2"))
    await asyncio.wait([answer], timeout=0.05)
    assert not answer.done()
    proxy.resume()
    assert await answer == b"2"
    proxy.slow(0.02)
    begun = time.monotonic()
    assert await say(client, b"3") == b"3"
    assert time.monotonic() - begun >= 0.04
    await hang_up(client)


async def test_half_open_is_known_to_the_server_alone() -> None:
    """The server hears that its client is gone; the client sends on into nothing until it is hung up on."""
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await reader.read(100):
                writer.write(b"!")
        except ConnectionError:
            pass
        gone.set()
        writer.transport.abort()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, FaultProxy(target=server.sockets[0].getsockname()[1]) as proxy:
        client = await connect(proxy)
        client[1].write(b"a")
        assert await client[0].readexactly(1) == b"!"
        proxy.half_open()
        async with asyncio.timeout(10):
            await gone.wait()
        client[1].write(b"b")
        answer = asyncio.create_task(client[0].readexactly(1))
        await asyncio.wait([answer], timeout=0.05)
        assert not answer.done()
        proxy.resume()
        with pytest.raises(GONE):
            await answer
        second = await connect(proxy)
        second[1].write(b"c")
        assert await second[0].readexactly(1) == b"!"
        await hang_up(client, second)


@pytest.mark.parametrize(("action", "passed_on"), [("cut", True), ("drop", False)])
async def test_a_pattern_triggers_its_fault_once(proxy: FaultProxy, action: str, passed_on: bool) -> None:
    """ "cut" hands the bytes on before it breaks off, "drop" does not: seen at the server's answer."""
    answered = proxy.on(b"marker", "pass", side="server")
    client = await connect(proxy)
    assert await say(client, b"plain") == b"plain"
    happened = proxy.on(b"marker", action)
    with pytest.raises(GONE):
        client[1].write(b"marker\n")
        await client[0].readexactly(1)
    assert happened.done()
    assert passed_on or not answered.done()
    again = await connect(proxy)
    assert await say(again, b"marker") == b"marker"
    assert answered.done()
    with pytest.raises(ValueError, match="got 'bend'"):
        proxy.on(b"x", "bend")
    await hang_up(client, again)
