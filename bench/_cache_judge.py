"""Was a read of a cached register older than it may be? Of each key by itself, its versions count its writes.

    beyond budget   older than the newest version whose COMMIT was answered `budget` seconds before the read
                    began in the app process
    own write lost  older than a write of the session itself that was acknowledged before the request was sent
    backward        older than what an earlier request of the session had been shown (a cache with a budget
                    does not promise that across app processes; what one process shows to one session does)
    phantom         of a version that another value has, or that nobody wrote

An unacknowledged write demands nothing and may be seen. All moments are of the one monotonic clock of the
machine. Pure.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from bench.cached.journal import Saw, Wrote

__all__ = ["Judge", "Verdict", "Wrong"]

KEPT = 100
"""Wrong reads of one rule that are kept to be shown; all are counted."""


@dataclass(frozen=True, slots=True)
class Wrong:
    """`need` is the version that had to be seen, acknowledged at `since`."""

    rule: str
    read: Saw
    need: int
    since: float

    @property
    def sentence(self) -> str:
        late = self.read.began - self.since
        return (
            f"{self.rule}: key {self.read.key}, session {self.read.session}, app {self.read.app} at"
            f" {self.read.began:.3f} saw version {self.read.version}, and {self.need} was known"
            f" {late:.3f} s before"
        )


@dataclass
class Verdict:
    reads: int = 0
    writes: int = 0
    wrong: list[Wrong] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    """Rule -> how many reads broke it."""
    moments: Counter[int] = field(default_factory=Counter)
    """Tenth of a second of the clock -> how many reads began in it."""

    def during(self, began: float, ended: float) -> int:
        """How many reads began between these moments, about."""
        return sum(self.moments[tenth] for tenth in range(int(10 * began), int(10 * ended)))

    def add(self, wrong: Wrong) -> None:
        self.counts[wrong.rule] += 1
        if self.counts[wrong.rule] <= KEPT:
            self.wrong.append(wrong)


class _Floor:
    """The highest version known by a moment, and since when; moments may come in any order."""

    __slots__ = ("_moments", "_versions")

    def __init__(self, known: Iterable[tuple[float, int]] = ()) -> None:
        self._moments: list[float] = []
        self._versions: list[int] = []
        for moment, version in sorted(known):
            self.add(moment, version)

    def add(self, moment: float, version: int) -> None:
        if not self._versions or version > self._versions[-1]:
            self._moments.append(max(moment, self._moments[-1]) if self._moments else moment)
            self._versions.append(version)

    def at(self, moment: float) -> tuple[int, float]:
        place = bisect_right(self._moments, moment)
        return (self._versions[place - 1], self._moments[place - 1]) if place else (0, 0.0)


_NOTHING = _Floor()


class Judge:
    """Told all writes first, then the reads of one process after the other, each in the order of their ends.

    past:    key -> version -> stamp of the value, as the database has it in the end.
    unheard: key, version and moment of commits that are known to have happened although nobody was told.
    """

    def __init__(
        self,
        wrote: Sequence[Wrote],
        past: Mapping[int, Mapping[int, int]],
        *,
        budget: float,
        unheard: Sequence[tuple[int, int, float]] = (),
    ) -> None:
        self.verdict = Verdict(writes=len(wrote))
        self._past = past
        self._budget = budget
        committed: defaultdict[int, list[tuple[float, int]]] = defaultdict(list)
        own: defaultdict[tuple[str, int], list[tuple[float, int]]] = defaultdict(list)
        for write in wrote:
            if write.version:
                committed[write.key].append((write.acknowledged, write.version))
                own[write.session, write.key].append((write.ended, write.version))
        for key, version, moment in unheard:
            committed[key].append((moment, version))
        self._floors = {key: _Floor(known) for key, known in committed.items()}
        self._owns = {place: _Floor(known) for place, known in own.items()}

    def judge(self, reads: Iterable[Saw]) -> None:
        """What one process saw; its sessions are its own."""
        verdict = self.verdict
        shown: defaultdict[tuple[str, int], _Floor] = defaultdict(_Floor)
        shown_here: defaultdict[tuple[str, int, int], _Floor] = defaultdict(_Floor)
        for read in reads:
            verdict.reads += 1
            verdict.moments[int(10 * read.began)] += 1
            if read.version and self._past.get(read.key, {}).get(read.version) != read.stamp:
                verdict.add(Wrong("phantom", read, read.version, read.began))
            anywhere, here = shown[read.session, read.key], shown_here[read.session, read.key, read.app]
            for rule, floor, moment in (
                ("beyond budget", self._floors.get(read.key, _NOTHING), read.began - self._budget),
                ("own write lost", self._owns.get((read.session, read.key), _NOTHING), read.asked),
                ("backward", anywhere, read.asked),
                ("backward in one process", here, read.asked),
            ):
                need, since = floor.at(moment)
                if read.version < need:
                    verdict.add(Wrong(rule, read, need, since))
            anywhere.add(read.ended, read.version)
            here.add(read.ended, read.version)
