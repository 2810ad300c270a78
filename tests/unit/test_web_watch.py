"""Who asks is seen however an application looks: not through the front door alone."""

from __future__ import annotations

import asyncio
import contextvars
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, SimpleUser
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from tests.unit.test_web_caching import PUBLIC, SHARED, Site, ask, shared

from springtide.web._watch import Watch
from springtide.web.caching import CachingLayer, cacheable

KEY = b"Bearer x"


def answering(look: Callable[[Any], Any]) -> Callable[[Request], Awaitable[Response]]:
    """A public route that looks at the request before it answers."""

    async def handler(request: Request) -> Response:
        found = look(request)
        if asyncio.iscoroutine(found):
            await found
        return PlainTextResponse("fine")

    return cacheable(PUBLIC)(handler)


async def _elsewhere(request: Request) -> None:
    await asyncio.get_running_loop().run_in_executor(None, request.headers.get, "cookie")


async def _in_a_bare_task(request: Request) -> None:
    async def look() -> None:
        request.headers.get("cookie")

    await asyncio.create_task(look(), context=contextvars.Context())


@pytest.mark.parametrize("look", [_elsewhere, _in_a_bare_task])
async def test_it_is_seen_where_nobody_knows_the_request(look: Callable[[Any], Any]) -> None:
    """A thread of an executor, a task with a context of its own: the headers know whose they are."""
    for headers in ({"cookie": "theme=dark"}, {}):
        site = Site(answering(look))
        assert not shared(await site.ask(**headers))
        assert site.sink.lowered == [("/things/{id}", "cookie")]


RAW: dict[str, Callable[[bytes], Any]] = {
    "compared": lambda value: value == KEY,
    "other way": lambda value: value != KEY,
    "begins": lambda value: value.startswith(b"Bearer "),
    "parted": lambda value: value.partition(b"="),
    "indexed": lambda value: value[:6],
    "searched": lambda value: b"dark" in value,
    "walked": list,
    "copied": bytes,
    "as text": str,
    "as a key": lambda value: {value: 1},
    "added": lambda value: b"x" + value,
    "formatted": lambda value: f"{value!r}",
}


@pytest.mark.parametrize("read", RAW)
async def test_a_value_is_seen_to_be_read_without_being_decoded(read: str) -> None:
    """Pure ASGI code makes a dictionary of lower-case names and works with bytes."""

    def look(request: Request) -> None:
        headers = {name.lower(): value for name, value in request.scope["headers"]}
        if b"cookie" in headers:
            RAW[read](headers[b"cookie"])

    site = Site(answering(look))
    assert not shared(await site.ask(cookie="theme=dark"))
    assert shared(await site.ask(accept="*/*"))


async def test_a_middleware_that_looks_at_cookies_after_the_route_is_seen() -> None:
    """FastAPI reads the cookies of every request; that its route has been found excuses nobody else."""
    for looks in (True, False):

        async def dispatch(request: Request, call_next: Any, looks: bool = looks) -> Response:
            answer: Response = await call_next(request)
            if looks:
                request.cookies.get("theme")
            return answer

        app = FastAPI()
        app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)

        @app.get("/things/{id}")
        @cacheable(PUBLIC)
        async def thing(id: int) -> str:
            return "fine"

        for headers in ({"cookie": "theme=dark"}, {}):
            assert shared(await ask(CachingLayer(app), **headers)) is not looks


async def test_a_route_that_takes_the_request_before_fastapi_does_is_seen() -> None:
    """A route class of one's own has the Request in its hands, whatever its function declares."""
    from fastapi.routing import APIRoute

    class Own(APIRoute):
        def get_route_handler(self) -> Any:
            inner = super().get_route_handler()

            async def handler(request: Request) -> Any:
                answer = await inner(request)
                answer.headers["x-theme"] = request.cookies.get("theme", "")
                return answer

            return handler

    app, router = FastAPI(), APIRouter(route_class=Own)

    @router.get("/things/{id}")
    @cacheable(PUBLIC)
    async def thing(id: int) -> str:
        return "fine"

    app.include_router(router)
    assert not shared(await ask(CachingLayer(app), cookie="theme=dark"))


@pytest.mark.parametrize("name", ["user", "auth", "session"])
async def test_what_a_layer_outside_found_out_is_seen_to_be_used(name: str) -> None:
    """Starlette's own layers leave who asks in the scope: whoever takes it from there answers one client."""
    values = {"user": SimpleUser("ada"), "auth": AuthCredentials(["page"]), "session": {"id": 7}}

    def wrapped(app: Any) -> Any:
        async def outside(scope: Any, receive: Any, send: Any) -> None:
            scope[name] = values[name]
            await app(scope, receive, send)

        return outside

    for look, public in ((lambda request: getattr(request, name), False), (lambda request: None, True)):
        site = Site(answering(look), alone=True)
        assert shared(await ask(wrapped(site.app))) is public
        assert site.sink.lowered == ([] if public else [("/things/{id}", name)])


async def test_every_line_of_a_header_counts() -> None:
    """An answer may say in two lines what it varies by: the last one does not hide the others."""

    async def handler(request: Request) -> Response:
        answer = PlainTextResponse("fine")
        answer.headers.append("vary", "Cookie")
        answer.headers.append("vary", "Accept-Encoding")
        return answer

    assert not shared(await Site(cacheable(PUBLIC)(handler)).ask())


@pytest.mark.parametrize(
    ("own", "said"),
    [
        ("max-age=600", "private, max-age=600"),
        ("max-age=600, must-revalidate", "private, max-age=600, must-revalidate"),
        ("must-understand, max-age=9", "private, must-understand, max-age=9"),
        ("no-cache", "private, no-cache"),
        ("private, max-age=9", "private, max-age=9"),
        ("no-store", "no-store"),
        ("max-age=9, No-Store", "max-age=9, No-Store"),
    ],
)
async def test_a_personal_answer_that_does_not_say_public_is_not_kept_for_all(own: str, said: str) -> None:
    """A shared cache may keep whatever does not forbid it: `max-age` alone is leave enough."""

    async def handler(request: Request) -> Response:
        request.headers.get("cookie")
        return PlainTextResponse("fine", headers={"cache-control": own})

    for declared in (False, True):
        site = Site(cacheable(PUBLIC)(handler) if declared else handler)
        assert (await site.ask()).headers["cache-control"] == said


async def test_the_tag_of_a_body_is_the_same_whoever_sends_it() -> None:
    """Behind a middleware that passes answers on in pieces, and for HEAD, as for GET."""

    async def pass_on(request: Request, call_next: Any) -> Response:
        answer: Response = await call_next(request)
        return answer

    inner = Starlette(routes=[Route("/things/{id}", answering(lambda request: None))])
    direct, passed = CachingLayer(inner), CachingLayer(BaseHTTPMiddleware(inner, pass_on))
    tag = (await ask(direct)).headers["etag"]
    for app in (direct, passed):
        for method in ("GET", "HEAD"):
            answer = await ask(app, method)
            assert answer.headers["etag"] == tag and answer.headers["cache-control"] == SHARED
            again = await ask(app, method, if_none_match=tag)
            assert (again.status_code, again.content) == (304, b"")


async def test_what_is_watched_is_gone_with_its_request() -> None:
    """Headers that know whose they are leave nothing for the garbage collector."""
    app = CachingLayer(PlainTextResponse("fine"))
    gc.collect()
    gc.disable()
    try:
        await ask(app, cookie="theme=dark")
        assert not [found for found in gc.get_objects() if type(found) is Watch]
    finally:
        gc.enable()
