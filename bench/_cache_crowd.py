"""A hundred callers of four processes want a value that is nowhere: how often is it loaded?

    python -m bench._cache_crowd URL KEY        (one of the processes, by `crowd`)

Each process waits for a line on stdin, so that all begin together; the loader takes LOAD seconds and counts
itself in a counter of its own in Redis.
"""

from __future__ import annotations

import asyncio
import sys

import redis.asyncio

from bench._cache_hits import User, at_work, user
from bench._pinned import ROOT
from springtide.cache import Cache

__all__ = ["cancelled", "crowd"]

PROCESSES = 4
CALLERS = 25
LOAD = 0.3
COUNTER = "bench:loads"


async def crowd(url: str, *, turns: int) -> tuple[int, int]:
    """The most loads of one turn, and how many callers were answered in all turns."""
    counter = redis.asyncio.Redis.from_url(url, protocol=2)
    most = answered = 0
    try:
        for turn in range(turns):
            await counter.set(COUNTER, 0)
            processes = [
                await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "bench._cache_crowd", url, str(turn),
                    cwd=ROOT, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
                )
                for _ in range(PROCESSES)
            ]  # fmt: skip
            for process in processes:
                assert process.stdout is not None
                await process.stdout.readline()
            answers = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
            answered += sum(int(out) for out, _ in answers)
            most = max(most, int(await counter.get(COUNTER)))
    finally:
        await counter.aclose()
    return most, answered


async def one_process(url: str, key: int) -> None:
    counter = redis.asyncio.Redis.from_url(url, protocol=2)

    async def load(id: int) -> User:
        if id == key:
            await counter.incr(COUNTER)
            await asyncio.sleep(LOAD)
        return user(id)

    cache = Cache("bench", redis=url)
    users = cache.define("crowd:{id}", User, load=load, ttl=3600.0)
    async with cache:
        await at_work(users)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        found = await asyncio.gather(*(users.get(key) for _ in range(CALLERS)))
        print(sum(one == user(key) for one in found), flush=True)
    await counter.aclose()


async def cancelled() -> int:
    """Ten wait for one load, the first is cancelled: how many of the nine others have the value."""
    release = asyncio.Event()

    async def load(id: int) -> User:
        await release.wait()
        return user(id)

    cache = Cache("bench")
    users = cache.define("cancelled:{id}", User, load=load)
    async with cache:
        callers = [asyncio.create_task(users.get(1)) for _ in range(10)]
        await asyncio.sleep(0.05)
        callers[0].cancel()
        await asyncio.sleep(0.05)
        release.set()
        found = await asyncio.gather(*callers, return_exceptions=True)
    return sum(one == user(1) for one in found[1:])


if __name__ == "__main__":
    asyncio.run(one_process(sys.argv[1], int(sys.argv[2])))
