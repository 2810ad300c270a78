"""A form that is sent a second time while its first sending is still at work: both lead to the same place."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from springtide.errors import IdempotencyInFlight

__all__ = ["with_the_first"]

AGAIN_AFTER = 0.25
"""Seconds between two looks whether the first sending has come to its end."""

T = TypeVar("T")


async def with_the_first(effect: Callable[[], Awaitable[T]], patience: float) -> T:
    """What `effect` answers, which happens once: the second sending waits for the first one's answer.

    Raises IdempotencyInFlight when the first takes longer than `patience` seconds.
    """
    ends = asyncio.get_running_loop().time() + patience
    while True:
        try:
            return await effect()
        except IdempotencyInFlight:
            if asyncio.get_running_loop().time() >= ends:
                raise
            await asyncio.sleep(AGAIN_AFTER)
