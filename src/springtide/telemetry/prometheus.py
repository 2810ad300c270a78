"""`/metrics`: a registry in the text format of Prometheus, or OpenMetrics for those who ask for it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest, start_http_server
from prometheus_client.core import Metric
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

__all__ = ["MetricsEndpoint", "render", "serve"]

OPENMETRICS = "application/openmetrics-text"


class _WithoutCreated(Collector):
    """A registry without the `_created` series that the client library adds: they double the size, and nobody
    here reads them."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def collect(self) -> Iterator[Metric]:
        for metric in self._registry.collect():
            if metric.type in ("counter", "histogram", "summary"):
                added = f"{metric.name}_created"
                metric.samples = [sample for sample in metric.samples if sample.name != added]
            yield metric


def serve(registry: CollectorRegistry, host: str, port: int) -> None:
    """For a process that serves no HTTP: answer with the metrics on `host`:`port` until it ends.

    From threads of its own, so also while the event loop stands still. Raises OSError.
    """
    start_http_server(port, host, registry=_WithoutCreated(registry))


def render(registry: CollectorRegistry, accept: str = "") -> tuple[bytes, str]:
    """The metrics and their content type, as `accept` (an Accept header) prefers."""
    wanted = {part.partition(";")[0].strip().lower() for part in accept.split(",")}
    source = _WithoutCreated(registry)
    if OPENMETRICS in wanted:
        body: bytes = openmetrics.generate_latest(source)  # type: ignore[no-untyped-call]  # the library's
        return body, openmetrics.CONTENT_TYPE_LATEST
    return generate_latest(source), CONTENT_TYPE_LATEST


class MetricsEndpoint:
    """An ASGI application that answers GET and HEAD with the metrics."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    async def __call__(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Awaitable[MutableMapping[str, Any]]],
        send: Callable[[MutableMapping[str, Any]], Awaitable[None]],
    ) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            status, body, content_type = 405, b"GET or HEAD\n", "text/plain; charset=utf-8"
        else:
            accept = b",".join(value for name, value in scope["headers"] if name == b"accept")
            # In a thread: writing thousands of series takes milliseconds, and process metrics read files.
            body, content_type = await asyncio.to_thread(render, self._registry, accept.decode("latin-1"))
            status = 200
        headers = [
            (b"content-type", content_type.encode("ascii")),
            (b"content-length", str(len(body)).encode("ascii")),
            (b"cache-control", b"no-store"),
        ]
        if status == 405:
            headers.append((b"allow", b"GET, HEAD"))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})
