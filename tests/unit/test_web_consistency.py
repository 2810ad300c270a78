"""A route says how fresh its reads are."""

from __future__ import annotations

from typing import Any

import httpx
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from springtide.context import Consistency, RequestContext, activate, wanted_consistency
from springtide.web.asgi import Layers
from springtide.web.consistency import reads


def said() -> str:
    wanted = wanted_consistency()
    return "nothing" if wanted is None else f"{wanted.level} {wanted.staleness}"


def application() -> Any:
    app = FastAPI()

    @app.get("/plain")
    @reads(Consistency.EVENTUAL)
    def plain(name: str) -> str:
        return f"{name} {said()}"

    @app.get("/async")
    @reads(Consistency.bounded(5))
    async def asynchronous(number: int = 3) -> str:
        return f"{number} {said()}"

    @app.get("/silent")
    async def silent() -> str:
        return said()

    @reads(Consistency.STRONG)
    async def starlette(_: Request) -> Response:
        return PlainTextResponse(said())

    app.add_route("/starlette", starlette)
    return Layers(app)


async def test_a_route_says_how_fresh_its_reads_are() -> None:
    """FastAPI's parameters stay what they are; a route that says nothing leaves it to its databases."""
    transport = httpx.ASGITransport(app=application())
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        answers = [
            (await client.get(path)).text.strip('"')
            for path in ("/plain?name=x", "/async?number=4", "/silent", "/starlette")
        ]
        assert answers == ["x eventual None", "4 bounded 5", "nothing", "strong None"]
        assert (await client.get("/plain")).status_code == 422


async def test_it_says_so_to_the_request_alone() -> None:
    """The next request hears nothing of it, and without a request there is nobody to tell."""

    @reads(Consistency.EVENTUAL)
    async def route() -> str:
        return said()

    assert await route() == "nothing"
    with activate(RequestContext()):
        assert await route() == "eventual None"
    assert said() == "nothing"
