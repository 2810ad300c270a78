"""One process of an open loop: begins each planned journey at its time, whatever the server does.

new -> prepared -> running -> draining -> done. At most `max_in_flight` journeys run at once; one that is due
beyond that is counted as unsent, never dropped silently and never delayed. After the last arrival what is in
flight has `drain` seconds; `stop()` gives it none. What is still running then is recorded as unfinished.

Invariant: planned == completed + abandoned + unsent + unfinished, for each journey.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence

import msgspec

from springtide.errors import LoadError
from springtide.ops.load.arrivals import Arrival, Phase, plan
from springtide.ops.load.client import HttpClient
from springtide.ops.load.histogram import Histogram
from springtide.ops.load.journeys import Client, Journey, Mix, Recorder, StepFailed, World
from springtide.ops.load.pacer import pacer
from springtide.ops.load.results import PhaseResult, Results

__all__ = ["Generator", "Options", "Snapshot"]


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """How to drive. `phases` are in journeys per second; `limit` bounds the planned journeys, None: no bound.

    `late_after`: a request begun later than this after it was due counts as late (the generator's fault).
    `part` of `parts`: this process's share of the plan. `drain` None means `timeout`.
    """

    url: str
    phases: tuple[Phase, ...]
    seed: int = 1
    distribution: str = "poisson"
    connections: int = 100
    max_in_flight: int = 1000
    timeout: float = 10.0
    late_after: float = 0.01
    drain: float | None = None
    limit: int | None = None
    part: int = 0
    parts: int = 1

    def __post_init__(self) -> None:
        if self.max_in_flight < 1:
            raise ValueError(f"max_in_flight must be >= 1, got {self.max_in_flight}")
        if not self.late_after > 0:
            raise ValueError(f"late_after must be > 0 seconds, got {self.late_after}")
        if self.drain is not None and self.drain < 0:
            raise ValueError(f"drain must be >= 0 seconds, got {self.drain}")


class Snapshot(msgspec.Struct, frozen=True):
    """The run so far, and the latencies and failures since the snapshot before."""

    elapsed: float
    phase: str
    planned: int
    sent: int
    failed: int
    unsent: int
    late: int
    in_flight: int
    window: Histogram
    window_failed: int


class Generator:
    """Drives one plan once: `prepare()`, then `run(start)`."""

    def __init__(self, options: Options, journeys: Sequence[Journey]) -> None:
        self._options = options
        self._mix = Mix(journeys)
        self._http = HttpClient(options.url, connections=options.connections, timeout=options.timeout)
        self._world = World(seed=options.seed)
        self.results = Results(
            url=options.url,
            seed=options.seed,
            phases=[
                PhaseResult(name=phase.name, duration=phase.duration, rate=phase.mean_rate * self._mix.steps)
                for phase in options.phases
            ],
            journeys=self._mix.results(),
        )
        self._recorder = Recorder(self.results, late_after=options.late_after)
        self._arrivals = plan(
            options.phases,
            seed=options.seed,
            distribution=options.distribution,
            part=options.part,
            parts=options.parts,
            limit=options.limit,
        )
        self._flying: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._fault: BaseException | None = None
        self._start = 0.0
        self._phase = 0

    async def prepare(self) -> None:
        """Let the journeys prepare, unmeasured. Raises LoadError when one of their requests fails."""
        scratch = Results(url=self._options.url, seed=self._options.seed)
        phase = PhaseResult(name="prepare", duration=0.0, rate=0.0)
        recorder = Recorder(scratch, late_after=self._options.late_after)
        try:
            for prepare in self._mix.preparations:
                await prepare(Client(self._http, recorder, phase, time.monotonic()), self._world)
        except BaseException as error:
            await self._http.close()
            if isinstance(error, StepFailed):
                raise LoadError(f"the load could not be prepared: {error}") from error
            raise
        self._http.opened = self._http.resent = 0

    def stop(self) -> None:
        """End the run now; what has been measured stays. May be called at any time, from the loop."""
        self.results.interrupted = True
        self._stopping.set()

    async def run(self, start: float | None = None) -> Results:
        """Drive the plan from `start` (`time.monotonic()` seconds, None: now) until it is done or stopped.

        Raises LoadError when a journey's own code fails; `results` has what was measured until then.
        """
        self._start = time.monotonic() if start is None else start
        cpu = time.process_time()
        begun = time.monotonic()
        launching = asyncio.create_task(self._launch(), name="load:launch")
        stopping = asyncio.create_task(self._stopping.wait(), name="load:stop")
        try:
            await asyncio.wait([launching, stopping], return_when=asyncio.FIRST_COMPLETED)
            if launching.done():
                launching.result()
                await self._drain(stopping)
        finally:
            launching.cancel()
            stopping.cancel()
            await asyncio.wait([launching, stopping])
            await self._cut_off()
            await self._http.close()
            ended = time.monotonic()
            self.results.seconds = max(ended - self._start, 0.0)
            self.results.cpu = (time.process_time() - cpu) / max(ended - begun, 1e-9)
            self.results.opened = self._http.opened
            self.results.resent = self._http.resent
        if self._fault is not None:
            raise LoadError(f"a journey failed by its own code: {self._fault!r}") from self._fault
        return self.results

    def snapshot(self) -> Snapshot:
        """What the live line shows; begins a new window."""
        results, recorder = self.results, self._recorder
        window, recorder.window = recorder.window, Histogram()
        failed, recorder.window_failed = recorder.window_failed, 0
        return Snapshot(
            elapsed=max(time.monotonic() - self._start, 0.0) if self._start else 0.0,
            phase=results.phases[self._phase].name if results.phases else "",
            planned=results.planned,
            sent=sum(phase.sent for phase in results.phases),
            failed=results.failed,
            unsent=results.unsent,
            late=results.late,
            in_flight=len(self._flying),
            window=window,
            window_failed=failed,
        )

    async def _launch(self) -> None:
        loop = asyncio.get_running_loop()
        waiting = pacer()
        phases, journeys, bound = self.results.phases, self.results.journeys, self._options.max_in_flight
        try:
            for arrival in self._arrivals:
                due = self._start + arrival.at
                if time.monotonic() < due:
                    await waiting.until(due)
                else:
                    await asyncio.sleep(0)  # behind: the answers must be read all the same
                self._phase = arrival.phase
                rng = random.Random(self._options.seed << 48 ^ arrival.number)
                journey = self._mix.choose(rng)
                result = journeys[journey.name]
                result.planned += 1
                phases[arrival.phase].planned += 1
                if len(self._flying) >= bound:
                    result.unsent += 1
                    phases[arrival.phase].unsent += 1
                    continue
                task = loop.create_task(self._journey(journey, arrival, due, rng))
                self._flying.add(task)
                task.add_done_callback(self._flying.discard)
        finally:
            waiting.close()

    async def _journey(self, journey: Journey, arrival: Arrival, due: float, rng: random.Random) -> None:
        result = self.results.journeys[journey.name]
        client = Client(self._http, self._recorder, self.results.phases[arrival.phase], due)
        try:
            await journey.run(client, rng, self._world)
            result.completed += 1
            result.duration.record(time.monotonic() - due)
        except StepFailed:
            result.abandoned += 1
        except Exception as error:  # the run ends with it: see run()
            result.abandoned += 1
            if self._fault is None:
                self._fault = error
            self.stop()
        finally:
            result.requests += client.requests

    async def _drain(self, stopping: asyncio.Task[bool]) -> None:
        if self._flying:
            patience = self._options.timeout if self._options.drain is None else self._options.drain
            landing = asyncio.create_task(_landed(self._flying), name="load:drain")
            try:
                await asyncio.wait([landing, stopping], timeout=patience, return_when="FIRST_COMPLETED")
            finally:
                landing.cancel()

    async def _cut_off(self) -> None:
        flying = list(self._flying)
        for task in flying:
            task.cancel()
        if flying:
            await asyncio.wait(flying)
        for result in self.results.journeys.values():  # counted here: a task may end before it began
            result.unfinished = result.planned - result.completed - result.abandoned - result.unsent


async def _landed(flying: set[asyncio.Task[None]]) -> None:
    await asyncio.wait(set(flying))
