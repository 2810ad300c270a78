"""FastAPI at the rim: the platform and its services by dependency, and the layers' errors in its own form.

    app = FastAPI()
    install(app, platform)

    @app.get("/users/{id}")
    async def show(id: int, users: Annotated[Users, Depends(service(Users))]) -> User: ...

`Layers` stays outside of FastAPI; nothing here is middleware.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from fastapi import FastAPI
from fastapi.encoders import jsonable_encoder
from fastapi.exception_handlers import request_validation_exception_handler
from fastapi.exceptions import RequestValidationError
from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from springtide.context import current
from springtide.errors import SpringtideError
from springtide.web._replies import ErrorReply, RenderError, expected, problem_json, reply_for

__all__ = ["Services", "install", "platform", "service"]

_log = logging.getLogger("springtide.web")

T = TypeVar("T")


class Services(Protocol):
    """What is needed of a platform here."""

    def service(self, interface: Callable[..., T], /) -> T:
        """The implementation of a service interface."""


def install(app: FastAPI, platform: Services, *, render_error: RenderError | None = None) -> None:
    """Give `app` its platform and turn every SpringtideError into its answer; hostile text stays a 422.

    `render_error` gives body and content type, None means problem+json.
    """
    render = render_error or problem_json
    app.state.springtide = platform

    async def answer(request: Request, error: Exception) -> Response:
        context = current()
        request_id = context.request_id if context is not None else ""
        if not expected(error):
            _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return _response(reply_for(error, request_id=request_id), request, render)

    app.add_exception_handler(SpringtideError, answer)
    if app.exception_handlers.get(RequestValidationError) is request_validation_exception_handler:
        app.add_exception_handler(RequestValidationError, _invalid)


async def _invalid(_: Request, error: Exception) -> Response:
    """FastAPI's own answer, also to input that cannot be quoted in it: NaN, half a surrogate pair.

    FastAPI fails to encode those and answers 500.
    """
    assert isinstance(error, RequestValidationError)
    detail = jsonable_encoder(error.errors())
    try:
        body = json.dumps({"detail": detail}, allow_nan=False)
    except ValueError:
        detail = [{key: value for key, value in fault.items() if key != "input"} for fault in detail]
        body = json.dumps({"detail": detail})
    return Response(body, status_code=422, media_type="application/json")


def platform(connection: HTTPConnection) -> Any:
    """A dependency: the platform that was installed. Raises RuntimeError when none was."""
    found = getattr(connection.app.state, "springtide", None)
    if found is None:
        raise RuntimeError(
            "this application has no platform: call springtide.web.fastapi.install(app, platform)"
        )
    return found


def service(interface: Callable[..., T]) -> Callable[[HTTPConnection], Awaitable[T]]:
    """A dependency: the service behind `interface`, a Protocol (which type checkers refuse as `type[T]`)."""

    async def provide(connection: HTTPConnection) -> T:
        found: Services = platform(connection)
        return found.service(interface)

    return provide


def _response(reply: ErrorReply, request: Request, render: RenderError) -> Response:
    body, content_type = render(reply, request.scope)
    response = Response(body, reply.status, {"content-type": content_type})
    response.raw_headers.extend(reply.all_headers)
    return response
