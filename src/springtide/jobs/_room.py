"""How many jobs a worker may claim, and those that it has claimed and not begun.

A slot is taken by a job that runs, or reserved: for a claim under way, for what a transport brings, for a job
that waits for it.

Ahead: handlers that only compute keep the loop busy, and the database idle; a claim keeps the database busy,
and the loop idle; and a claim costs about as much for one job as for ten. So where jobs are swift the next
claims are begun before those of the last one are: in all for as many jobs as end within HORIZON at the pace
of those before them, at most MOST. Those that still wait for a slot after KEPT are handed back. Nothing is
claimed ahead of jobs with limits: those count what has not ended.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence

from springtide.clock import Clock
from springtide.jobs._hands import Hands
from springtide.jobs._line import Line
from springtide.jobs._store import Claimed

__all__ = ["Room"]

HORIZON = 0.04
"""Seconds."""

MOST = 500
"""Jobs; twice the slots where these are more."""

KEPT, NOT_AHEAD = 0.1, 10.0
"""Seconds that a job which was claimed ahead waits for a slot before it is handed back; seconds after that in
which nothing is claimed ahead."""

CHANCE = 0.02
"""Seconds before KEPT is over at which a timer runs that does nothing else: after a loop stood still, what
waits has so long to begin before it goes back."""


class Room:
    """The slots of a worker. `freed` is called when some are not reserved any more.

    open (-> retiring) -> draining: nothing may be claimed. Retiring, what waits is run; draining, handed
    back.
    """

    def __init__(
        self, slots: int, hands: Hands, *, limited: bool, freed: Callable[[], None], clock: Clock
    ) -> None:
        self.slots = slots
        self.reserved = 0
        self._hands = hands
        self._limited = limited
        self._freed = freed
        self._clock = clock
        self._draining = self._retiring = False
        self._kept: deque[tuple[Line, list[Claimed], float]] = deque()
        """Their line, and when their claim was sent."""
        self._ahead_from = 0.0

    @property
    def free(self) -> int:
        """Slots that nobody has."""
        return self._left(self.slots)

    @property
    def ahead(self) -> int:
        """How many jobs may be claimed: for the free slots, and ahead where jobs are swift."""
        return self._left(self.most)

    @property
    def least(self) -> int:
        """Fewer are not worth a claim while jobs are in hand that end soon."""
        most = self.most
        return max(most // 4, 1) if most > self.slots else 1

    @property
    def swift(self) -> bool:
        """Whether jobs may be claimed ahead."""
        return self.most > self.slots

    @property
    def kept(self) -> int:
        """How many jobs wait for a slot."""
        return sum(len(jobs) for _, jobs, _ in self._kept)

    @property
    def most(self) -> int:
        """How many jobs may be in hand: those that run, wait for a slot or are being claimed."""
        if self._limited or self._clock.monotonic() < self._ahead_from:
            return self.slots
        fit = int(self._hands.pace * HORIZON)
        return min(fit, max(MOST, 2 * self.slots)) if fit >= 2 * self.slots else self.slots

    def _left(self, most: int) -> int:
        if self._draining or self._retiring or self._hands.unwritten > most:
            return 0
        return most - self._hands.busy - self.reserved

    def open(self) -> None:
        self._draining = self._retiring = False
        self._ahead_from = 0.0

    def retire(self) -> None:
        self._retiring = True

    def drain(self) -> None:
        """What waits, and whatever still comes, is handed back."""
        self._draining = True
        self._hands.drain()
        self.begin()

    def reserve(self, count: int) -> None:
        """Keep so many slots; less than 0 gives some back."""
        self.reserved += count
        if count < 0:
            self._freed()

    def take(self, line: Line, claimed: Sequence[Claimed], asked: float) -> None:
        """Run jobs of `line` that were claimed for this worker, by a claim that was sent at `asked`: now, or
        when there are slots."""
        if not claimed:
            return
        jobs = list(claimed)
        self.reserved += len(jobs)
        self._kept.append((line, jobs, asked))
        self.begin()
        if jobs:
            later = asyncio.get_running_loop().call_later
            later(KEPT - CHANCE, later, CHANCE, self._give_back, line, jobs, asked)

    def begin(self) -> None:
        """Run what waits, as far as slots are free."""
        while self._kept:
            line, jobs, asked = self._kept[0]
            free = len(jobs) if self._draining else self.slots - self._hands.busy
            if free <= 0:
                break
            if len(jobs) <= free:
                self._kept.popleft()
            begun, jobs[:] = jobs[:free], jobs[free:]
            self._hand(line, begun, asked)

    def _give_back(self, line: Line, jobs: list[Claimed], asked: float) -> None:
        """Those of `jobs` that still have no slot."""
        if jobs:
            self._kept.remove((line, jobs, asked))
            self._ahead_from = self._clock.monotonic() + NOT_AHEAD
            self._hand(line, jobs, asked, back=True)

    def _hand(self, line: Line, claimed: Sequence[Claimed], asked: float, *, back: bool = False) -> None:
        self.reserved -= len(claimed)
        jobs = [(job, line.routes[f"{job.kind}/{job.version}"]) for job in claimed]
        self._hands.take(jobs, line.finisher, asked, back=back)
