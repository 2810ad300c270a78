"""The mailbox for people and for tests.

GET /                    a list, GET /mails/{id} one mail; .html its HTML part, .eml its source
GET /api/mails?to=...    all mails, or those to one address, as JSON, the newest first
DELETE /api/mails        forget them
GET /control, PUT /control    how it misbehaves, see `behaviour.py`
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from market.mailbox.behaviour import Behaviour
from market.mailbox.keeping import Kept, Mails
from market.mailbox.pages import PAGE_POLICY, PART_POLICY, listed, shown
from market.mailbox.receiving import Receiver

__all__ = ["Mailbox"]


class Mailbox:
    """`app` is the ASGI application; its lifespan listens for mail. `mails` must be open."""

    def __init__(self, mails: Mails, receiver: Receiver) -> None:
        self._mails = mails
        self._receiver = receiver
        self.app = Starlette(
            routes=[
                Route("/", self._list, methods=["GET"]),
                Route("/mails/{id:int}", self._mail, methods=["GET"]),
                Route("/mails/{id:int}.html", self._html, methods=["GET"]),
                Route("/mails/{id:int}.eml", self._source, methods=["GET"]),
                Route("/api/mails", self._found, methods=["GET"]),
                Route("/api/mails", self._clear, methods=["DELETE"]),
                Route("/control", self._control, methods=["GET", "PUT"]),
            ],
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        await self._receiver.open()
        yield
        self._receiver.close()

    async def _list(self, request: Request) -> Response:
        return _html(listed(self._mails.all()), PAGE_POLICY)

    async def _mail(self, request: Request) -> Response:
        return _html(shown(self._must_find(request)), PAGE_POLICY)

    async def _html(self, request: Request) -> Response:
        return _html(self._must_find(request).html, PART_POLICY)

    async def _source(self, request: Request) -> Response:
        source = await self._mails.source(request.path_params["id"])
        if source is None:
            raise HTTPException(404)
        return Response(source, media_type="text/plain", headers=_headers("default-src 'none'"))

    async def _found(self, request: Request) -> Response:
        to = request.query_params.get("to")
        return _json([mail for mail in self._mails.all() if to is None or to in mail.recipients])

    async def _clear(self, request: Request) -> Response:
        await self._mails.clear()
        return Response(status_code=204)

    async def _control(self, request: Request) -> Response:
        if request.method == "PUT":
            try:
                behaviour = msgspec.json.decode(await request.body(), type=Behaviour)
            except msgspec.MsgspecError as error:
                return _json({"code": "invalid", "detail": str(error)}, 422)
            await self._receiver.behave(behaviour)
        return _json(self._receiver.behaviour)

    def _must_find(self, request: Request) -> Kept:
        mail = self._mails.one(request.path_params["id"])
        if mail is None:
            raise HTTPException(404)
        return mail


def _html(page: str, policy: str) -> Response:
    return HTMLResponse(page, headers=_headers(policy))


def _json(value: object, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _headers(policy: str) -> dict[str, str]:
    return {
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-store",
    }
