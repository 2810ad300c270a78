"""The relay of bench.jobs beside publishing by hand, on Redis Streams.

The workers are left out: nothing is received, and the relay may be ahead of them as far as it likes.
"""

from __future__ import annotations

import asyncio
import time
from uuid import UUID

import redis.asyncio

from bench._jobs_peers import Counter, Nothing, Springtide
from springtide.clock import SystemClock
from springtide.jobs import Handler, _relay
from springtide.jobs._carrier import Carrier
from springtide.jobs._line import Line
from springtide.jobs._run import Route
from springtide.jobs._store import Store
from springtide.jobs.transports import Message, driver
from springtide.signals import JobsSent, Signal

__all__ = ["published_by_hand", "relayed"]

MANY = 1000


class Confirmed:
    """A sink that says when so many jobs were confirmed."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.all = asyncio.Event()

    def emit(self, signal: Signal) -> None:
        if isinstance(signal, JobsSent):
            self.left -= signal.confirmed
            if self.left <= 0:
                self.all.set()


async def relayed(ours: Springtide, url: str, count: int) -> float:
    """Seconds in which one relay makes so many due jobs `sent`, commits, publishes, sees them confirmed."""
    await ours.enqueue(count)
    store, clock, heard = Store(ours.database, "main"), SystemClock(), Confirmed(count)
    handler = Handler(Nothing, Counter.do)
    line = Line(store, {handler.kind.name: Route(handler, ours.database, ours.counter)})
    carrier = Carrier(driver("redis", url, name="relay"), changed=lambda _: None, clock=clock, sink=heard)
    relay = _relay.Relay(
        [line],
        carrier,
        poll=1.0,
        sent=lambda line, count: None,
        recalled=lambda shard, schema: None,
        clock=clock,
        sink=heard,
    )
    ahead, _relay.AHEAD = _relay.AHEAD, 10 * count
    await carrier.start()
    try:
        begun = time.perf_counter()
        await relay.start()
        await heard.all.wait()
        seconds = time.perf_counter() - begun
        await relay.stop()
    finally:
        _relay.AHEAD = ahead
        await carrier.stop()
    await ours.clear()
    return seconds


async def published_by_hand(url: str, count: int) -> float:
    """Seconds in which redis-py adds so many messages with the same bodies, by pipelines of a thousand."""
    bodies = [Message("bench.main.1", 7, UUID(int=number), 1).body for number in range(count)]
    client = redis.asyncio.Redis.from_url(url)
    try:
        await client.ping()
        begun = time.perf_counter()
        for start in range(0, count, MANY):
            pipeline = client.pipeline(transaction=False)
            for body in bodies[start : start + MANY]:
                pipeline.xadd("by-hand", {"b": body})
            await pipeline.execute()
        return time.perf_counter() - begun
    finally:
        await client.aclose()
