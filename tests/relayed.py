"""A relay between a real PostgreSQL and a real Redis, for tests: slots, what their bus says, processes.

As a program it is a process to be killed and frozen:
`python -m tests.relayed relay <database url> <redis url>` prints "leads" and "waits";
`python -m tests.relayed writer <database url> <key>` kills itself between COMMIT and telling the cache.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests._level2 import HANGS, Thing
from tests._redis import RedisServer
from tests.invalidating import TellingCache

from springtide.cache._codec import Codec
from springtide.cache._level2 import Level2
from springtide.cache._names import Names, scope_name, slot_name
from springtide.cache._relay import Relay
from springtide.cache._rounds import Targets
from springtide.cache._slot import Slot
from springtide.db import Database, ShardMap
from springtide.db._invalidating import Recorded
from springtide.db.pool import Pool
from springtide.redis import Link, Redis
from springtide.signals import RelayChanged, Signal

__all__ = ["QUICK", "Bus", "Follower", "connected", "process", "relay", "running", "says", "slots"]

QUICK: dict[str, Any] = {"every": 0.05, "busy": 0.02, "silence": 1.0, "challenge": 0.1}
"""Options of a relay that tests need not wait for."""

CODEC = Codec(Thing)

ROOT = Path(__file__).parent.parent


def names(cls: str, run_id: str, epoch: int) -> Names:
    return Names(slot_name(cls, "main"), scope_name("tests", run_id, "main", epoch))


def slots(redis: Redis, classes: Sequence[str]) -> Callable[[int], Targets]:
    """The slots of `classes` on the cluster "main", as far as a Redis can be reached."""

    def of(epoch: int) -> Targets:
        link = redis.link("")
        return {
            cls: None
            if link is None
            else [
                Level2(link, names(cls, link.run_id, epoch), CODEC, life=300.0, cluster="main", epoch=epoch)
            ]
            for cls in classes
        }

    return of


@asynccontextmanager
async def connected(server: RedisServer, **options: Any) -> AsyncIterator[Redis]:
    redis = Redis(server.url, **{"timeout": HANGS, **options})
    await redis.start()
    try:
        async with asyncio.timeout(HANGS):
            while redis.link("") is None:
                await asyncio.sleep(0.01)
        yield redis
    finally:
        await redis.stop()


def relay(
    pool: Pool,
    dsn: str | Callable[[], str],
    redis: Redis,
    *,
    classes: Sequence[str] = ("user",),
    schemas: Sequence[str] = ("notes",),
    **options: Any,
) -> Relay:
    return Relay(
        "tests",
        cluster="main",
        pool=pool,
        dsn=dsn if callable(dsn) else lambda: dsn,
        schemas=schemas,
        **{"slots": slots(redis, classes), **QUICK, **options},
    )


@asynccontextmanager
async def running(*relays: Relay) -> AsyncIterator[None]:
    for one in relays:
        await one.start()
    try:
        yield
    finally:
        for one in relays:
            await one.stop()


class Bus:
    """What the bus of a class says, asked of the server itself."""

    def __init__(self, server: RedisServer, cls: str, epoch: int) -> None:
        self._server = server
        self.names = names(cls, server.run_id, epoch)

    def entries(self) -> list[dict[str, str]]:
        found = self._server.command("XRANGE", self.names.bus, "-", "+")
        return [dict(zip(said[::2], said[1::2], strict=True)) for _, said in found]

    def beats(self) -> list[str]:
        return [entry["b"] for entry in self.entries() if "b" in entry]

    def leaders(self) -> list[str]:
        """Whose rounds they are, each once, in order."""
        return list(dict.fromkeys(beat.partition(" ")[0] for beat in self.beats()))

    def voided(self) -> list[str]:
        return [field for entry in self.entries() if "f" in entry for field in entry["f"].split("\n")]


class Follower:
    """A reader of one bus, and what it must not miss: `answered` is what was committed, and when that was
    known. `follow` asserts that no proof covers a write that was not heard."""

    def __init__(self, bus: Bus, link: Link) -> None:
        self.answered: dict[str, float] = {}
        self.heard: set[str] = set()
        self.leaders: set[str] = set()
        self.checked = 0
        """How often there was a proof that covered anything."""
        self._names = bus.names
        self._link = link
        self._slot = Slot(
            bus.names.slot, share=1.0, relayed=True, heard=lambda fields, _: self.heard.update(fields)
        )

    async def begin(self) -> None:
        began = time.monotonic()
        (entry_id, fields) = (await self._link.send("XREVRANGE", self._names.bus, "+", "-", "COUNT", 1))[0]
        said = dict(zip(fields[::2], fields[1::2], strict=True))
        self._slot.begin(self._names.scope, int(said[b"s"]), entry_id.decode(), began)

    async def follow(self) -> None:
        sent = time.monotonic()
        found = await self._link.send("XREAD", "STREAMS", self._names.bus, self._slot.last_id)
        for _, entries in found or ():
            for entry_id, fields in entries:
                said = dict(zip(fields[::2], fields[1::2], strict=True))
                sequence, at = int(said[b"s"]), entry_id.decode()
                if b"b" in said:
                    self.leaders.add(said[b"b"].decode().partition(" ")[0])
                    assert self._slot.beat(at, sequence, said[b"b"].decode())
                else:
                    assert self._slot.void(at, sequence, said[b"f"].decode().split("\n"))
        self._slot.complete(sent)
        due = {field for field, moment in self.answered.items() if moment <= self._slot.proof}
        assert due <= self.heard, f"not heard, and proven: {sorted(due - self.heard)}"
        self.checked += bool(due)

    @property
    def done(self) -> bool:
        """Whether everything was heard."""
        return self.answered.keys() <= self.heard


class _Saying:
    def emit(self, signal: Signal) -> None:
        if isinstance(signal, RelayChanged):
            print("leads" if signal.leads else "waits", flush=True)


async def _relay(url: str, redis_url: str) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    redis = Redis(redis_url, timeout=HANGS)
    async with Pool(url, cluster="main", size=2, reserved=0) as pool:
        await redis.start()
        async with running(relay(pool, url, redis, sink=_Saying())):
            await stopping.wait()
        await redis.stop()


async def _writer(url: str, key: str) -> None:
    async def die(_: Recorded) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async with Pool(url, cluster="main", size=2, reserved=0) as pool:
        cache = TellingCache(before=die)
        db = Database("notes", ShardMap.even(["main"]), {"main": pool}, invalidations=cache)
        async with db.write(1) as tx:
            tx.invalidate("user", key)


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """This module as a program; it is gone when the block ends, stopped or not."""
    made = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.relayed", *arguments, stdout=asyncio.subprocess.PIPE, cwd=ROOT
    )
    try:
        yield made
    finally:
        if made.returncode is None:
            made.kill()
        await made.wait()


async def says(made: asyncio.subprocess.Process, word: str, *, seconds: float = HANGS) -> None:
    """Return when the process has printed `word`."""
    assert made.stdout is not None
    async with asyncio.timeout(seconds):
        while (line := await made.stdout.readline()).strip() != word.encode():
            assert line, f"it ended without saying {word!r}"


if __name__ == "__main__":
    asyncio.run({"relay": _relay, "writer": _writer}[sys.argv[1]](*sys.argv[2:]))
