"""Who calls third parties while somebody waits for an answer: watched in the test process, in every test.

A request waits for the platform's own databases, pooler and Redis, and for nobody else. Whatever else it
connects to or sends to is a call that belongs into a job, unless it is in ALLOWED with the reason why the
answer depends on it.

Watched is what Python sends: each connect of a socket, datagram and program that is started (an audit hook),
in the request's tasks and in whatever thread it hands work to; each write of an event loop to a connection
that was made outwards, also one that was opened before the request; and the calls of `obstore` to a bucket,
which has its own sockets. A request is what runs in the context of `Layers`: its tasks and threads too, but
not what is detached from it.

Not seen is what another task sends on the request's behalf, and another library with sockets of its own.
So which modules may import anything that sends is a list, too (test_market_boundaries.py).
"""

from __future__ import annotations

import functools
import re
import socket
import sys
import weakref
from asyncio import selector_events
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, urlsplit

import obstore
from obstore.store import S3Store

from springtide.context import current
from springtide.platform import Platform
from springtide.topology import Topology
from springtide.web.asgi import Layers

__all__ = ["ALLOWED", "Allowed", "Call", "Outgoing", "outgoing"]

MARKET = "market."


@dataclass(frozen=True, slots=True)
class Allowed:
    """Requests to `route` (a pattern of method and path) may be held up by what `caller`, a module, calls."""

    route: str
    caller: str
    reason: str


ALLOWED = (
    Allowed(
        r"POST /market/orders",
        "market.payments.client",
        "the answer says whether the order is paid, declined or not known yet",
    ),
    Allowed(
        r"POST /checkout",
        "market.payments.client",
        "the page says whether the order is paid, declined or not known yet",
    ),
    Allowed(
        r"POST (/market)?/orders/\d+/cancel",
        "market.payments.client",
        "the answer says whether the money is given back, and that nothing will be charged",
    ),
)


@dataclass(frozen=True, slots=True)
class Call:
    """`caller` is the module of market that waits for it; None where a task of its own connects."""

    route: str
    to: str
    caller: str | None

    def __str__(self) -> str:
        return f"{self.route}: {self.caller or 'somebody'} called {self.to}"


class Outgoing:
    """What was called since `take` last asked. One for the process: `install` cannot be undone."""

    def __init__(self) -> None:
        self._route: ContextVar[str | None] = ContextVar("route of the request", default=None)
        self._lent: ContextVar[str | None] = ContextVar("route of who waits for the thread", default=None)
        self._own: set[tuple[str, int] | str] = set()
        self._made: weakref.WeakKeyDictionary[socket.socket, Any] = weakref.WeakKeyDictionary()
        self._calls: list[Call] = []
        self._installed = False

    def install(self) -> None:
        if self._installed:
            return
        self._installed = True
        sys.addaudithook(self._audit)
        self._watch_requests()
        self._wrap(Platform, "__init__", self._of_platform)
        self._wrap(ThreadPoolExecutor, "submit", self._to_thread)
        for name in ("write", "writelines"):
            self._wrap(selector_events._SelectorSocketTransport, name, self._writing)
        for name in ("put_async", "get_async", "head_async", "delete_async", "list"):
            self._wrap(obstore, name, self._to_bucket)

    def take(self) -> list[Call]:
        """All calls of requests to third parties, each once, allowed or not."""
        found, self._calls = list(dict.fromkeys(self._calls)), []
        return found

    def forbidden(self) -> list[Call]:
        """Those of `take` that nothing in ALLOWED is for."""
        return [call for call in self.take() if not any(_fits(one, call) for one in ALLOWED)]

    # -- what is watched -------------------------------------------------------------------------------

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect":
            made, address = arguments
            if isinstance(made, socket.socket):
                self._made[made] = address
            self._note(address)
        elif event in ("socket.sendto", "socket.sendmsg"):
            if arguments[1] is not None:  # else it goes where the socket is connected to
                self._note(arguments[1])
        elif event == "subprocess.Popen":
            self._note(f"the program {arguments[0]}")

    def _writing(self, write: Callable[..., Any], transport: Any, *arguments: Any) -> Any:
        if self._route.get() is not None:
            address = self._made.get(transport._sock)
            if address is not None:
                self._note(address)
        return write(transport, *arguments)

    def _to_thread(
        self, submit: Callable[..., Any], pool: Any, work: Callable[..., Any], /, *rest: Any, **options: Any
    ) -> Any:
        """What the thread does is the request's, too, whether its context goes along or not."""
        route = self._waited_for()
        if route is None:
            return submit(pool, work, *rest, **options)

        def lent(*rest: Any, **options: Any) -> Any:
            token = self._lent.set(route)
            try:
                return work(*rest, **options)
            finally:
                self._lent.reset(token)

        return submit(pool, lent, *rest, **options)

    def _to_bucket(self, call: Callable[..., Any], store: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(store, S3Store):
            self._note("a bucket")
        return call(store, *arguments, **options)

    def _watch_requests(self) -> None:
        serve = Layers.__call__

        @functools.wraps(serve)
        async def watched(layers: Layers, scope: Any, receive: Any, send: Any) -> None:
            """With what it takes written out, because a server asks: else it takes it for a factory."""
            if scope["type"] != "http":
                await serve(layers, scope, receive, send)
                return
            token = self._route.set(f"{scope['method']} {scope['path']}")
            try:
                await serve(layers, scope, receive, send)
            finally:
                self._route.reset(token)

        Layers.__call__ = watched  # type: ignore[method-assign]

    def _of_platform(
        self, make: Callable[..., Any], platform: Any, topology: Topology, *rest: Any, **o: Any
    ) -> None:
        make(platform, topology, *rest, **o)
        for node in topology.nodes.values():
            if node.url is not None:
                self._own |= _addresses(node.url)

    # -- what is kept ----------------------------------------------------------------------------------

    def _note(self, address: Any) -> None:
        route = self._waited_for()
        if route is None or _normal(address) in self._own:
            return
        self._calls.append(Call(route, str(address), _caller()))

    def _waited_for(self) -> str | None:
        """The request that waits here."""
        return self._lent.get() if current() is None else self._route.get() or self._lent.get()

    @staticmethod
    def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def outer(*arguments: Any, **options: Any) -> Any:
            return around(inner, *arguments, **options)

        setattr(owner, name, outer)


def _fits(allowed: Allowed, call: Call) -> bool:
    return bool(re.fullmatch(allowed.route, call.route)) and call.caller in (None, allowed.caller)


def _caller() -> str | None:
    """The innermost module of market that is waiting here."""
    frame = sys._getframe(2)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name.startswith(MARKET):
            return name
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _addresses(url: str) -> set[tuple[str, int] | str]:
    """Where the servers of `url` listen, as sockets name it."""
    parts = urlsplit(url)
    port = parts.port or (6379 if parts.scheme.startswith("redis") else 5432)
    folders = parse_qs(parts.query).get("host", [])
    if parts.hostname:
        return {_normal((parts.hostname, port))}
    return {f"{folder}/.s.PGSQL.{port}" for folder in folders} or {parts.path}


def _normal(address: Any) -> tuple[str, int] | str:
    if isinstance(address, tuple):
        host, port = str(address[0]), int(address[1])
        return ("localhost" if host in ("127.0.0.1", "::1") else host), port
    return address.decode() if isinstance(address, bytes) else str(address)


outgoing = Outgoing()
"""Of this process."""
