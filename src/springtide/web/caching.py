"""The edge contract: one declaration says who may keep an answer, and the answer proves that it may be kept.

    app = platform.wrap(CachingLayer(app, sink=platform.sink))

    @app.get("/articles/{slug}")
    @cacheable(HttpPolicy(public=True, edge_max_age=30, stale_while_revalidate=10))
    async def article(slug: str) -> ...:

A declared answer gets `Cache-Control`, `CDN-Cache-Control`, `Vary`, `Age`, an `ETag` and 304 where the
client has it already, and, towards trusted proxies, the keys by which it can be purged. What is not declared
stays as it was, but for one thing: **an answer that depended on who asks is never public**, whatever was
declared or said by its own headers. These make it so, the first one is counted and logged with its route:

    identity, session        `context.identity` or `presented()` was read, also when it was nobody
    cookie, authorization    the header was looked for (see `_watch.py`), or the request has Authorization
    causality                the client has written, or has seen more than an older answer would show
    granted, set-cookie      the answer itself is given to one client
    vary                     by its own header it varies by Cookie, Authorization or *
    stale                    a value was given out in an emergency that may be older than its budget
    a class                  a cached value was used whose class has no http policy, or a private one

    start -> held (its body is whole and small: the ETag is made of it) -> sent | unchanged (304, no body)
          `-> streaming (nothing is buffered) -> sent

Once a public answer streams, reading who asks raises in the handler, and so does using a cached value that
may be kept for less than the headers said: an answer cut off is kept by nobody.
"""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Collection, Sequence
from contextlib import nullcontext
from typing import Any, ParamSpec, TypeVar, cast

import msgspec

from springtide.clock import Clock, SystemClock
from springtide.context import RequestContext, activate, current
from springtide.provenance import AS_USED, HttpPolicy, Provenance
from springtide.signals import NullSink, PolicyLowered, Sink
from springtide.web import _conditional
from springtide.web._client import Networks
from springtide.web._inbound import PEER
from springtide.web._routes import RouteLabels
from springtide.web._sharing import SAFE, decide
from springtide.web._types import ASGIApp, Message, Receive, Scope, Send
from springtide.web._watch import Watching

__all__ = ["CachingLayer", "HttpPolicy", "cacheable", "unchanged"]

_log = logging.getLogger("springtide.web")

P = ParamSpec("P")
T = TypeVar("T")

MAX_LOGGED = 1000
"""Routes with their reasons that are logged, each once."""

PERSONAL = ("authorization", "cookie", "proxy-authorization")


class CachingLayer:
    """`app` with the edge contract; pure ASGI, inside `Layers` or alone.

    trusted_proxies:  networks (or "unix") of the caches that may see surrogate keys, which name users and
                      things by their ids.
    personal_headers: what else says who asks, such as `X-Api-Key`.
    etag_bytes:       the largest body that an ETag is made of; it has to be whole in one message.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        trusted_proxies: Sequence[str] = ("127.0.0.1/32", "::1/128"),
        personal_headers: Collection[str] = (),
        etag_bytes: int = 262_144,
        clock: Clock | None = None,
        sink: Sink | None = None,
    ) -> None:
        if etag_bytes < 0:
            raise ValueError(f"etag_bytes must be >= 0, got {etag_bytes}")
        self._app = app
        self._trusted = Networks(trusted_proxies, option="trusted_proxies")
        self._watching = Watching([name.lower().encode("ascii") for name in (*PERSONAL, *personal_headers)])
        self._etag_bytes = etag_bytes
        self._clock = clock or SystemClock()
        self._sink = sink or NullSink()
        self._routes = RouteLabels()
        self._logged: set[tuple[str, str]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = current()
        if scope["type"] != "http" or (context is not None and context.provenance is not None):
            await self._app(scope, receive, send)
            return
        provenance = Provenance()
        own = RequestContext() if context is None else context
        own.provenance = provenance
        if own.causality:
            provenance.restrict("causality")
        inner, watch = self._watching.scope(scope, provenance)
        answer = _Answer(self, own, provenance, inner, send)
        with nullcontext() if context is not None else activate(own):
            try:
                await self._app(inner, receive, answer.send)
            finally:
                provenance.sealed = False
                watch.over()

    def _lowered(self, scope: Scope, reason: str) -> None:
        route = self._routes.label(scope, str(scope.get("root_path", "")))
        self._sink.emit(PolicyLowered(route, reason))
        if (route, reason) not in self._logged and len(self._logged) < MAX_LOGGED:
            self._logged.add((route, reason))
            _log.warning("answers of %s are kept for less than was declared: %s", route, reason)


class _Answer:
    """One answer on its way; see the module for its states."""

    __slots__ = (
        "_begun",
        "_context",
        "_held",
        "_layer",
        "_length",
        "_provenance",
        "_scope",
        "_send",
        "_unchanged",
    )

    def __init__(
        self, layer: CachingLayer, context: RequestContext, provenance: Provenance, scope: Scope, send: Send
    ) -> None:
        self._layer = layer
        self._begun = layer._clock.monotonic()
        self._context = context
        self._provenance = provenance
        self._scope = scope
        self._send = send
        self._held: Message | None = None
        self._length = 0
        self._unchanged = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            if self._may_be_tagged(message):
                self._held = message
            else:
                await self._begin(message)
        elif self._held is not None:
            held, self._held = self._held, None
            body = message.get("body", b"") if message["type"] == "http.response.body" else None
            await self._begin(held, body if body is not None and self._is_whole(body) else None)
            await self._pass_on(message)
        else:
            await self._pass_on(message)

    async def _pass_on(self, message: Message) -> None:
        if self._unchanged:
            return
        await self._send(message)
        if not message.get("more_body", False):
            self._provenance.sealed = False  # what the application does now goes into no answer

    def _may_be_tagged(self, message: Message) -> bool:
        """Whether to wait for a body that is whole: it says how long it is, so it is no stream."""
        if (
            self._provenance.policy is None
            or self._provenance.etag is not None
            or message["status"] != 200
            or self._scope["method"] not in SAFE
        ):
            return False
        found = {name.lower(): value for name, value in message.get("headers", ())}
        length = found.get(b"content-length", b"")
        self._length = int(length) if length.isdigit() else self._layer._etag_bytes + 1
        return b"etag" not in found and self._length <= self._layer._etag_bytes

    def _is_whole(self, body: bytes) -> bool:
        """Whether it is all that was announced; to HEAD an application may send the body of GET, or none."""
        return len(body) == self._length and (len(body) > 0 or self._scope["method"] == "GET")

    async def _begin(self, message: Message, body: bytes | None = None) -> None:
        provenance, context, method = self._provenance, self._context, self._scope["method"]
        status, headers = message["status"], list(message.get("headers", ()))
        if context.granted is not None:
            provenance.restrict("granted")
        elif context.causality.written or (context.known is not None and context.causality):
            provenance.restrict("causality")
        provenance.late(self._layer._clock.monotonic() - self._begun)
        decided = decide(provenance, method=method, status=status, headers=headers, keys=self._trusts())
        if decided.reason is not None:
            self._layer._lowered(self._scope, decided.reason)
        headers = decided.headers
        tag = next((value for name, value in headers if name.lower() == b"etag"), None)
        if tag is None and status == 200 and method in SAFE:
            tag = provenance.etag or (_conditional.tag_of(body) if body is not None else None)
            if tag is not None:
                headers.append((b"etag", tag))
        if tag is not None and self._client_has(tag, status):
            self._unchanged = True
            kept = _conditional.not_modified(headers)
            await self._send({"type": "http.response.start", "status": 304, "headers": kept})
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        provenance.sealed = decided.public and body is None
        await self._send({**message, "headers": headers})

    def _client_has(self, tag: bytes, status: int) -> bool:
        known = self._provenance.known
        return (
            known is not None
            and status == 200
            and self._scope["method"] in SAFE
            and (self._provenance.policy is not None or self._provenance.etag is not None)
            and _conditional.matches(known, tag)
        )

    def _trusts(self) -> bool:
        """Whether the answer goes to one of our proxies."""
        client = self._scope.get("client")
        return self._layer._trusted.holds_peer(self._scope.get(PEER, client[0] if client else None))


def cacheable(
    policy: HttpPolicy | None = None, *, ignores_cookies: bool = False
) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Declare who may keep the answers of a route; a decorator for its function, `async` or plain.

    policy: None means as the classes say whose cached values it uses. Given or not, it is narrowed to what
            they all allow.
    ignores_cookies: you vouch that the answer depends on no cookie. For routes of FastAPI that take the whole
            Request: the framework has read its cookies already, so nobody can see whether the route does.
    Outside of a request it does nothing; in one without a CachingLayer it raises RuntimeError.
    """
    declared, ignored = policy or AS_USED, ("cookie",) if ignores_cookies else ()

    def decorate(route: Callable[P, T]) -> Callable[P, T]:
        @functools.wraps(route)
        async def asynchronous(*args: Any, **kwargs: Any) -> Any:
            _declare(declared, ignored)
            return await cast(Any, route)(*args, **kwargs)

        @functools.wraps(route)
        def plain(*args: P.args, **kwargs: P.kwargs) -> T:
            _declare(declared, ignored)
            return route(*args, **kwargs)

        return cast(Callable[P, T], asynchronous) if inspect.iscoroutinefunction(route) else plain

    return decorate


def _declare(policy: HttpPolicy, ignored: Collection[str]) -> None:
    context = current()
    if context is None:
        return
    if context.provenance is None:
        raise RuntimeError(
            "this application keeps no edge contract: put springtide.web.caching.CachingLayer around it"
        )
    context.provenance.policy, context.provenance.ignored = policy, ignored


def unchanged(*versions: Any) -> bool:
    """Give the answer a weak ETag made of `versions`; whether the client has that answer already.

    The versions are what msgspec encodes (numbers, texts, times) and stand for all that the answer is made
    of, the language included where it varies. When it is True the route may return anything, such as an empty
    answer of status 200: the client gets a 304. It also works for streams, which have no ETag otherwise.
    False outside of a request with a CachingLayer.
    """
    context = current()
    if context is None or context.provenance is None:
        return False
    provenance = context.provenance
    provenance.etag = _conditional.weak_tag_of(msgspec.json.encode(versions))
    return provenance.known is not None and _conditional.matches(provenance.known, provenance.etag)
