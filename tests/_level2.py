"""A slot in a real Redis for tests: its second level, and a relay that the test moves by hand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from tests._redis import RedisServer

from springtide.cache._codec import Codec
from springtide.cache._fence import Rounds
from springtide.cache._level2 import Level2
from springtide.cache._names import Names, scope_name, slot_name
from springtide.db.seeing import Seen
from springtide.redis import Link, Redis

__all__ = ["Thing", "level2", "linked", "primary", "standby", "stand"]

HANGS = 60.0
"""Seconds that only tell a slow machine from one that hangs."""


class Thing(msgspec.Struct, frozen=True):
    id: int
    text: str = ""


def primary(xmin: int, xmax: int | None = None, *running: int, epoch: int = 1) -> Seen:
    """What a primary showed."""
    return Seen("main", epoch, False, xmin, xmin if xmax is None else xmax, running)


def standby(xmin: int, xmax: int | None = None, *, epoch: int = 1) -> Seen:
    return Seen("main", epoch, True, xmin, xmin if xmax is None else xmax, ())


@asynccontextmanager
async def linked(server: RedisServer) -> AsyncIterator[Link]:
    """A link to `server`."""
    redis = Redis(server.url, timeout=HANGS)
    await redis.start()
    try:
        async with asyncio.timeout(HANGS):
            while (link := redis.link("")) is None:
                await asyncio.sleep(0.01)
        yield link
    finally:
        await redis.stop()


def level2(
    link: Link, cls: str = "things", *, fenced: bool = True, epoch: int = 1, **options: Any
) -> Level2[Thing]:
    """The slot of `cls` on the database cluster "main", or without a database."""
    cluster = "main" if fenced else ""
    names = Names(slot_name(cls, cluster), scope_name("tests", link.run_id, cluster, epoch if fenced else 0))
    options = {"life": 300.0, **options}
    if fenced:
        options |= {"cluster": cluster, "epoch": epoch}
    return Level2(link, names, Codec(Thing), **options)


async def stand(level: Level2[Thing], xmax: int, *running: int, rounds: Rounds | None = None) -> Rounds:
    """Beat until a snapshot of the primary with these bounds is the horizon."""
    rounds = rounds or Rounds(0.0)
    await level.beat(rounds, "relay 1", now=0.0)
    rounds.marked(xmax, running, 0.0)
    await level.beat(rounds, "relay 2", now=0.0)
    return rounds
