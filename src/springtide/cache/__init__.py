"""Values kept near their readers, in this process and in Redis, that cannot bring old data back.

_memory       the first level: this process's memory, bounded in bytes
_slot         what this process has heard of a class's invalidations, and what that proves
"""

from __future__ import annotations

__all__: list[str] = []
