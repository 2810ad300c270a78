"""One engine per process, one session per request.

A session that only reads runs in autocommit, as SQLAlchemy's manual shows it for that purpose: a SELECT then
needs no BEGIN before it and no ROLLBACK after it, each of which would be a round trip.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, Request
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from bench.twin.settings import Settings

__all__ = ["Database", "Reading", "Writing"]


class Database:
    def __init__(self, settings: Settings) -> None:
        self.engine: AsyncEngine = create_async_engine(
            settings.database_url,
            pool_size=settings.pool_size,
            max_overflow=0,
            pool_timeout=settings.pool_timeout,
        )
        self.writing = async_sessionmaker(self.engine, expire_on_commit=False)
        self.reading = async_sessionmaker(
            self.engine.execution_options(isolation_level="AUTOCOMMIT"),
            expire_on_commit=False,
            autoflush=False,
        )

    async def close(self) -> None:
        await self.engine.dispose()


async def _reading(request: Request) -> AsyncIterator[AsyncSession]:
    database: Database = request.app.state.database
    async with database.reading() as session:
        yield session


async def _writing(request: Request) -> AsyncIterator[AsyncSession]:
    database: Database = request.app.state.database
    async with database.writing() as session:
        yield session


Reading = Annotated[AsyncSession, Depends(_reading)]
Writing = Annotated[AsyncSession, Depends(_writing)]
