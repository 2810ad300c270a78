"""Answers stay with their callers for as long as anybody likes to break the server."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import hiredis
import pytest
from tests._redis import RedisServer
from tests._redis_use import started

from springtide.errors import RedisUnavailable
from springtide.redis import Redis, Script

pytestmark = [pytest.mark.stress, pytest.mark.needs("redis-server")]

ECHO = Script("echo", "return ARGV[1]")
SECONDS = 60.0
CALLERS = 200


async def test_no_answer_goes_astray_while_the_server_freezes_dies_and_cuts(
    own_redis: Callable[..., RedisServer],
) -> None:
    """200 callers ask for their own words, by commands and by scripts, are cancelled and are late, while the
    server is frozen, killed, restarted, loses its scripts and cuts its clients off: every answer is to the
    question, and there are answers to the end."""
    server = own_redis()
    seen: Counter[str] = Counter()
    over = asyncio.Event()

    async def caller(redis: Redis, number: int) -> None:
        dice = random.Random(number)
        asked = 0
        while not over.is_set():
            link = redis.link()
            if link is None:
                seen["nobody"] += 1
                await asyncio.sleep(0.01)
                continue
            asked += 1
            word = f"{number}:{asked}".encode()
            answer = link.call(ECHO, [], [word]) if dice.random() < 0.5 else link.send("ECHO", word)
            if dice.random() < 0.1:
                await asyncio.sleep(dice.choice((0, 0, 0.001)))
                answer.cancel()
                seen["cancelled"] += 1
                continue
            try:
                assert await answer == word
                seen["answered"] += 1
            except RedisUnavailable:
                seen["unavailable"] += 1
            await asyncio.sleep(0)

    def cut() -> None:
        with suppress(hiredis.HiredisError, OSError):
            server.command("CLIENT", "KILL", "TYPE", "normal")

    async def breaks() -> None:
        dice = random.Random(1)
        async with asyncio.timeout(SECONDS + 60):
            end = asyncio.get_running_loop().time() + SECONDS
            while asyncio.get_running_loop().time() < end:
                what = dice.choice(("freeze", "freeze", "cut", "flush", "restart"))
                if what == "freeze":
                    server.freeze()
                    await asyncio.sleep(dice.uniform(0.05, 1.0))
                    server.thaw()
                elif what == "cut":
                    await asyncio.to_thread(cut)
                elif what == "flush":
                    await asyncio.to_thread(server.command, "SCRIPT", "FLUSH")
                else:
                    await asyncio.to_thread(server.restart)
                before = seen["answered"]
                while seen["answered"] < before + CALLERS:
                    await asyncio.sleep(0.01)
        over.set()

    async with started(server.url, timeout=0.25, connect_timeout=1.0) as redis, asyncio.TaskGroup() as group:
        for number in range(CALLERS):
            group.create_task(caller(redis, number))
        group.create_task(breaks())
    assert min(seen[what] for what in ("answered", "cancelled", "unavailable", "nobody")) > 0, seen
