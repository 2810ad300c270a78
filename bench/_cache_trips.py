"""What our scripts cost Redis: a fill beside SET, an invalidation beside DEL and PUBLISH.

The time from queueing the command until its answer, over the same link, by one caller, with the same bytes; a
round counts by its median. Before each turn the relay beats, which drops the tombstones of the turn before.

    fill         a value that was voided and loaded under a lease, which brought its tombstone along
    fill tagged  such a one with a tag: it is judged by a script that looks at tombstones and versions
    void         a value that is there, of a key that nobody has voided since the relay dropped tombstones
    void hot     one of HOT keys, which many transactions void: its tombstone is merged each time

The plain invalidation is one pipeline: DEL, and PUBLISH to nobody.
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

HOT = 4
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
    """Each trip is made ready, then timed; `tagged`: values have a tag."""

    def __init__(self, link: Link, *, tagged: bool = False) -> None:
        slot = "tagged@main" if tagged else "users@main"
        names = Names(slot, scope_name("bench", link.run_id, CLUSTER, 1))
        self._watch = Stopwatch(link)
        watched: Any = self._watch
        self._level2: Level2[User] = Level2(
            watched, names, Codec(User), cluster=CLUSTER, epoch=1, life=LIFE, tagged=tagged
        )
        self._tags = ("org:1",) if tagged else ()
        self._link = link
        self._encode = Codec(User).encode
        self._xid = XID
        self._beats = Beats(delay=0.0)

    async def ready(self) -> None:
        """As after half a minute of a relay: a horizon, without which nothing is kept, and no tombstones."""
        for _ in range(4):
            await self._level2.beat(self._beats, "bench", now=0.0)
            self._beats.marked(self._xid + 1, (), 0.0)

    async def _fill(self, number: int) -> float:
        """Under a lease, as every load does it."""
        name = str(number)
        lease = await self._level2.lease((name,), 5.0, refresh=True)
        known = lease.known[0] if lease.known else None
        entry = Entry(name, user(number), LIFE, lease.token, self._tags, known)
        after = self._xid + 1
        seen = Seen(cluster=CLUSTER, epoch=1, standby=False, xmin=after, xmax=after, running=())
        before = self._watch.seconds
        outcome = await self._level2.fill(entry, seen=seen, since=lease.sequence)
        if outcome.refusal is not None:
            raise RuntimeError(f"a fill was refused: {outcome.refusal}")
        return self._watch.seconds - before

    async def _void(self, number: int) -> float:
        before = self._watch.seconds
        self._xid += 1
        await self._level2.void((key_field(str(number)),), xid=self._xid)
        return self._watch.seconds - before

    async def _set(self, number: int) -> float:
        before = self._watch.seconds
        data = self._encode(user(number))
        await self._watch.send("SET", f"plain:{number}", data, "PX", round(LIFE * 1000))
        return self._watch.seconds - before

    async def _del(self, number: int) -> float:
        before = self._watch.seconds
        name = f"plain:{number}"
        await self._watch.both(("DEL", name), ("PUBLISH", "plain", name))
        return self._watch.seconds - before

    async def fill(self, number: int) -> float:
        await self._void(number)
        return await self._fill(number)

    async def plain_set(self, number: int) -> float:
        await self._link.send("DEL", f"plain:{number}")
        await self._link.send("GET", f"plain:{number}")
        return await self._set(number)

    async def void(self, number: int) -> float:
        await self._fill(number)
        return await self._void(number)

    async def void_hot(self, number: int) -> float:
        return await self.void(number % HOT)

    async def plain_del(self, number: int) -> float:
        await self._set(number)
        return await self._del(number)


async def trips(url: str, *, rounds: int, total: int) -> Rounds:
    redis = Redis(url)
    await redis.start()
    try:
        link = redis.link("{users@main}")
        assert link is not None
        plain, tagged = Contest(link), Contest(link, tagged=True)

        def race(contest: Contest, trip: Callable[[int], Awaitable[float]]) -> Callable[[], Awaitable[float]]:
            async def median() -> float:
                await contest.ready()
                return statistics.median([await trip(number) for number in range(total)])

            return median

        return await alternate(
            {
                "fill": race(plain, plain.fill), "SET": race(plain, plain.plain_set),
                "void": race(plain, plain.void), "DEL+PUBLISH": race(plain, plain.plain_del),
                "fill tagged": race(tagged, tagged.fill), "void hot": race(plain, plain.void_hot),
            },
            rounds=rounds,
        )  # fmt: skip
    finally:
        await redis.stop()
