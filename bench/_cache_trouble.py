"""What is done to the cache, its loaders and its writers while sessions read; each fault tells what it did.

Replicas lag, stand still, are stopped and killed all the time beside it (bench/_drift.py). One of the faults
below is in force at a time, with a short calm between two, so that what fails can be laid at one's door. A
fault ends by itself and is undone when it is cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from bench._cache_doomed import Doomed
from bench._cache_fleet import Fleet
from bench._drift import Drift
from bench._redis_world import RedisServer

__all__ = ["FAILOVER", "FAULTS", "FEW", "LONG", "Done", "Trouble"]

HOUR = 3600
APART = 7
"""Seconds that the wall clocks of app processes go to either side: sessions bear 15 (web/causality.py)."""

FAILOVER = "primary killed"
FEW = ("loader slow", "writer killed", "redis killed, back with an old dump")
"""Those that nobody stands who knows nothing."""

LONG = "redis frozen past a failover"
"""The one that takes longest; `redis failed over` has much of it."""


@dataclass(frozen=True)
class Done:
    """evidence: what the fault did, as the servers and proxies count it. felt: what the apps counted more."""

    fault: str
    began: float
    ended: float
    evidence: str
    felt: Counter[str]


class Trouble:
    """`done` is what was done. span: seconds, of which a fault takes one to two."""

    def __init__(self, fleet: Fleet, drift: Drift, *, seed: int, span: float) -> None:
        self.done: list[Done] = []
        self._fleet = fleet
        self._redis = fleet.redis
        self._drift = drift
        self._chance = random.Random(seed)
        self._span = span
        self._numbers = iter(range(10**6))
        self._doomed: Doomed | None = None

    async def make(self, fault: str) -> Done:
        before = await self._fleet.counts()
        began = time.monotonic()
        evidence = await _MADE[fault](self)
        ended = time.monotonic()
        done = Done(fault, began, ended, evidence, await self._fleet.counts() - before)
        self.done.append(done)
        return done

    async def fail_over(self) -> None:
        """The database's primary dies, another takes its place: all that is cached is of a past epoch."""
        print(f"  {FAILOVER:36} {(await self.make(FAILOVER)).evidence}", flush=True)

    async def cycle(
        self, faults: Sequence[str], *, calm: float, enough: Callable[[], bool] = lambda: False
    ) -> None:
        """Every one of them once, in an order of its own, unless it is `enough` before."""
        async with Doomed(self._fleet) as self._doomed:  # so that it has started when its turn comes
            for fault in self._chance.sample(list(faults), len(faults)):
                if enough():
                    return
                done = await self.make(fault)
                felt = ", ".join(f"{what} {number}" for what, number in sorted(done.felt.items()))
                print(f"  {fault:36} {done.ended - done.began:5.1f} s  {done.evidence}; {felt}", flush=True)
                await asyncio.sleep(calm)

    def _value(self, what: str) -> str:
        """One that nobody else writes."""
        return f"{what}.{self._fleet.cache}.{next(self._numbers)}"

    async def _last(self, least: float = 1.0, most: float = 2.0) -> float:
        seconds = self._span * self._chance.uniform(least, most)
        await asyncio.sleep(seconds)
        return seconds

    # -- Redis -----------------------------------------------------------------------------------------

    async def _killed(self) -> str:
        server = await self._redis.primary()
        keys = await server.command("DBSIZE")
        server.kill()
        await asyncio.sleep(0.1)
        await server.start()
        return f"{keys} keys gone"

    async def _killed_with_dump(self) -> str:
        """It comes back with what it had some time before: every invalidation since then is missing."""
        server = await self._redis.primary()
        await server.command("SAVE")
        await self._last()
        server.kill()
        await server.start()
        keys = await server.command("DBSIZE")
        (server.folder / "dump.rdb").unlink()
        return f"{keys} old keys back"

    async def _frozen(self) -> str:
        server = await self._redis.primary()
        server.freeze()
        try:
            seconds = self._chance.uniform(0.4, 1.0)  # shorter than the Sentinel's patience
            await asyncio.sleep(seconds)
        finally:
            server.thaw()
        return f"for {seconds:.1f} s"

    async def _frozen_past_failover(self) -> str:
        """For a while there are two primaries, and whoever was connected to the old one may still be."""
        await self._redis.paired()
        old = await self._redis.primary()
        old.freeze()
        try:
            await self._redis.other_than(old)
            await asyncio.sleep(0.3)
        finally:
            old.thaw()
        both = await self._last()
        await self._follow(old)
        return f"two primaries for {both:.1f} s"

    async def _follow(self, old: RedisServer) -> None:
        """What the Sentinel does as well, seconds later."""
        primary = await self._redis.primary()
        await old.command("REPLICAOF", "127.0.0.1", primary.proxy.port)

    async def _flushed(self) -> str:
        server = await self._redis.primary()
        keys = 0
        for _ in range(3):
            keys += await server.command("DBSIZE")
            await server.command("FLUSHALL")
            await self._last(0.2, 0.5)
        return f"three times, {keys} keys gone"

    async def _evicting(self) -> str:
        server = await self._redis.primary()
        before = await server.count("stats", "evicted_keys")
        await server.command("CONFIG", "SET", "maxmemory-policy", "allkeys-random")
        for _ in range(4):
            used = await server.count("memory", "used_memory")
            await server.command("CONFIG", "SET", "maxmemory", used - 20_000)
            await self._last(0.3, 0.6)
        await server.command("CONFIG", "SET", "maxmemory", 0)
        return f"{await server.count('stats', 'evicted_keys') - before} keys evicted"

    async def _refusing(self) -> str:
        async def refused() -> int:
            found = await server.command("INFO", "errorstats")
            return int(found.get("errorstat_OOM", {}).get("count", 0))

        server = await self._redis.primary()
        before = await refused()
        await server.command("CONFIG", "SET", "maxmemory-policy", "noeviction")
        await server.command("CONFIG", "SET", "maxmemory", 1)
        await self._last()
        await server.command("CONFIG", "SET", "maxmemory", 0)
        return f"{await refused() - before} commands refused"

    async def _failed_over(self) -> str:
        await self._redis.paired()
        old = await self._redis.primary()
        old.kill()
        await self._redis.other_than(old)
        primary = await self._redis.primary()
        await old.start(of=primary)
        return f"from {old.name} to {primary.name}"

    async def _slow(self) -> str:
        proxy = (await self._redis.primary()).proxy
        before = proxy.felt["delayed"]
        proxy.slow(self._chance.uniform(0.02, 0.3))
        try:
            await self._last()
        finally:
            proxy.heal()
        return f"{proxy.felt['delayed'] - before} pieces delayed"

    # -- the bus ---------------------------------------------------------------------------------------

    async def _bus_cut(self) -> str:
        proxy = (await self._redis.primary()).proxy
        cut = 0
        for _ in range(8):
            cut += proxy.cut_readers()
            await self._last(0.1, 0.2)
        return f"{cut} connections cut"

    async def _bus_silent(self) -> str:
        """Some processes hear nothing for longer than the budget, all their other connections are well."""
        proxy = (await self._redis.primary()).proxy
        held = proxy.hold_readers(0.5, self._chance)
        try:
            seconds = await self._last(2.0, 3.0)
        finally:
            proxy.heal()
        return f"{held} connections held for {seconds:.1f} s"

    async def _bus_late(self) -> str:
        proxy = (await self._redis.primary()).proxy
        before = proxy.felt["delayed"]
        late = proxy.delay_readers(self._chance.uniform(0.1, 0.8))
        try:
            await self._last(2.0, 3.0)
        finally:
            proxy.heal()
        return f"{late} connections late, {proxy.felt['delayed'] - before} pieces"

    # -- writers and loaders ---------------------------------------------------------------------------

    async def _writer_killed(self) -> str:
        """kill -9 when PostgreSQL has committed and the writer has not heard of it: nobody invalidates."""
        assert self._doomed is not None
        key = self._chance.choice(self._fleet.keys)
        version, moment = await self._doomed.die(key, self._value("doomed"))
        self._fleet.unheard.append((key, version, moment))
        await self._last(2.5, 3.0)  # longer than the budget
        return f"version {version} of key {key} committed"

    async def _loader(self, trouble: str) -> str:
        await self._everywhere(trouble)
        try:
            seconds = await self._last(1.5, 2.5)
        finally:
            await self._everywhere("")
        return f"for {seconds:.1f} s"

    async def _everywhere(self, trouble: str) -> None:
        for app in range(len(self._fleet.servers)):
            await self._fleet.ask(app, "POST", f"/trouble?kind={trouble}")

    async def _long_transactions(self) -> str:
        """Writes that stay open over a replica's pause, and a transaction that holds xmin meanwhile."""
        fleet = self._fleet
        node = self._chance.choice(fleet.world.replicas)
        span = 2 * self._span
        async with self._drift.turn(node):
            await node.hold()
            try:
                holding = asyncio.create_task(
                    fleet.fetch(f"select pg_current_xact_id(), pg_sleep({3 * span})")
                )
                writes = [
                    asyncio.create_task(
                        fleet.write(
                            self._chance.randrange(len(fleet.servers)), key, self._value("held"),
                            hold=span * self._chance.uniform(0.5, 2.0),
                        )
                    )
                    for key in self._chance.sample(fleet.keys, 6)
                ]  # fmt: skip
                await asyncio.sleep(span)
            finally:
                await node.release()
        wrote = await asyncio.gather(*writes)
        await holding
        return f"{sum(one.version > 0 for one in wrote)} writes open over the pause of {node.name}"

    async def _primary_killed(self) -> str:
        seconds = await self._drift.fail_over()
        return f"{seconds:.1f} s to a new primary"

    # -- clocks and processes --------------------------------------------------------------------------

    async def _clock_steps(self) -> str:
        """The wall clock of Redis goes an hour forth and back, those of two app processes a few seconds."""
        clocks = [self._redis.clock, *self._fleet.clocks[1:]]
        if not all(clock.works for clock in clocks):
            return "NOT DONE: there is no C compiler (cc)"
        server = await self._redis.primary()
        moved = []
        try:
            for steps in ((HOUR, -APART, APART), (-HOUR, APART, 0), (HOUR, APART, -APART)):
                for clock, step in zip(clocks, steps, strict=True):
                    clock.step(step)
                await self._last(0.5, 0.7)
                seconds, _ = await server.command("TIME")
                app = await self._fleet.ask(1, "GET", "/clock") or 0.0
                moved.append(f"{int(seconds) - time.time():+.0f} and {app - time.time():+.0f}")
        finally:
            for clock in clocks:
                clock.step(0)
        return f"Redis and an app were {', '.join(moved)} s beside the true time"

    async def _app_stopped(self) -> str:
        """SIGSTOP: when it goes on it believes to be where it was."""
        server = self._chance.choice(self._fleet.servers)
        server.process.send_signal(signal.SIGSTOP)
        try:
            seconds = await self._last(2.0, 3.0)
        finally:
            with contextlib.suppress(ProcessLookupError):
                server.process.send_signal(signal.SIGCONT)
        return f"{server.name} for {seconds:.1f} s"


_MADE: dict[str, Callable[[Trouble], Awaitable[str]]] = {
    "redis killed": Trouble._killed,
    "redis killed, back with an old dump": Trouble._killed_with_dump,
    "redis frozen": Trouble._frozen,
    LONG: Trouble._frozen_past_failover,
    "redis flushed": Trouble._flushed,
    "redis full, evicting": Trouble._evicting,
    "redis full, refusing": Trouble._refusing,
    "redis failed over": Trouble._failed_over,
    "redis slow": Trouble._slow,
    "bus cut": Trouble._bus_cut,
    "bus silent": Trouble._bus_silent,
    "bus late": Trouble._bus_late,
    "writer killed": Trouble._writer_killed,
    "loader slow": lambda trouble: trouble._loader("slow"),
    "loader raising": lambda trouble: trouble._loader("raising"),
    "loader cancelled": lambda trouble: trouble._loader("cancelled"),
    "clock steps": Trouble._clock_steps,
    "app process stopped": Trouble._app_stopped,
    "long transactions": Trouble._long_transactions,
    FAILOVER: Trouble._primary_killed,
}

FAULTS = tuple(_MADE)
