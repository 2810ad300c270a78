"""Renew the leases of the runs that this worker has in hand, from a thread of its own.

Renewing proves that the worker is alive, and only that may prove it:
- the thread has a loop and connections of its own, so a busy event loop or an exhausted pool does not lose
  leases;
- it renews nothing while the worker's event loop has not ticked for `stall` seconds;
- it does not renew a run whose `max_run` (plus GRACE for the cancellation) has passed: a handler that hangs
  and ignores its cancellation loses the job.

A run is lost when the database says that it is not ours, or when its lease has passed by our own clock
without having been renewed: somebody else may have it, so it is cancelled here.
The thread shares a dictionary with the loop (copied in one step) and calls back by `call_soon_threadsafe`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
from collections.abc import Callable, Mapping

import asyncpg

from springtide.clock import Clock, SystemClock
from springtide.context import Priority, RequestContext, activate
from springtide.db.pool import Pool
from springtide.errors import SpringtideError
from springtide.jobs._store import RunName, Store
from springtide.lifecycle import StartStop, Supervised
from springtide.signals import Sink

__all__ = ["GRACE", "Heart", "Lease"]

_log = logging.getLogger(__name__)

GRACE = 5.0
"""Seconds after `max_run` in which a cancelled handler may still clean up."""

BEAT_TIMEOUT = 5.0


class Lease:
    """A run in hand. It passes at `until` and is not renewed after `renew_until`; both monotonic."""

    __slots__ = ("renew_until", "run", "store", "until", "worker")

    def __init__(self, store: Store, run: RunName, worker: str, *, until: float, renew_until: float) -> None:
        self.store = store
        self.run = run
        self.worker = worker
        self.until = until
        self.renew_until = renew_until


class Heart:
    """A lifecycle service. `lost` is called in the worker's loop with leases that are not ours any more.

    It may be called again for the same lease until it is released. `dsns` is looked at anew before each beat,
    from the thread: a mapping that changes leads the heart to another primary.
    """

    name = "jobs heartbeat"

    def __init__(
        self,
        dsns: Mapping[str, str],
        *,
        lease: float,
        every: float,
        stall: float,
        lost: Callable[[list[Lease]], None],
        clock: Clock | None = None,
        sink: Sink | None = None,
    ) -> None:
        self._dsns = dsns
        self._seconds = lease
        self._every = every
        self._stall = stall
        self._lost = lost
        self._monotonic = (clock or SystemClock()).monotonic
        self._held: dict[Lease, None] = {}
        self._ticked = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._thread: threading.Thread | None = None
        self._inner: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._life = StartStop(self.name, self._open, self._close, sink=sink)

    @property
    def state(self) -> str:
        return self._life.state

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    def hold(self, lease: Lease) -> None:
        self._held[lease] = None

    def release(self, lease: Lease) -> None:
        self._held.pop(lease, None)

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[None] = loop.create_future()
        self._tick()
        self._thread = threading.Thread(target=self._main, args=(loop, ready), name=self.name, daemon=True)
        self._thread.start()
        try:
            await asyncio.shield(ready)
        except asyncio.CancelledError:
            await asyncio.wait([ready])
            await self._close()
            raise

    async def _close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._inner is not None and self._stopping is not None:
            self._inner.call_soon_threadsafe(self._stopping.set)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join)
        self._thread = self._inner = self._stopping = None

    def _tick(self) -> None:
        self._ticked = self._monotonic()
        self._timer = asyncio.get_running_loop().call_later(min(0.5, self._stall / 4), self._tick)

    # -- in the thread ---------------------------------------------------------------------------------

    def _main(self, loop: asyncio.AbstractEventLoop, ready: asyncio.Future[None]) -> None:
        try:
            asyncio.run(self._beat_until_stopped(loop, ready))
        except Exception:  # nobody else would tell: without this thread leases run out and jobs are redone
            _log.exception("%s ended; running jobs will lose their leases", self.name)

    async def _beat_until_stopped(self, loop: asyncio.AbstractEventLoop, ready: asyncio.Future[None]) -> None:
        self._inner = asyncio.get_running_loop()
        self._stopping = stopping = asyncio.Event()
        loop.call_soon_threadsafe(_resolve, ready)
        pools = {
            shard: Pool(
                dsn,
                cluster=shard,
                size=1,
                reserved=0,
                acquire_timeout=BEAT_TIMEOUT,
                server_settings={"application_name": "springtide heartbeat"},
            )
            for shard, dsn in tuple(self._dsns.items())
        }
        beating = Supervised(f"{self.name} loop", lambda: self._beats(loop, pools), max_backoff=self._every)
        try:
            await beating.start()
            await stopping.wait()
        finally:
            await beating.stop()
            await asyncio.gather(*(pool.stop() for pool in pools.values()))

    async def _beats(self, loop: asyncio.AbstractEventLoop, pools: Mapping[str, Pool]) -> None:
        while True:
            healthy = await self._beat(loop, pools)
            pause = self._every if healthy else self._every / 4
            await asyncio.sleep(pause * random.uniform(0.8, 1.0))  # noqa: S311 - spreads beats

    async def _beat(self, loop: asyncio.AbstractEventLoop, pools: Mapping[str, Pool]) -> bool:
        """Renew what may be renewed; False when a server could not be asked."""
        now = self._monotonic()
        held = list(self._held.copy())
        lost = [lease for lease in held if now > lease.until]
        if now - self._ticked > self._stall:
            if held:
                _log.warning(
                    "the event loop has not ticked for %.1f s: the leases of %d jobs are not renewed",
                    now - self._ticked,
                    len(held),
                )
            groups: dict[tuple[Store, str], list[Lease]] = {}
        else:
            groups = {}
            for lease in held:
                if now <= lease.until and now <= lease.renew_until:
                    groups.setdefault((lease.store, lease.worker), []).append(lease)
        results = await asyncio.gather(
            *(
                self._renew(pools[store.shard], store, worker, leases)
                for (store, worker), leases in groups.items()
            )
        )
        for found in results:
            lost += found or []
        if lost:
            with contextlib.suppress(RuntimeError):  # the worker's loop is closed: nothing runs there
                loop.call_soon_threadsafe(self._lost, lost)
        return None not in results

    async def _renew(self, pool: Pool, store: Store, worker: str, leases: list[Lease]) -> list[Lease] | None:
        """Those of `leases` that are lost; None when the server could not be asked."""
        sent = self._monotonic()
        try:
            async with asyncio.timeout(BEAT_TIMEOUT * 2):
                pool.move(self._dsns[store.shard])
                if pool.state != "running":
                    await pool.start()
                with activate(RequestContext(deadline=sent + BEAT_TIMEOUT, priority=Priority.CRITICAL)):
                    lost = await store.renew([lease.run for lease in leases], worker, self._seconds, pool)
        except (SpringtideError, asyncpg.PostgresError, TimeoutError) as error:
            _log.warning("%s: %s on %s: %s", self.name, store.module, store.shard, error)
            return None
        for lease in leases:
            if lease.run.id not in lost:
                lease.until = sent + self._seconds
        return [lease for lease in leases if lease.run.id in lost]


def _resolve(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)
