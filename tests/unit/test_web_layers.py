"""The layers around an application, without a socket."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from springtide.context import Part, Priority, RequestContext, current
from springtide.errors import CommitUnknown, DatabaseUnavailable, DeadlineExceeded, InvalidCursor
from springtide.signals import RequestFinished, Signal
from springtide.web._routes import MAX_ROUTERS, RouteLabels
from springtide.web.asgi import ErrorReply, Layers


class Recorder:
    def __init__(self) -> None:
        self.signals: list[Signal] = []

    def emit(self, signal: Signal) -> None:
        self.signals.append(signal)

    @property
    def request(self) -> RequestFinished:
        (signal,) = self.signals
        assert isinstance(signal, RequestFinished)
        return signal


Handler = Callable[[Request], Awaitable[Response]]


async def plain(request: Request) -> Response:
    return PlainTextResponse("fine")


@contextmanager
def logged(level: int = logging.ERROR) -> Iterator[list[logging.LogRecord]]:
    records: list[logging.LogRecord] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            records.append(record)

    keep = Keep(level)
    logger = logging.getLogger("springtide.web")
    logger.addHandler(keep)
    try:
        yield records
    finally:
        logger.removeHandler(keep)


def serve(handler: Handler = plain, **options: Any) -> tuple[httpx.AsyncClient, Recorder]:
    sink = Recorder()
    methods = ["GET", "POST", "OPTIONS"]
    inner = Starlette(
        routes=[Route("/", handler, methods=methods), Route("/a/{b}", handler, methods=methods)]
    )
    return client(Layers(inner, sink=sink, **options)), sink


def client(app: Any, peer: str = "127.0.0.1") -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app, client=(peer, 4711))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


# -- ids


@pytest.mark.parametrize("given", ["abc-123", "x" * 128, "a/b:c=d"])
async def test_a_sane_request_id_from_outside_is_kept_and_returned(given: str) -> None:
    http, sink = serve()
    answer = await http.get("/", headers={"x-request-id": given})
    assert answer.headers["x-request-id"] == given == sink.request.request_id


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "é".encode(), b"a\x00b", "<script>"])
async def test_any_other_request_id_is_replaced(given: str | bytes) -> None:
    http, _ = serve()
    answer = await http.get("/", headers=[("x-request-id", given)])
    assert len(answer.headers["x-request-id"]) == 32
    assert answer.headers["x-request-id"].isalnum()


async def test_the_callers_trace_goes_on_with_a_span_of_our_own() -> None:
    seen: list[RequestContext | None] = []

    async def handler(request: Request) -> Response:
        seen.append(current())
        return Response()

    http, sink = serve(handler)
    trace_id, span_id = "a" * 32, "b" * 16
    await http.get("/", headers={"traceparent": f"00-{trace_id}-{span_id}-01", "tracestate": "x=1, y=2"})
    assert seen[0] is not None
    trace = seen[0].trace
    assert trace is not None
    assert (trace.trace_id, trace.parent_id, trace.sampled, trace.state) == (
        trace_id,
        span_id,
        True,
        "x=1,y=2",
    )
    assert trace.span_id not in (span_id, "0" * 16)
    assert sink.request.trace == trace


async def test_two_traceparents_are_none() -> None:
    http, sink = serve()
    pair = ("traceparent", f"00-{'a' * 32}-{'b' * 16}-01")
    await http.get("/", headers=[pair, pair])
    assert sink.request.trace is not None
    assert sink.request.trace.trace_id != "a" * 32


# -- internal headers


async def test_internal_headers_from_outside_never_reach_the_application() -> None:
    seen: list[list[str]] = []

    async def handler(request: Request) -> Response:
        seen.append([name for name in request.headers if name.startswith("springtide")])
        context = current()
        assert context is not None
        assert context.priority is Priority.NORMAL
        assert not context.causality
        assert context.remaining(asyncio.get_running_loop().time()) is not None
        return Response()

    http, _ = serve(handler)
    outside = {
        "springtide-deadline": "0", "springtide-priority": "critical", "springtide-causality": "main:1:FF",
        "springtide_deadline": "0", "springtide_priority": "critical", "springtide_causality": "main:1:FF",
    }  # fmt: skip
    answer = await http.get("/", headers=outside)
    assert answer.status_code == 200
    assert seen == [[]]


async def test_a_trusted_hop_hands_over_deadline_and_priority() -> None:
    """What a client has seen is believed by its seal alone, wherever it comes from."""
    seen: list[RequestContext] = []

    async def handler(request: Request) -> Response:
        context = current()
        assert context is not None
        seen.append(context)
        left.append(context.remaining(asyncio.get_running_loop().time()))
        return Response()

    left: list[float | None] = []
    http, _ = serve(handler, internal_networks=["127.0.0.0/8"], request_timeout=30.0)
    headers = {
        "springtide-deadline": "2.5", "springtide-priority": "bulk", "springtide-causality": "main:1:FF"
    }  # fmt: skip
    await http.get("/", headers=headers)
    assert left[0] is not None and 0.0 < left[0] <= 2.5
    assert seen[0].priority is Priority.BULK
    assert not seen[0].causality
    for name, bad in [("deadline", "nan"), ("deadline", "-1"), ("priority", "urgent")]:
        answer = await http.get("/", headers={f"springtide-{name}": bad})
        assert (answer.status_code, answer.json()["code"]) == (400, "bad-internal-header")


# -- errors


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (DatabaseUnavailable("secret host", retry_after=7.0), 503, "unavailable"),
        (DeadlineExceeded("secret"), 504, "deadline-exceeded"),
        (CommitUnknown("secret"), 500, "commit-unknown"),
        (InvalidCursor("secret"), 400, "invalid-cursor"),
        (RuntimeError("secret"), 500, "internal"),
    ],
)
async def test_an_error_becomes_its_answer_and_nothing_leaks(
    error: Exception, status: int, code: str
) -> None:
    async def handler(request: Request) -> Response:
        raise error

    http, sink = serve(handler)
    with logged() as records:
        answer = await http.get("/")
    assert answer.status_code == status == sink.request.status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["code"] == code
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    assert "secret" not in answer.text
    assert sink.request.error == type(error).__name__
    assert answer.headers.get("retry-after") == ("7" if status == 503 else None)
    unexpected = code in ("internal", "commit-unknown")
    assert len(records) == (1 if unexpected else 0)
    if unexpected:
        assert records[0].exc_info and records[0].exc_info[1] is error


async def test_the_application_chooses_the_form_of_errors_and_its_own_fault_is_survived() -> None:
    async def handler(request: Request) -> Response:
        raise DatabaseUnavailable("x")

    def render(reply: ErrorReply, scope: Any) -> tuple[bytes, str]:
        if scope["path"] == "/":
            return f"{reply.status}!".encode(), "text/x-mine"
        raise KeyError("broken")

    http, _ = serve(handler, render_error=render)
    answer = await http.get("/")
    assert (answer.text, answer.headers["content-type"]) == ("503!", "text/x-mine")
    with logged() as records:
        answer = await http.get("/a/1")
    assert answer.json()["code"] == "unavailable"
    assert len(records) == 1


async def test_a_500_that_the_application_means_is_sent_as_it_is() -> None:
    async def handler(request: Request) -> Response:
        return PlainTextResponse("mine", 500)

    http, sink = serve(handler)
    answer = await http.get("/")
    assert (answer.status_code, answer.text) == (500, "mine")
    assert sink.request.status == 500
    assert sink.request.error is None


async def test_sql_cancelled_at_the_deadline_is_a_timeout_and_before_it_a_fault() -> None:
    class QueryCanceledError(Exception):
        sqlstate = "57014"

    async def handler(request: Request) -> Response:
        context = current()
        assert context is not None
        if request.url.path == "/":
            context.deadline = 0.0
        raise QueryCanceledError

    http, _ = serve(handler)
    assert (await http.get("/")).status_code == 504
    with logged():
        assert (await http.get("/a/1")).status_code == 500


# -- deadline


async def test_past_its_deadline_a_handler_is_cancelled_and_the_client_told() -> None:
    ended = asyncio.Event()

    async def handler(request: Request) -> Response:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    http, sink = serve(handler, request_timeout=0.02)
    answer = await http.get("/")
    assert ended.is_set()
    assert (answer.status_code, answer.json()["code"]) == (504, "deadline-exceeded")
    assert (sink.request.status, sink.request.error) == (504, "DeadlineExceeded")
    task = asyncio.current_task()
    assert task is not None and task.cancelling() == 0, "the server's task is not left cancelled"


async def test_a_handler_that_answers_its_cancellation_cannot_override_the_504() -> None:
    async def handler(request: Request) -> Response:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return PlainTextResponse("too late")
        raise AssertionError

    http, _ = serve(handler, request_timeout=0.02)
    assert (await http.get("/")).status_code == 504


async def test_a_cancellation_from_the_server_is_passed_on() -> None:
    begun = asyncio.Event()

    async def handler(request: Request) -> Response:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    http, sink = serve(handler)
    task = asyncio.create_task(http.get("/"))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert sink.request.error == "cancelled"


async def test_work_after_the_answer_has_no_deadline() -> None:
    done = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x"})
        await asyncio.sleep(0.6)  # longer than the deadline and than the watcher's patience
        done.set()

    sink = Recorder()
    answer = await client(Layers(app, sink=sink, request_timeout=0.5)).get("/")
    assert answer.status_code == 200
    assert done.is_set()
    assert sink.request.status == 200
    assert sink.request.seconds < 0.6  # the answer's time, not that of the work after it


# -- body


async def test_a_declared_body_past_the_limit_is_refused_before_the_application_hears_of_it() -> None:
    async def handler(request: Request) -> Response:
        raise AssertionError

    http, sink = serve(handler, body_bytes=10)
    answer = await http.post("/", content=b"x" * 11)
    assert (answer.status_code, answer.json()["code"]) == (413, "body-too-large")
    assert sink.request.status == 413


@pytest.mark.parametrize("swallow", [False, True])
async def test_a_streamed_body_past_the_limit_is_413_whatever_the_application_makes_of_it(
    swallow: bool,
) -> None:
    received = 0

    async def handler(request: Request) -> Response:
        nonlocal received
        try:
            async for chunk in request.stream():
                received += len(chunk)
        except Exception:
            if not swallow:
                raise
        return PlainTextResponse("my own 400", 400)

    async def chunks() -> Any:
        for _ in range(100):
            yield b"x" * 10

    http, sink = serve(handler, body_bytes=50)
    answer = await http.post("/", content=chunks())
    assert answer.status_code == 413 == sink.request.status
    assert received <= 50


async def test_a_body_at_the_limit_is_served() -> None:
    async def handler(request: Request) -> Response:
        return Response(await request.body())

    http, _ = serve(handler, body_bytes=10)
    assert (await http.post("/", content=b"x" * 10)).content == b"x" * 10


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_path_and_what_is_below_it_may_have_another_limit(streamed: bool) -> None:
    """The longest path decides; what only begins alike is not below it."""

    async def handler(request: Request) -> Response:
        return Response(str(len(await request.body())))

    app = Starlette(routes=[Route("/{path:path}", handler, methods=["POST"])])
    limits = {"/files": 100, "/files/": 50, "/files/small/": 5, "/only": 20, "/none": 0}
    transport = httpx.ASGITransport(app=Layers(app, body_bytes=10, body_limits=limits))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        for path, limit in {
            "/": 10, "/files": 100, "/files/": 50, "/files/x/y": 50, "/filesystem": 10, "/files/small": 50,
            "/files/small/x": 5, "/files/smaller": 50, "/only": 20, "/only/x": 10, "/none": 0,
        }.items():  # fmt: skip

            async def chunks(size: int) -> Any:
                for _ in range(size):
                    yield b"x"

            fits = await http.post(path, content=chunks(limit) if streamed else b"x" * limit)
            assert (fits.status_code, fits.text) == (200, str(limit)), path
            passes = await http.post(path, content=chunks(limit + 1) if streamed else b"x" * (limit + 1))
            assert (passes.status_code, str(limit) in passes.json()["detail"]) == (413, True), path


@pytest.mark.parametrize("length", ["-1", "+1", "1_0", "0x1", "1, 1", "", "9" * 40, "\u0661".encode()])
async def test_a_content_length_that_is_no_number_is_refused(length: str | bytes) -> None:
    http, _ = serve()
    answer = await http.get("/", headers=[("content-length", length)])
    assert (answer.status_code, answer.json()["code"]) == (400, "bad-content-length")


# -- routes


def routed() -> FastAPI:
    inner = APIRouter(prefix="/inner")
    outer = APIRouter(prefix="/{tenant}")
    api = FastAPI()
    sub = FastAPI()

    @inner.get("/{z}")
    async def z(z: str) -> str:
        return z

    @sub.get("/s/{y}")
    async def y(y: int) -> int:
        return y

    outer.include_router(inner)
    api.include_router(outer, prefix="/api")
    api.mount("/sub/{org}", sub)
    api.mount(
        "/st", Starlette(routes=[Route("/p/{q}", plain), Mount("/m", routes=[Route("/k/{j:int}", plain)])])
    )
    api.router.routes.append(Route("/plain/{w}", z))
    return api


@pytest.mark.parametrize(
    ("path", "label"),
    [
        ("/api/t7/inner/3", "/api/{tenant}/inner/{z}"),
        ("/sub/acme/s/1", "/sub/{org}/s/{y}"),
        ("/st/p/1", "/st/p/{q}"),
        ("/st/m/k/4", "/st/m/k/{j}"),
        ("/nope/1", "(unmatched)"),
        ("/openapi.json", "/openapi.json"),
    ],
)
async def test_a_request_is_labelled_with_its_routes_template(path: str, label: str) -> None:
    sink = Recorder()
    await client(Layers(routed(), sink=sink)).get(path)
    assert sink.request.route == label


async def test_plain_routes_inside_fastapi_have_labels_too() -> None:
    sink = Recorder()
    api = FastAPI(routes=[Route("/plain/{w}", plain), Mount("/files", routes=[Route("/{f}/raw", other)])])
    http = client(Layers(api, sink=sink))
    await http.get("/plain/1")
    await http.get("/files/2/raw")
    assert [signal.route for signal in sink.signals if isinstance(signal, RequestFinished)] == [
        "/plain/{w}", "/files/{f}/raw",
    ]  # fmt: skip


async def other(request: Request) -> Response:
    return PlainTextResponse("other")


def test_an_application_that_makes_a_router_per_request_fills_no_memory() -> None:
    """Routers of Starlette before 1.0, which do not say which route matched, are remembered up to a bound."""
    labels = RouteLabels()
    routers = [Starlette(routes=[Route("/p/{q}", plain)]).router for _ in range(300)]
    for router in routers:
        assert labels.label({"router": router, "endpoint": plain}, "") == "/p/{q}"
    assert len(labels._plain) <= MAX_ROUTERS


async def test_labels_are_bounded_whatever_is_asked_for() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["springtide.route"] = scope["path"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    sink = Recorder()
    http = client(Layers(app, sink=sink, max_routes=5))
    for number in range(50):
        await http.get(f"/{number}")
    labels = {signal.route for signal in sink.signals if isinstance(signal, RequestFinished)}
    assert len(labels) == 6 and "(other)" in labels


# -- CPU and Server-Timing


async def test_cpu_counts_the_requests_own_work_and_not_its_waits() -> None:
    async def handler(request: Request) -> Response:
        await asyncio.sleep(0.05)
        total = sum(number * number for number in range(200_000))
        await asyncio.sleep(0)
        return PlainTextResponse(str(total))

    http, sink = serve(handler)
    await http.get("/")
    cpu = sink.request.ledger.seconds(Part.CPU)
    assert 0.002 < cpu < sink.request.seconds - 0.04


async def test_server_timing_tells_the_ledger_and_can_be_turned_off() -> None:
    async def handler(request: Request) -> Response:
        context = current()
        assert context is not None
        for _ in range(3):
            context.ledger.add(Part.SQL, 0.002, "select 1")
        return Response()

    http, _ = serve(handler)
    timing = (await http.get("/")).headers["server-timing"]
    assert timing.startswith("total;dur=")
    assert 'sql;dur=6.00;desc="n=3"' in timing
    assert "cpu;dur=" in timing
    http, _ = serve(handler, server_timing=False)
    assert "server-timing" not in (await http.get("/")).headers


# -- CORS


async def test_listed_origins_may_read_and_send_credentials_others_may_not() -> None:
    http, _ = serve(cors_origins=["https://front.example"])
    good = await http.get("/", headers={"origin": "https://front.example"})
    assert good.headers["access-control-allow-origin"] == "https://front.example"
    assert good.headers["access-control-allow-credentials"] == "true"
    assert "X-Request-Id" in good.headers["access-control-expose-headers"]
    for headers in ({}, {"origin": "https://evil.example"}, {"origin": "null"}):
        answer = await http.get("/", headers=headers)
        assert "access-control-allow-origin" not in answer.headers
        assert answer.headers["vary"] == "Origin"
    evil = {"origin": "https://front.example.evil", "access-control-request-method": "GET"}
    assert (await http.options("/", headers=evil)).status_code == 403


async def test_a_star_opens_to_all_but_never_with_credentials() -> None:
    http, sink = serve(cors_origins=["*"])
    ask = {
        "origin": "http://any:3000", "access-control-request-method": "PUT",
        "access-control-request-headers": "authorization,content-type",
    }  # fmt: skip
    answer = await http.options("/a/1", headers=ask)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "authorization" in answer.headers["access-control-allow-headers"]
    assert "PUT" in answer.headers["access-control-allow-methods"]
    assert "access-control-allow-credentials" not in answer.headers
    assert sink.request.status == 204


async def test_errors_carry_cors_headers_so_that_pages_can_read_them() -> None:
    async def handler(request: Request) -> Response:
        raise DatabaseUnavailable("x")

    http, _ = serve(handler, cors_origins=["*"])
    answer = await http.get("/", headers={"origin": "http://any"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (503, "*")


async def test_an_options_request_that_is_no_preflight_reaches_the_application() -> None:
    http, _ = serve(cors_origins=["*"])
    assert (await http.options("/", headers={"origin": "http://any"})).text == "fine"


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("cors_origins", ["https://a/path"]), ("cors_origins", ["*", "https://a"]),
        ("cors_origins", ["null"]),
        ("request_timeout", 0.0), ("body_bytes", -1), ("trace_sample", 2.0),
        ("trusted_proxies", ["10.0.0.1/8"]),
        ("internal_networks", ["nonsense"]), ("max_routes", 0), ("body_limits", {"files": 1}),
        ("body_limits", {"/files": -1}),
    ],
)  # fmt: skip
async def test_a_wrong_option_is_refused_with_its_name_and_value(option: str, value: Any) -> None:
    with pytest.raises(ValueError, match="got") as caught:
        Layers(plain, **{option: value})  # type: ignore[arg-type]
    assert option.replace("max_routes", "max_labels") in str(caught.value)


# -- other kinds of scope


async def test_websockets_pass_with_a_context_and_without_a_deadline() -> None:
    seen: list[RequestContext | None] = []
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(current())
        assert await receive() == {"type": "websocket.connect"}
        await send({"type": "websocket.accept"})

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "websocket",
        "path": "/",
        "headers": [(b"x-request-id", b"ws1")],
        "client": ("1.2.3.4", 1),
    }
    await Layers(app)(scope, receive, send)
    assert seen[0] is not None
    assert (seen[0].request_id, seen[0].deadline) == ("ws1", None)
    assert sent == [{"type": "websocket.accept"}]


async def test_the_scope_of_the_server_is_not_changed() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["path"] = "/changed"
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        return None

    headers = [(b"springtide-deadline", b"1")]
    scope = {"type": "http", "method": "GET", "path": "/", "headers": headers, "client": ("1.2.3.4", 1)}
    await Layers(app)(scope, receive, send)
    assert scope["path"] == "/"
    assert scope["headers"] == [(b"springtide-deadline", b"1")]


# -- whatever happens


def upload(scope_headers: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    return {
        "type": "http", "method": "POST", "path": "/", "headers": scope_headers, "client": ("127.0.0.1", 1),
        "http_version": "1.1", "root_path": "", "query_string": b"", "scheme": "http", "server": None,
    }  # fmt: skip


async def test_a_refusal_that_the_server_cuts_off_is_counted_too() -> None:
    """Exactly one RequestFinished: also when the server stops while a refused upload is being thrown away."""
    sink = Recorder()
    lingering = asyncio.Event()

    async def receive() -> Any:
        lingering.set()
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        return None

    layers = Layers(Starlette(), sink=sink, body_bytes=10)
    task = asyncio.create_task(layers(upload([(b"content-length", b"99")]), receive, send))
    async with asyncio.timeout(5):
        await lingering.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (sink.request.status, sink.request.error) == (413, "cancelled")


async def test_an_answer_that_cannot_be_sent_is_counted_with_its_reason() -> None:
    sink = Recorder()

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        raise BrokenPipeError

    async def handler(request: Request) -> Response:
        raise DatabaseUnavailable("away")

    layers = Layers(Starlette(routes=[Route("/", handler, methods=["POST"])]), sink=sink)
    with pytest.raises(BrokenPipeError):
        await layers(upload([]), receive, send)
    assert (sink.request.status, sink.request.error) == (503, "BrokenPipeError")


async def test_an_answer_has_one_request_id_the_one_in_our_log() -> None:
    async def handler(request: Request) -> Response:
        return PlainTextResponse("", headers={"x-request-id": "of-an-upstream"})

    http, sink = serve(handler)
    answer = await http.get("/", headers={"x-request-id": "ours"})
    assert answer.headers.get_list("x-request-id") == ["ours"] == [sink.request.request_id]


async def test_a_500_that_is_sent_as_a_file_begins_before_it_ends() -> None:
    """A server that offers `http.response.pathsend` gets the start of a held 500 first."""
    sent: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.pathsend", "path": "/error.html"})

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message["type"])

    sink = Recorder()
    await Layers(app, sink=sink)(upload([]), receive, send)
    assert sent == ["http.response.start", "http.response.pathsend"]
    assert sink.request.status == 500


@pytest.mark.parametrize(("retry_after", "header"), [(None, "1"), (0.1, "1"), (1.4, "2"), (30.0, "30")])
async def test_a_client_is_not_called_back_too_early(retry_after: float | None, header: str) -> None:
    async def handler(request: Request) -> Response:
        raise DatabaseUnavailable("away", retry_after=retry_after)

    http, _ = serve(handler)
    assert (await http.get("/")).headers["retry-after"] == header


async def test_an_application_that_fails_before_it_awaits_is_answered_like_any_other() -> None:
    def app(scope: Any, receive: Any, send: Any) -> Any:
        raise TypeError("not an application")

    sink = Recorder()
    with logged() as records:
        answer = await client(Layers(app, sink=sink)).get("/")
    assert (answer.status_code, sink.request.error) == (500, "TypeError")
    assert len(records) == 1
