"""Sessions inside an app process, which read more than HTTP could carry.

Half of them carry a token from one request to the next, as a browser does, and write; the others are
strangers, who only read and are promised nothing but the budget. A request has a context, a token and a
deadline of its own, and reads its keys in one of the three ways of `bench.cached.app`. Between two requests a
session thinks for a moment, and longer when the last one took long; after one that took hardly any time it
looks at more. So where reads have become dear, the machine has room to breathe, and where they are cheap
there are many.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from bench.cached.journal import Journal, Wrote
from springtide.context import CausalityToken, RequestContext, activate

__all__ = ["WAYS", "Answer", "Crowd", "CrowdPlan"]

WAYS = ("one", "many", "group")

PAUSE = 0.03
"""Seconds that a session thinks at least, times a factor in [0.5, 1.5)."""

PATIENCE = 6.0
LONGEST_PAUSE = 1.0
"""How often as long as its last request took it thinks, and the longest that it does."""

SWIFT = 0.02
MORE = 4
"""Seconds of a request after which the next one reads so many times as many keys."""

DEADLINE = 12.0

Answer = tuple[int, str | None, float] | None
"""Version, value, when the read began; None: it failed as it was told to."""


class CrowdPlan(msgspec.Struct):
    """What the crowd of one app process does. writes: the share of the requests of those who write."""

    name: str
    app: int
    cache: str
    sessions: int
    keys: list[int]
    reads: int
    writes: float
    out: str
    seed: int


class Asked(Protocol):
    async def read(self, keys: Sequence[int], how: str, cache: str) -> list[Answer]: ...

    async def write(self, key: int, value: str, cache: str, hold: float) -> tuple[int, float]: ...


class Crowd:
    def __init__(self, plan: CrowdPlan, asked: Asked) -> None:
        self.journal = Journal()
        self._plan = plan
        self._asked = asked
        self._chance = random.Random(plan.seed)
        self._numbers = iter(range(10**9))
        self._ended = False
        self._living = asyncio.create_task(self._live_all(), context=contextvars.Context())

    def disperse(self) -> None:
        """Begin no request any more. When the last one has ended, the journal is on the disk."""
        self._ended = True

    async def _live_all(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(self._plan.sessions):
                group.create_task(self._live(number))
        await asyncio.to_thread(self.journal.keep, Path(self._plan.out))

    async def _live(self, number: int) -> None:
        plan, chance, token = self._plan, self._chance, ""
        stranger = number % 2 == 1
        name = f"{plan.name}-{number}"
        own, took = chance.choice(plan.keys), 1.0
        while not self._ended:
            keys = chance.sample(plan.keys, plan.reads * (MORE if took < SWIFT else 1))
            asked = time.monotonic()
            if not stranger:
                if not token or chance.random() < plan.writes:
                    own = chance.choice(plan.keys)
                    token = await self._write(name, token, own)
                keys[0] = own
            token = await self._read(name, token, keys, stranger=stranger)
            took = time.monotonic() - asked
            pause = min(max(PAUSE, PATIENCE * took), LONGEST_PAUSE)
            await asyncio.sleep(pause * chance.uniform(0.5, 1.5))

    async def _write(self, name: str, token: str, key: int) -> str:
        asked = acknowledged = time.monotonic()
        value, version = f"{name}.{next(self._numbers)}", 0
        context = _context(token)
        try:
            async with asyncio.timeout(DEADLINE):
                with activate(context):
                    version, acknowledged = await self._asked.write(key, value, self._plan.cache, 0.0)
        except Exception as error:  # of any kind: it is what a client would be told
            self._failed(asked, "write", error)
        ended = time.monotonic()
        self.journal.wrote.append(Wrote(name, key, version, value, asked, acknowledged, ended))
        return context.causality.encode()

    async def _read(self, name: str, token: str, keys: Sequence[int], *, stranger: bool) -> str:
        asked = time.monotonic()
        context = _context("" if stranger else token)
        try:
            async with asyncio.timeout(DEADLINE):
                with activate(context):
                    found = await self._asked.read(keys, self._chance.choice(WAYS), self._plan.cache)
        except Exception as error:
            self._failed(asked, "read", error)
        else:
            self.journal.saw(name, self._plan.app, asked, time.monotonic(), zip(keys, found, strict=True))
        return context.causality.encode()

    def _failed(self, asked: float, what: str, error: Exception) -> None:
        self.journal.failed.append(
            (asked, time.monotonic(), f"{what} {type(error).__name__}: {str(error)[:80]}")
        )


def _context(token: str) -> RequestContext:
    return RequestContext(deadline=time.monotonic() + DEADLINE, causality=CausalityToken.decode(token))
