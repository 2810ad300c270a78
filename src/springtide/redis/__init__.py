"""Redis, thinly: links that never mix up answers, found again by themselves; for caches, limits and sessions.

Needs the extra `springtide[redis]`.
"""

from __future__ import annotations

from springtide.redis.client import Redis
from springtide.redis.link import Link
from springtide.redis.script import Script

__all__ = ["Link", "Redis", "Script"]
