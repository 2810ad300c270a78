"""Pages about trouble, in the same look as the others: what happened, what to do, and the request's id.

They need nothing but the request: no session, no database, so they can be shown whatever is broken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Match

from market.faults import Conflict, Forbidden, Invalid, NotFound, Refused, Stale, Taken
from market.storefront.rendering import redirect, write
from springtide.context import current
from springtide.web.asgi import ErrorReply

__all__ = ["error_page", "refusal", "routing_error", "sign_in_first", "trouble"]

STATUS: Mapping[type[Refused], int] = {
    Invalid: 422, Taken: 409, Conflict: 409, Stale: 409, NotFound: 404, Forbidden: 403,
}  # fmt: skip

WORDS: Mapping[int, tuple[str, str]] = {
    400: ("That request makes no sense", "The address or the form was malformed."),
    401: ("Please sign in", "Your session has ended. Sign in and try again."),
    403: ("This is not yours to do", "It is not yours, or the form is out of date: load the page again."),
    404: ("Nothing here", "The page does not exist, or no longer does."),
    405: ("That does not work here", "The address is right, and cannot be used in this way."),
    408: ("That took too long", "Your request did not arrive in time. Try again."),
    409: ("Something has changed", "What there is now does not allow this. Look again and repeat it."),
    413: ("That is too large", "The server does not take so much at once."),
    415: ("That is no form", "The server takes forms of its own pages here."),
    422: ("Something is not right", "Some values cannot be used."),
    429: ("Slow down, please", "There were too many requests from you. Wait a moment and try again."),
    500: ("We made a mistake", "Something failed on our side. It is logged, and the number below finds it."),
    503: ("We are busy", "The server cannot take this request now. Try again in a moment."),
    504: ("That took too long", "The server could not answer in time. Try again in a moment."),
}  # fmt: skip


def error_page(status: int, *, said: Sequence[str] = (), request_id: str = "", home: str = "/") -> str:
    other = (HTTPStatus(status).phrase, "The request could not be answered.")
    title, sentence = WORDS.get(status, other)
    return write(
        "trouble.html", status=status, title=title, sentence=sentence, said=said, request_id=request_id,
        signs_in=status in (401, 403), again=home,
    )  # fmt: skip


def trouble(reply: ErrorReply) -> tuple[bytes, str]:
    """What the layers around the application answer by themselves; for `render_error`."""
    said = [reply.detail] if reply.status == 413 else []
    html = error_page(reply.status, said=said, request_id=reply.request_id)
    return html.encode(), "text/html; charset=utf-8"


async def refusal(request: Request, error: Exception) -> Response:
    """The page for what a module refused and no form could show."""
    assert isinstance(error, Refused)
    said = [] if isinstance(error, NotFound | Forbidden) else [
        f"{name} {sentence}" for name, sentences in error.errors.items() for sentence in sentences
    ]  # fmt: skip
    return _answer(request, STATUS[type(error)], said=said)


async def routing_error(request: Request, error: Exception) -> Response:
    """The page for Starlette's HTTPException: unknown address, wrong method, a body that is no form."""
    status: int = getattr(error, "status_code", 500)
    response = _answer(request, status)
    if status == 405:
        response.headers["Allow"] = _allowed(request)
    return response


async def sign_in_first(request: Request, error: Exception) -> Response:
    """To the form, and back to this page from there if it can be asked for again."""
    target = "/"
    if request.method in ("GET", "HEAD"):
        target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    return redirect(request, f"/sign-in?{urlencode({'next': target})}")


def _answer(request: Request, status: int, *, said: Sequence[str] = ()) -> Response:
    context = current()
    html = error_page(status, said=said, request_id=context.request_id if context is not None else "")
    return Response(html, status, {"Cache-Control": "no-store"}, media_type="text/html")


def _allowed(request: Request) -> str:
    """Every method of the address: one route knows only its own."""
    methods: set[str] = set()
    for route in request.app.router.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            methods |= set(getattr(route, "methods", None) or ())
    return ", ".join(sorted(methods))
