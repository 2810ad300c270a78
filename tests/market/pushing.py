"""A browser that takes pushes, and the push service that it is subscribed at: a real HTTP server."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import http_ece
import msgspec
import uvicorn
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from market.notifications.api import Subscription


class Browser:
    """Its keys; `endpoint` is where pushes to it go."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._auth = os.urandom(16)

    @property
    def subscription(self) -> Subscription:
        public = self._key.public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )
        return Subscription(endpoint=self.endpoint, p256dh=_encoded(public), auth=_encoded(self._auth))

    def subscription_json(self) -> dict[str, Any]:
        return msgspec.to_builtins(self.subscription)  # type: ignore[no-any-return]

    def read(self, content: bytes) -> dict[str, Any]:
        """What a push says. Raises when it was not encrypted for this browser."""
        text = http_ece.decrypt(content, private_key=self._key, auth_secret=self._auth, version="aes128gcm")
        said: dict[str, Any] = msgspec.json.decode(text)
        return said


class PushService:
    """Keeps what it gets: headers and content. `answers` are the statuses to come, then always 201."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        self.headers: dict[str, str] = {}
        self.hold: asyncio.Event | None = None
        self.app = Starlette(routes=[Route("/{path:path}", self._take, methods=["POST"])])
        self.port = 0

    def url(self, path: str = "send/1") -> str:
        return f"http://127.0.0.1:{self.port}/{path}"

    async def _take(self, request: Request) -> Response:
        self.got.append((dict(request.headers), await request.body()))
        if self.hold is not None:
            await self.hold.wait()
        return Response(status_code=self.answers.pop(0) if self.answers else 201, headers=self.headers)


@asynccontextmanager
async def push_service() -> AsyncIterator[PushService]:
    service = PushService()
    config = uvicorn.Config(service.app, host="127.0.0.1", port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    listener = config.bind_socket()
    service.port = listener.getsockname()[1]
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield service
    finally:
        server.should_exit = True
        if service.hold is not None:
            service.hold.set()
        await task
        listener.close()


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
