"""The twin as one FastAPI application; nothing connects until its first request."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI

from bench.twin import articles, orders, search, users
from bench.twin.auth import Passwords, Tokens
from bench.twin.database import Database
from bench.twin.errors import install
from bench.twin.placing import Placing
from bench.twin.provider import Provider
from bench.twin.settings import Settings

__all__ = ["application"]


def application(settings: Settings) -> FastAPI:
    database, provider = Database(settings), Provider(settings)
    placing = Placing(database, provider, pending_after=settings.pending_after)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        recovering = asyncio.create_task(placing.recover_forever())
        yield
        recovering.cancel()
        with suppress(asyncio.CancelledError):
            await recovering
        await provider.close()
        await database.close()

    app = FastAPI(title="twin", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.database = database
    app.state.passwords = Passwords()
    app.state.tokens = Tokens(settings.token_secret, lifetime=settings.token_lifetime)
    app.state.placing = placing
    for module in (articles, orders, search, users):
        app.include_router(module.router)
    install(app)
    return app
