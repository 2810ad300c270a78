"""What clients that bring no causality token have seen, kept per identity for a short time.

A bearer client may return neither cookie nor header. What its request has seen is kept, before the answer
goes out, in one table on one cluster, and its next request, on whatever process, looks it up before its
first read that a replica could serve. The last sighting counts for `lifetime` seconds; workers delete older
rows.

Both are coalesced: one statement at a time of each kind, for everybody who waits, and what arrives
meanwhile waits for the next one. So a lookup always began after its request arrived: it sees what was kept
before.

Rows merge: the later position wins, two witnesses are `DOUBT`. A request that has only read on from the
witness that it found keeps nothing, unless it took longer than `QUIET`: that would be a write for each read.
So a position that covers what one request has seen does not cover what a quiet one beside it saw:

    in force   requests may read on from the witness and be quiet. A position beyond it makes it covered
    covered    nobody is quiet. Who reads on from the witness keeps that, and it is in force again. Who finds
               it covered for `SETTLED` comes after every quiet request: what it keeps replaces the witness

Both need the version of the row that was looked up to be the row's still; else somebody else has kept
something, and the witness stays. So whoever comes after a request reads what that one has read or something
later, whatever was under way beside it.

The tables are UNLOGGED and what is kept waits for no disk: a crash may empty them, and a failover does.
That is safe because loss shows: `generation` says since when the server has been running without one, in a
table that is lost together with the rows. A lookup that finds no row of this run of the server, or one
younger than `lifetime`, is *unsure*: its token is pinned to the primaries. So is that of a lookup that
failed. What was seen before the loss is worth nothing by the time lookups are sure again.

What could not be kept (the cluster is away, or slow) is tried again until it is worth nothing; the answer
waits `TIMEOUT` for it and no longer. Until it is kept, other processes do not know of it.

The tables are made when they are missed first, in the schema `springtide`, so a platform without replicas
has none; a role that may not make them needs what `TABLES` (`_position_sql.py`) says, made by another one.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, NamedTuple

import asyncpg

from springtide.clock import Clock, SystemClock
from springtide.context import (
    DOUBT,
    NOWHERE,
    CausalityToken,
    Position,
    Priority,
    RequestContext,
    activate,
    current,
    detached,
)
from springtide.db.pool import Pool
from springtide.errors import SpringtideError
from springtide.identity._position_sql import BATCH, BEGIN_GENERATION, KEEP, LOCK, LOOK, PURGE, TABLES
from springtide.lifecycle import StartStop
from springtide.signals import CausalityChecked, NullSink, Sink

__all__ = ["Found", "Positions"]

_log = logging.getLogger(__name__)

TIMEOUT = 1.0
"""Seconds that one statement may take, and that a request waits for it."""

PAUSE = 0.2
"""Seconds between two attempts to keep what could not be kept."""

QUIET = 0.5
"""Seconds from its lookup that a request may take and keep nothing, when it only reads on."""

SETTLED = QUIET + TIMEOUT
"""Seconds of a covered witness: the longest quiet request, and the statement until others saw what it did."""

MAX_WAITING = 10_000
"""Identities whose sightings wait to be kept; further ones are not."""

NO_VERSION = -1

ABSENT = (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError, asyncpg.UndefinedColumnError)
"""The tables are not there, or as an earlier version made them."""

FAILURES = (SpringtideError, asyncpg.PostgresError, TimeoutError)


class Version(NamedTuple):
    """A row as it was looked up. `covered`: its witness is, also `settled`: for long enough."""

    number: int = NO_VERSION
    covered: bool = False
    settled: bool = False


UNKNOWN = Version()
"""Of who has not looked."""


class Row(NamedTuple):
    """What is to be kept of one cluster, since when; `base` is the row that it followed from."""

    position: Position
    witness: str | None
    base: Version
    since: float


@dataclass(slots=True)
class Found:
    """What is kept of one identity. `age` is that of the oldest witness in seconds, 0.0 without one; `until`
    the moment to which a request that looked it up may be quiet."""

    token: CausalityToken = field(default_factory=CausalityToken)
    versions: dict[str, Version] = field(default_factory=dict)
    age: float = 0.0
    until: float = 0.0


class _Batch:
    """Those who wait for one statement."""

    __slots__ = ("done", "wanted")

    def __init__(self) -> None:
        self.wanted: dict[int, dict[str, Row]] = {}
        self.done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def add(self, subject: int, rows: dict[str, Row]) -> None:
        waiting = self.wanted.setdefault(subject, {})
        for cluster, row in rows.items():
            known = waiting.get(cluster)
            waiting[cluster] = row if known is None else _merged(known, row)


class Positions:
    """A lifecycle service on the primary that `pool` leads to; asks nothing before somebody asks it."""

    def __init__(
        self,
        pool: Pool,
        *,
        lifetime: float = 60.0,
        clock: Clock | None = None,
        sink: Sink | None = None,
    ) -> None:
        if not lifetime > 0:
            raise ValueError(f"lifetime must be > 0 seconds, got {lifetime}")
        self.name = "positions"
        self.lifetime = lifetime
        self._pool = pool
        self._lifetime = timedelta(seconds=lifetime)
        self._clock = clock or SystemClock()
        self._sink = sink or NullSink()
        self._looking: _Batch | None = None
        self._keeping: _Batch | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._life = StartStop(self.name, self._open, self._close, sink=sink)

    @property
    def state(self) -> str:
        return self._life.state

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    async def lookup(self, subject: int) -> Found:
        """What the identity has seen; pinned when that cannot be known. Raises nothing."""
        if not self._life.running:
            return _unknown()
        until = self._clock.monotonic() + QUIET
        batch = self._looking
        if batch is None:
            batch = self._looking = _Batch()
        batch.wanted[subject] = {}
        self._run("look", self._look())
        if not await self._wait(batch) or batch.done.result() is None:
            self._note("not_recalled")
            return _unknown()
        unsure, found = batch.done.result()
        kept: Found = found.get(subject) or Found()
        # another one: others may have asked for the same
        known = Found(CausalityToken(), dict(kept.versions), kept.age, until)
        known.token.merge(kept.token)
        known.token.pinned = unsure
        self._note("unsure" if unsure else "recalled")
        return known

    def may_be_quiet(self, found: Found, cluster: str) -> bool:
        """Whether a request that found this may read on from its witness and keep nothing."""
        return not found.versions[cluster].covered and self._clock.monotonic() <= found.until

    async def keep(self, subject: int, token: CausalityToken, versions: Mapping[str, Version]) -> bool:
        """Merge what the identity has seen into what is kept, which `versions` of a lookup belong to.

        Returns when it is kept, or after `TIMEOUT` without; whether it is. Raises nothing.
        """
        if not self._life.running:
            return False
        batch = self._keeping
        if batch is None:
            batch = self._keeping = _Batch()
        if subject not in batch.wanted and len(batch.wanted) >= MAX_WAITING:
            self._note("not_kept")
            return False
        now, rows = self._clock.monotonic(), {}
        for cluster in token.positions.keys() | token.witnesses.keys():
            position, witness = token.positions.get(cluster, NOWHERE), token.witnesses.get(cluster)
            rows[cluster] = Row(position, witness, versions.get(cluster, UNKNOWN), now)
        batch.add(subject, rows)
        self._run("keep", self._keep())
        kept = await self._wait(batch) and batch.done.result() is True
        self._note("kept" if kept else "not_kept")
        return kept

    async def prepare(self) -> None:
        """Make the tables, if they are not there."""
        async with self._pool.transaction() as tx:
            await tx.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
            for statement in filter(str.strip, TABLES.split(";")):
                await tx.execute(statement)

    async def purge(self) -> None:
        """Delete rows that are worth nothing any more, in batches; a background task of the workers."""
        try:
            for _ in range(20):
                tag = await self._pool.execute(PURGE, self._lifetime)
                if int(tag.rpartition(" ")[2]) < BATCH:
                    return
        except ABSENT:
            return  # nobody has kept anything

    # -- one statement at a time -----------------------------------------------------------------------

    def _run(self, kind: str, body: Coroutine[Any, Any, None]) -> None:
        if kind in self._tasks:
            body.close()  # the one that runs takes what has come meanwhile
            return
        task = asyncio.get_running_loop().create_task(body, name=f"{self.name}:{kind}", context=detached())
        self._tasks[kind] = task

        def ended(task: asyncio.Task[None]) -> None:
            if self._tasks.get(kind) is task:
                del self._tasks[kind]
            if not task.cancelled() and (error := task.exception()) is not None:
                _log.error("%s: %s failed", self.name, kind, exc_info=error)

        task.add_done_callback(ended)

    async def _wait(self, batch: _Batch) -> bool:
        """Whether the batch's statement has ended; waits for it within `TIMEOUT` and the request's time."""
        context = current()
        left = context.remaining(self._clock.monotonic()) if context is not None else None
        limit = TIMEOUT if left is None else min(left, TIMEOUT)
        done, _ = await asyncio.wait((batch.done,), timeout=limit)
        return bool(done)

    async def _look(self) -> None:
        try:
            while (batch := self._looking) is not None:
                self._looking = None
                answer = None
                try:
                    answer = await self._ask(list(batch.wanted))
                except FAILURES as error:
                    _log.warning("%s: what clients have seen cannot be looked up: %s", self.name, error)
                finally:
                    batch.done.set_result(answer)
        finally:
            self._tasks.pop("look", None)

    async def _ask(self, subjects: list[int]) -> tuple[bool, dict[int, Found]]:
        with activate(self._context()):
            try:
                rows = await self._pool.fetch(LOOK, subjects, self._lifetime)
            except ABSENT:
                await self.prepare()
                rows = await self._pool.fetch(LOOK, subjects, self._lifetime)
            doubts = [row for row in rows if row["subject"] is None]
            if any(row["version"] == 0 for row in doubts):  # once in a run of the server
                await self._pool.execute(BEGIN_GENERATION)
        found: dict[int, Found] = {}
        for row in rows:
            if row["subject"] is None:
                continue
            kept = found.setdefault(row["subject"], Found())
            cluster, position = row["cluster"], Position(row["epoch"], row["lsn"])
            covered = row["covered"]
            settled = covered is not None and covered >= SETTLED
            kept.versions[cluster] = Version(row["version"], covered is not None, settled)
            if position != NOWHERE:
                kept.token.observe(cluster, position)
            if row["witness"] is not None:
                kept.token.saw(cluster, row["witness"])
                kept.age = max(kept.age, row["age"])
        return bool(doubts), found

    async def _keep(self) -> None:
        try:
            while (batch := self._keeping) is not None:
                self._keeping = None
                kept = False
                try:
                    await self._store(batch.wanted)
                    kept = True
                except FAILURES as error:
                    _log.warning("%s: what clients have seen cannot be kept: %s", self.name, error)
                    self._again(batch)
                finally:
                    if not batch.done.done():
                        batch.done.set_result(kept)
                if not kept:
                    await self._clock.sleep(PAUSE * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load
        finally:
            self._tasks.pop("keep", None)

    def _again(self, failed: _Batch) -> None:
        """Put what failed into the next batch, while it is worth something."""
        old = self._clock.monotonic() - self.lifetime
        batch = self._keeping or _Batch()
        for subject, rows in failed.wanted.items():
            if fresh := {cluster: row for cluster, row in rows.items() if row.since > old}:
                batch.add(subject, fresh)
        self._keeping = batch if batch.wanted else None

    async def _store(self, wanted: dict[int, dict[str, Row]]) -> None:
        flat = [(subject, cluster, row) for subject, rows in wanted.items() for cluster, row in rows.items()]
        arguments = (
            [subject for subject, _, _ in flat],
            [cluster for _, cluster, _ in flat],
            [row.position.epoch for _, _, row in flat],
            [row.position.lsn for _, _, row in flat],
            [row.witness for _, _, row in flat],
            [row.base.number for _, _, row in flat],
            [row.base.settled for _, _, row in flat],
        )
        with activate(self._context()):
            try:
                await self._pool.execute(KEEP, *arguments)
            except ABSENT:
                await self.prepare()
                await self._pool.execute(KEEP, *arguments)

    def _context(self) -> RequestContext:
        """Of a statement that everybody's reads wait for."""
        return RequestContext(deadline=self._clock.monotonic() + TIMEOUT, priority=Priority.CRITICAL)

    def _note(self, event: str) -> None:
        self._sink.emit(CausalityChecked(event))

    async def _open(self) -> None:
        self._looking = self._keeping = None

    async def _close(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)  # each ends the batch that it has taken
        for left in (self._looking, self._keeping):
            if left is not None:
                left.done.set_result(None)


def _unknown() -> Found:
    found = Found()
    found.token.pinned = True
    return found


def _merged(one: Row, other: Row) -> Row:
    """Of two requests that wait for one statement: neither followed from the other."""
    witness = one.witness or other.witness
    if other.witness not in (None, witness):
        witness = DOUBT
    return Row(max(one.position, other.position), witness, UNKNOWN, max(one.since, other.since))
