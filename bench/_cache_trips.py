"""What our scripts cost Redis: a fill beside SET, an invalidation beside DEL and PUBLISH.

The time from queueing the command until its answer, over the same link, by one caller, with the same bytes; a
round counts by its median. A fill is judged by a
snapshot against tombstones that are there, with the lease that it took; an invalidation voids a value that
is there. The plain invalidation is one pipeline: DEL, and PUBLISH to nobody.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from bench._cache_hits import User, user
from bench._harness import Rounds, alternate
from springtide.cache._codec import Codec
from springtide.cache._fence import Rounds as Beats
from springtide.cache._level2 import Entry, Level2
from springtide.cache._names import Names, key_field, scope_name
from springtide.db.seeing import Seen
from springtide.redis import Link, Redis, Script

__all__ = ["trips"]

KEYS = 40
LIFE = 3600.0
XID = 1_000_000
CLUSTER = "main"


class Stopwatch:
    """A link that adds up the seconds from when a command is queued until its answer is there."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self.seconds = 0.0

    async def send(self, *command: bytes | str | int) -> Any:
        begun = time.perf_counter()
        answer = await self._link.send(*command)
        self.seconds += time.perf_counter() - begun
        return answer

    async def call(self, script: Script, keys: Sequence[str], args: Iterable[Any] = ()) -> Any:
        begun = time.perf_counter()
        answer = await self._link.call(script, keys, args)
        self.seconds += time.perf_counter() - begun
        return answer

    async def both(self, first: Sequence[Any], second: Sequence[Any]) -> None:
        """One pipeline."""
        begun = time.perf_counter()
        earlier = self._link.send(*first)
        await self._link.send(*second)
        await earlier
        self.seconds += time.perf_counter() - begun


class Contest:
    def __init__(self, link: Link) -> None:
        names = Names("users@main", scope_name("bench", link.run_id, CLUSTER, 1))
        self._watch = Stopwatch(link)
        watched: Any = self._watch
        self._level2: Level2[User] = Level2(watched, names, Codec(User), cluster=CLUSTER, epoch=1, life=LIFE)
        self._link = link
        self._encode = Codec(User).encode
        self._xid = XID

    async def ready(self) -> None:
        """With a horizon, without which nothing is kept."""
        beats = Beats(delay=0.0)
        for _ in range(3):
            await self._level2.beat(beats, "bench", now=time.monotonic())
            beats.marked(self._xid, (), time.monotonic())

    def _seen(self) -> Seen:
        after = self._xid + 1
        return Seen(cluster=CLUSTER, epoch=1, standby=False, xmin=after, xmax=after, running=())

    async def _fill(self, number: int) -> float:
        """Under a lease, as every load does it."""
        name = str(number % KEYS)
        lease = await self._level2.lease((name,), 5.0, refresh=True)
        entry = Entry(name, user(number), LIFE, lease.token, (), lease.known[0])
        before = self._watch.seconds
        outcome = await self._level2.fill(entry, seen=self._seen(), since=lease.sequence)
        if outcome.refusal is not None:
            raise RuntimeError(f"a fill was refused: {outcome.refusal}")
        return self._watch.seconds - before

    async def _void(self, number: int) -> float:
        before = self._watch.seconds
        self._xid += 1
        await self._level2.void((key_field(str(number % KEYS)),), xid=self._xid)
        return self._watch.seconds - before

    async def _set(self, number: int) -> float:
        before = self._watch.seconds
        data = self._encode(user(number))
        await self._watch.send("SET", f"plain:{number % KEYS}", data, "PX", round(LIFE * 1000))
        return self._watch.seconds - before

    async def _del(self, number: int) -> float:
        before = self._watch.seconds
        name = f"plain:{number % KEYS}"
        await self._watch.both(("DEL", name), ("PUBLISH", "plain", name))
        return self._watch.seconds - before

    async def fill(self, number: int) -> float:
        await self._void(number)
        return await self._fill(number)

    async def plain_set(self, number: int) -> float:
        await self._link.send("DEL", f"plain:{number % KEYS}")
        await self._link.send("GET", f"plain:{number % KEYS}")
        return await self._set(number)

    async def void(self, number: int) -> float:
        await self._fill(number)
        return await self._void(number)

    async def plain_del(self, number: int) -> float:
        await self._set(number)
        return await self._del(number)


async def trips(url: str, *, rounds: int, total: int) -> Rounds:
    redis = Redis(url)
    await redis.start()
    try:
        link = redis.link("{users@main}")
        assert link is not None
        contest = Contest(link)
        await contest.ready()

        def race(trip: Callable[[int], Awaitable[float]]) -> Callable[[], Awaitable[float]]:
            async def median() -> float:
                return statistics.median([await trip(number) for number in range(total)])

            return median

        return await alternate(
            {
                "fill": race(contest.fill), "SET": race(contest.plain_set),
                "void": race(contest.void), "DEL+PUBLISH": race(contest.plain_del),
            },
            rounds=rounds,
        )  # fmt: skip
    finally:
        await redis.stop()
