"""The queues of bench.jobs beside ours and PgQueuer, each as its own manual says is best for many short jobs.

All acknowledge after the handler, run the same no-op with the same payload, and have as many of them in hand
as ours; all of them are in this process, on the same PostgreSQL or the same Redis. A drain begins with a full
queue and a worker that is told to start, and ends with the last call of the handler: what is acknowledged or
written after it is not counted, nor is the stop of the worker.

- Procrastinate: asyncio, `concurrency` as asked, a pool with as many connections as ours, finished jobs kept
  (its standard). It claims one job by each statement; more connections make it no faster.
- Taskiq: Redis Streams (its manual's choice where messages must not be lost), a hundred messages per read
  (its standard), acknowledged when the result is saved (its standard), as many fetched ahead as are in hand.
- Dramatiq: Redis, one process, a thread per job in hand, fetching ahead twice as many (its standard).
- Celery: Redis, one process, a thread per job in hand, `acks_late` and `reject_on_worker_lost`, four messages
  ahead per thread (its standard), no results, neither gossip nor mingle, which are for many workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import celery
import dramatiq
import procrastinate
from celery.worker import WorkController
from celery.worker import state as celery_state
from dramatiq.brokers.redis import RedisBroker
from taskiq.api import run_receiver_task
from taskiq_redis import RedisStreamBroker

from bench._jobs_peers import CONNECTIONS, Counter, Drained

__all__ = ["celery_queue", "dramatiq_queue", "procrastinate_queue", "taskiq_queue"]

PATIENCE = 120.0


@contextlib.asynccontextmanager
async def procrastinate_queue(url: str) -> AsyncIterator[Drained]:
    connector = procrastinate.PsycopgConnector(conninfo=url, min_size=1, max_size=CONNECTIONS)
    app, counter = procrastinate.App(connector=connector), Counter()

    @app.task(name="nothing")
    async def nothing(at: float) -> None:
        counter.called()

    async def enqueue(count: int) -> None:
        for start in range(0, count, 1000):
            await nothing.batch_defer_async(*[{"at": 0.0}] * min(1000, count - start))

    async def drain(count: int, hands: int) -> float:
        counter.expect(count)
        begun = time.perf_counter()
        working = asyncio.ensure_future(
            app.run_worker_async(concurrency=hands, wait=False, install_signal_handlers=False)
        )
        await counter.all.wait()
        seconds = time.perf_counter() - begun
        await working
        return seconds

    logging.getLogger("procrastinate").setLevel(logging.WARNING)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()
        yield Drained(enqueue, drain)


@contextlib.asynccontextmanager
async def taskiq_queue(url: str) -> AsyncIterator[Drained]:
    broker, counter = RedisStreamBroker(url), Counter()

    @broker.task(task_name="nothing")
    async def nothing(at: float) -> None:
        counter.called()

    async def enqueue(count: int) -> None:
        for start in range(0, count, 100):
            await asyncio.gather(*(nothing.kiq(0.0) for _ in range(min(100, count - start))))

    async def drain(count: int, hands: int) -> float:
        counter.expect(count)
        begun = time.perf_counter()
        working = asyncio.ensure_future(run_receiver_task(broker, max_async_tasks=hands, max_prefetch=hands))
        await counter.all.wait()
        seconds = time.perf_counter() - begun
        await asyncio.sleep(0.1)  # the last acknowledgements
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
        return seconds

    logging.getLogger("taskiq").setLevel(logging.ERROR)
    await broker.startup()
    try:
        yield Drained(enqueue, drain)
    finally:
        await broker.shutdown()


class Calls:
    """Counts calls from many threads, and says when there were so many."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._left = 0
        self._all = threading.Event()

    def expect(self, count: int) -> None:
        self._left = count
        self._all.clear()

    def called(self) -> None:
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._all.set()

    async def timed(self, start: Callable[[], object]) -> float:
        """Seconds from `start` to the last call."""
        begun = time.perf_counter()
        start()
        assert await asyncio.to_thread(self._all.wait, PATIENCE), f"{self._left} jobs are left"
        return time.perf_counter() - begun


@contextlib.asynccontextmanager
async def dramatiq_queue(url: str) -> AsyncIterator[Drained]:
    broker, calls = RedisBroker(url=url), Calls()
    standard = list(broker.middleware)

    @dramatiq.actor(broker=broker, actor_name="nothing")
    def nothing(at: float) -> None:
        calls.called()

    async def enqueue(count: int) -> None:
        def add() -> None:
            for _ in range(count):
                nothing.send(0.0)

        await asyncio.to_thread(add)

    async def drain(count: int, hands: int) -> float:
        calls.expect(count)
        worker = dramatiq.Worker(broker, worker_threads=hands)
        try:
            return await calls.timed(worker.start)
        finally:
            await asyncio.to_thread(worker.stop)
            broker.middleware[:] = standard  # each worker adds its own

    try:
        yield Drained(enqueue, drain)
    finally:
        broker.close()


@contextlib.asynccontextmanager
async def celery_queue(url: str) -> AsyncIterator[Drained]:
    app, calls = celery.Celery("bench", broker=url), Calls()
    app.conf.update(
        task_acks_late=True, task_reject_on_worker_lost=True, task_ignore_result=True,
        worker_hijack_root_logger=False, worker_redirect_stdouts=False,
    )  # fmt: skip

    @app.task(name="nothing")
    def nothing(at: float) -> None:
        calls.called()

    async def enqueue(count: int) -> None:
        def add() -> None:
            with app.producer_pool.acquire(block=True) as producer:
                for _ in range(count):
                    nothing.apply_async((0.0,), producer=producer)

        await asyncio.to_thread(add)

    async def drain(count: int, hands: int) -> float:
        calls.expect(count)
        worker: Any = WorkController(
            app=app, pool_cls="threads", concurrency=hands, without_gossip=True, without_mingle=True
        )
        working = threading.Thread(target=worker.start, name="celery")
        try:
            return await calls.timed(working.start)
        finally:
            celery_state.should_stop = 0
            await asyncio.to_thread(working.join, PATIENCE)
            celery_state.should_stop = None

    yield Drained(enqueue, drain)
    app.close()
