"""The layers and the database together: nobody's SQL runs on for a client that has left."""

from __future__ import annotations

import asyncio
import socket
from contextlib import contextmanager
from typing import Any

import asyncpg
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from springtide.context import Part
from springtide.db.pool import Pool
from springtide.signals import RequestFinished, Signal
from springtide.web.asgi import Layers


class Heard:
    def __init__(self) -> None:
        self.requests: asyncio.Queue[RequestFinished] = asyncio.Queue()

    def emit(self, signal: Signal) -> None:
        if isinstance(signal, RequestFinished):
            self.requests.put_nowait(signal)


@contextmanager
def _no_signals() -> Any:
    yield


@pytest.mark.parametrize("ends", ["client", "deadline"])
async def test_sql_ends_with_its_request(database_url: str, ends: str) -> None:
    heard = Heard()
    pool = Pool(database_url, size=3, reserved=1)
    await pool.start()

    async def handler(request: Request) -> Response:
        await pool.fetch("select pg_sleep(60)")
        return PlainTextResponse("unreachable")

    layers = Layers(
        Starlette(routes=[Route("/", handler)]),
        sink=heard,
        request_timeout=0.5 if ends == "deadline" else 30.0,
    )
    config = uvicorn.Config(layers, ws="none", lifespan="off", log_config=None, proxy_headers=False)
    server = uvicorn.Server(config)
    server.capture_signals = _no_signals  # type: ignore[method-assign]
    watcher = await asyncpg.connect(database_url)
    running = "select count(*) from pg_stat_activity where state = 'active' and query like 'select pg_sleep%'"
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:
        listener.bind(("127.0.0.1", 0))
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            async with asyncio.timeout(20):
                reader, writer = await asyncio.open_connection(*listener.getsockname())
                writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                while not await watcher.fetchval(running):
                    await asyncio.sleep(0.01)
                if ends == "deadline":
                    assert (await reader.readline()).startswith(b"HTTP/1.1 504")
                writer.close()
                signal = await heard.requests.get()
                assert signal.status == (504 if ends == "deadline" else 499)
                assert signal.ledger.seconds(Part.SQL) > 0
                while await watcher.fetchval(running):
                    await asyncio.sleep(0.01)
        finally:
            server.should_exit = True
            await serving
            await watcher.close()
            await pool.stop()
