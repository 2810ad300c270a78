"""The relay beside publishing by hand, on Redis Streams, and PostgreSQL that syncs every commit.

- `relay_vs_raw_publish`: due jobs per second that one relay makes `sent`, commits, publishes and sees
  confirmed, over the messages per second that redis-py adds to a stream by pipelines of a thousand, with the
  same bodies.

The workers are left out: nothing is received, and the relay may be ahead of them as far as it likes. Sides
take turns, the ratio is the median of the rounds.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from uuid import UUID

import redis.asyncio
import uvloop
from tests._redis import RedisServer

from bench._harness import arguments, finish
from bench._jobs_peers import Counter, Nothing, Springtide, springtide_queue
from springtide.clock import SystemClock
from springtide.jobs import Handler, _relay
from springtide.jobs._carrier import Carrier
from springtide.jobs._dispatch import Line
from springtide.jobs._run import Route
from springtide.jobs._store import Store
from springtide.jobs.transports import Message, driver
from springtide.ops.runner.postgres import EmbeddedPostgres
from springtide.signals import JobsSent, Signal

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
    await ours.enqueue(count)
    store, clock, heard = Store(ours.database, "main"), SystemClock(), Confirmed(count)
    handler = Handler(Nothing, Counter.do)
    line = Line(store, {handler.kind.name: Route(handler, ours.database, ours.counter)})
    carrier = Carrier(driver("redis", url, name="bench"), changed=lambda _: None, clock=clock, sink=heard)
    relay = _relay.Relay(
        [line],
        carrier,
        poll=1.0,
        sent=lambda line, count: None,
        recalled=lambda shard, schema: None,
        clock=clock,
        sink=heard,
    )
    await carrier.start()
    begun = time.perf_counter()
    await relay.start()
    await heard.all.wait()
    seconds = time.perf_counter() - begun
    await relay.stop()
    await carrier.stop()
    await ours.pool.execute("truncate bench._job")
    return seconds


async def by_hand(url: str, count: int) -> float:
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


async def main() -> None:
    options = arguments(__doc__, rounds=7)
    count = 5000 if options.quick else 40_000
    _relay.AHEAD = 10 * count
    home = Path(tempfile.mkdtemp(prefix="springtide-bench-relay-"))
    server, broker = EmbeddedPostgres("db", home=home), RedisServer()
    ratios = []
    try:
        broker.start()
        await server.start()
        await server.ensure_database("bench")
        async with springtide_queue(server.url("bench")) as ours:
            await relayed(ours, broker.url, MANY)
            for number in range(options.rounds):
                seconds = {}
                for name in ("relay", "raw") if number % 2 else ("raw", "relay"):
                    broker.flush()
                    if name == "relay":
                        seconds[name] = await relayed(ours, broker.url, count)
                    else:
                        seconds[name] = await by_hand(broker.url, count)
                ratios.append(seconds["raw"] / seconds["relay"])
                print(f"relay {count / seconds['relay']:.0f}/s, by hand {count / seconds['raw']:.0f}/s")
    finally:
        await server.stop()
        broker.close()
        shutil.rmtree(home, ignore_errors=True)
    finish({"relay_vs_raw_publish": round(statistics.median(ratios), 3)})


if __name__ == "__main__":
    uvloop.run(main())
