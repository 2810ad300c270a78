"""Decide how many workers run: more as soon as they are wanted, fewer slowly. Pure.

    more    at once, as many as are wanted; but not while one of those that run is in trouble: workers that
            crash get nothing done, so more would be wanted and crash as well
    fewer   one at a time, when for `down_after` seconds fewer were wanted at every look, and the one before
            has ended
    unknown nobody says what is wanted: nothing changes, and the time for fewer begins anew

The most that was wanted within the window decides, as in Kubernetes' autoscaler, so a load that goes up and
down within it moves nothing. Workers that are finishing count against `most`: they have connections.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

__all__ = ["Fleet", "Pace"]


@dataclass(frozen=True, slots=True)
class Fleet:
    """The workers now: `running` take jobs (or are being started), `retiring` finish theirs and end.
    `well`: none of the former has ended or failed to start of late."""

    running: int
    retiring: int = 0
    well: bool = True


class Pace:
    """Remembers what was wanted. `look` once per look; time is the caller's monotonic seconds."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._most: deque[tuple[float, int]] = deque()  # falling: what the window's most will be
        """The last look at which so many were wanted; each smaller than the one before, so few."""

    def look(
        self, now: float, wanted: int | None, fleet: Fleet, *, least: int, most: int, down_after: float
    ) -> int:
        """How many workers to add; -1: one is to be retired."""
        if wanted is None:
            self._since, wanted = None, fleet.running
        wanted = min(max(wanted, least), most)
        if self._since is None:
            self._since = now
            self._most.clear()
        while self._most and self._most[-1][1] <= wanted:
            self._most.pop()
        self._most.append((now, wanted))
        while self._most[0][0] < now - down_after:
            self._most.popleft()
        if wanted > fleet.running:
            room = most - fleet.running - fleet.retiring
            return max(min(wanted - fleet.running, room), 0) if fleet.well else 0
        if fleet.running > most:
            return -1
        waited = now - self._since >= down_after and not fleet.retiring
        return -1 if waited and self._most[0][1] < fleet.running else 0
