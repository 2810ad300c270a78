"""A world in which the truth is known, for the fence: databases, standbys, writers, loaders, relays, losses.

The database is a model: transactions with xids, snapshots as a primary and a lagging standby show them.
Everything else is real: the second level's own code, its scripts, and a Redis. A value says which
transactions its loader has seen, field by field; so a value that is read can be held against the voids that
have been applied.

A run is a list of steps, each a name and a number that picks among what is there, so that any part of a run
is a run: the explorer makes them at random from a seed, and makes one that fails shorter before it shows
it.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec

from springtide.cache import _level2
from springtide.cache._codec import Codec
from springtide.cache._fence import Known, Rounds
from springtide.cache._level2 import Entry, Level2
from springtide.cache._names import Names, scope_name, slot_name
from springtide.db.seeing import Seen
from springtide.redis import Link, Script

__all__ = ["CALM", "Broken", "Explorer", "Step", "World", "patched"]

FIRST = 100
"""The first xid of a world; all below have ended."""

KEYS: dict[str, tuple[str, ...]] = {"a": ("x",), "b": ("x", "y"), "c": ()}
"""The keys of a world and the tags of their values."""

FIELDS = ("k:a", "k:b", "k:c", "t:x", "t:y")

Step = tuple[str, int]


class Broken(AssertionError):
    """Something old was read. `steps`: how."""


class View(msgspec.Struct, frozen=True):
    """A value: of each field that it depends on, the transactions that its loader has seen."""

    seen: tuple[tuple[str, tuple[int, ...]], ...]


@dataclass(eq=False)
class Transaction:
    uid: int
    xid: int
    fields: tuple[str, ...]
    state: str = "open"
    """open; durable: its commit is in the log, and nobody sees it yet; done; aborted."""
    recorded: bool = False
    """Something of it is in the log."""
    row: bool = True
    """Its invalidations wait for the relay, once it has committed."""
    own: tuple[Seen, frozenset[int]] | None = None
    """A snapshot of its own, and what it saw; for a put."""


@dataclass
class Database:
    """A primary with its log, and standbys that have replayed a part of it."""

    epoch: int
    next_xid: int = FIRST
    history: frozenset[int] = frozenset()
    """What had committed before this log begins."""
    latest: int = FIRST - 1
    """The greatest xid that has ended."""
    log: list[tuple[str, Transaction]] = field(default_factory=list)
    transactions: list[Transaction] = field(default_factory=list)
    replayed: list[int] = field(default_factory=lambda: [0, 0])
    first: int = FIRST

    def record(self, transaction: Transaction, what: str) -> None:
        transaction.recorded = True
        self.log.append((what, transaction))

    def end(self, transaction: Transaction, state: str) -> None:
        transaction.state = state
        self.latest = max(self.latest, transaction.xid)

    def on_primary(self) -> tuple[Seen, frozenset[int]]:
        xmax = self.latest + 1
        going = [t.xid for t in self.transactions if t.state in ("open", "durable") and t.xid < xmax]
        seen = Seen("main", self.epoch, False, min([*going, xmax]), xmax, tuple(going))
        return seen, self.history | {t.uid for t in self.transactions if t.state == "done"}

    def on_standby(self, which: int) -> tuple[Seen, frozenset[int]]:
        part = self.log[: self.replayed[which]]
        ended = {t.xid for what, t in part if what != "begin"}
        known = range(self.first, max((t.xid for _, t in part), default=self.first - 1) + 1)
        xmax = max(ended, default=self.first - 1) + 1
        seen = Seen("main", self.epoch, True, min([*(x for x in known if x not in ended), xmax]), xmax, ())
        return seen, self.history | {t.uid for what, t in part if what == "commit"}


@dataclass
class Flight:
    """A load: leased -> seen (its snapshot is known) -> read -> filled."""

    key: str
    lease: str
    since: int
    source: int
    """-1: the primary; else which standby."""
    epoch: int
    known: Known | None = None
    seen: Seen | None = None
    view: View | None = None


class World:
    """One run. `fenced` False: there is no database, a write is seen at once. `tagged` False: values have no
    tags, so what is known at a lease and the lease decide.

    believes: a mistake that loaders or keys make: "standby" (a standby's snapshot is taken for a primary's),
    "run" (keys do not name the Redis process).
    """

    def __init__(self, link: Link, *, fenced: bool, tagged: bool = True, believes: str = "") -> None:
        self._link = link
        self.fenced = fenced
        self._tags: dict[str, tuple[str, ...]] = KEYS if tagged else dict.fromkeys(KEYS, ())
        self._tagged = tagged
        self._believes = believes
        self.database = Database(1)
        self.voided: dict[str, set[int]] = {name: set() for name in FIELDS}
        self.lost: set[int] = set()
        """Transactions that a failover has undone."""
        self.flights: list[Flight] = []
        self.run = 0
        self._wrote: dict[int, tuple[str, ...]] = {}
        """What every transaction that ever was invalidates, by its uid."""
        self.now = 0.0
        self.kept = 0
        self._saved: list[tuple[bytes, bytes]] = []
        self._build()

    def _build(self) -> None:
        cluster = "main" if self.fenced else ""
        epoch = self.database.epoch if self.fenced else 0
        run = "" if self._believes == "run" else str(self.run)
        names = Names(slot_name("model", cluster), scope_name("model", run, cluster, epoch))
        options: dict[str, Any] = {"cluster": "main", "epoch": epoch} if self.fenced else {}
        options["tagged"] = self._tagged
        self.level: Level2[View] = Level2(self._link, names, Codec(View), life=300.0, **options)
        self.rounds = [Rounds(0.0), Rounds(2.0)]

    # -- writers -----------------------------------------------------------------------------------------

    async def begin(self, pick: int) -> None:
        """A transaction that writes and will invalidate one or two fields."""
        database = self.database
        if sum(t.state == "open" for t in database.transactions) >= 4:
            return
        fields = tuple(sorted({FIELDS[pick % len(FIELDS)], FIELDS[pick // 7 % len(FIELDS)]}))
        transaction = Transaction(len(self._wrote) + 1, database.next_xid, fields)
        self._wrote[transaction.uid] = fields
        database.next_xid += 1
        database.transactions.append(transaction)
        if pick % 2:
            database.record(transaction, "begin")

    async def look(self, pick: int) -> None:
        """A transaction reads what it will put into the cache."""
        if transaction := self._pick(pick, "open"):
            seen, visible = self.database.on_primary()
            transaction.own = (seen, visible | {transaction.uid})

    async def commit(self, pick: int) -> None:
        """It is in the log, where standbys find it; the primary shows it later."""
        if transaction := self._pick(pick, "open"):
            transaction.state = "durable"
            self.database.record(transaction, "commit")

    async def show(self, pick: int) -> None:
        if transaction := self._pick(pick, "durable"):
            self.database.end(transaction, "done")

    async def write(self, pick: int) -> None:
        """All at once: begin, commit, show, void."""
        await self.begin(pick)
        transaction = self.database.transactions[-1] if self.database.transactions else None
        if transaction is None or transaction.state != "open":
            return
        self.database.record(transaction, "commit")
        self.database.end(transaction, "done")
        await self._void(transaction)

    async def abort(self, pick: int) -> None:
        if transaction := self._pick(pick, "open"):
            if transaction.recorded:
                self.database.record(transaction, "abort")
            self.database.end(transaction, "aborted")

    async def void(self, pick: int) -> None:
        """A writer, or a relay that is late or repeats itself, voids what one transaction invalidates."""
        if transaction := self._pick(pick, "done"):
            await self._void(transaction)

    async def put(self, pick: int) -> None:
        """A writer keeps what it wrote: it voids, then puts."""
        able = [t for t in self.database.transactions if t.state == "done" and t.own is not None]
        if not able or not self.fenced:
            return
        transaction = able[pick % len(able)]
        await self._void(transaction)
        assert transaction.own is not None
        seen, visible = transaction.own
        key = sorted(KEYS)[pick // 5 % len(KEYS)]
        entry = Entry(key, self._view(key, visible), 300.0, tags=self._tags[key])
        await self.level.put(entry, seen=seen, xid=transaction.xid)

    async def _void(self, transaction: Transaction) -> None:
        await self.level.void(transaction.fields, xid=transaction.xid if self.fenced else None)
        for name in transaction.fields:
            self.voided[name].add(transaction.uid)

    def _pick(self, pick: int, state: str) -> Transaction | None:
        able = [t for t in self.database.transactions if t.state == state]
        return able[pick % len(able)] if able else None

    # -- standbys ----------------------------------------------------------------------------------------

    async def replay(self, pick: int) -> None:
        """A standby goes on, by one record or by all."""
        database, which = self.database, pick % 2
        ahead = len(database.log) if pick % 3 == 0 else database.replayed[which] + 1
        database.replayed[which] = min(len(database.log), ahead)

    async def failover(self, pick: int) -> None:
        """A standby is promoted: what it has not replayed never was, and its numbers come again."""
        if not self.fenced:
            return
        old, which = self.database, pick % 2
        part = old.log[: old.replayed[which]]
        visible = old.on_standby(which)[1]
        everything = old.history | {t.uid for t in old.transactions}
        self.lost |= everything - visible
        latest = max((t.xid for _, t in part), default=old.first - 1)
        self.database = Database(
            old.epoch + 1, next_xid=latest + 1, history=visible, latest=latest, first=latest + 1
        )
        self._build()

    # -- loaders -----------------------------------------------------------------------------------------

    async def load(self, pick: int) -> None:
        """Ask for a value, and for the lease where there is none."""
        key = sorted(KEYS)[pick % len(KEYS)]
        leased = await self.level.lease([key], 30.0, refresh=pick % 4 == 0)
        # One whose lease is another's, or lost, may load all the same: then the fill must see that.
        if leased.found == [True] or (leased.found == [False] and self.fenced and pick % 5 == 0):
            source = -1 if not self.fenced else pick // 3 % 3 - 1
            known = leased.known[0] if leased.known else None
            epoch = self.database.epoch
            self.flights.append(Flight(key, leased.token, leased.sequence, source, epoch, known))
            del self.flights[:-6]

    async def snapshot(self, pick: int) -> None:
        """A load learns what its server shows; it reads later."""
        able = [f for f in self.flights if f.seen is None and f.epoch == self.database.epoch]
        if able:
            flight = able[pick % len(able)]
            flight.seen = self._look(flight.source)[0]

    async def read(self, pick: int) -> None:
        able = [f for f in self.flights if f.view is None and f.epoch == self.database.epoch]
        if able:
            flight = able[pick % len(able)]
            seen, visible = self._look(flight.source)
            flight.seen = flight.seen or seen
            flight.view = self._view(flight.key, visible)

    async def fill(self, pick: int) -> None:
        able = [f for f in self.flights if f.view is not None]
        if able:
            await self._fill(able[pick % len(able)])

    async def take(self, pick: int) -> None:
        """All of a load at once."""
        before = len(self.flights)
        await self.load(pick)
        if len(self.flights) > before or (self.flights and self.flights[-1].view is None):
            flight = self.flights[-1]
            if flight.epoch == self.database.epoch:
                flight.seen, visible = self._look(flight.source)
                flight.view = self._view(flight.key, visible)
                await self._fill(flight)

    async def _fill(self, flight: Flight) -> None:
        self.flights.remove(flight)
        assert flight.view is not None and flight.seen is not None
        seen = flight.seen
        if self._believes == "standby":
            seen = replace(seen, standby=False)
        entry = Entry(flight.key, flight.view, 300.0, flight.lease, self._tags[flight.key], flight.known)
        outcome = await self.level.fill(entry, seen=seen if self.fenced else None, since=flight.since)
        self.kept += outcome.refusal is None

    def _look(self, source: int) -> tuple[Seen, frozenset[int]]:
        return self.database.on_primary() if source < 0 else self.database.on_standby(source)

    def _view(self, key: str, visible: frozenset[int]) -> View:
        """What a loader of `key` sees."""
        wrote = self._wrote
        return View(
            tuple(
                (name, tuple(sorted(uid for uid in visible if name in wrote[uid])))
                for name in ("k:" + key, *("t:" + tag for tag in self._tags[key]))
            )
        )

    # -- the relay ---------------------------------------------------------------------------------------

    async def beat(self, pick: int) -> None:
        """A relay voids all that has committed, and says so. There may be two for a while."""
        if not self.fenced:
            return
        done = [t for t in self.database.transactions if t.state == "done"]
        for transaction in done:
            if transaction.row:
                await self._void(transaction)
        self.now += 1.0
        await self.level.beat(self.rounds[pick % 4 == 0], "relay", now=self.now)
        for transaction in done:
            transaction.row = False
            for name in transaction.fields:
                self.voided[name].add(transaction.uid)

    async def mark(self, pick: int) -> None:
        """It asks the primary what has ended; some time after the answer."""
        rounds = self.rounds[pick % 4 == 0]
        if self.fenced and rounds.life:
            seen, _ = self.database.on_primary()
            rounds.marked(seen.xmax, seen.running, self.now)

    async def round(self, pick: int) -> None:
        await self.beat(pick)
        await self.mark(pick)

    # -- losses ------------------------------------------------------------------------------------------

    async def evict(self, pick: int) -> None:
        """Redis, or time, takes one key."""
        what = ["T", "O", "S", "B", "g:x", "g:y", *(f"{kind}:{key}" for kind in "vl" for key in KEYS)]
        await self._link.send("DEL", self.level.names.prefix + what[pick % len(what)])

    async def flush(self, pick: int) -> None:
        await self._link.send("FLUSHALL")

    async def save(self, pick: int) -> None:
        """Redis writes its data to its disk, or a replica of it stays behind here."""
        keys = await self._link.send("KEYS", "*")
        self._saved = [(key, await self._link.send("DUMP", key)) for key in keys]

    async def restart(self, pick: int) -> None:
        """Redis is another process, with what was last saved or with nothing; its run id tells."""
        await self._link.send("FLUSHALL")
        for key, data in self._saved if pick % 2 else ():
            await self._link.send("RESTORE", key, 0, data)
        self.run += 1
        self._build()

    # -- the check ---------------------------------------------------------------------------------------

    async def check(self) -> None:
        """Nothing that can be read lacks a write whose void has been applied."""
        names = sorted(KEYS)
        read = await self.level.read(names)
        for name, found in zip(names, read.found, strict=True):
            if found is None or found.value is None:
                continue
            for of, seen in found.value.seen:
                missing = self.voided[of] - self.lost - set(seen)
                if missing:
                    raise Broken(f"{name} was read without what {sorted(missing)} wrote of {of}")


CALM = {"evict": 0, "flush": 0, "save": 0, "restart": 0, "failover": 0, "abort": 0, "put": 0}
"""Weights of a world in which nothing is lost."""

WEIGHTS: dict[str, int] = {
    "begin": 6, "look": 2, "commit": 6, "show": 7, "write": 4, "abort": 1, "void": 5, "put": 2, "replay": 6,
    "failover": 1, "load": 7, "snapshot": 5, "read": 6, "fill": 7, "take": 5, "beat": 3, "mark": 3, "round":
    8, "evict": 3, "flush": 1, "save": 1, "restart": 1,
}  # fmt: skip


class Explorer:
    """Runs worlds. What it finds depends on the seeds alone."""

    def __init__(self, link: Link, *, fenced: bool = True, tagged: bool = True, believes: str = "") -> None:
        self._link = link
        self._fenced = fenced
        self._tagged = tagged
        self._believes = believes
        self.kept = 0
        """Values that were kept, over all runs: an explorer that keeps none shows nothing."""
        self.steps = 0

    async def explore(self, seeds: Sequence[int], length: int, **weights: int) -> None:
        """Raises Broken with a short run when a world breaks."""
        for seed in seeds:
            steps = self.steps_of(seed, length, weights)
            if await self._breaks(steps):
                steps = await self._shorter(steps)
                why = await self._breaks(steps)
                raise Broken(f"{why} (seed {seed}): " + ", ".join(f"{name} {pick}" for name, pick in steps))

    @staticmethod
    def steps_of(seed: int, length: int, weights: dict[str, int]) -> list[Step]:
        chance = random.Random(seed)
        merged = {**WEIGHTS, **weights}
        names = chance.choices(list(merged), list(merged.values()), k=length)
        # The relay has set a horizon: most of what is worth seeing comes after that.
        start: list[Step] = [("round", 1), ("round", 1)]
        return start + [(name, chance.randrange(1 << 16)) for name in names]

    async def _breaks(self, steps: Sequence[Step]) -> str | None:
        await self._link.send("FLUSHALL")
        world = World(self._link, fenced=self._fenced, tagged=self._tagged, believes=self._believes)
        try:
            for name, pick in steps:
                step: Callable[[int], Awaitable[None]] = getattr(world, name)
                await step(pick)
                await world.check()
                self.steps += 1
        except Broken as broken:
            return str(broken)
        finally:
            self.kept += world.kept
        return None

    async def _shorter(self, steps: list[Step]) -> list[Step]:
        """Leave out what is not needed."""
        size = len(steps) // 2
        while size:
            at = 0
            while at < len(steps):
                fewer = steps[:at] + steps[at + size :]
                if await self._breaks(fewer):
                    steps = fewer
                else:
                    at += size
            size //= 2
        return steps


@contextmanager
def patched(script: str, *changes: tuple[str, str]) -> Iterator[None]:
    """The second level with another text of a script. Each change has to find what it replaces, once."""
    real: Script = getattr(_level2, script.upper())
    text = real.text
    for old, new in changes:
        assert text.count(old) == 1, f"{script}.lua has {old!r} {text.count(old)} times"
        text = text.replace(old, new)
    setattr(_level2, script.upper(), Script(script, text))
    try:
        yield
    finally:
        setattr(_level2, script.upper(), real)
