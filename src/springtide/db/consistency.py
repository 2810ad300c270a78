"""How fresh a read has to be.

    STRONG      what every write that has been answered left behind
    SESSION     at least what this session has written and read; never backwards
    bounded(s)  at most `s` seconds behind
    EVENTUAL    some past state

While a cluster has no replica, its primary serves all four, and each is as fresh as STRONG.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

__all__ = ["Consistency"]


@dataclass(frozen=True, slots=True)
class Consistency:
    """Use the constants or `bounded`. `staleness` is in seconds and belongs to `bounded` alone."""

    level: str
    staleness: float | None = None

    STRONG: ClassVar[Consistency]
    SESSION: ClassVar[Consistency]
    EVENTUAL: ClassVar[Consistency]

    @classmethod
    def bounded(cls, staleness: float) -> Consistency:
        if not (staleness > 0 and math.isfinite(staleness)):
            raise ValueError(f"staleness must be a finite number of seconds > 0, got {staleness}")
        return cls("bounded", staleness)


Consistency.STRONG = Consistency("strong")
Consistency.SESSION = Consistency("session")
Consistency.EVENTUAL = Consistency("eventual")
