"""What tests of links to Redis share: a client for the time of a block, and waiting for its links."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from springtide.errors import ConfigurationError, RedisUnavailable
from springtide.redis import Link, Redis

__all__ = ["HANGS", "answers", "linked", "refused", "started", "until"]

HANGS = 100.0
"""Seconds that only tell a slow machine from one that hangs."""


@asynccontextmanager
async def started(url: str, **options: Any) -> AsyncIterator[Redis]:
    """A client whose time-outs are no matter, unless they are given."""
    redis = Redis(url, **({"timeout": HANGS, "connect_timeout": HANGS} | options))
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


async def answers(redis: Redis, *command: str, tag: str = "") -> Any:
    """What a command answers, asked until somebody serves and answers in time."""
    async with asyncio.timeout(HANGS):
        while True:
            try:
                return await (await linked(redis, tag)).send(*command)
            except RedisUnavailable:
                await asyncio.sleep(0.01)


async def refused(url: str, **options: Any) -> str:
    """What a start is refused with."""
    redis = Redis(url, **({"timeout": HANGS, "connect_timeout": HANGS} | options))
    with pytest.raises(ConfigurationError) as caught:
        await redis.start()
    assert redis.state == "failed"
    return str(caught.value)


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(HANGS):
        while not holds():
            await asyncio.sleep(0.005)
