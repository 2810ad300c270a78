"""The edge contract over real sockets, and with sessions that are kept in a database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from tests._redis import RedisServer
from tests.integration.test_web_wire import HTTP, served
from tests.sharded import pools

from springtide.cache import Cache
from springtide.context import current
from springtide.db import Database, Migrator, ShardMap
from springtide.identity.cookies import SessionCookie
from springtide.identity.sessions import MIGRATIONS, Sessions
from springtide.web.asgi import Layers
from springtide.web.caching import CachingLayer, HttpPolicy, cacheable, unchanged
from springtide.web.sessions import Presented, SessionLayer, presented

PUBLIC = HttpPolicy(public=True, edge_max_age=30)
SHARED = "public, max-age=0, s-maxage=30"
PRIVATE = "private, no-cache"


def route(handler: Any) -> Any:
    return CachingLayer(Starlette(routes=[Route("/", cacheable(PUBLIC)(handler), methods=["GET", "HEAD"])]))


@pytest.mark.parametrize("http", HTTP)
async def test_a_client_that_has_it_gets_a_304_and_keeps_its_connection(http: str) -> None:
    """On the wire a 304 has no body and no length that would keep the client waiting; HEAD neither."""

    async def handler(request: Request) -> Response:
        return PlainTextResponse("x" * 1000)

    async with (
        served(route(handler), http=http) as (port, _),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        first = await client.get("/")
        assert (first.status_code, first.headers["cache-control"]) == (200, SHARED)
        for _ in range(3):
            again = await client.get("/", headers={"if-none-match": first.headers["etag"]})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == first.headers["etag"]
            assert "content-length" not in again.headers and "transfer-encoding" not in again.headers
        head = await client.head("/")
        assert (head.status_code, head.headers["cache-control"], head.content) == (200, SHARED, b"")
        assert (await client.get("/")).content == b"x" * 1000


@pytest.mark.parametrize("http", HTTP)
async def test_an_unchanged_stream_is_not_sent(http: str) -> None:
    """It has a weak tag by its versions; its parts reach the client while the next ones are made."""
    go_on = asyncio.Event()

    async def parts() -> AsyncIterator[bytes]:
        yield b"first"
        await go_on.wait()
        yield b"second"

    async def handler(request: Request) -> Response:
        unchanged(1)
        return StreamingResponse(parts())

    async with (
        served(route(handler), http=http) as (port, _),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        async with client.stream("GET", "/") as answer:
            received = answer.aiter_raw()
            assert await anext(received) == b"first"
            go_on.set()
            assert await anext(received) == b"second"
        again = await client.get("/", headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")


async def test_a_public_stream_that_turns_personal_is_cut_off() -> None:
    """What arrives is not whole, so no cache on the way may keep it."""

    async def parts() -> AsyncIterator[bytes]:
        yield b"for all"
        context = current()
        assert context is not None
        yield str(context.identity).encode()

    async def handler(request: Request) -> Response:
        return StreamingResponse(parts())

    async with (
        served(route(handler)) as (port, _),
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
            await client.get("/")


@pytest.mark.needs("redis-server")
async def test_what_was_given_out_in_an_emergency_is_passed_on_to_nobody(redis_server: RedisServer) -> None:
    """While the loader fails the client gets the old value; no shared cache keeps it for longer still."""
    failing = False

    async def load(id: int) -> int:
        if failing:
            raise ValueError
        return id

    async def handler(request: Request) -> Response:
        return PlainTextResponse(str(await numbers.get(7)))

    cache = Cache("app", redis=redis_server.url)
    numbers = cache.define("number:{id}", int, load=load, budget=40, stale_if_error=60, http=PUBLIC)
    transport = httpx.ASGITransport(app=route(handler))
    async with cache, httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        async with asyncio.timeout(60):
            while not numbers.stats.fills:
                assert (await client.get("/")).headers["cache-control"] == SHARED
                await asyncio.sleep(0.02)
        failing = True
        await numbers.invalidate(7)
        answer = await client.get("/")
        assert (answer.text, answer.headers["cache-control"]) == ("7", PRIVATE)


@pytest.mark.parametrize("inside", ["caching", "sessions"])
async def test_pages_of_a_site_with_sessions(database_url: str, inside: str) -> None:
    """That the layer looks the session up makes nothing private; that a page looks at it does, for everybody.

    Whichever of the two layers is inside of the other.
    """
    async with pools([database_url]) as started:
        await Migrator("sessions", MIGRATIONS, started).apply()
        sessions = Sessions(Database("sessions", ShardMap.even(["main"]), started))
        cookie = SessionCookie(secure=False)
        app = FastAPI()

        @app.get("/same")
        @cacheable(PUBLIC)
        async def same() -> str:
            return "fine"

        @app.get("/greeting")
        @cacheable(PUBLIC)
        async def greeting(found: Annotated[Presented | None, Depends(presented)]) -> str:
            return "hello" if found is not None else "sign in"

        @app.post("/login")
        async def login(response: Response) -> None:
            opened = await sessions.login(None, 7, ["write"])
            response.headers.append("set-cookie", cookie.set(opened.cookie))

        layered: Any
        if inside == "sessions":
            layered = Layers(CachingLayer(SessionLayer(app, sessions, cookie=cookie)))
        else:
            layered = Layers(SessionLayer(CachingLayer(app), sessions, cookie=cookie))
        transport = httpx.ASGITransport(app=layered)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            for visit in ("stranger", "user"):
                answer = await client.get("/same")
                assert (answer.json(), answer.headers["cache-control"]) == ("fine", SHARED), visit
                answer = await client.get("/greeting")
                assert answer.headers["cache-control"] == PRIVATE, visit
                assert answer.json() == ("sign in" if visit == "stranger" else "hello")
                await client.post("/login")
