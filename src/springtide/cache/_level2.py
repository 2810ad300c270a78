"""The second level: the values of one slot in Redis, over one link.

All rules live in the scripts (lua/) and are explained in _fence.py; this file names keys, turns values into
bytes and answers into objects. It holds no state: where the link or the scope is another, another Level2 is
made, and nothing that was begun on one may go on on the other.

Every call is one round trip, whatever number of names it is for (more than BATCH: several at once). Calls
raise RedisUnavailable, RedisError; then nothing is known about whether they were done, and every one may be
repeated, on this link: a fill is judged again, a void of the same transaction changes nothing.

Two ways to read. Where values stand for themselves, a MGET; where a value is good only with the versions of
its tags, or the reader has to know how old it is, a script. Either way the sequence is no newer than the
values: what is voided after it was read carries a greater one.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from springtide.cache._codec import MISSING, Codec
from springtide.cache._fence import Known, Refusal, Rounds
from springtide.cache._names import EVERYTHING, Names
from springtide.cache._scripts import BEAT, FILL, GET, KEEP, RELEASE, VOID

if TYPE_CHECKING:
    from springtide.db.seeing import Seen
    from springtide.redis import Link

__all__ = ["BATCH", "Entry", "Found", "Leased", "Level2", "Outcome", "Read"]

T = TypeVar("T")
V = TypeVar("V")

BATCH = 500
"""Names of one command; a script of so many keeps Redis for about a millisecond."""

BUS_ENTRIES = 10_000
"""What the bus of a slot keeps; a reader that is further behind forgets its first level. lua/void.lua has the
same number."""

IDLE = 3600.0
"""Seconds that sequence, tombstones and bus stay where no relay beats any more: of an old timeline,
mostly."""

TAG_MARGIN = 60.0
"""Seconds that a tag's version outlives the last value that names it."""


class Found(Generic[V]):
    """A value that is there. None: it is known that there is nothing. remaining: seconds of life left, None
    where the reader does not ask. size: bytes in Redis."""

    __slots__ = ("remaining", "size", "value")

    def __init__(self, value: V | None, remaining: float | None, size: int) -> None:
        self.value = value
        self.remaining = remaining
        self.size = size

    def __repr__(self) -> str:
        return f"Found({self.value!r}, remaining={self.remaining}, size={self.size})"


@dataclass(frozen=True, slots=True)
class Read(Generic[V]):
    """`found` in the order of the names. sequence: 0 where it is not known; then nothing is kept in
    memory."""

    sequence: int
    found: list[Found[V] | None]


@dataclass(frozen=True, slots=True)
class Leased(Generic[V]):
    """What came of asking for leases, in the order of the names: True, it is ours under `token`; False,
    another loads; the value, which is there by now; or None, what is there is nothing that we can read.

    known: of each name what the fence knew; empty where it is not asked, or there was no horizon.
    """

    sequence: int
    token: str
    found: list[Found[V] | bool | None]
    known: Sequence[Known] = ()


@dataclass(frozen=True, slots=True)
class Entry(Generic[V]):
    """A loaded value. lease: the token under which it was loaded, "" for none. ttl: seconds that it stays.
    known: what came with the lease."""

    name: str
    value: V | None
    ttl: float
    lease: str = ""
    tags: Sequence[str] = ()
    known: Known | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a value: kept (`refusal` is None) or not. sequence: one at which it was good, 0 if not
    asked. size: bytes."""

    refusal: Refusal | None
    sequence: int
    size: int


class Level2(Generic[V]):
    """Values of one slot. epoch and cluster: of the database whose snapshots judge the fills, None without
    one.

    tagged: values may name tags. aged: reads tell the remaining life. life: the longest that a value stays,
    seconds. aside: seconds that an invalidated value is kept for `old`, 0 for not at all.
    """

    __slots__ = (
        "_fenced",
        "_flags",
        "_lives",
        "_plain",
        "_sequence",
        "_tag_ms",
        "_values",
        "aged",
        "aside",
        "cluster",
        "codec",
        "epoch",
        "life",
        "link",
        "names",
        "tagged",
    )  # fmt: skip

    def __init__(
        self,
        link: Link,
        names: Names,
        codec: Codec[V],
        *,
        cluster: str | None = None,
        epoch: int | None = None,
        tagged: bool = False,
        aged: bool = False,
        life: float,
        aside: float = 0.0,
    ) -> None:
        if (cluster is None) != (epoch is None):
            raise ValueError(f"cluster and epoch come together, got {cluster!r} and {epoch!r}")
        if life <= 0 or aside < 0:
            raise ValueError(f"life must be > 0 and aside >= 0, got {life} and {aside}")
        self.names = names
        self.codec = codec
        self.cluster = cluster
        self.epoch = epoch
        self.tagged = tagged
        self.aged = aged
        self.life = life
        self.aside = aside
        self.link = link
        self._plain = not tagged and not aged
        self._values = names.values
        self._sequence = names.sequence
        self._flags = ("t" if tagged else "") + ("a" if aged else "")
        self._fenced = "f" if epoch is not None and not tagged else ""
        self._tag_ms = _ms(life + TAG_MARGIN)
        self._lives = f"={_ms(aside) if aside else 0} {self._tag_ms}"

    async def read(self, names: Sequence[str]) -> Read[V]:
        """The values that are there."""
        if len(names) > BATCH:
            parts = await asyncio.gather(*map(self.read, _batches(names)))
            return Read(min(part.sequence for part in parts), [one for part in parts for one in part.found])
        values = self._values
        if self._plain:
            answer = await self.link.send("MGET", self._sequence, *[values + name for name in names])
            found = [self._found(data, None) for data in answer[1:]]
        else:
            answer = await self.link.call(GET, (self._sequence,), (self._flags, "", 0, *names))
            step = 2 if self.aged else 1
            found = [
                self._found(answer[at], answer[at + 1] / 1000 if self.aged else None)
                for at in range(1, len(answer), step)
            ]
        return Read(int(answer[0] or 0), found)

    async def lease(
        self, names: Sequence[str], hold: float, *, refresh: bool = False, token: str = ""
    ) -> Leased[V]:
        """Take the right to load what is not there, for `hold` seconds at most; with `refresh` whatever is
        there.

        The token is the same for all names; "": one is made. Without a database the lease has to be taken
        before the load begins.
        """
        token = token or secrets.token_hex(8)
        if len(names) > BATCH:
            raise ValueError(f"at most {BATCH} leases at once, got {len(names)}")
        flags = self._flags + ("r" if refresh else "l") + self._fenced
        answer = await self.link.call(GET, (self._sequence,), (flags, token, _ms(hold), *names))
        found: list[Found[V] | bool | None] = []
        step = 2 if self.aged else 1
        said = answer.pop() if self._fenced else None
        for at in range(1, len(answer), step):
            one = answer[at]
            if isinstance(one, int):
                found.append(one == 1)
                continue
            found.append(self._found(one, answer[at + 1] / 1000 if self.aged else None))
        known = [Known(said, at) for at in range(3, len(said), 2)] if said is not None else ()
        return Leased(int(answer[0]), token, found, known)

    async def fill(self, entry: Entry[V], *, seen: Seen | None = None, since: int = 0) -> Outcome:
        """Keep a loaded value; see `fill_many`."""
        return (await self.fill_many((entry,), seen=seen, since=since))[0]

    async def fill_many(
        self,
        entries: Sequence[Entry[V]],
        *,
        seen: Seen | None = None,
        since: int = 0,
        own: int | None = None,
    ) -> list[Outcome]:
        """Keep loaded values, each if nothing that invalidated it is missing from what was read.

        seen: the snapshot that they were read from, taken before; of a slot without a database None. since:
        the sequence that came with the leases, which such a slot needs. own: the xid of a writer who puts
        what it wrote.
        """
        if len(entries) > BATCH:
            parts = [self.fill_many(part, seen=seen, since=since, own=own) for part in _batches(entries)]
            return [outcome for part in await asyncio.gather(*parts) for outcome in part]
        head = self._judged_by(seen, since, own)
        offered: list[tuple[Entry[V], bytes]] = []
        verdicts: list[tuple[Refusal | None, int]] = []
        for entry in entries:
            data = self.codec.encode(entry.value)
            if head is None:
                verdicts.append((Refusal.SCOPE, len(data)))
            elif len(data) > self.codec.max_bytes:
                verdicts.append((Refusal.OVERSIZED, len(data)))
            else:
                verdicts.append((None, len(data)))
                offered.append((entry, data))
        if head is None or not offered:
            return [Outcome(refusal, 0, size) for refusal, size in verdicts]
        if since and own is None and all(self._proven(entry, seen) for entry, _ in offered):
            said, sequence = await self._keep(offered), since
        else:
            said, sequence = await self._judge(head, offered)
        answer = iter(said)
        return [
            Outcome(refusal, 0, size) if refusal else Outcome(next(answer), sequence, size)
            for refusal, size in verdicts
        ]

    def _proven(self, entry: Entry[V], seen: Seen | None) -> bool:
        """Whether nothing but the lease has to be looked at."""
        if self.tagged or not entry.lease:
            return False
        return seen is None or (entry.known is not None and entry.known.admits(seen))

    async def _keep(self, offered: Sequence[tuple[Entry[V], bytes]]) -> list[Refusal | None]:
        keys: list[str] = []
        arguments: list[Any] = []
        for entry, data in offered:
            keys += (self.names.lease(entry.name), self._values + entry.name)
            arguments += (entry.lease, _ms(min(entry.ttl, self.life)), data)
        answer = await self.link.call(KEEP, keys, arguments)
        return [None if one == _KEPT else Refusal.LEASE for one in answer]

    async def _judge(
        self, head: tuple[Any, ...], offered: Sequence[tuple[Entry[V], bytes]]
    ) -> tuple[list[Refusal | None], int]:
        arguments: list[Any] = []
        for entry, data in offered:
            _printable(entry.tags)
            tags = (len(entry.tags), *entry.tags) if self.tagged else ("",)
            arguments += (entry.name, entry.lease, _ms(min(entry.ttl, self.life)), data, *tags)
        sequence, *said = await self.link.call(FILL, (self._sequence,), (*head, *arguments))
        return [_REFUSALS[one] for one in said], int(sequence)

    async def put(self, entry: Entry[V], *, seen: Seen, xid: int) -> Outcome:
        """Keep what a transaction has written, after it has committed and its invalidations were voided.

        seen: a snapshot of that transaction's own. It is refused like any fill when somebody else's write
        that it did not see has been voided meanwhile.
        """
        return (await self.fill_many((entry,), seen=seen, own=xid))[0]

    async def void(self, fields: Sequence[str], *, xid: int | None = None) -> int:
        """Invalidate fields for the committed transaction `xid` (None: the slot has no database).

        Returns the sequence up to which a process has to have heard the bus to know it.
        """
        if (xid is None) != (self.epoch is None):
            raise ValueError(f"{self.names.slot}: a void has an xid where the slot has a database, got {xid}")
        _printable(fields)
        who = f"x{secrets.token_hex(8)}" if xid is None else str(xid)
        # A class that has no tags may have had some: rows of then name them.
        lives = (self._lives,) if self.aside or any(field[0] == "t" for field in fields) else ()
        calls = [self.link.call(VOID, (self._sequence,), (who, *lives, *part)) for part in _batches(fields)]
        return max([int(await call) for call in calls], default=0)

    async def release(self, names: Sequence[str], token: str) -> None:
        """Give leases back whose load failed, so that the next who asks may load at once."""
        await self.link.call(RELEASE, (self._sequence,), (token, *names))

    async def old(self, name: str) -> Found[V] | None:
        """A value that may not be served any more, except when the database cannot be asked: what was moved
        aside, or what lies there with tags that were voided."""
        for data in await self.link.send("MGET", self.names.aside(name), self.names.value(name)):
            if data is not None:
                found = self._found(data.partition(b"\n")[2] if self.tagged else data, None)
                if found is not None:
                    return found
        return None

    async def drop(self, names: Sequence[str]) -> None:
        """Forget values. Whoever has them in memory keeps them: to invalidate is to `void`."""
        for part in _batches(names):
            await self.link.send("UNLINK", *map(self.names.value, part))

    async def clear(self, *, xid: int | None = None) -> int:
        """Invalidate the whole slot: nothing that was there when this began is there when it returns.

        For operators: it walks all keys of the node. xid: of a transaction that has committed, as for `void`.
        """
        sequence = await self.void((EVERYTHING,), xid=xid)
        # Leases first: without a database they are what keeps a load that is under way from coming back.
        for kind in "lvo":
            async for keys in self._scan(_GLOB.sub(r"\\\g<0>", self.names.prefix) + kind + ":*"):
                if keys:
                    await self.link.send("UNLINK", *keys)
        return sequence

    @property
    def place(self) -> tuple[int, str]:
        """What `sweep` goes over: a link, and the scope of the keys."""
        return id(self.link), self.names.scope

    async def disown(self) -> None:
        """Have everybody forget what he holds of the slot, and let no load in that is under way. For the
        relay; where nobody can have been yet, nothing is said."""
        if await self.link.send("EXISTS", self._sequence, self.names.prefix + "T"):
            await self.void((EVERYTHING,), xid=None if self.epoch is None else 0)

    async def sweep(self, slots: Sequence[Names]) -> AsyncIterator[None]:
        """Forget all values of `slots`, which are at this one's `place`, step by step: nothing that was there
        when this began is there when it ends."""
        for kinds in ("l", "vo"):  # leases first: under one a load that was begun before may be kept
            prefixes = tuple(f"{names.prefix}{kind}:".encode() for names in slots for kind in kinds)
            async for keys in self._scan(f"{{*}}:{self.names.scope}:[{kinds}]:*"):
                if mine := [key for key in keys if key.startswith(prefixes)]:
                    await self.link.send("UNLINK", *mine)
                yield

    async def _scan(self, pattern: str) -> AsyncIterator[list[bytes]]:
        cursor = b"0"
        while True:
            cursor, keys = await self.link.send("SCAN", cursor, "MATCH", pattern, "COUNT", 1000)
            yield keys
            if cursor == b"0":
                return

    async def beat(self, rounds: Rounds, says: str, *, now: float) -> None:
        """One round of the relay: everything that had committed before it began was voided. `rounds` learns
        the answer; then the caller takes a snapshot of the primary and tells it. now: monotonic seconds.
        """
        horizon = rounds.due(now)
        newest, stand_in = ("" if mark is None else str(mark) for mark in (rounds.newest, horizon))
        arguments = (secrets.token_hex(8), rounds.life, newest, stand_in, says, BUS_ENTRIES, _ms(IDLE))
        life, number, stands = await self.link.call(BEAT, (self._sequence,), arguments)
        rounds.answered(life.decode(), number, horizon=stands == 1, sent=horizon)

    def _found(self, data: bytes | None, remaining: float | None) -> Found[V] | None:
        if data is None:
            return None
        value = self.codec.decode(data)
        return None if value is MISSING else Found(value, remaining, len(data))

    def _judged_by(self, seen: Seen | None, since: int, own: int | None) -> tuple[Any, ...] | None:
        """The first arguments of a fill; None when what was read is not of this slot's database."""
        if self.epoch is None:
            return ("-", since, 0, "", "", self._tag_ms)
        if seen is None or seen.cluster != self.cluster or seen.epoch != self.epoch:
            return None
        running = ",".join(map(str, seen.running))
        side = "s" if seen.standby else "p"
        return (side, seen.xmin, seen.xmax, running, "" if own is None else own, self._tag_ms)


_REFUSALS: dict[bytes, Refusal | None] = {b"ok": None, **{refusal.encode(): refusal for refusal in Refusal}}

_KEPT = ord("1")

_GLOB = re.compile(r"[*?\[\]\\^]")


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _printable(names: Sequence[str]) -> None:
    """Lists of names are told apart by characters that none of them has."""
    for name in names:
        if not name.isprintable() or not name:
            raise ValueError(f"a key or a tag is printable text, got {name!r}")


def _batches(many: Sequence[T]) -> Iterator[Sequence[T]]:
    return (many[at : at + BATCH] for at in range(0, len(many), BATCH))
