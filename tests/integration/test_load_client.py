"""The client against servers that behave well and badly: each ending has its kind, none leaks."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from springtide.errors import ConfigurationError
from springtide.ops._process import runner
from springtide.ops.load.client import HttpClient, RequestFailed

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


async def request(reader: asyncio.StreamReader) -> bytes:
    return await reader.readuntil(b"\r\n\r\n")


async def test_a_connection_is_kept_for_the_next_request() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await request(reader)
            writer.write(OK)

    async with serving(handler) as url:
        client = HttpClient(url)
        for _ in range(5):
            answer = await client.request("GET", "/")
            assert (answer.status, answer.body) == (200, b"ok")
        assert client.opened == 1
        await client.close()


async def test_a_body_is_sent_with_its_length_and_chunks_are_joined() -> None:
    received = asyncio.get_running_loop().create_future()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await request(reader)
        received.set_result((head, await reader.readexactly(7)))
        chunks = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
        writer.write(b"HTTP/1.1 201 Created\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks)
        await request(reader)

    async with serving(handler) as url:
        client = HttpClient(url)
        answer = await client.request("POST", "/x?y=1", b"X-Test: 1\r\n", b'{"a":1}')
        head, body = await received
        assert head.startswith(b"POST /x?y=1 HTTP/1.1\r\nHost: 127.0.0.1:")
        assert b"Content-Length: 7\r\n" in head and b"X-Test: 1\r\n" in head and body == b'{"a":1}'
        assert (answer.status, answer.body) == (201, b"abcde")
        await client.close()


async def test_an_interim_answer_is_passed_over() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" + OK)
        await request(reader)

    async with serving(handler) as url:
        client = HttpClient(url)
        assert (await client.request("GET", "/")).status == 200
        await client.close()


async def test_an_answer_may_end_with_its_connection() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall of it")

    async with serving(handler) as url:
        client = HttpClient(url)
        for _ in range(2):
            assert (await client.request("GET", "/")).body == b"all of it"
        assert client.opened == 2
        await client.close()


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        (b"", "reset"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf", "reset"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "protocol"),
    ],
)
async def test_an_incomplete_answer_is_an_error_of_its_kind(said: bytes, kind: str) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await request(reader)
        writer.write(said)

    async with serving(handler) as url:
        client = HttpClient(url, connections=1)
        for _ in range(3):  # a place that leaked would make the second one wait
            with pytest.raises(RequestFailed) as failure:
                await client.request("GET", "/")
            assert failure.value.kind == kind
        await client.close()


async def test_a_server_that_accepts_and_never_answers_times_out() -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with serving(handler) as url:
        client = HttpClient(url, connections=1, timeout=0.1)
        for _ in range(2):
            with pytest.raises(RequestFailed) as failure:
                await client.request("GET", "/")
            assert failure.value.kind == "timeout"
        await client.close()


async def test_nobody_listening_is_a_connect_error() -> None:
    server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    client = HttpClient(f"http://127.0.0.1:{port}", connections=1)
    for _ in range(2):
        with pytest.raises(RequestFailed) as failure:
            await client.request("GET", "/")
        assert failure.value.kind == "connect"


async def test_a_get_is_sent_again_when_its_kept_connection_had_been_closed() -> None:
    answered = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal answered
        await request(reader)
        answered += 1
        writer.write(OK)
        await request(reader)  # the second request on a connection is never answered

    async with serving(handler) as url:
        client = HttpClient(url)
        for _ in range(3):
            assert (await client.request("GET", "/")).status == 200
        assert (answered, client.resent) == (3, 2)
        with pytest.raises(RequestFailed) as failure:
            await client.request("POST", "/")
        assert failure.value.kind == "reset"  # it may have been executed
        await client.close()


async def test_connections_are_bounded_and_handed_on_in_order() -> None:
    open_now = most = 0
    go = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        try:
            while True:
                await request(reader)
                await go.wait()
                writer.write(OK)
        finally:
            open_now -= 1

    async with serving(handler) as url:
        client = HttpClient(url, connections=2)
        order: list[int] = []

        async def one(number: int) -> None:
            await client.request("GET", "/")
            order.append(number)

        tasks = [asyncio.create_task(one(number)) for number in range(6)]
        await asyncio.sleep(0)
        go.set()
        await asyncio.gather(*tasks)
        assert most == 2
        assert order == sorted(order)
        await client.close()


async def test_a_cancelled_request_gives_its_place_back_and_leaks_no_answer() -> None:
    arrived = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            head = await request(reader)
            if b"/hang" in head:
                arrived.set()
                await reader.read()
                return
            writer.write(OK)

    async with serving(handler) as url:
        client = HttpClient(url, connections=1, timeout=2.0)
        hanging = asyncio.create_task(client.request("GET", "/hang"))
        await arrived.wait()
        waiting = asyncio.create_task(client.request("GET", "/waiting"))
        following = asyncio.create_task(client.request("GET", "/following"))
        await asyncio.sleep(0)
        waiting.cancel()
        hanging.cancel()
        assert (await following).status == 200
        assert (await client.request("GET", "/again")).status == 200
        await client.close()


async def test_what_would_break_the_protocol_is_refused_before_it_is_sent() -> None:
    client = HttpClient("http://127.0.0.1:1")
    for path in ("/a b", "/a\r\nX: 1", "relative", "/ü"):
        with pytest.raises(ValueError, match="percent-encoded"):
            await client.request("GET", path)
    for url in ("https://127.0.0.1", "127.0.0.1:80", "http://"):
        with pytest.raises(ConfigurationError, match="http://host"):
            HttpClient(url)
    with pytest.raises(ValueError, match="got 0"):
        HttpClient("http://h", connections=0)


def test_closing_ends_whenever_a_request_was_cancelled() -> None:
    """Also on uvloop, which forgets to tell of a connection whose making was cancelled."""

    async def cancelled(turns: int) -> None:
        server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
        client = HttpClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        request = asyncio.create_task(client.request("GET", "/"))
        for _ in range(turns):
            await asyncio.sleep(0)
        request.cancel()
        await asyncio.wait([request])
        async with asyncio.timeout(10):
            await client.close()
        server.close()
        await server.wait_closed()

    for turns in range(6):
        with runner() as running:
            running.run(cancelled(turns))
