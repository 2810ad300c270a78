"""market as one ASGI application: FastAPI at the rim; its hottest reads and all pages are plain routes.

`application` only puts parts together; nothing connects until the server starts its lifespan. What is under
/api and /market answers in the shape of that API, errors too; everything else is a page.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from market.analytics.api import Analytics
from market.catalog.api import Catalog
from market.content.api import Content
from market.dashboard.api import Dashboard
from market.extras import Extras
from market.faults import Refused
from market.media.api import Media
from market.notifications.api import Notifications
from market.orders.api import Orders
from market.payments.api import Payments
from market.realworld.answers import error_body, failure, refusal, routing_error
from market.realworld.documentation import document
from market.realworld.operations import OPERATIONS, PREFIX
from market.realworld.page import page
from market.realworld.rim import Rim
from market.realworld.viewers import Viewers
from market.recommendations.api import Recommendations
from market.rest import (
    analytics,
    catalog,
    dashboard,
    files,
    media,
    notifications,
    orders,
    payments,
    problems,
    recommendations,
    search,
    webhooks,
)
from market.rest.documentation import extend
from market.rest.operations import PREFIX as MARKET
from market.rest.rim import Rest
from market.rest.uploads import UPLOAD_BYTES
from market.search.api import Search
from market.settings import Settings
from market.storefront import faults as pages
from market.storefront import uploads
from market.storefront.events.hub import Hub
from market.storefront.pages import routes
from market.storefront.rim import Store
from market.storefront.secure import App, SafePages
from market.storefront.selling.shop import ShopFirst, shop_first
from market.storefront.visits import SignInFirst
from market.users.api import Users
from market.webhooks.api import Webhooks
from springtide import __version__
from springtide.identity.cookies import SessionCookie
from springtide.identity.sessions import SessionService
from springtide.platform import Platform
from springtide.web.asgi import ErrorReply, problem_json

__all__ = ["BODY_LIMITS", "application", "layered", "render_error", "served"]

Handler = Callable[[Request, Exception], Awaitable[Response]]

MARKET_OPERATIONS = (  # tried in this order, so what is asked for most comes first
    *search.OPERATIONS,
    *catalog.OPERATIONS,
    *orders.OPERATIONS,
    *payments.OPERATIONS,
    *notifications.OPERATIONS,
    *recommendations.OPERATIONS,
    *dashboard.OPERATIONS,
    *media.OPERATIONS,
    *webhooks.OPERATIONS,
    *analytics.OPERATIONS,
)

BODY_LIMITS = dict.fromkeys((media.UPLOADS, *uploads.PATHS), UPLOAD_BYTES)
"""Where a body may be larger than `servers.body_bytes`; for `Platform.wrap`."""

SECURE = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}


def application(platform: Platform, settings: Settings | None = None) -> FastAPI:
    """The application without the platform's layers; `platform.wrap` puts those around it."""
    settings = settings or Settings()
    app = FastAPI(
        title="market", version=__version__, docs_url=None, redoc_url=None, openapi_url=None,
        lifespan=_lifespan,
    )  # fmt: skip
    app.router.redirect_slashes = False
    users, viewers = platform.service(Users), Viewers(platform.tokens, lifetime=settings.token_lifetime)
    app.state.rim = Rim(users=users, content=platform.service(Content), viewers=viewers)
    app.state.rest = Rest(
        users=users,
        content=platform.service(Content),
        catalog=platform.service(Catalog),
        orders=platform.service(Orders),
        payments=platform.service(Payments),
        notifications=platform.service(Notifications),
        recommendations=platform.service(Recommendations),
        dashboard=platform.service(Dashboard),
        media=platform.service(Media),
        search=platform.service(Search),
        webhooks=platform.service(Webhooks),
        analytics=platform.service(Analytics),
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
    described = extend(document(title="market", version=__version__), MARKET_OPERATIONS, webhooks.TOLD)
    app.openapi = lambda: described  # type: ignore[method-assign]  # FastAPI documents this way of replacing it
    _add_documents(app, described)
    app.state.storefront = store = _store(platform, settings, app.state.rest)
    app.router.routes += routes(store)
    app.add_exception_handler(Refused, _refusal)
    app.add_exception_handler(HTTPException, _routing_error)
    app.add_exception_handler(SignInFirst, pages.sign_in_first)
    app.add_exception_handler(ShopFirst, shop_first)
    return app


def _store(platform: Platform, settings: Settings, rest: Rest) -> Store:
    """What the pages need; uploads are counted together with those of the API."""
    sessions, notifications = platform.service(SessionService), platform.service(Notifications)
    hub = Hub(
        notifications,
        sessions,
        draining=lambda: platform.health.draining,
        clock=platform.clock,
        sink=platform.sink,
    )
    return Store(
        users=platform.service(Users),
        content=platform.service(Content),
        catalog=platform.service(Catalog),
        orders=platform.service(Orders),
        notifications=notifications,
        search=platform.service(Search),
        recommendations=platform.service(Recommendations),
        dashboard=platform.service(Dashboard),
        media=platform.service(Media),
        sessions=sessions,
        extras=rest.extras,
        uploads=rest.uploads,
        hub=hub,
        cookie=SessionCookie(secure=not settings.development),
        development=settings.development,
    )


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """What runs while the application is served, inside the platform's start and stop."""
    hub: Hub = app.state.storefront.hub
    await hub.start()
    try:
        yield
    finally:
        await hub.stop()


def served(platform: Platform, settings: Settings | None = None) -> App:
    """The application as a server runs it."""
    return layered(platform, application(platform, settings))


def layered(platform: Platform, app: FastAPI) -> App:
    """`app` with the platform's layers around it, and the headers of pages around all."""
    return SafePages(platform.wrap(app, render_error=render_error, body_limits=BODY_LIMITS))


def render_error(reply: ErrorReply, scope: Mapping[str, Any]) -> tuple[bytes, str]:
    """What the layers around the application answer by themselves, in the shape of what was asked for."""
    path = str(scope.get("path", ""))
    if path.startswith(f"{PREFIX}/"):
        return error_body(failure(reply.status)), "application/json"
    if path.startswith(f"{MARKET}/"):
        return problem_json(reply, scope)
    return pages.trouble(reply)


async def _refusal(request: Request, error: Exception) -> Response:
    return await _shape(request, refusal, problems.refusal, pages.refusal)(request, error)


async def _routing_error(request: Request, error: Exception) -> Response:
    shape = _shape(request, routing_error, problems.routing_error, pages.routing_error)
    return await shape(request, error)


def _shape(request: Request, under_api: Handler, under_market: Handler, page: Handler) -> Handler:
    path = request.url.path
    if path.startswith(f"{PREFIX}/"):
        return under_api
    return under_market if path.startswith(f"{MARKET}/") else page


def _add_documents(app: FastAPI, described: dict[str, Any]) -> None:
    schema, docs = msgspec.json.encode(described), page(described)

    async def openapi(request: Request) -> Response:
        return Response(schema, media_type="application/json")

    async def documentation(request: Request) -> Response:
        return HTMLResponse(docs, headers=SECURE)

    app.add_route("/openapi.json", openapi, methods=["GET"])
    app.add_route("/docs", documentation, methods=["GET"])
