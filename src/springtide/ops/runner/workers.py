"""The workers of a platform, as many as the topology says, or as the jobs need.

With `worker_scaling` the platform's own app servers are asked every few seconds how many are wanted
(`/scaling`), and `scaling.py` decides. One look at a time: what it decided is done before the next one. A
worker is removed by drain only: told to claim no more, it finishes what it runs, however long, and ends; its
leases are renewed meanwhile. Whatever fails here changes no number, and the next look comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import logging
import signal
from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

from springtide.clock import Clock, SystemClock
from springtide.errors import RunnerError
from springtide.lifecycle import Periodic
from springtide.ops.runner.children import Child
from springtide.ops.runner.scaling import Fleet, Pace
from springtide.topology.layers import WorkerScalingSpec

__all__ = ["RETIRE", "Workers"]

_log = logging.getLogger(__name__)

LOOK_EVERY = 2.0
ASK_TIMEOUT = 5.0
MAX_ANSWER_BYTES = 1 << 20

TROUBLE = 30.0
"""Seconds after a worker ended, or could not be started, in which none is added."""

RETIRE = signal.SIGUSR1
"""What tells a worker to finish its jobs and end."""

RETIRE_TIMEOUT = 3600.0
"""Seconds for that; then it is stopped as with the platform: cut short and its jobs handed back."""


class Workers:
    """`make(number)` gives a worker that is not started; `scaling` what the topology says now."""

    def __init__(
        self,
        make: Callable[[int], Awaitable[Child]],
        *,
        scaling: Callable[[], WorkerScalingSpec | None],
        changed: Callable[[], None],
        clock: Clock | None = None,
    ) -> None:
        self._make = make
        self._scaling = scaling
        self._changed = changed
        self._clock = clock or SystemClock()
        self._active: dict[int, Child] = {}
        self._retiring: dict[int, Child] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._pace = Pace()
        self._url = ""
        self._failed_at = float("-inf")
        self._silent = False
        self._looking = Periodic("scale workers", self._look, every=LOOK_EVERY, clock=self._clock)

    @property
    def children(self) -> list[Child]:
        both = {**self._active, **self._retiring}
        return [both[number] for number in sorted(both)]

    async def prepare(self, count: int) -> None:
        """Make the first ones, to be started by the caller. With scaling: from `min` to `max`."""
        if (spec := self._scaling()) is not None:
            count = min(max(count, spec.min), spec.max)
        for number in range(1, count + 1):
            self._active[number] = await self._make(number)

    async def follow(self, url: str) -> None:
        """From now on, what /scaling at `url` says, where the topology asks for that."""
        self._url = url
        await self._looking.start()

    async def stop(self) -> None:
        """Also those that are being started or finish their jobs. Raises RunnerError when one cannot be."""
        await self._looking.stop()
        stopping = [asyncio.ensure_future(child.stop()) for child in self.children]
        if tasks := [*stopping, *self._tasks]:
            await asyncio.wait(tasks)
        for stopped in stopping:
            stopped.result()

    async def _look(self) -> None:
        spec = self._scaling()
        if spec is None:
            return
        now, wanted = self._clock.monotonic(), await self._ask()
        running = list(self._active.values())
        fleet = Fleet(
            len(running),
            len(self._retiring),
            well=now - self._failed_at >= TROUBLE
            and all(child.running and now - child.failed_at >= TROUBLE for child in running),
        )
        change = self._pace.look(
            now, wanted, fleet, least=spec.min, most=spec.max, down_after=spec.down_after
        )
        if change > 0:
            _log.info("%d more workers are started, because the jobs need %s", change, wanted)
            taken = {*self._active, *self._retiring}
            free = itertools.islice((n for n in itertools.count(1) if n not in taken), change)
            await asyncio.gather(*(self._add(number) for number in free))
        elif change < 0:
            self._retire()

    async def _add(self, number: int) -> None:
        child = self._active[number] = await self._make(number)
        try:
            await child.start()
        except (RunnerError, OSError) as error:
            self._failed_at = self._clock.monotonic()
            _log.error("%s was to be added and cannot be started: %s", child.name, error)
            self._forget(self._active, number)
        except BaseException:  # the platform stops meanwhile
            await child.stop()
            self._forget(self._active, number)
            raise

    def _retire(self) -> None:
        """The one with the highest number: it came last."""
        number = max(self._active)
        child = self._retiring[number] = self._active.pop(number)
        _log.info("fewer workers are wanted: %s finishes its jobs and ends", child.name)
        task = asyncio.get_running_loop().create_task(self._end(number, child), name=f"retire {child.name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _end(self, number: int, child: Child) -> None:
        try:
            await child.retire(RETIRE, RETIRE_TIMEOUT)
        except (RunnerError, OSError) as error:
            _log.error("%s was to end: %s", child.name, error)
        finally:
            self._forget(self._retiring, number)

    def _forget(self, children: dict[int, Child], number: int) -> None:
        children.pop(number, None)
        self._changed()

    async def _ask(self) -> int | None:
        """How many are wanted; None when nobody says so."""
        try:
            found = await asyncio.to_thread(_fetch, self._url)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if not self._silent:
                _log.warning("%s/scaling does not say how many workers are wanted: %s", self._url, error)
            self._silent = True
            return None
        self._silent = False
        return found


def _fetch(url: str) -> int:
    """`workers` of the page. Raises ValueError when there is no such page."""
    where = urlsplit(url)
    with contextlib.closing(
        http.client.HTTPConnection(where.hostname or "", where.port or 80, timeout=ASK_TIMEOUT)
    ) as connection:
        connection.request("GET", "/scaling")
        answer = connection.getresponse()
        body = answer.read(MAX_ANSWER_BYTES)
    if answer.status != 200:
        raise ValueError(f"it answers {answer.status}")
    page = json.loads(body)
    workers = page.get("workers") if isinstance(page, dict) else None
    if not isinstance(workers, int) or workers < 0:
        raise ValueError("it has no `workers`")
    return workers
