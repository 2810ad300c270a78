"""All pages as routes. Those that know who visits have the session's layer around them; files do not."""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import BaseRoute, Route

from market.storefront import account, articles, browsing, buying, finding, notices, selling
from market.storefront.events import stream
from market.storefront.files import serve
from market.storefront.notices.push import WORKER_PATH, worker
from market.storefront.rendering import environment
from market.storefront.rim import Store
from springtide.web.sessions import SessionLayer

__all__ = ["PAGES", "routes"]

PAGES = (
    *browsing.PAGES,
    *finding.PAGES,
    *articles.PAGES,
    *account.PAGES,
    *notices.PAGES,
    *buying.PAGES,
    *selling.PAGES,
    *stream.PAGES,
)

ROBOTS = """User-agent: *
Disallow: /sign-in
Disallow: /sign-up
Disallow: /search
Disallow: /api/
Disallow: /market/
"""
"""Crawlers stay away from forms, which open sessions, and from what has no end."""


def routes(store: Store) -> list[BaseRoute]:
    environment()
    layer = Middleware(SessionLayer, sessions=store.sessions, cookie=store.cookie)
    return [
        Route("/static/{name}", serve, methods=["GET"]),
        Route("/robots.txt", _robots, methods=["GET"]),
        Route(WORKER_PATH, worker, methods=["GET"]),
        *(Route(page.path, page.endpoint, methods=[page.method], middleware=[layer]) for page in PAGES),
    ]


async def _robots(request: Request) -> Response:
    return PlainTextResponse(ROBOTS, headers={"Cache-Control": "max-age=3600"})
