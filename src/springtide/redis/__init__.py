"""Redis, thinly: links that never mix up answers, found again by themselves; for caches, limits and sessions.

Links need the extra `springtide[redis]` and are imported when they are first asked for: who only names a
Script, because there might be a Redis, needs neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from springtide.redis.script import Script

if TYPE_CHECKING:
    from springtide.redis.client import Redis
    from springtide.redis.link import Link

__all__ = ["Link", "Redis", "Script"]


def __getattr__(name: str) -> Any:
    if name in ("Link", "Redis"):
        from springtide.redis import client

        return getattr(client, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
