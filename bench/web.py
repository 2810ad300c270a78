"""What the layers add to one request, beside the middleware everybody starts with.

One Starlette application, called as ASGI in process, so that sockets do not hide the differences:

- `layers_us`: `Layers` with its defaults and a `MetricsSink`, minus the bare application.
- `base_http_middleware_us`: one `BaseHTTPMiddleware` that does nothing, minus the bare application.
- `layers_vs_base_http`: their ratio.
- `meter_step_us`: the CPU meter, per step of a handler.
- `emit_us`: `MetricsSink.emit` of one finished request with four parts in its ledger.

Rounds alternate between the candidates; each figure is the median of the rounds' means, microseconds.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from bench._harness import arguments
from springtide.context import Ledger, Part
from springtide.signals import RequestFinished
from springtide.telemetry.metrics import MetricsSink
from springtide.web._meter import Meter
from springtide.web.asgi import Layers

STEPS = 20

HEADERS = [
    (b"host", b"localhost:8000"),
    (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0"),
    (b"accept", b"application/json"),
    (b"accept-language", b"en-US,en;q=0.5"),
    (b"accept-encoding", b"gzip, deflate, br"),
    (b"referer", b"http://localhost:8000/"),
    (b"connection", b"keep-alive"),
    (b"authorization", b"Token abcdefghijklmnopqrstuvwxyz"),
    (b"cookie", b"a=b"),
    (b"priority", b"u=0"),
]


async def article(request: Request) -> Response:
    return PlainTextResponse("an article")


class Nothing(BaseHTTPMiddleware):
    async def dispatch(
        self, request: Request, call_next: Callable[[Request], Awaitable[Response]]
    ) -> Response:
        return await call_next(request)


def scope() -> dict[str, Any]:
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1",
        "method": "GET", "scheme": "http", "path": "/articles/how-to", "raw_path": b"/articles/how-to",
        "query_string": b"", "root_path": "", "headers": list(HEADERS), "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000), "state": {},
    }  # fmt: skip


async def requests(app: Any, count: int) -> float:
    """Mean microseconds per request."""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        return None

    begun = time.perf_counter()
    for _ in range(count):
        await app(scope(), receive, send)
    return (time.perf_counter() - begun) / count * 1e6


class _Step:
    """Suspends once without a future, so that nothing but the step itself is timed."""

    def __await__(self) -> Any:
        yield


async def _walk() -> None:
    for _ in range(STEPS):
        await _Step()


def steps(metered: bool, count: int) -> float:
    """Mean microseconds per step."""
    begun = time.perf_counter()
    for _ in range(count):
        stepper = Meter(_walk()).__await__() if metered else _walk().__await__()
        for _ in stepper:
            pass
    return (time.perf_counter() - begun) / (count * STEPS) * 1e6


def emits(sink: MetricsSink, count: int) -> float:
    ledger = Ledger()
    for part in (Part.POOL, Part.SQL, Part.SERIALISE, Part.CPU):
        ledger.add(part, 0.001)
    signal = RequestFinished("GET", "/articles/{slug}", 200, 0.01, "r", ledger, None, None)
    begun = time.perf_counter()
    for _ in range(count):
        sink.emit(signal)
    return (time.perf_counter() - begun) / count * 1e6


async def measure(rounds: int, count: int) -> dict[str, float]:
    bare = Starlette(routes=[Route("/articles/{slug}", article)])
    sink = MetricsSink(process=False)
    candidates: dict[str, Any] = {"bare": bare, "layers": Layers(bare, sink=sink), "base": Nothing(bare)}
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    cost: dict[str, list[float]] = {"meter": [], "plain": [], "emit": []}
    for name in candidates:
        await requests(candidates[name], 200)
    for _ in range(rounds):
        for name, app in candidates.items():
            taken[name].append(await requests(app, count))
        cost["meter"].append(steps(True, count))
        cost["plain"].append(steps(False, count))
        cost["emit"].append(emits(sink, count))
    middle = {name: statistics.median(values) for name, values in (taken | cost).items()}
    layers, base = middle["layers"] - middle["bare"], middle["base"] - middle["bare"]
    return {
        "bare_us": round(middle["bare"], 1),
        "layers_us": round(layers, 1),
        "base_http_middleware_us": round(base, 1),
        "layers_vs_base_http": round(layers / base, 2),
        "meter_step_us": round(middle["meter"] - middle["plain"], 2),
        "emit_us": round(middle["emit"], 1),
    }


def main() -> None:
    options = arguments(__doc__, rounds=15)
    figures = asyncio.run(measure(options.rounds, 500 if options.quick else 2000))
    for name, figure in figures.items():
        print(f"{name:26} {figure:8.2f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
