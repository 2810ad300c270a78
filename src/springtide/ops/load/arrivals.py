"""When each journey begins: planned before the run, whatever the server does then.

A plan is a sequence of phases, each with a rate that is constant or changes linearly. Arrivals are the
points where the cumulative rate L(t) = integral of rate(t) reaches the next target:

    poisson   targets are sums of Exp(1) draws (the time-rescaling theorem; Lewis and Shedler, 1979)
    uniform   targets are 0.5, 1.5, 2.5, ...

and L is inverted in closed form: within a phase of duration D from rate a to b,
L(t) = a t + (b - a) t**2 / (2 D).

Pure and lazy: same phases, same seed, same times, in memory that does not grow with the run. Several
generators share one plan: number i of m takes every m-th arrival from i, so the whole is the same for any m.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["DISTRIBUTIONS", "PHASES", "Arrival", "Phase", "expected", "phases", "plan"]

DISTRIBUTIONS = ("poisson", "uniform")
PHASES = ("ramp", "steady", "peak")

_SHARES = {"ramp": 0.2, "steady": 0.5, "peak": 0.3}


class Arrival(NamedTuple):
    """Arrival `number` of the whole plan is due `at` seconds after the start, in phase number `phase`."""

    number: int
    at: float
    phase: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """`duration` seconds in which the rate goes linearly from `start_rate` to `end_rate`, per second."""

    name: str
    duration: float
    start_rate: float
    end_rate: float

    def __post_init__(self) -> None:
        if not (self.duration > 0 and math.isfinite(self.duration)):
            raise ValueError(f"phase {self.name}: duration must be > 0 seconds, got {self.duration}")
        for rate in (self.start_rate, self.end_rate):
            if not (rate >= 0 and math.isfinite(rate)):
                raise ValueError(f"phase {self.name}: rates must be >= 0 per second, got {rate}")

    @property
    def expected(self) -> float:
        """How many arrivals the phase has on average."""
        return self.duration * (self.start_rate + self.end_rate) / 2

    @property
    def mean_rate(self) -> float:
        return (self.start_rate + self.end_rate) / 2

    def when(self, target: float) -> float:
        """The time within the phase at which its cumulative rate is `target` (<= `expected`)."""
        slope = (self.end_rate - self.start_rate) / self.duration
        # The stable root of slope/2 t^2 + start t - target = 0; no cancellation for a small slope.
        root = math.sqrt(max(self.start_rate * self.start_rate + 2.0 * slope * target, 0.0))
        below = self.start_rate + root
        return min(2.0 * target / below, self.duration) if below > 0 else 0.0


def phases(names: Sequence[str], *, rate: float, duration: float, peak: float = 3.0) -> list[Phase]:
    """The usual three over `duration` seconds: ramp (0 to `rate`), steady (`rate`), peak (`peak` x `rate`).

    The time is shared 2 : 5 : 3, among those that are named. A name may be used once.
    """
    if not names:
        raise ValueError("at least one phase is needed")
    for name in names:
        if name not in _SHARES:
            raise ValueError(f"a phase is one of {', '.join(PHASES)}, got {name!r}")
    if len(set(names)) != len(names):
        raise ValueError(f"each phase may be named once, got {','.join(names)}")
    if not rate > 0:
        raise ValueError(f"rate must be > 0 per second, got {rate}")
    if not duration > 0:
        raise ValueError(f"duration must be > 0 seconds, got {duration}")
    if not peak >= 1:
        raise ValueError(f"peak must be >= 1, got {peak}")
    ends = {"ramp": (0.0, rate), "steady": (rate, rate), "peak": (rate * peak, rate * peak)}
    whole = sum(_SHARES[name] for name in names)
    return [
        Phase(
            name=name,
            duration=duration * _SHARES[name] / whole,
            start_rate=ends[name][0],
            end_rate=ends[name][1],
        )
        for name in names
    ]


def expected(plan: Sequence[Phase]) -> float:
    return sum(phase.expected for phase in plan)


def plan(
    phases: Sequence[Phase],
    *,
    seed: int = 1,
    distribution: str = "poisson",
    part: int = 0,
    parts: int = 1,
    limit: int | None = None,
) -> Iterator[Arrival]:
    """The arrivals in order of time; `limit` bounds the whole plan, before it is divided into `parts`."""
    if distribution not in DISTRIBUTIONS:
        raise ValueError(f"distribution must be one of {', '.join(DISTRIBUTIONS)}, got {distribution!r}")
    if not 0 <= part < parts:
        raise ValueError(f"part must be in 0..parts-1, got {part} of {parts}")
    if limit is not None and limit < 0:
        raise ValueError(f"limit must be >= 0, got {limit}")
    arrivals = _arrivals(tuple(phases), _targets(seed, distribution))
    return itertools.islice(arrivals, part, limit, parts)


def _targets(seed: int, distribution: str) -> Iterator[float]:
    if distribution == "uniform":
        return itertools.count(0.5, 1.0)
    draw = random.Random(f"arrivals:{seed}").expovariate
    return itertools.accumulate(draw(1.0) for _ in itertools.repeat(None))


def _arrivals(phases: Sequence[Phase], targets: Iterator[float]) -> Iterator[Arrival]:
    target = next(targets)
    begun = reached = 0.0
    index = 0
    for position, phase in enumerate(phases):
        while target - reached < phase.expected:
            yield Arrival(index, begun + phase.when(target - reached), position)
            index += 1
            target = next(targets)
        begun += phase.duration
        reached += phase.expected
