"""The layers around an application, as one pure ASGI application.

In the order in which a request meets them: client address behind trusted proxies; request id; W3C trace;
internal headers stripped; what the client has seen; context with deadline and ledger; CORS; body limit; the
handler, metered, and cancelled when its client leaves or its deadline passes; errors turned into answers;
`Server-Timing`; one `RequestFinished` for the sink.

Never: buffers a body, asks a dependency, keeps anything of a request after it. WebSockets pass through with a
context and without a deadline; everything else of ASGI passes through untouched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from springtide.clock import Clock, SystemClock
from springtide.context import activate
from springtide.errors import BodyTooLarge
from springtide.signals import NullSink, Sink
from springtide.web import _replies
from springtide.web._body import BodyLimits, declared_length
from springtide.web._client import Networks
from springtide.web._cors import Cors
from springtide.web._exchange import Exchange, Rules
from springtide.web._inbound import Inbound, Reader
from springtide.web._replies import CLIENT_GONE, ErrorReply, RenderError, problem_json, reply_for
from springtide.web._routes import ROUTE_KEY, UNMATCHED, RouteLabels
from springtide.web._types import ASGIApp, Receive, Scope, Send
from springtide.web.causality import Carrier

__all__ = [
    "CLIENT_GONE",
    "ROUTE_KEY",
    "UNMATCHED",
    "ErrorReply",
    "Layers",
    "RenderError",
    "problem_json",
    "reply_for",
]


class Layers:
    """`app` with all layers around it; itself an ASGI application.

    `request_timeout` seconds per request (None: no deadline), `body_bytes` per body; `body_limits` has other
    limits for paths: `/a` for that one alone, `/a/` for all below it, the longest decides. `trusted_proxies`
    are networks (or "unix") whose X-Forwarded-For is believed; `internal_networks` are hops whose deadline
    and priority headers are. `cors_origins` empty means that CORS is left to the application.
    `trace_sample` is the share of new traces that are sampled. `render_error` gives body and content type of
    an error, None means problem+json (RFC 9457). `causality` carries what a client has seen from answer to
    request; None: nothing is carried.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        clock: Clock | None = None,
        sink: Sink | None = None,
        request_timeout: float | None = 30.0,
        body_bytes: int = 1_048_576,
        body_limits: Mapping[str, int] | None = None,
        trusted_proxies: Sequence[str] = ("127.0.0.1/32", "::1/128"),
        internal_networks: Sequence[str] = (),
        cors_origins: Sequence[str] = (),
        server_timing: bool = True,
        trace_sample: float = 0.0,
        max_routes: int = 500,
        render_error: RenderError | None = None,
        causality: Carrier | None = None,
    ) -> None:
        if request_timeout is not None and request_timeout <= 0:
            raise ValueError(f"request_timeout must be > 0 seconds or None, got {request_timeout}")
        if not 0.0 <= trace_sample <= 1.0:
            raise ValueError(f"trace_sample must be a share from 0 to 1, got {trace_sample}")
        self._app = app
        clock = clock or SystemClock()
        self._reader = Reader(
            clock=clock,
            trusted_proxies=Networks(trusted_proxies, option="trusted_proxies"),
            internal_networks=Networks(internal_networks, option="internal_networks"),
            request_timeout=request_timeout,
            trace_sample=trace_sample,
            causality=causality,
        )
        self._rules = Rules(
            clock=clock,
            sink=sink or NullSink(),
            body_limits=BodyLimits(body_bytes, body_limits or {}),
            server_timing=server_timing,
            cors=Cors(cors_origins),
            routes=RouteLabels(max_labels=max_routes),
            render_error=render_error or problem_json,
            carrier=causality,
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            inbound = self._reader.read(scope)
            exchange = Exchange(self._rules, inbound, receive, send)
            with activate(inbound.context):
                try:
                    await self._answer(inbound, exchange)
                except BaseException as error:
                    exchange.cut_off(error)
                    raise
        elif scope["type"] == "websocket":
            inbound = self._reader.read(scope)
            inbound.context.deadline = None  # a connection is not a request: it may stay open for days
            with activate(inbound.context):
                await self._app(inbound.scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer(self, inbound: Inbound, exchange: Exchange) -> None:
        refusal = self._refusal(inbound)
        if refusal is not None:
            await exchange.refuse(refusal)
            return
        origin = inbound.headers.get(b"origin")
        if (
            origin is not None
            and self._rules.cors.enabled
            and inbound.scope["method"] == "OPTIONS"
            and b"access-control-request-method" in inbound.headers
        ):
            await self._preflight(inbound, exchange, origin)
            return
        await exchange.run(self._app)

    def _refusal(self, inbound: Inbound) -> ErrorReply | None:
        """What is wrong with the head of the request; None when nothing is."""
        found, request_id = inbound.headers, inbound.context.request_id
        if inbound.fault is not None:
            return _replies.bad_request(request_id, "bad-internal-header", inbound.fault)
        try:
            length = declared_length(found.get(b"content-length"), found.get(b"transfer-encoding"))
        except ValueError as error:
            return _replies.bad_request(request_id, "bad-content-length", str(error))
        if length is not None:
            limit = self._rules.body_limits.of(inbound.scope["path"])
            if length > limit:
                return reply_for(BodyTooLarge(limit), request_id=request_id)
        return None

    async def _preflight(self, inbound: Inbound, exchange: Exchange, origin: bytes) -> None:
        wanted = inbound.headers.get(b"access-control-request-headers")
        headers = self._rules.cors.preflight(origin, wanted)
        if headers is None:
            await exchange.refuse(
                ErrorReply(
                    status=403, code="origin-not-allowed", title="Forbidden",
                    detail="Pages of this origin may not ask here.", request_id=inbound.context.request_id,
                )
            )  # fmt: skip
        else:
            await exchange.preflight(headers)
