"""Relays that are killed and stopped at random, while writers commit and tell nobody."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from tests._level2 import HANGS
from tests._redis import RedisServer
from tests.invalidating import TellingCache
from tests.relayed import Bus, Follower, connected, process, says
from tests.sharded import notes

pytestmark = [pytest.mark.needs("redis-server"), pytest.mark.stress]

SECONDS = 45.0


async def test_no_proof_covers_an_unheard_write_whoever_is_killed(
    database_url: str, tmp_path: Path, redis_server: RedisServer
) -> None:
    """Three processes relay; each is killed (kill -9) or stopped for a while again and again. Nothing that
    was answered before a proven moment is missing, and in the end everything has been applied."""
    draw = random.Random(7)
    begun, ended, heard = asyncio.Event(), asyncio.Event(), asyncio.Event()
    async with notes([database_url], tmp_path) as db, connected(redis_server) as redis:
        db.invalidations = TellingCache()
        async with db.seeing("main") as sight:
            bus, link = Bus(redis_server, "user", sight.seen.epoch), redis.link("")
        assert link is not None
        reader = Follower(bus, link)
        counts = {"killed": 0, "stopped": 0}

        async def either(body: Coroutine[Any, Any, None], event: asyncio.Event) -> bool:
            """Whether the event came first."""
            first, waiting = asyncio.ensure_future(body), asyncio.ensure_future(event.wait())
            await asyncio.wait((first, waiting), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if first.done():
                first.result()
                return False
            first.cancel()
            await asyncio.wait((first,))
            return True

        async def tormented() -> None:
            """Whoever leads is killed, or stopped until another leads and maybe for longer."""
            while not ended.is_set():
                async with process("relay", database_url, redis_server.url) as made:
                    while not await either(says(made, "leads", seconds=SECONDS + HANGS), ended):
                        await asyncio.sleep(draw.uniform(0.2, 1.5))
                        if draw.random() < 0.5:
                            counts["killed"] += 1
                            break
                        made.send_signal(signal.SIGSTOP)
                        await asyncio.sleep(draw.uniform(0.5, 4.0))
                        made.send_signal(signal.SIGCONT)
                        counts["stopped"] += 1
                    if ended.is_set():
                        await heard.wait()

        async def write(number: int) -> None:
            turn = 0
            await begun.wait()
            while not ended.is_set():
                turn += 1
                async with db.write(1) as tx:
                    tx.invalidate("user", f"{number}-{turn}")
                    if draw.random() < 0.05:
                        await asyncio.sleep(draw.uniform(0.0, 2.0))  # commits long after it began
                reader.answered[f"k:{number}-{turn}"] = time.monotonic()
                await asyncio.sleep(draw.uniform(0.0, 0.05))

        async def followed() -> None:
            async with asyncio.timeout(HANGS):
                while len(await asyncio.to_thread(bus.beats)) < 2:
                    await asyncio.sleep(0.05)
            await reader.begin()
            begun.set()
            until = time.monotonic() + SECONDS
            while not (ended.is_set() and reader.done):
                await reader.follow()
                await asyncio.sleep(0.005)
                if time.monotonic() > until:
                    ended.set()
            heard.set()

        async with asyncio.timeout(SECONDS + 4 * HANGS), asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(write(number))
            for _ in range(3):
                group.create_task(tormented())
            await followed()
        print(
            len(reader.answered), "writes", reader.checked, "proofs", len(reader.leaders), "leaders", counts
        )
        assert reader.checked
        assert len(reader.leaders) > 3
        assert sum(counts.values()) > 3
