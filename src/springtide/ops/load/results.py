"""What a run has measured: counts and histograms that add up over requests and merge over processes.

Every planned journey ends in exactly one of completed, abandoned (a step failed), unsent (too many were in
flight) or unfinished (the run was ended first); every request that was begun in exactly one of ok or one
kind of error: connect, timeout, reset, protocol, unfinished, or "status 503" for an unexpected status.

`latency` is counted from when the request was due and holds the expected answers, and the time-outs and
unfinished ones at the time they had waited (a lower bound: leaving them out would flatter a stalled server).
`service` is the same counted from when it was really sent: what a closed-loop tool would have reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from springtide.ops.load.histogram import Histogram

__all__ = ["OTHER", "JourneyResult", "PhaseResult", "Results", "RouteResult", "parse_timing"]

MAX_ROUTES = 200
OTHER = "(other)"


def parse_timing(header: str) -> list[tuple[str, float]]:
    """`sql;dur=3.1;desc="x", cpu;dur=1` as [("sql", 0.0031), ("cpu", 0.001)], in seconds.

    Metrics without a readable duration are left out, as W3C Server Timing asks of a reader.
    """
    parts: list[tuple[str, float]] = []
    for metric in header.split(","):
        name, _, parameters = metric.strip().partition(";")
        for parameter in parameters.split(";"):
            key, _, value = parameter.strip().partition("=")
            if key == "dur":
                try:
                    parts.append((name.strip(), float(value.strip('" ')) / 1000))
                except ValueError:
                    break
    return parts


class RouteResult(msgspec.Struct):
    """`parts` are the server's own times, in seconds summed over the `timed` answers that carried them."""

    ok: int = 0
    late: int = 0
    errors: dict[str, int] = {}
    latency: Histogram = msgspec.field(default_factory=Histogram)
    service: Histogram = msgspec.field(default_factory=Histogram)
    parts: dict[str, float] = {}
    timed: int = 0

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    def merge(self, other: RouteResult) -> None:
        self.ok += other.ok
        self.late += other.late
        self.timed += other.timed
        _add(self.errors, other.errors)
        for part, seconds in other.parts.items():
            self.parts[part] = self.parts.get(part, 0.0) + seconds
        self.latency.merge(other.latency)
        self.service.merge(other.service)


class JourneyResult(msgspec.Struct):
    """`duration` is from a journey's planned beginning to its end, completed ones only."""

    planned: int = 0
    completed: int = 0
    abandoned: int = 0
    unsent: int = 0
    unfinished: int = 0
    requests: int = 0
    steps: float = 1.0
    duration: Histogram = msgspec.field(default_factory=Histogram)

    def merge(self, other: JourneyResult) -> None:
        self.planned += other.planned
        self.completed += other.completed
        self.abandoned += other.abandoned
        self.unsent += other.unsent
        self.unfinished += other.unfinished
        self.requests += other.requests
        self.steps = other.steps
        self.duration.merge(other.duration)


class PhaseResult(msgspec.Struct):
    """Requests of the journeys that were due in one phase. `duration` and `rate` as planned."""

    name: str
    duration: float
    rate: float
    planned: int = 0
    unsent: int = 0
    sent: int = 0
    ok: int = 0
    errors: dict[str, int] = {}
    latency: Histogram = msgspec.field(default_factory=Histogram)

    def merge(self, other: PhaseResult) -> None:
        self.planned += other.planned
        self.unsent += other.unsent
        self.sent += other.sent
        self.ok += other.ok
        _add(self.errors, other.errors)
        self.latency.merge(other.latency)


class Results(msgspec.Struct, kw_only=True):
    """One run. `lag` is how late the generator itself began requests; `cpu` its busiest process, 0 to 1."""

    url: str
    seed: int
    processes: int = 1
    seconds: float = 0.0
    interrupted: bool = False
    phases: list[PhaseResult] = []
    routes: dict[str, RouteResult] = {}
    journeys: dict[str, JourneyResult] = {}
    lag: Histogram = msgspec.field(default_factory=Histogram)
    queued: int = 0
    """Requests that had to wait more than a millisecond for a connection."""
    opened: int = 0
    resent: int = 0
    received_bytes: int = 0
    cpu: float = 0.0

    def route(self, name: str) -> RouteResult:
        found = self.routes.get(name)
        if found is None:
            if len(self.routes) >= MAX_ROUTES:
                name = OTHER
            found = self.routes.setdefault(name, RouteResult())
        return found

    def merge(self, other: Results) -> None:
        """Add another process's part of the same run."""
        self.processes += other.processes
        self.seconds = max(self.seconds, other.seconds)
        self.interrupted = self.interrupted or other.interrupted
        for mine, theirs in zip(self.phases, other.phases, strict=True):
            mine.merge(theirs)
        for name, route in other.routes.items():
            self.route(name).merge(route)
        for name, journey in other.journeys.items():
            self.journeys.setdefault(name, JourneyResult()).merge(journey)
        self.lag.merge(other.lag)
        self.queued += other.queued
        self.opened += other.opened
        self.resent += other.resent
        self.received_bytes += other.received_bytes
        self.cpu = max(self.cpu, other.cpu)

    @classmethod
    def merged(cls, parts: Iterable[Results]) -> Results:
        iterator = iter(parts)
        whole = next(iterator)
        for part in iterator:
            whole.merge(part)
        return whole

    @property
    def ok(self) -> int:
        return sum(route.ok for route in self.routes.values())

    @property
    def late(self) -> int:
        return sum(route.late for route in self.routes.values())

    @property
    def failed(self) -> int:
        return sum(route.failed for route in self.routes.values())

    @property
    def sent(self) -> int:
        return self.ok + self.failed

    @property
    def planned(self) -> int:
        """Journeys that were due."""
        return sum(journey.planned for journey in self.journeys.values())

    @property
    def unsent(self) -> int:
        """Journeys that were due and not begun."""
        return sum(journey.unsent for journey in self.journeys.values())

    @property
    def errors(self) -> dict[str, int]:
        total: dict[str, int] = {}
        for route in self.routes.values():
            _add(total, route.errors)
        return dict(sorted(total.items(), key=lambda item: (-item[1], item[0])))

    @property
    def latency(self) -> Histogram:
        return Histogram.merged(route.latency for route in self.routes.values())

    @property
    def service(self) -> Histogram:
        return Histogram.merged(route.service for route in self.routes.values())

    @property
    def parts(self) -> dict[str, float]:
        """Where the server says the time went: seconds per part, the largest first."""
        total: dict[str, float] = {}
        for route in self.routes.values():
            for part, seconds in route.parts.items():
                total[part] = total.get(part, 0.0) + seconds
        return dict(sorted(total.items(), key=lambda item: -item[1]))

    @property
    def timed(self) -> int:
        return sum(route.timed for route in self.routes.values())


def _add(into: dict[str, int], other: Mapping[str, int]) -> None:
    for key, count in other.items():
        into[key] = into.get(key, 0) + count
