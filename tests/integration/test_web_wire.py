"""The layers behind a real uvicorn, over real sockets: what cannot be seen without a wire."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from springtide.context import current
from springtide.errors import DatabaseUnavailable
from springtide.signals import RequestFinished, Signal
from springtide.web.asgi import Layers

HTTP = ("httptools", "h11")


class Heard:
    """A sink that can be waited for."""

    def __init__(self) -> None:
        self.requests: asyncio.Queue[RequestFinished] = asyncio.Queue()

    def emit(self, signal: Signal) -> None:
        if isinstance(signal, RequestFinished):
            self.requests.put_nowait(signal)

    async def next(self) -> RequestFinished:
        async with asyncio.timeout(20):
            return await self.requests.get()


@asynccontextmanager
async def served(app: Any, *, http: str = "httptools", **options: Any) -> AsyncIterator[tuple[int, Heard]]:
    heard = Heard()
    layers = Layers(app, sink=heard, **options)
    config = uvicorn.Config(
        layers, http=http, ws="none", lifespan="off", log_config=None, access_log=False,  # type: ignore[arg-type]
        timeout_graceful_shutdown=1,
        proxy_headers=False,
    )  # fmt: skip
    server = uvicorn.Server(config)
    server.capture_signals = _no_signals  # type: ignore[method-assign]
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:  # else asyncio leaves Nagle's algorithm on
        listener.bind(("127.0.0.1", 0))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield listener.getsockname()[1], heard
        finally:
            server.should_exit = True
            await task


@contextmanager
def _no_signals() -> Any:
    yield


class Wire:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, *, head: bool = False) -> tuple[int, dict[str, str], bytes]:
        async with asyncio.timeout(20):
            lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            headers = {
                name.lower(): value for line in lines[1:] if line for name, _, value in [line.partition(": ")]
            }
            body = b""
            if not head and "content-length" in headers:
                body = await self.reader.readexactly(int(headers["content-length"]))
            return int(lines[0].split()[1]), headers, body

    async def closed(self) -> bool:
        async with asyncio.timeout(20):
            try:
                return await self.reader.read() == b""
            except ConnectionResetError:
                return True


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()
        with suppress(ConnectionError):  # the server may have ended it first
            await writer.wait_closed()


def app(*handlers: Callable[[Request], Any]) -> Starlette:
    return Starlette(routes=[Route("/", handler, methods=["GET", "POST"]) for handler in handlers])


def get(path: str = "/", extra: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: x\r\n{extra}\r\n".encode()


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("body", [b"", b"content-length: 2\r\n\r\n{}"])
async def test_a_client_that_leaves_has_its_handler_cancelled_and_counts_as_499(
    http: str, body: bytes
) -> None:
    begun, ended = asyncio.Event(), asyncio.Event()

    async def handler(request: Request) -> Response:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    async with served(app(handler), http=http) as (port, heard):
        async with connected(port) as wire:
            head = b"POST / HTTP/1.1\r\nhost: x\r\n"
            await wire.send(head + (body or b"\r\n"))
            await begun.wait()
        async with asyncio.timeout(20):
            await ended.wait()
        signal = await heard.next()
        assert (signal.status, signal.route) == (499, "/")


@pytest.mark.parametrize("http", HTTP)
async def test_a_client_that_leaves_late_has_a_handler_cancelled_that_never_reads(http: str) -> None:
    """Also when the watcher has the whole (empty) request already, and nobody takes it."""
    watched, ended = asyncio.Event(), asyncio.Event()

    async def handler(request: Request) -> Response:
        await asyncio.sleep(0.08)  # the watcher is awake by now
        watched.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    async with served(app(handler), http=http) as (port, heard):
        async with connected(port) as wire:
            await wire.send(get())
            await watched.wait()
        async with asyncio.timeout(20):
            await ended.wait()
        assert (await heard.next()).status == 499


async def test_a_client_that_leaves_in_the_middle_of_a_stream_ends_it() -> None:
    ended = asyncio.Event()

    async def handler(request: Request) -> Response:
        async def ticks() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"data: tick\n\n"
                    await asyncio.sleep(0.01)
            finally:
                ended.set()

        return StreamingResponse(ticks(), media_type="text/event-stream")

    async with served(app(handler)) as (port, heard):
        async with connected(port) as wire:
            await wire.send(get())
            status, headers, _ = await wire.answer()
            assert (status, headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
            await wire.reader.readuntil(b"tick")
        async with asyncio.timeout(20):
            await ended.wait()
        assert (await heard.next()).status == 499


async def test_an_event_stream_outlives_the_time_of_a_request_and_so_does_a_handler_that_lifts_it() -> None:
    async def handler(request: Request) -> Response:
        async def ticks() -> AsyncIterator[bytes]:
            for _ in range(10):
                yield b"data: tick\n\n"
                await asyncio.sleep(0.03)

        lifted = request.url.query == "lift"
        if lifted:
            context = current()
            assert context is not None
            context.deadline = None
        return StreamingResponse(ticks(), media_type="text/plain" if lifted else "text/event-stream")

    async with served(app(handler), request_timeout=0.1) as (port, heard):
        for path in ("/", "/?lift"):
            async with connected(port) as wire:
                await wire.send(get(path, "connection: close\r\n"))
                assert (await wire.answer())[0] == 200
                async with asyncio.timeout(20):
                    assert (await wire.reader.read()).endswith(b"0\r\n\r\n")
            assert (await heard.next()).error is None


@pytest.mark.parametrize("http", HTTP)
async def test_watching_the_client_takes_nothing_of_the_body_from_the_application(http: str) -> None:
    """Request streaming: every byte arrives once and in order, however slowly it is sent and read."""

    async def handler(request: Request) -> Response:
        await asyncio.sleep(0.08)  # the watcher is awake by now
        received = b""
        async for chunk in request.stream():
            received += chunk
            await asyncio.sleep(0.01)
        return Response(received)

    async with served(app(handler), http=http) as (port, heard):
        async with connected(port) as wire:
            await wire.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
            sent = b""
            for number in range(20):
                piece = b"piece %d," % number
                await wire.send(b"%x\r\n%s\r\n" % (len(piece), piece))
                sent += piece
                await asyncio.sleep(0.01)
            await wire.send(b"0\r\n\r\n")
            status, _, body = await wire.answer()
            assert (status, body) == (200, sent)
            await wire.send(get())  # the connection is good for the next one
            assert (await wire.answer())[0] == 200
        assert (await heard.next()).status == 200


async def test_a_client_that_waits_for_100_continue_is_not_asked_for_what_nobody_reads() -> None:
    async def handler(request: Request) -> Response:
        await asyncio.sleep(0.1)
        return PlainTextResponse("no need", 401)

    async with served(app(handler)) as (port, _), connected(port) as wire:
        head = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\nexpect: 100-continue\r\n\r\n"
        await wire.send(head)
        assert (await wire.answer())[0] == 401


@pytest.mark.parametrize("http", HTTP)
@pytest.mark.parametrize("chunked", [False, True])
async def test_an_oversized_upload_gets_its_413_although_the_client_goes_on_sending(
    http: str, chunked: bool
) -> None:
    async def handler(request: Request) -> Response:
        return Response(await request.body())

    async with served(app(handler), http=http, body_bytes=1000) as (port, heard):
        async with connected(port) as wire:
            piece = b"x" * 100_000
            if chunked:
                await wire.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
                for _ in range(20):
                    await wire.send(b"%x\r\n%s\r\n" % (len(piece), piece))
                await wire.send(b"0\r\n\r\n")
            else:
                await wire.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 2000000\r\n\r\n")
                for _ in range(20):
                    await wire.send(piece)
            status, headers, body = await wire.answer()
            assert (status, json.loads(body)["code"]) == (413, "body-too-large")
            assert headers["connection"] == "close"
            assert await wire.closed()
        assert (await heard.next()).status == 413


@pytest.mark.parametrize("http", HTTP)
async def test_a_client_that_sends_everything_before_it_reads_still_sees_the_413(http: str) -> None:
    async def handler(request: Request) -> Response:
        raise AssertionError

    loop, size = asyncio.get_running_loop(), 12_000_000
    async with served(app(handler), http=http, body_bytes=1000) as (port, _):
        with socket.socket(proto=socket.IPPROTO_TCP) as plain:
            plain.setblocking(False)
            await loop.sock_connect(plain, ("127.0.0.1", port))
            await loop.sock_sendall(plain, b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % size)
            await loop.sock_sendall(plain, b"x" * size)
            async with asyncio.timeout(20):
                assert (await loop.sock_recv(plain, 4096)).startswith(b"HTTP/1.1 413")


async def test_a_client_that_does_not_read_its_answer_holds_nothing_past_the_deadline() -> None:
    async def handler(request: Request) -> Response:
        async def much() -> AsyncIterator[bytes]:
            yield b"x" * 30_000_000

        return StreamingResponse(much())

    async with served(app(handler), request_timeout=0.2) as (port, heard):
        with socket.socket(proto=socket.IPPROTO_TCP) as plain:
            plain.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(plain, ("127.0.0.1", port))
            await loop.sock_sendall(plain, get())
            signal = await heard.next()
            assert (signal.status, signal.error) == (200, "DeadlineExceeded")


async def test_an_upload_without_end_is_cut_off() -> None:
    async def handler(request: Request) -> Response:
        return Response(await request.body())

    async with served(app(handler), body_bytes=1000) as (port, heard), connected(port) as wire:
        await wire.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        piece = b"x" * 60_000
        with pytest.raises(ConnectionError):
            async with asyncio.timeout(20):
                while True:
                    await wire.send(b"%x\r\n%s\r\n" % (len(piece), piece))
                    await asyncio.sleep(0)
        assert (await heard.next()).status == 413


async def test_a_body_that_does_not_arrive_in_time_is_408() -> None:
    async def handler(request: Request) -> Response:
        return Response(await request.body())

    async with served(app(handler), request_timeout=0.1) as (port, heard), connected(port) as wire:
        await wire.send(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 5\r\n\r\nab")
        status, headers, _ = await wire.answer()
        assert (status, headers["connection"]) == (408, "close")
        assert await wire.closed()
        assert (await heard.next()).status == 408


async def test_a_deadline_in_the_middle_of_an_answer_ends_the_connection() -> None:
    async def handler(request: Request) -> Response:
        async def body() -> AsyncIterator[bytes]:
            yield b"part"
            await asyncio.Event().wait()

        return StreamingResponse(body())

    async with served(app(handler), request_timeout=0.1) as (port, heard), connected(port) as wire:
        await wire.send(get())
        assert (await wire.answer())[0] == 200
        async with asyncio.timeout(20):
            rest = await wire.reader.read()
        assert rest.startswith(b"4\r\npart\r\n")
        assert not rest.endswith(b"0\r\n\r\n"), "a cut answer must not look complete"
        signal = await heard.next()
        assert (signal.status, signal.error) == (200, "DeadlineExceeded")


async def test_an_error_is_logged_once_and_the_connection_stays_usable() -> None:
    async def handler(request: Request) -> Response:
        raise RuntimeError("secret")

    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    keep = Keep()
    logging.getLogger().addHandler(keep)
    try:
        async with served(app(handler)) as (port, _), connected(port) as wire:
            for _ in range(2):
                await wire.send(get())
                status, headers, body = await wire.answer()
                assert status == 500
                assert b"secret" not in body
                assert json.loads(body)["request_id"] == headers["x-request-id"]
    finally:
        logging.getLogger().removeHandler(keep)
    assert [record.name for record in records if record.levelno >= logging.ERROR] == ["springtide.web"] * 2


@pytest.mark.parametrize("http", HTTP)
async def test_pipelined_requests_are_answered_in_order_with_their_own_ids(http: str) -> None:
    async def handler(request: Request) -> Response:
        await asyncio.sleep(0.06 if request.query_params["n"] == "0" else 0)
        return PlainTextResponse(request.query_params["n"])

    async with served(app(handler), http=http) as (port, _), connected(port) as wire:
        await wire.send(b"".join(get(f"/?n={n}", f"x-request-id: r{n}\r\n") for n in range(4)))
        for number in range(4):
            status, headers, body = await wire.answer()
            assert (status, body, headers["x-request-id"]) == (200, str(number).encode(), f"r{number}")


@pytest.mark.parametrize("http", HTTP)
async def test_head_gets_the_headers_of_an_error_without_its_body(http: str) -> None:
    async def handler(request: Request) -> Response:
        raise RuntimeError("x")

    async with served(app(handler), http=http) as (port, _), connected(port) as wire:
        for _ in range(2):
            await wire.send(b"HEAD / HTTP/1.1\r\nhost: x\r\n\r\n")
            status, headers, _ = await wire.answer(head=True)
            assert status == 500
            assert int(headers["content-length"]) > 0


@pytest.mark.parametrize(
    "extra",
    [
        "x-request-id: a\x01b\r\n", "traceparent: 00-zz-zz-01\r\n", f"x-request-id: {'x' * 5000}\r\n",
        "x-forwarded-for: ,,,\r\n", f"x-forwarded-for: {', '.join(['::::'] * 500)}\r\n",
        f"tracestate: {'a=1,' * 900}\r\n", "origin: \xff\xfe\r\n", "springtide-deadline: -inf\r\n",
    ],
)  # fmt: skip
async def test_hostile_headers_neither_break_nor_echo(extra: str) -> None:
    async def handler(request: Request) -> Response:
        assert request.client is not None
        return PlainTextResponse(request.client.host)

    async with served(app(handler), cors_origins=["https://a"]) as (port, _), connected(port) as wire:
        await wire.send(f"GET / HTTP/1.1\r\nhost: x\r\n{extra}\r\n".encode("latin-1"))
        status, headers, body = await wire.answer()
        if status == 400:
            return  # the server itself refused the bytes
        assert (status, body) == (200, b"127.0.0.1")
        assert len(headers["x-request-id"]) == 32


async def test_the_client_behind_a_trusted_proxy_is_known_and_others_cannot_pretend() -> None:
    async def handler(request: Request) -> Response:
        assert request.client is not None
        return PlainTextResponse(f"{request.client.host} {request.url.scheme}")

    extra = "x-forwarded-for: 6.6.6.6, 203.0.113.9\r\nx-forwarded-proto: https\r\n"
    for trusted, expected in [(["127.0.0.1/32"], b"203.0.113.9 https"), (["10.0.0.0/8"], b"127.0.0.1 http")]:
        async with served(app(handler), trusted_proxies=trusted) as (port, _), connected(port) as wire:
            await wire.send(get("/", extra))
            assert (await wire.answer())[2] == expected


async def test_a_thousand_requests_leave_no_tasks_and_no_memory_behind() -> None:
    async def handler(request: Request) -> Response:
        if request.query_params["n"] == "0":
            await asyncio.sleep(0.06)
        return PlainTextResponse("x")

    async with served(app(handler)) as (port, heard), connected(port) as wire:
        await wire.send(get("/?n=1"))
        await wire.answer()
        before = len(asyncio.all_tasks())
        for number in range(1000):
            await wire.send(get(f"/?n={number}"))
            assert (await wire.answer())[0] == 200
        await asyncio.sleep(0)
        assert len(asyncio.all_tasks()) <= before
        assert heard.requests.qsize() == 1001


@pytest.mark.parametrize("http", HTTP)
async def test_every_request_of_a_storm_is_counted_once_and_leaves_nothing(http: str) -> None:
    """Clients that leave at any moment, half-sent bodies, failing handlers: as many ends as beginnings."""
    chance = random.Random(7)
    begun = 0

    async def handler(request: Request) -> Response:
        nonlocal begun
        begun += 1
        kind = chance.randrange(5)
        if kind == 0:
            raise DatabaseUnavailable("away")
        if kind == 1:
            await request.body()
        elif kind == 2:
            await asyncio.sleep(chance.random() * 0.15)
        elif kind == 3:
            return StreamingResponse(slowly())
        return PlainTextResponse("x" * chance.randrange(300_000))

    async def slowly() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b"x" * 10_000
            await asyncio.sleep(chance.random() * 0.03)

    async def visit(port: int, places: asyncio.Semaphore) -> None:
        async with places, connected(port) as wire:
            with suppress(ConnectionError, TimeoutError):
                if chance.random() < 0.5:
                    await wire.send(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * chance.randint(1, 3))
                else:
                    await wire.send(b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
                    await wire.send(b"5\r\nhello\r\n" * chance.randrange(500))
                    await wire.send(b"0\r\n\r\n" if chance.random() < 0.5 else b"")
                async with asyncio.timeout(chance.random() * 0.3):
                    await wire.reader.read(chance.randint(1, 200_000))
            if chance.random() < 0.5:
                wire.writer.transport.abort()

    async with served(app(handler), http=http, request_timeout=0.3, body_bytes=2000) as (port, heard):
        tasks = len(asyncio.all_tasks())
        places = asyncio.Semaphore(50)
        async with asyncio.TaskGroup() as group:
            for _ in range(400):
                group.create_task(visit(port, places))
        async with asyncio.timeout(10):
            while len(asyncio.all_tasks()) > tasks:
                await asyncio.sleep(0.01)
        assert begun > 200
        assert heard.requests.qsize() == begun
