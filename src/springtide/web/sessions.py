"""Sessions at the rim: the cookie becomes the identity of the request, and forms prove where they come from.

    app = platform.wrap(SessionLayer(app, platform.service(SessionService), cookie=SessionCookie()))

`SessionLayer` is pure ASGI and stands inside `Layers`, so that the look-up has the request's deadline and a
database that is away becomes 503. A cookie that leads nowhere leaves the request anonymous; the layer never
removes it, because a late answer could then remove the new cookie that another one has set.
Answers within a session are kept from shared caches. A WebSocket that another site's page opens is anonymous.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl

from starlette.requests import HTTPConnection, Request

from springtide.context import RequestContext, activate, current
from springtide.errors import CsrfRefused
from springtide.identity.cookies import SAFE_METHODS, SessionCookie, check_origin, csrf_token, csrf_valid
from springtide.identity.sessions import Session, SessionService
from springtide.web._types import ASGIApp, Message, Receive, Scope, Send

__all__ = [
    "CSRF_FIELD",
    "CSRF_HEADER",
    "Presented",
    "SessionLayer",
    "check_csrf",
    "presented",
    "verify_csrf",
]

SCOPE_KEY = "springtide.session"
CSRF_HEADER = "x-csrf-token"
CSRF_FIELD = "csrf"
MAX_FORM_FIELDS = 1000

PRIVATE = b"private, no-cache"


@dataclass(frozen=True, slots=True)
class Presented:
    """The session of a request and the cookie value it came by, which is a secret."""

    session: Session
    cookie: str

    def csrf(self) -> str:
        """A token for a form or for the header `X-CSRF-Token`."""
        return csrf_token(self.cookie)

    def __repr__(self) -> str:
        return f"Presented(session={self.session!r}, cookie=...)"


class SessionLayer:
    """`app` with sessions: the context's identity (scheme "session"), unless another layer has set one."""

    def __init__(self, app: ASGIApp, sessions: SessionService, *, cookie: SessionCookie) -> None:
        self._app = app
        self._sessions = sessions
        self._cookie = cookie
        self._prefix = f"{cookie.name}=".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        context = current()
        with nullcontext() if context is not None else activate(RequestContext()):
            found = await self._find(scope)

            async def guarded(message: Message) -> None:
                if message["type"] == "http.response.start":
                    message = {**message, "headers": self._headers(scope, message, found is not None)}
                await send(message)

            scope[SCOPE_KEY] = found  # in place: what routing says in there is read by the layers outside
            await self._app(scope, receive, guarded)

    async def _find(self, scope: Scope) -> Presented | None:
        context = current()
        provenance = context.provenance if context is not None else None
        with provenance.unseen() if provenance is not None else nullcontext():
            cookie = self._cookie.read(scope)
        if scope["type"] == "websocket" and not _own_page(scope):
            cookie = None
        session = await self._sessions.find(cookie) if cookie is not None else None
        if session is None or cookie is None:
            return None
        if context is not None and context.known is None:
            context.identity = session.identity
        return Presented(session, cookie)

    def _headers(self, scope: Scope, message: Message, within: bool) -> list[tuple[bytes, bytes]]:
        headers = list(message.get("headers", ()))
        ours = [
            pair for pair in headers if pair[0].lower() == b"set-cookie" and pair[1].startswith(self._prefix)
        ]
        if ours and not self._cookie.serves(scope):
            headers = [pair for pair in headers if pair not in ours]
        context = current()
        provenance = context.provenance if context is not None else None
        declared = provenance is not None and provenance.policy is not None  # and then the layer decides
        said = declared or any(name.lower() == b"cache-control" for name, _ in headers)
        if (within or ours) and not said:
            headers.append((b"cache-control", PRIVATE))
        return headers


def _own_page(scope: Scope) -> bool:
    """Whether a WebSocket is opened by a page of ours: it brings the cookie, and can bring no token."""
    scheme = "https" if scope.get("scheme") == "wss" else "http"
    try:
        check_origin({**scope, "method": "POST", "scheme": scheme})
    except CsrfRefused:
        return False
    return True


def presented(connection: HTTPConnection) -> Presented | None:
    """A dependency: the session of the request, None without one. RuntimeError without a SessionLayer."""
    context = current()
    if context is not None and context.provenance is not None:
        context.provenance.restrict("session")
    try:
        found: Presented | None = connection.scope[SCOPE_KEY]
    except KeyError:
        raise RuntimeError(
            "this application has no sessions: put springtide.web.sessions.SessionLayer around it"
        ) from None
    return found


async def check_csrf(request: Request) -> Presented | None:
    """A dependency: the session of the request; raises CsrfRefused (403) unless a page of ours sent it.

    Safe methods pass. The token is looked for in the header `X-CSRF-Token`, then in the field `csrf` of a
    form (application/x-www-form-urlencoded). A request that no session is behind is refused: its form came
    from a page that had one. Requests that prove who they are by `Authorization` need no token; do not call
    this for them. (It has no options, because a dependency's options would be read from the query.)
    """
    return await verify_csrf(request)


async def verify_csrf(
    request: Request, *, token: str | None = None, origins: Collection[str] = ()
) -> Presented | None:
    """`check_csrf` with a token found elsewhere, as in a multipart form, and other origins that may ask."""
    found = presented(request)
    if request.method in SAFE_METHODS:
        return found
    check_origin(request.scope, origins=origins)
    if found is None:
        raise CsrfRefused("the request has no session")
    given = token if token is not None else await _given(request)
    if given is None:
        raise CsrfRefused("the request has no token")
    if not csrf_valid(found.cookie, given):
        raise CsrfRefused("the token was made for another session")
    return found


async def _given(request: Request) -> str | None:
    header = request.headers.get(CSRF_HEADER)
    if header is not None:
        return header
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        return None
    try:
        fields: list[tuple[str, Any]] = parse_qsl(
            (await request.body()).decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_FORM_FIELDS
        )
    except ValueError:
        return None
    found = [value for name, value in fields if name == CSRF_FIELD]
    return found[0] if len(found) == 1 else None
