"""The edge contract: what is declared, what is answered, and what makes an answer its client's own."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any

import httpx
import pytest
from fastapi import APIRouter, Cookie, Depends, FastAPI, Header
from fastapi.security import HTTPBearer, OAuth2PasswordBearer
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from springtide.context import Position, RequestContext, activate, current
from springtide.errors import ConfigurationError
from springtide.provenance import MAX_KEYS, HttpPolicy, Provenance
from springtide.signals import PolicyLowered, Signal
from springtide.testing.clock import ManualClock
from springtide.web._conditional import matches
from springtide.web._seal import new_key
from springtide.web._sharing import decide, is_shared
from springtide.web.asgi import Layers
from springtide.web.caching import CachingLayer, cacheable, unchanged
from springtide.web.causality import Carrier, CausalityKeys
from springtide.web.fastapi import install, service

PUBLIC = HttpPolicy(public=True, max_age=5, edge_max_age=30, stale_while_revalidate=10, stale_if_error=60)
SHARED = "public, max-age=5, s-maxage=30, stale-while-revalidate=10, stale-if-error=60"

Handler = Callable[[Request], Awaitable[Response]]


class Recorder:
    def __init__(self) -> None:
        self.signals: list[Signal] = []

    def emit(self, signal: Signal) -> None:
        self.signals.append(signal)

    @property
    def lowered(self) -> list[tuple[str, str]]:
        return [(found.route, found.reason) for found in self.signals if isinstance(found, PolicyLowered)]


class Site:
    """One route, `/things/{id}`, behind the layer and, unless `alone`, all the others."""

    def __init__(self, handler: Handler, *, alone: bool = False, **options: Any) -> None:
        self.sink = Recorder()
        routes = [Route("/things/{id}", handler, methods=["GET", "HEAD", "POST"])]
        layer = CachingLayer(Starlette(routes=routes), sink=self.sink, **options)
        self.app: Any = layer if alone else Layers(layer)

    async def ask(self, method: str = "GET", **headers: str) -> httpx.Response:
        return await ask(self.app, method, **headers)


async def ask(
    app: Any, method: str = "GET", path: str = "/things/7", peer: str = "127.0.0.1", **headers: str
) -> httpx.Response:
    transport = httpx.ASGITransport(app=app, client=(peer, 5000))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await client.request(method, path, headers=named)


def shared(answer: httpx.Response) -> bool:
    return is_shared([(name.encode(), value.encode()) for name, value in answer.headers.items()])


def text(declared: HttpPolicy | None = PUBLIC, body: str = "fine", **options: Any) -> Handler:
    async def handler(request: Request) -> Response:
        return PlainTextResponse(body, **options)

    return cacheable(declared)(handler)


# -- what is declared


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_age": -1}, "max_age must be whole seconds >= 0, got -1"),
        ({"max_age": 0.5}, "max_age must be whole seconds >= 0, got 0.5"),
        ({"public": True, "edge_max_age": float("inf")}, "edge_max_age must be whole seconds >= 0, got inf"),
        ({"edge_max_age": 5}, "edge_max_age is for shared caches, so it needs public=True"),
        ({"stale_if_error": 5}, "stale_if_error is for shared caches, so it needs public=True"),
        ({"public": True, "vary": ("Cookie",)}, "got 'Cookie'"),
        ({"public": True, "vary": ("*",)}, "got '*'"),
        ({"public": True, "vary": ("a b",)}, "got 'a b'"),
    ],
)
def test_a_policy_that_cannot_hold_is_refused(options: dict[str, Any], message: str) -> None:
    """The error names the option, the value and the rule."""
    with pytest.raises(ConfigurationError) as caught:
        HttpPolicy(**options)
    assert message in str(caught.value)


def test_the_staleness_of_a_policy_is_what_caches_may_add() -> None:
    """The client takes over the age that the edge tells, so the two do not add up; revalidation does."""
    assert HttpPolicy().staleness == 0
    assert HttpPolicy(max_age=7).staleness == 7
    assert HttpPolicy(public=True, max_age=7).staleness == 7
    assert HttpPolicy(public=True, max_age=7, edge_max_age=3).staleness == 7
    assert PUBLIC.staleness == 40


async def test_a_public_answer_says_so_to_every_kind_of_cache() -> None:
    """Cache-Control for all, CDN-Cache-Control for networks, the headers it varies by, and an ETag."""
    site = Site(text(HttpPolicy(public=True, edge_max_age=30, vary=("Accept-Language", "Origin"))))
    answer = await site.ask()
    assert answer.headers["cache-control"] == "public, max-age=0, s-maxage=30"
    assert answer.headers["cdn-cache-control"] == "max-age=30"
    assert answer.headers["vary"] == "Accept-Language, Origin"
    assert answer.headers["etag"].startswith('"')
    assert "age" not in answer.headers and "surrogate-key" not in answer.headers
    answer = await Site(text()).ask()
    assert answer.headers["cache-control"] == SHARED
    assert answer.headers["cdn-cache-control"] == "max-age=30, stale-while-revalidate=10, stale-if-error=60"


async def test_a_private_answer_is_for_its_client_alone() -> None:
    """The default policy lets nobody else keep it, and the client asks each time."""
    answer = await Site(text(HttpPolicy())).ask()
    assert answer.headers["cache-control"] == "private, no-cache" and not shared(answer)
    assert "etag" in answer.headers
    answer = await Site(text(HttpPolicy(max_age=60))).ask()
    assert answer.headers["cache-control"] == "private, max-age=60" and not shared(answer)


async def test_a_route_that_declares_nothing_stays_as_it_was() -> None:
    """No header is added to it, and its conditional requests stay its own affair."""

    async def handler(request: Request) -> Response:
        return PlainTextResponse("fine", headers={"etag": '"mine"'})

    for alone in (True, False):
        answer = await Site(handler, alone=alone).ask(if_none_match='"mine"')
        assert answer.status_code == 200
        assert not {"cache-control", "cdn-cache-control", "age", "vary"} & set(answer.headers)


async def test_what_the_answer_says_itself_stands() -> None:
    """A handler that says no-store means it: no network is told anything else."""
    answer = await Site(text(headers={"cache-control": "no-store"})).ask()
    assert answer.headers["cache-control"] == "no-store" and "cdn-cache-control" not in answer.headers
    answer = await Site(text(headers={"cdn-cache-control": "max-age=9"})).ask()
    assert answer.headers["cdn-cache-control"] == "max-age=9" and "cache-control" not in answer.headers


@pytest.mark.parametrize(
    ("status", "said"),
    [(404, "no-store"), (410, "no-store"), (500, "no-store"), (503, "no-store"), (302, "private, no-cache"),
     (301, SHARED), (203, SHARED)],
)  # fmt: skip
async def test_errors_are_not_public(status: int, said: str) -> None:
    """Nobody keeps an error, not even by a cache's own rule of thumb; a redirection for good may be kept."""
    answer = await Site(text(status_code=status)).ask()
    assert answer.status_code == status and answer.headers["cache-control"] == said
    assert ("cdn-cache-control" in answer.headers) == (said == SHARED)


async def test_other_methods_are_not_cached() -> None:
    """A policy is about GET and HEAD."""
    answer = await Site(text()).ask("POST")
    assert not shared(answer) and "etag" not in answer.headers
    assert (await Site(text()).ask("HEAD")).headers["cache-control"] == SHARED


# -- what is used


def use(*values: tuple[str, str, float, HttpPolicy | None], declared: HttpPolicy | None = PUBLIC) -> Handler:
    async def handler(request: Request) -> Response:
        context = current()
        assert context is not None and context.provenance is not None
        for name, key, age, policy in values:
            context.provenance.used(name, key, age=age, tags=(f"all:{name}",), policy=policy)
        return PlainTextResponse("fine")

    return cacheable(declared)(handler)


async def test_the_age_is_that_of_the_oldest_value() -> None:
    """In whole seconds, and never told too small."""
    clock = ManualClock()
    site = Site(use(("user", "user:7", 0.2, PUBLIC), ("tag", "tag:a", 3.1, PUBLIC)), clock=clock)
    assert (await site.ask()).headers["age"] == "4"
    assert "age" not in (await Site(use(("user", "user:7", 0.0, PUBLIC)), clock=clock).ask()).headers


async def test_a_route_is_narrowed_to_what_the_classes_of_its_values_allow() -> None:
    """A budget is kept over the edge: no answer lives there longer than the class of any value in it says."""
    short = HttpPolicy(public=True, max_age=1, edge_max_age=3)
    answer = await Site(use(("user", "user:7", 0.0, PUBLIC), ("tag", "tag:a", 0.0, short))).ask()
    assert answer.headers["cache-control"] == "public, max-age=1, s-maxage=3"
    site = Site(use(("user", "user:7", 0.0, PUBLIC), ("balance", "balance:7", 0.0, None)))
    answer = await site.ask()
    assert answer.headers["cache-control"] == "private, no-cache" and not shared(answer)
    assert site.sink.lowered == [("/things/{id}", "class balance has no http policy")]
    answer = await Site(use(("user", "user:7", 0.0, HttpPolicy(max_age=3)))).ask()
    assert answer.headers["cache-control"] == "private, max-age=3"


async def test_a_route_may_leave_it_to_the_classes() -> None:
    """Without a policy of its own it has theirs; without a value it is private."""
    answer = await Site(use(("user", "user:7", 0.0, PUBLIC), declared=None)).ask()
    assert answer.headers["cache-control"] == SHARED
    assert (await Site(use(declared=None)).ask()).headers["cache-control"] == "private, no-cache"


async def test_surrogate_keys_are_seen_by_trusted_proxies_alone() -> None:
    """They name users by their ids. Behind a proxy, it is the proxy that counts and not the client."""
    site = Site(use(("user", "user:7", 0.0, PUBLIC), ("tag", "a b,c", 0.0, PUBLIC)))
    answer = await ask(site.app)
    assert answer.headers["surrogate-key"] == "user:7 all:user a%20b%2Cc all:tag"
    assert answer.headers["cache-tag"] == "user:7,all:user,a%20b%2Cc,all:tag"
    answer = await ask(site.app, x_forwarded_for="203.0.113.9")
    assert "surrogate-key" in answer.headers
    answer = await ask(site.app, peer="203.0.113.9", x_forwarded_for="127.0.0.1")
    assert shared(answer) and not {"surrogate-key", "cache-tag"} & set(answer.headers)


def test_an_answer_of_many_values_names_their_class() -> None:
    """The header stays small, and a purge of the class still finds the answer."""
    made = Provenance()
    for number in range(MAX_KEYS + 1):
        made.used("user", f"user:{number}", policy=PUBLIC)
    made.used("tag", "tag:a", policy=PUBLIC)
    assert made.keys == ["user:*", "tag:a"]
    made = Provenance()
    made.policy = PUBLIC
    for number in range(40):
        made.used("user", f"user:{number:0300}", policy=PUBLIC)
    headers = dict(decide(made, method="GET", status=200, headers=[], keys=True).headers)
    assert headers[b"surrogate-key"] == b"user:*"


# -- who asks


async def _identity(request: Request) -> None:
    context = current()
    assert context is not None
    _ = context.identity


async def _authorization(request: Request) -> None:
    _ = request.headers.get("Authorization")


async def _cookies(request: Request) -> None:
    _ = request.cookies.get("theme")


async def _every_header(request: Request) -> None:
    _ = dict(request.headers)


async def _granted(request: Request) -> None:
    context = current()
    assert context is not None
    context.granted = 7


async def _wrote(request: Request) -> None:
    context = current()
    assert context is not None
    context.causality.wrote("main", Position(1, 5))


READS: dict[str, tuple[Callable[[Request], Awaitable[None]], str]] = {
    "identity": (_identity, "identity"),
    "authorization": (_authorization, "authorization"),
    "cookies": (_cookies, "cookie"),
    "granted": (_granted, "granted"),
    "wrote": (_wrote, "causality"),
}


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("alone", [True, False])
async def test_an_answer_that_depended_on_who_asks_is_never_public(read: str, alone: bool) -> None:
    """Also when it was nobody: what a stranger sees is not what a user sees. The route is told."""
    look, reason = READS[read]

    async def handler(request: Request) -> Response:
        await look(request)
        return PlainTextResponse("fine")

    site = Site(cacheable(PUBLIC)(handler), alone=alone)
    answer = await site.ask()
    assert answer.headers["cache-control"] == "private, no-cache" and not shared(answer)
    assert site.sink.lowered == [("/things/{id}", reason)]


async def test_a_request_with_authorization_gets_nothing_public() -> None:
    """Whatever the handler looked at; nor does one whose cookie was among headers that were all read."""
    assert not shared(await Site(text()).ask(authorization="Bearer x"))
    assert shared(await Site(text()).ask(cookie="theme=dark"))

    async def handler(request: Request) -> Response:
        await _every_header(request)
        return PlainTextResponse("fine")

    site = Site(cacheable(PUBLIC)(handler))
    assert shared(await site.ask())
    assert not shared(await site.ask(cookie="theme=dark"))


async def test_headers_of_ones_own_may_say_who_asks() -> None:
    """An API key is named to the layer."""

    async def handler(request: Request) -> Response:
        _ = request.headers.get("X-Api-Key")
        return PlainTextResponse("fine")

    assert shared(await Site(cacheable(PUBLIC)(handler)).ask())
    assert not shared(await Site(cacheable(PUBLIC)(handler), personal_headers=["X-Api-Key"]).ask())


async def test_what_an_answer_says_of_itself_gives_way_too() -> None:
    """`public` by the handler's own header, on a route without any policy, is taken back all the same."""

    async def handler(request: Request) -> Response:
        await _identity(request)
        headers = {
            "cache-control": "public, max-age=60",
            "surrogate-key": "a",
            "x-cdn-cache-control": "max-age=9",
        }
        return PlainTextResponse("fine", headers=headers)

    site = Site(handler)
    answer = await site.ask()
    assert answer.headers["cache-control"] == "private, max-age=60" and not shared(answer)
    assert site.sink.lowered == [("/things/{id}", "identity")]


@pytest.mark.parametrize("header", [{"set-cookie": "a=b"}, {"vary": "Accept, *"}, {"Vary": "cookie"}])
async def test_an_answer_for_one_client_by_its_headers_is_not_public(header: dict[str, str]) -> None:
    """A cookie that is set, or an answer that varies by everything."""
    site = Site(text(headers=header))
    assert not shared(await site.ask())
    assert len(site.sink.lowered) == 1


async def test_a_client_that_has_seen_more_gets_an_answer_of_its_own() -> None:
    """With a causality token nobody stores the answer; those of others are as cacheable as ever."""
    keys = CausalityKeys([new_key()])
    carrier = Carrier(keys, name="shop")

    async def write(request: Request) -> Response:
        await _wrote(request)
        return PlainTextResponse("written")

    routes = [Route("/things/{id}", text()), Route("/write", write, methods=["POST"])]
    app = Layers(CachingLayer(Starlette(routes=routes)), causality=carrier)
    token = (await ask(app, "POST", "/write")).headers["springtide-causality"]
    assert shared(await ask(app))
    answer = await ask(app, springtide_causality=token)
    assert not shared(answer)
    context = RequestContext()
    context.causality.observe("main", Position(1, 5))
    with activate(context):
        site = Site(text(), alone=True)
        assert not shared(await site.ask())
    assert site.sink.lowered == [("/things/{id}", "causality")]


class _Nothing:
    def service(self, interface: Any) -> Any:
        return None


bearer = HTTPBearer(auto_error=False)
password = OAuth2PasswordBearer("token", auto_error=False)


def user(token: Annotated[str | None, Depends(password)]) -> str | None:
    return token


async def test_what_fastapi_reads_for_a_route_counts() -> None:
    """Security schemes, cookies and headers as parameters, also of dependencies of dependencies."""
    app, router = FastAPI(), APIRouter()

    @app.get("/bearer")
    @cacheable(PUBLIC)
    async def with_bearer(found: Annotated[Any, Depends(bearer)]) -> str:
        return "fine"

    @app.get("/password")
    @cacheable(PUBLIC)
    async def with_password(found: Annotated[Any, Depends(user)]) -> str:
        return "fine"

    @router.get("/cookie")
    @cacheable(PUBLIC)
    async def with_cookie(theme: Annotated[str | None, Cookie()] = None) -> str:
        return "fine"

    @app.get("/header")
    @cacheable(PUBLIC)
    def with_header(authorization: Annotated[str | None, Header()] = None) -> str:
        return "fine"

    app.include_router(router, prefix="/under")
    layered = Layers(CachingLayer(app))
    for path in ("/bearer", "/password", "/under/cookie", "/header"):
        answer = await ask(layered, path=path)
        assert answer.status_code == 200 and not shared(answer), path


async def test_that_fastapi_reads_all_cookies_does_not_count_where_no_route_can_see_them() -> None:
    """Who takes the Request may look at them unseen: then it is private, unless the route vouches for it."""
    app, router = FastAPI(), APIRouter()
    install(app, _Nothing())

    @app.get("/plain")
    @cacheable(PUBLIC)
    async def plain(page: int = 1, user_agent: Annotated[str | None, Header()] = None) -> str:
        return "fine"

    @router.get("/service")
    @cacheable(PUBLIC)
    async def with_service(found: Annotated[Any, Depends(service(_Nothing))]) -> str:
        return "fine"

    @app.get("/request")
    @cacheable(PUBLIC)
    async def with_request(request: Request) -> str:
        return "fine"

    @app.get("/vouched")
    @cacheable(PUBLIC, ignores_cookies=True)
    async def vouched(request: Request) -> str:
        return "fine"

    @app.get("/both")
    @cacheable(PUBLIC, ignores_cookies=True)
    async def both(request: Request) -> str:
        await _identity(request)
        return "fine"

    app.include_router(router, prefix="/under")
    layered = Layers(CachingLayer(app))
    for path in ("/plain", "/under/service", "/vouched"):
        assert shared(await ask(layered, path=path, cookie="theme=dark")), path
    for path in ("/request", "/both"):
        assert not shared(await ask(layered, path=path)), path


STEPS = ("identity", "cookies", "authorization", "granted", "public value", "private value", "no policy")


@settings(max_examples=200, deadline=None)
@given(
    steps=st.lists(st.sampled_from(STEPS), max_size=6),
    declared=st.sampled_from([PUBLIC, None, HttpPolicy(), HttpPolicy(public=True, max_age=600)]),
    at=st.integers(0, 6),
    own=st.sampled_from([None, "public, max-age=9", "s-maxage=9", "no-store"]),
    status=st.sampled_from([200, 203, 301, 302, 404, 500]),
    method=st.sampled_from(["GET", "HEAD", "POST"]),
)
def test_no_order_of_events_makes_a_personal_answer_public(
    steps: list[str], declared: HttpPolicy | None, at: int, own: str | None, status: int, method: str
) -> None:
    """Whatever is read, used, declared and said, before or after: who asks was read => never public."""

    async def handler(request: Request) -> Response:
        context = current()
        assert context is not None and context.provenance is not None

        async def declare() -> None:
            return None

        for number, step in enumerate([*steps, "end"]):
            if number == min(at, len(steps)):
                await cacheable(declared)(declare)()
            if step in READS:
                await READS[step][0](request)
            elif step == "public value":
                context.provenance.used("user", "user:7", policy=PUBLIC)
            elif step == "private value":
                context.provenance.used("cart", "cart:7", policy=HttpPolicy())
            elif step == "no policy":
                context.provenance.used("stock", "stock:7")
        return PlainTextResponse("fine", status, {} if own is None else {"cache-control": own})

    answer = asyncio.run(Site(handler).ask(method))
    personal = any(step in READS for step in steps)
    if personal:
        assert not shared(answer)
    elif own is None and shared(answer):
        assert not {"private value", "no policy"} & set(steps) and status < 302 and method != "POST"


# -- streams


async def test_a_stream_is_not_buffered() -> None:
    """Its first part is on its way before the second is made."""
    order: list[str] = []

    async def parts() -> AsyncIterator[bytes]:
        for number in range(3):
            order.append(f"made {number}")
            yield b"%d" % number

    async def handler(request: Request) -> Response:
        return StreamingResponse(parts())

    async def send(message: Any) -> None:
        order.append(message["type"].removeprefix("http.response.") + message.get("body", b"").decode())

    async def receive() -> Any:
        await asyncio.Event().wait()

    app = CachingLayer(Starlette(routes=[Route("/", cacheable(PUBLIC)(handler))]))
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [(b"host", b"a")],
        "query_string": b"",
        "asgi": {"spec_version": "2.4"},
    }
    await app(scope, receive, send)
    assert order == ["start", "made 0", "body0", "made 1", "body1", "made 2", "body2", "body"]


async def test_a_public_stream_cannot_begin_to_depend_on_who_asks() -> None:
    """It is cut off: an answer that is not whole is kept by nobody. Afterwards reading is free."""
    read_after: list[bool] = []

    async def parts() -> AsyncIterator[bytes]:
        yield b"for all"
        await _identity(None)  # type: ignore[arg-type]
        yield b"for one"

    async def stream(request: Request) -> Response:
        return StreamingResponse(parts())

    site = Site(cacheable(PUBLIC)(stream), alone=True)
    with pytest.raises(ConfigurationError, match="a public answer has begun"):
        await site.ask()
    answer = await Site(cacheable(HttpPolicy())(stream)).ask()
    assert answer.text == "for allfor one"

    async def after() -> None:
        await _identity(None)  # type: ignore[arg-type]
        read_after.append(True)

    async def handler(request: Request) -> Response:
        return PlainTextResponse("fine", background=BackgroundTask(after))

    assert shared(await Site(cacheable(PUBLIC)(handler)).ask()) and read_after == [True]

    async def streamed(request: Request) -> Response:
        async def whole() -> AsyncIterator[bytes]:
            yield b"for all"

        return StreamingResponse(whole(), background=BackgroundTask(after))

    assert shared(await Site(cacheable(PUBLIC)(streamed)).ask()) and read_after == [True, True]


@pytest.mark.parametrize(
    ("said", "cut"),
    [("public, max-age=60", True), ("max-age=60", True), ("s-maxage=60", True), ("no-cache", False),
     ("no-store", False), ("private, max-age=60", False), ("max-age=0", False), (None, False)],
)  # fmt: skip
async def test_a_stream_that_says_itself_that_it_is_public_cannot_become_personal_either(
    said: str | None, cut: bool
) -> None:
    """Whoever gave the leave; a stream that nobody else may keep, such as of events, goes on."""

    async def parts() -> AsyncIterator[bytes]:
        yield b"for all"
        await _identity(None)  # type: ignore[arg-type]
        yield b"for one"

    async def stream(request: Request) -> Response:
        return StreamingResponse(parts(), headers={} if said is None else {"cache-control": said})

    if cut:
        with pytest.raises(ConfigurationError, match="a public answer has begun"):
            await Site(stream, alone=True).ask()
    else:
        assert (await Site(stream, alone=True).ask()).text == "for allfor one"


@pytest.mark.parametrize(("policy", "cut"), [(None, True), (HttpPolicy(), True), (PUBLIC, False)])
async def test_a_public_stream_cannot_begin_to_use_what_may_be_kept_for_less(
    policy: HttpPolicy | None, cut: bool
) -> None:
    """Its headers are on their way: a value whose budget they do not fit would be kept too long."""

    async def parts() -> AsyncIterator[bytes]:
        yield b"one"
        context = current()
        assert context is not None and context.provenance is not None
        context.provenance.used("user", "user:7", policy=policy)
        yield b"two"

    async def stream(request: Request) -> Response:
        return StreamingResponse(parts())

    site = Site(cacheable(PUBLIC)(stream), alone=True)
    if cut:
        with pytest.raises(ConfigurationError, match="uses a value of user, which may be kept for less"):
            await site.ask()
    else:
        assert (await site.ask()).text == "onetwo"


# -- what the client has already


async def test_a_small_body_has_a_strong_tag_and_304() -> None:
    """Equal bytes, equal tag. A 304 repeats what caches need and describes no body."""
    site = Site(text(body="one"))
    first = await site.ask()
    tag = first.headers["etag"]
    assert tag.startswith('"') and tag == (await site.ask()).headers["etag"]
    assert tag != (await Site(text(body="two")).ask()).headers["etag"]
    again = await site.ask(if_none_match=f'"other", W/{tag}')
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == tag and again.headers["cache-control"] == SHARED
    assert not {"content-type", "content-length"} & set(again.headers)
    assert (await site.ask(if_none_match="*")).status_code == 304
    assert (await site.ask(if_none_match='"other"')).status_code == 200


async def test_personal_answers_have_their_tags_too() -> None:
    """The client keeps them and asks each time; it is told that nothing changed."""

    async def handler(request: Request) -> Response:
        await _identity(request)
        return JSONResponse({"hello": "you"})

    site = Site(cacheable(PUBLIC)(handler))
    tag = (await site.ask()).headers["etag"]
    again = await site.ask(if_none_match=tag)
    assert again.status_code == 304 and not shared(again)


async def test_what_has_no_tag_has_no_304() -> None:
    """Large bodies, streams, errors, HEAD without a body to look at, and methods that change something."""
    for handler, options in (
        (text(body="x" * 100), {"etag_bytes": 99}),
        (text(status_code=404), {}),
        (text(status_code=203), {}),
    ):
        answer = await Site(handler, **options).ask(if_none_match="*")
        assert answer.status_code != 304 and "etag" not in answer.headers
    for method, handler in (("HEAD", text(body="", headers={"content-length": "4"})), ("POST", text())):
        answer = await Site(handler).ask(method, if_none_match="*")
        assert answer.status_code == 200 and "etag" not in answer.headers


async def test_versions_give_a_weak_tag_and_spare_the_work() -> None:
    """The route learns that the client has it; what it returns then becomes the 304; also a stream."""
    made: list[int] = []

    async def parts() -> AsyncIterator[bytes]:
        made.append(1)
        yield b"much"

    async def handler(request: Request) -> Response:
        if unchanged("thing", 7, request.query_params.get("v")):
            return Response()
        return StreamingResponse(parts())

    site = Site(cacheable(PUBLIC)(handler))
    tag = (await site.ask()).headers["etag"]
    assert tag.startswith('W/"') and made == [1]
    again = await site.ask(if_none_match=tag.removeprefix("W/"))
    assert again.status_code == 304 and again.headers["etag"] == tag and made == [1]
    other = await ask(site.app, path="/things/7?v=2", if_none_match=tag)
    assert other.status_code == 200 and other.headers["etag"] != tag


async def test_a_tag_of_the_handler_is_used() -> None:
    """It knows best what is equal."""
    site = Site(text(headers={"ETag": 'W/"mine"'}))
    assert (await site.ask()).headers["etag"] == 'W/"mine"'
    assert (await site.ask(if_none_match='"mine"')).status_code == 304


@pytest.mark.parametrize(
    "given",
    ['"a"', 'W/"a"', '"b", "a"', '"b","a"', ' "a" ', ', "a",, ', '"a",W/"b"', "*", " * "],
)
def test_lists_of_entity_tags_are_read_by_the_rules(given: str) -> None:
    """RFC 9110: weak comparison, commas in quotes, empty members."""
    assert matches(given.encode(), b'"a"')
    assert matches(given.encode(), b'W/"a"')


@pytest.mark.parametrize(
    "given",
    ['"a,b"', '"x,\\"a"', "a", '"a', "", '"b" "a"', 'w/"a"', '"b", a', '"A"', '* , "b"', '"b" x, "a"'],
)
def test_what_is_malformed_or_another_tag_matches_nothing(given: str) -> None:
    """The client gets the answer once more, which is never wrong."""
    assert not matches(given.encode(), b'"a"')
    assert not matches(given.encode(), b'W/"a"')


@given(st.binary(max_size=60))
def test_whatever_a_client_sends_is_answered(given: bytes) -> None:
    """No text makes the reader of tags fail, or go on for ever."""
    matches(given, b'"a"')


# -- mistakes


async def test_a_policy_without_the_layer_is_a_mistake() -> None:
    """It would have no effect, so it is refused; outside of any request it is not in the way."""
    route = text()
    assert isinstance(await route(Request({"type": "http"})), Response)
    with activate(RequestContext()), pytest.raises(RuntimeError, match="keeps no edge contract"):
        await route(Request({"type": "http"}))


def test_options_are_checked() -> None:
    """At construction, with the value."""
    with pytest.raises(ValueError, match="etag_bytes must be >= 0, got -1"):
        CachingLayer(Starlette(), etag_bytes=-1)
    with pytest.raises(ValueError, match="trusted_proxies"):
        CachingLayer(Starlette(), trusted_proxies=["everybody"])


def test_narrowing_is_the_same_in_any_order() -> None:
    """Policies of several values: the order in which they are used does not matter."""
    policies = [PUBLIC, HttpPolicy(public=True, max_age=1), HttpPolicy(max_age=3), HttpPolicy()]
    for some in itertools.permutations(policies, 3):
        results = set()
        for order in itertools.permutations(some):
            made = Provenance()
            made.policy = PUBLIC
            for number, policy in enumerate(order):
                made.used("c", f"c:{number}", policy=policy)
            results.add(made.granted()[0])
        assert len(results) == 1
