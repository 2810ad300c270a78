"""What is done to the replicas while clients read: lag of 0 to 5 s in three ways, kill -9, one failover.

Each replica has a loop of its own: it delays its replay, lets it stand still, stops all its processes, or is
killed and started again. At most one is stopped or dead at a time, so that a quorum can acknowledge writes.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from contextlib import suppress

import asyncpg

from bench._cluster import Cluster, Node

__all__ = ["MAX_LAG", "Drift"]

MAX_LAG = 5.0
"""Seconds."""


class Drift:
    """`run` until cancelled; `fail_over` beside it. `done` counts what was done.

    deadly: replicas are also stopped and killed; without, they only lag.
    """

    def __init__(self, cluster: Cluster, *, seed: int, deadly: bool) -> None:
        self.done: Counter[str] = Counter()
        self._cluster = cluster
        self._chance = random.Random(seed)
        self._turns = {node.name: asyncio.Lock() for node in cluster.nodes}
        self._absent = asyncio.Lock()
        self._weights = (48, 8, 24, 10, 10) if deadly else (60, 10, 30, 0, 0)  # lag in the same proportions

    async def run(self) -> None:
        for place, node in enumerate(self._cluster.replicas):  # lag of every size from the beginning
            node.delay(MAX_LAG * place / max(len(self._cluster.replicas) - 1, 1))
        try:
            async with asyncio.TaskGroup() as group:
                for node in self._cluster.nodes:
                    group.create_task(self._drive(node))
        finally:
            for node in self._cluster.nodes:
                node.thaw()
                if not node.running:
                    await node.start()
                node.delay(0.0)

    def turn(self, node: Node) -> asyncio.Lock:
        """While it is held, nothing else is done to `node`."""
        return self._turns[node.name]

    async def fail_over(self) -> float:
        """The primary dies, a replica takes its place, the old one comes back as a replica."""
        for turn in self._turns.values():
            await turn.acquire()
        try:
            dead = self._cluster.primary
            seconds = await self._cluster.fail_over()
            self.done["failover"] += 1
            await self._cluster.rejoin(dead)
        finally:
            for turn in self._turns.values():
                turn.release()
        return seconds

    async def _drive(self, node: Node) -> None:
        while True:
            await asyncio.sleep(self._chance.uniform(0.5, 3.0))
            async with self._turns[node.name]:
                if node is not self._cluster.primary:
                    await self._trouble(node)

    async def _trouble(self, node: Node) -> None:
        chance = self._chance
        what = chance.choices(["delay", "current", "hold", "freeze", "kill"], self._weights)[0]
        self.done[what] += 1
        match what:
            case "delay":
                node.delay(chance.uniform(0.0 if chance.random() < 0.5 else MAX_LAG / 2, MAX_LAG))
            case "current":
                node.delay(0.0)
            case "hold":
                with suppress(OSError, asyncpg.PostgresError):
                    await node.hold()
                    await asyncio.sleep(chance.uniform(0.2, MAX_LAG))
                    await node.release()
            case "freeze":
                async with self._absent:
                    node.freeze()
                    try:
                        await asyncio.sleep(chance.uniform(0.2, MAX_LAG))
                    finally:
                        node.thaw()
            case "kill":
                async with self._absent:
                    await node.kill()
                    await node.start()
