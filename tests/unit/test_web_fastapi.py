"""FastAPI at the rim."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Protocol, TypeVar

import httpx
import pytest
from fastapi import Body, Depends, FastAPI

from springtide.errors import AlreadyReserved, PoolSaturated
from springtide.web.asgi import ErrorReply, Layers
from springtide.web.fastapi import install, platform, service

T = TypeVar("T")


class Greeter(Protocol):
    async def greet(self, name: str) -> str: ...


class Polite:
    async def greet(self, name: str) -> str:
        if name == "taken":
            raise AlreadyReserved("name", name)
        if name == "busy":
            raise PoolSaturated("no", retry_after=3.2)
        return f"Good day, {name}"


class Platform:
    def service(self, interface: Callable[..., T], /) -> T:
        assert interface is Greeter
        return Polite()  # type: ignore[return-value]  # a registry of one


def application(**options: Any) -> FastAPI:
    app = FastAPI()
    install(app, Platform(), **options)

    @app.get("/hello/{name}")
    async def hello(name: str, greeter: Annotated[Greeter, Depends(service(Greeter))]) -> str:
        return await greeter.greet(name)

    return app


def client(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://t")


@pytest.mark.parametrize("layers", [False, True])
async def test_a_service_by_dependency_and_its_errors_as_answers(layers: bool) -> None:
    app: Any = application()
    http = client(Layers(app) if layers else app)
    assert (await http.get("/hello/you")).json() == "Good day, you"
    taken = await http.get("/hello/taken")
    assert (taken.status_code, taken.json()["code"]) == (409, "already-taken")
    busy = await http.get("/hello/busy")
    assert (busy.status_code, busy.headers["retry-after"]) == (503, "4")
    assert busy.headers["content-type"] == "application/problem+json"


async def test_the_form_of_errors_can_be_chosen() -> None:
    def render(reply: ErrorReply, scope: Any) -> tuple[bytes, str]:
        return f"{reply.code}".encode(), "text/plain"

    answer = await client(application(render_error=render)).get("/hello/taken")
    assert (answer.status_code, answer.text) == (409, "already-taken")


async def test_an_application_without_a_platform_says_so() -> None:
    app = FastAPI()

    @app.get("/")
    async def root(found: Annotated[object, Depends(platform)]) -> None:
        raise AssertionError

    with pytest.raises(RuntimeError, match=r"call springtide\.web.fastapi.install"):
        await client(app).get("/")


@pytest.mark.parametrize("hostile", [b'{"text": "\\ud800"}', b'{"text": NaN}', b'{"text": [Infinity]}'])
async def test_what_cannot_be_quoted_is_refused_like_any_other_input(hostile: bytes) -> None:
    """FastAPI quotes the input in its 422; half a surrogate pair or NaN must not turn that into a 500."""
    app = application()

    @app.post("/notes")
    async def add(text: Annotated[str, Body(embed=True, max_length=5)]) -> str:
        return text

    async with client(app) as http:
        answer = await http.post("/notes", content=hostile, headers={"content-type": "application/json"})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"][0] == "body"
