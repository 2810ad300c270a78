"""What tests of links to Redis share: a client for the time of a block, and waiting for its links."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from springtide.redis import Link, Redis

__all__ = ["HANGS", "linked", "started", "until"]

HANGS = 60.0
"""Seconds that only tell a slow machine from one that hangs."""


@asynccontextmanager
async def started(url: str, **options: Any) -> AsyncIterator[Redis]:
    redis = Redis(url, **options)
    await redis.start()
    try:
        yield redis
    finally:
        await redis.stop()


async def linked(redis: Redis, tag: str = "", *, other_than: Link | None = None) -> Link:
    """The link of `tag`, once there is one (that is not `other_than`)."""
    async with asyncio.timeout(HANGS):
        while (link := redis.link(tag)) is None or link is other_than:
            await asyncio.sleep(0.01)
        return link


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(HANGS):
        while not holds():
            await asyncio.sleep(0.005)
