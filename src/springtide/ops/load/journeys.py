"""What simulated people do: journeys of one or more requests, and the client that times them.

How several steps fit an open loop: an arrival is the beginning of a journey, whatever the server does.
Its first request is due at that planned time; every later one is due when the answer before it came (plus the
pause the journey asks for), because nobody clicks on an article before the list is there. So a slow server
cannot hold back journeys, only prolong them, and each request is timed from when it was due.

A rate in requests per second is divided by the mean number of steps of the mix to get journeys per second.
Each journey declares its own mean as `steps`; the report shows the measured one beside it.

A request that fails is recorded and ends its journey (StepFailed), as it would end a person's.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import msgspec

from springtide.ops.load.client import Answer, HttpClient, RequestFailed
from springtide.ops.load.histogram import Histogram
from springtide.ops.load.results import JourneyResult, PhaseResult, Results, parse_timing

__all__ = ["Client", "Journey", "Mix", "Prepare", "Recorder", "StepFailed", "World"]

T = TypeVar("T")

QUEUED_AFTER = 0.001


class World:
    """What journeys of one process share, found by type: `world.put(Tokens(...))`, `world.get(Tokens)`."""

    __slots__ = ("_things", "seed")

    def __init__(self, *, seed: int) -> None:
        self.seed = seed
        self._things: dict[type, object] = {}

    def put(self, thing: object) -> None:
        self._things[type(thing)] = thing

    def get(self, kind: type[T]) -> T:
        """Raises LookupError when no preparation has put one."""
        thing = self._things.get(kind)
        if not isinstance(thing, kind):
            raise LookupError(f"the world has no {kind.__name__}: a journey's prepare must put one")
        return thing


class StepFailed(Exception):
    """A request of the journey failed or had an unexpected status; it is recorded already."""


class Recorder:
    """Takes down every request into one Results, and into the window that the live line shows."""

    __slots__ = ("_late_after", "phase", "results", "window", "window_failed")

    def __init__(self, results: Results, *, late_after: float) -> None:
        self.results = results
        self.window = Histogram()
        self.window_failed = 0
        self._late_after = late_after

    def begun(self, route: str, lag: float) -> None:
        self.results.lag.record(lag)
        if lag > self._late_after:
            self.results.route(route).late += 1

    def answered(self, route: str, phase: PhaseResult, due: float, now: float, answer: Answer) -> None:
        latency = now - due
        found = self.results.route(route)
        found.ok += 1
        found.latency.record(latency)
        found.service.record(now - answer.sent)
        if answer.timing:
            found.timed += 1
            for part, seconds in parse_timing(answer.timing):
                if part in found.parts or len(found.parts) < 32:
                    found.parts[part] = found.parts.get(part, 0.0) + seconds
        phase.sent += 1
        phase.ok += 1
        phase.latency.record(latency)
        self.window.record(latency)
        self.results.received_bytes += len(answer.body)

    def failed(
        self, route: str, phase: PhaseResult, kind: str, due: float, now: float, sent: float | None
    ) -> None:
        found = self.results.route(route)
        found.errors[kind] = found.errors.get(kind, 0) + 1
        if kind in ("timeout", "unfinished"):  # they waited at least this long: see results.py
            found.latency.record(now - due)
            phase.latency.record(now - due)
            self.window.record(now - due)
            if sent is not None:
                found.service.record(now - sent)
        phase.sent += 1
        phase.errors[kind] = phase.errors.get(kind, 0) + 1
        self.window_failed += 1


class Client:
    """One journey's way to the server. Every request moves `due` on to the moment its answer came."""

    __slots__ = ("_due", "_http", "_phase", "_recorder", "requests")

    def __init__(self, http: HttpClient, recorder: Recorder, phase: PhaseResult, due: float) -> None:
        self._http = http
        self._recorder = recorder
        self._phase = phase
        self._due = due
        self.requests = 0

    async def request(
        self,
        method: str,
        path: str,
        *,
        route: str | None = None,
        json: object = msgspec.UNSET,
        token: str | None = None,
        key: str | None = None,
        expect: Collection[int] | None = None,
    ) -> Answer:
        """Send one request. `route` is its label in the report, without ids; None means the path.

        `token` and `key` are sent as Authorization and Idempotency-Key.
        `expect` are the statuses that are no error, None means any below 400. Raises StepFailed otherwise,
        and when no answer came.
        """
        headers = b""
        body = b""
        if json is not msgspec.UNSET:
            headers = b"Content-Type: application/json\r\n"
            body = msgspec.json.encode(json)
        if token is not None:
            headers += b"Authorization: Token " + token.encode() + b"\r\n"
        if key is not None:
            headers += b"Idempotency-Key: " + key.encode() + b"\r\n"
        label = f"{method} {route or path}"
        recorder, phase, due = self._recorder, self._phase, self._due
        begun = time.monotonic()
        recorder.begun(label, begun - due)
        self.requests += 1
        try:
            answer = await self._http.request(method, path, headers, body)
        except RequestFailed as failure:
            self._due = now = time.monotonic()
            recorder.failed(label, phase, failure.kind, due, now, failure.sent)
            raise StepFailed(f"{label}: {failure}") from failure
        except asyncio.CancelledError:
            recorder.failed(label, phase, "unfinished", due, time.monotonic(), begun)
            raise
        self._due = now = time.monotonic()
        if answer.sent - begun > QUEUED_AFTER:
            recorder.results.queued += 1
        expected = answer.status < 400 if expect is None else answer.status in expect
        if not expected:
            recorder.failed(label, phase, f"status {answer.status}", due, now, answer.sent)
            raise StepFailed(f"{label}: status {answer.status}: {answer.body[:200]!r}")
        recorder.answered(label, phase, due, now, answer)
        return answer

    async def get(
        self,
        path: str,
        *,
        route: str | None = None,
        token: str | None = None,
        expect: Collection[int] | None = None,
    ) -> Answer:
        return await self.request("GET", path, route=route, token=token, expect=expect)

    async def post(
        self,
        path: str,
        json: object = msgspec.UNSET,
        *,
        route: str | None = None,
        token: str | None = None,
        key: str | None = None,
        expect: Collection[int] | None = None,
    ) -> Answer:
        return await self.request("POST", path, route=route, json=json, token=token, key=key, expect=expect)

    async def pause(self, seconds: float) -> None:
        """Think: the next request is due `seconds` after the last answer."""
        self._due += seconds
        await asyncio.sleep(max(self._due - time.monotonic(), 0.0))


Prepare = Callable[[Client, World], Awaitable[None]]
"""Runs once per process before the clock starts, unmeasured: logging in, looking around."""


@dataclass(frozen=True, slots=True)
class Journey:
    """`weight` is its share among all arrivals, `steps` how many requests it makes on average.

    `run` gets a random.Random of its own, the same for the same arrival whatever else happens.
    """

    name: str
    weight: float
    run: Callable[[Client, random.Random, World], Awaitable[None]]
    steps: float = 1.0
    prepare: Prepare | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a journey needs a name")
        if not self.weight > 0:
            raise ValueError(f"journey {self.name}: weight must be > 0, got {self.weight}")
        if not self.steps > 0:
            raise ValueError(f"journey {self.name}: steps must be > 0, got {self.steps}")


class Mix:
    """The journeys with their shares. Names are unique."""

    __slots__ = ("_bounds", "journeys", "steps")

    def __init__(self, journeys: Sequence[Journey]) -> None:
        if not journeys:
            raise ValueError("a mix needs at least one journey")
        names = [journey.name for journey in journeys]
        if len(set(names)) != len(names):
            raise ValueError(f"journeys need different names, got {', '.join(names)}")
        self.journeys = tuple(journeys)
        total = sum(journey.weight for journey in journeys)
        self._bounds = list(accumulate(journey.weight / total for journey in journeys))
        self.steps = sum(journey.weight * journey.steps for journey in journeys) / total

    def choose(self, rng: random.Random) -> Journey:
        point = rng.random()
        for bound, journey in zip(self._bounds, self.journeys, strict=True):
            if point < bound:
                return journey
        return self.journeys[-1]

    @property
    def preparations(self) -> list[Prepare]:
        """Each one once, in order."""
        found: list[Prepare] = []
        for journey in self.journeys:
            if journey.prepare is not None and journey.prepare not in found:
                found.append(journey.prepare)
        return found

    def results(self) -> dict[str, JourneyResult]:
        return {journey.name: JourneyResult(steps=journey.steps) for journey in self.journeys}
