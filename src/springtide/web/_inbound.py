"""What a request brings along, read once: identity of the client, ids, trace, internal headers.

The internal headers (`springtide-deadline`, `springtide-priority`) are believed from trusted internal hops
only, `springtide-causality` from whoever brings one that we have sealed. The application sees none of them,
also when they are written with underscores, which some servers take for the same.
Deadlines travel as seconds left, so that no two clocks need to agree.
"""

from __future__ import annotations

import math
import random
import re
import secrets
from collections.abc import Mapping

from springtide.clock import Clock
from springtide.context import Priority, RequestContext
from springtide.telemetry import tracing
from springtide.web._client import Networks, ProxyParser
from springtide.web._types import Scope
from springtide.web.causality import HEADER, Carried, Carrier

__all__ = ["DEADLINE", "PEER", "PRIORITY", "Inbound", "Reader"]

DEADLINE = b"springtide-deadline"
PRIORITY = b"springtide-priority"

PEER = "springtide.peer"
"""In the scope: who the connection comes from, where `client` is somebody behind it."""

INTERNAL = frozenset(
    spelling for name in (DEADLINE, PRIORITY, HEADER) for spelling in (name, name.replace(b"-", b"_"))
)
READ = INTERNAL | {
    b"access-control-request-headers",
    b"access-control-request-method",
    b"content-length",
    b"cookie",
    b"expect",
    b"origin",
    b"traceparent",
    b"tracestate",
    b"transfer-encoding",
    b"x-forwarded-for",
    b"x-forwarded-proto",
    b"x-request-id",
}

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._~:+/=@-]{1,128}")


class Inbound:
    """A request as the layers see it. `fault` is what is wrong with an internal header, None otherwise."""

    __slots__ = ("carried", "client", "context", "fault", "headers", "scope", "timeout")

    def __init__(self, scope: Scope, headers: Mapping[bytes, bytes]) -> None:
        self.scope = scope
        self.headers = headers
        self.client: str | None = None
        self.context = RequestContext()
        self.timeout: float | None = None
        self.fault: str | None = None
        self.carried: Carried | None = None


class Reader:
    """Reads requests by fixed rules; keeps nothing of them."""

    def __init__(
        self,
        *,
        clock: Clock,
        trusted_proxies: Networks,
        internal_networks: Networks,
        request_timeout: float | None,
        trace_sample: float,
        causality: Carrier | None = None,
    ) -> None:
        self._clock = clock
        self._proxies = ProxyParser(trusted_proxies)
        self._internal = internal_networks
        self._request_timeout = request_timeout
        self._trace_sample = trace_sample
        self._carrier = causality

    def read(self, scope: Scope) -> Inbound:
        found: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in READ:
                joint = b"; " if name == b"cookie" else b","
                found[name] = value if name not in found else found[name] + joint + value
        inbound = Inbound(dict(scope), found)
        peer = scope["client"][0] if scope.get("client") else None
        self._place(inbound, peer)
        context = inbound.context
        context.request_id = _request_id(found.get(b"x-request-id"))
        context.trace = tracing.join(
            _text(found.get(b"traceparent")),
            _text(found.get(b"tracestate")),
            sample=self._trace_sample > 0 and random.random() < self._trace_sample,  # noqa: S311 - a share
        )
        inbound.timeout = self._request_timeout
        if not INTERNAL.isdisjoint(found):
            inbound.scope["headers"] = [pair for pair in scope["headers"] if pair[0] not in INTERNAL]
            if self._internal.holds_peer(peer):
                inbound.fault = _take_over(inbound)
        if self._carrier is not None:
            inbound.carried = self._carrier.take(
                context, header=found.get(HEADER), cookie=found.get(b"cookie")
            )
        if inbound.timeout is not None:
            context.deadline = self._clock.monotonic() + inbound.timeout
        return inbound

    def _place(self, inbound: Inbound, peer: str | None) -> None:
        found, scope = inbound.headers, inbound.scope
        inbound.client = self._proxies.client(peer, found.get(b"x-forwarded-for"))
        if inbound.client is not None and inbound.client != peer:
            scope["client"], scope[PEER] = (inbound.client, 0), peer
        scheme = self._proxies.scheme(peer, found.get(b"x-forwarded-proto"))
        if scheme is not None:
            secure = scheme == "https"
            if scope["type"] == "websocket":
                scope["scheme"] = "wss" if secure else "ws"
            else:
                scope["scheme"] = scheme


def _take_over(inbound: Inbound) -> str | None:
    """Put a trusted hop's headers into the context; returns what is wrong with them."""
    found, context = inbound.headers, inbound.context
    try:
        if (left := found.get(DEADLINE)) is not None:
            seconds = float(left)
            if not math.isfinite(seconds) or seconds < 0:
                raise ValueError(f"springtide-deadline must be seconds >= 0, got {left!r}")
            inbound.timeout = seconds if inbound.timeout is None else min(seconds, inbound.timeout)
        if (priority := found.get(PRIORITY)) is not None:
            context.priority = Priority[priority.decode("ascii").upper()]
    except (ValueError, KeyError) as error:
        return str(error)
    return None


def _request_id(given: bytes | None) -> str:
    if given is not None and _REQUEST_ID.fullmatch(given) is not None:
        return given.decode("ascii")
    return secrets.token_hex(16)


def _text(value: bytes | None) -> str | None:
    return value.decode("latin-1").strip(" \t") if value is not None else None
