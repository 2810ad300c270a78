"""market as one ASGI application: FastAPI at the rim, its hottest reads as plain Starlette routes.

`application` only puts parts together; nothing connects until the server starts its lifespan.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from market.catalog.api import Catalog
from market.content.api import Content
from market.dashboard.api import Dashboard
from market.extras import Extras
from market.faults import Refused
from market.media.api import Media
from market.notifications.api import Notifications
from market.orders.api import Orders
from market.pages import root
from market.payments.api import Payments
from market.realworld.answers import error_body, failure, refusal, routing_error
from market.realworld.documentation import document
from market.realworld.operations import OPERATIONS, PREFIX
from market.realworld.page import page
from market.realworld.rim import Rim
from market.realworld.viewers import Viewers
from market.recommendations.api import Recommendations
from market.rest import (
    catalog,
    dashboard,
    files,
    media,
    notifications,
    orders,
    payments,
    problems,
    recommendations,
)
from market.rest.documentation import extend
from market.rest.operations import PREFIX as MARKET
from market.rest.rim import Rest
from market.rest.uploads import UPLOAD_BYTES
from market.settings import Settings
from market.users.api import Users
from springtide import __version__
from springtide.platform import Platform
from springtide.web.asgi import ErrorReply, problem_json

__all__ = ["BODY_LIMITS", "application", "render_error"]

MARKET_OPERATIONS = (
    *catalog.OPERATIONS,
    *orders.OPERATIONS,
    *payments.OPERATIONS,
    *notifications.OPERATIONS,
    *recommendations.OPERATIONS,
    *dashboard.OPERATIONS,
    *media.OPERATIONS,
)

BODY_LIMITS = {media.UPLOADS: UPLOAD_BYTES}
"""Where a body may be larger than `servers.body_bytes`; for `Platform.wrap`."""

SECURE = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


def application(platform: Platform, settings: Settings | None = None) -> FastAPI:
    """The application without the platform's layers; `platform.wrap` puts those around it."""
    settings = settings or Settings()
    app = FastAPI(title="market", version=__version__, docs_url=None, redoc_url=None, openapi_url=None)
    app.router.redirect_slashes = False
    users, viewers = platform.service(Users), Viewers(platform.tokens, lifetime=settings.token_lifetime)
    app.state.rim = Rim(users=users, content=platform.service(Content), viewers=viewers)
    app.state.rest = Rest(
        users=users,
        catalog=platform.service(Catalog),
        orders=platform.service(Orders),
        payments=platform.service(Payments),
        notifications=platform.service(Notifications),
        recommendations=platform.service(Recommendations),
        dashboard=platform.service(Dashboard),
        media=platform.service(Media),
        viewers=viewers,
        extras=Extras(platform.sink),
    )
    for operation in OPERATIONS:
        path = PREFIX + operation.path
        if operation.plain:
            app.add_route(path, operation.endpoint, methods=[operation.method])
        else:  # Starlette answers HEAD where it answers GET, FastAPI does so only when told
            methods = ["GET", "HEAD"] if operation.method == "GET" else [operation.method]
            app.add_api_route(path, operation.endpoint, methods=methods, response_model=None)
    for own in MARKET_OPERATIONS:
        app.add_route(MARKET + own.path, own.endpoint, methods=[own.method])
    app.add_route(files.ROUTE, files.serve, methods=["GET"])
    described = extend(document(title="market", version=__version__), MARKET_OPERATIONS)
    app.openapi = lambda: described  # type: ignore[method-assign]  # FastAPI documents this way of replacing it
    _add_pages(app, described)
    app.add_exception_handler(Refused, _refusal)
    app.add_exception_handler(HTTPException, _routing_error)
    return app


def render_error(reply: ErrorReply, scope: Mapping[str, Any]) -> tuple[bytes, str]:
    """What the layers around the application answer by themselves: under /api in the shape of that API."""
    if str(scope.get("path", "")).startswith(f"{PREFIX}/"):
        return error_body(failure(reply.status)), "application/json"
    return problem_json(reply, scope)


async def _refusal(request: Request, error: Exception) -> Response:
    return await (problems.refusal if _under_market(request) else refusal)(request, error)


async def _routing_error(request: Request, error: Exception) -> Response:
    return await (problems.routing_error if _under_market(request) else routing_error)(request, error)


def _under_market(request: Request) -> bool:
    return request.url.path.startswith(f"{MARKET}/")


def _add_pages(app: FastAPI, described: dict[str, Any]) -> None:
    schema, docs, home = msgspec.json.encode(described), page(described), root()

    async def openapi(request: Request) -> Response:
        return Response(schema, media_type="application/json")

    async def documentation(request: Request) -> Response:
        return HTMLResponse(docs, headers=SECURE)

    async def front(request: Request) -> Response:
        return HTMLResponse(home, headers=SECURE)

    app.add_route("/openapi.json", openapi, methods=["GET"])
    app.add_route("/docs", documentation, methods=["GET"])
    app.add_route("/", front, methods=["GET"])
