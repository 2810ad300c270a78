"""Reach a platform's databases without running the platform: for commands that ask them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from springtide.lifecycle import Group

if TYPE_CHECKING:
    from springtide.platform import Platform

__all__ = ["reaching"]


@asynccontextmanager
async def reaching(platform: Platform) -> AsyncIterator[None]:
    """The platform's pools are open inside the block, each on the server that leads; nothing else runs."""
    reached = Group("databases", [*platform.servers.values(), *platform.pools.values()])
    try:
        await reached.start()
        yield
    finally:
        await reached.stop()
