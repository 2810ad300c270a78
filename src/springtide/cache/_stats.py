"""What happened in one class, counted. Plain numbers, so that a hit pays one addition."""

from __future__ import annotations

from collections import Counter

__all__ = ["Stats"]


class Stats:
    """Of one class in this process, since it was defined.

    joined: waited for a load of somebody else. bypassed: read past the cache, by why. failed: loads that
    raised, by the error's name. load_seconds: of all loads together.
    """

    __slots__ = ("bypassed", "failed", "joined", "load_seconds", "loads")

    def __init__(self) -> None:
        self.joined = 0
        self.loads = 0
        self.load_seconds = 0.0
        self.failed: Counter[str] = Counter()
        self.bypassed: Counter[str] = Counter()
