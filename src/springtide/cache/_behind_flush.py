"""Take changes and apply them, page by page, each in one transaction.

    page taken and applied -> the next one, until a page is not full
    page failed -> its halves, each on its own, down to the keys that fail alone: these are ill
    ill key -> left out of pages; tried alone when its time has come; well again when that succeeds
    too many are ill -> the pass goes on as long as few more fail, and ends with an error

A page holds an advisory lock of its shard that ends with the transaction, so one flush at a time is at work
there: that keeps the order of a key, and a killed worker leaves nothing behind. That the database is away
makes nobody ill: the pass ends and the next one tries again.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from springtide.cache._behind_sql import Changed, Rows, Sql, lock_of
from springtide.clock import Clock
from springtide.context import Priority, RequestContext, activate
from springtide.db import BUCKETS, Bucket, Database, WriteTransaction
from springtide.errors import CommitUnknown, RoleChanged, Unavailable
from springtide.signals import BehindFailed, BehindFlushed, BehindWaiting, Sink

__all__ = ["Flusher"]

_log = logging.getLogger(__name__)

T = TypeVar("T")

MAX_ILL = 1000
"""Keys of a shard that are left in peace at once; when more fail, it may not be their fault."""

MAX_OVER = 100
"""Keys beyond those that fail before a pass is given up: what the database refuses altogether is not tried
for every key, every time. The next pass begins behind the page where this one ended."""

LONGEST_PEACE = 300.0
"""Seconds between two tries of a key that keeps failing, at most; the first pauses are short and double."""

COUNT_EVERY = 15.0
"""Seconds between two counts of what waits on a shard."""

MOST_COUNTED = 100_000

AWAY = (Unavailable, CommitUnknown, RoleChanged)


class _Place(NamedTuple):
    bucket: int
    key: str
    seq: int


START = _Place(-1, "", 0)


@dataclass(slots=True)
class _Ill:
    failures: int
    until: float


@dataclass(frozen=True, slots=True)
class _Page:
    """Rows that were taken, and the place of the last one."""

    rows: int
    keys: Sequence[Changed]
    last: _Place


class _Failed(Exception):
    """The changes of a page could not be applied."""

    def __init__(self, page: _Page, cause: Exception) -> None:
        self.page = page
        self.cause = cause
        super().__init__(repr(cause))


class Flusher(Generic[T]):
    """`WriteBehind.flush` for one shard at a time; see the module."""

    def __init__(
        self,
        database: Database,
        rows: Rows[T],
        sql: Sql,
        apply: Callable[[WriteTransaction, Mapping[Changed, T]], Awaitable[None]],
        *,
        every: float,
        batch: int,
        timeout: float,
        clock: Clock,
        sink: Sink,
    ) -> None:
        self._database = database
        self._rows = rows
        self._sql = sql
        self._apply = apply
        self._every = every
        self._batch = batch
        self._timeout = timeout
        self._clock = clock
        self._sink = sink
        self._lock = lock_of(database.schema, rows.name)
        self._ill: dict[str, dict[Changed, _Ill]] = {shard: {} for shard in database.pools}
        self._counted: dict[str, float] = {}
        self._over: dict[str, list[Exception]] = {shard: [] for shard in database.pools}
        self._from: dict[str, _Place] = {}
        """Where the next pass begins, on shards where the last one was given up."""
        owners = (database.shards.shard_of(Bucket(number)) for number in range(BUCKETS))
        self._homes = {shard: Bucket(number) for number, shard in enumerate(owners)}
        """A bucket of each shard: by it a write is opened there."""

    async def flush(self, shard: str) -> int:
        """How many rows were applied. Raises what the database raises when it is away."""
        ill = self._ill[shard]
        now = self._clock.monotonic()
        over = self._over[shard] = []
        flushed = 0
        for key in [key for key, state in ill.items() if state.until <= now]:
            flushed += await self._take_keys(shard, [key])
        place: _Place | None = self._from.pop(shard, START)
        while place is not None:
            excluded = [self._rows.text(key) for key in ill]
            try:
                page = await self._page(shard, self._sql.take, *place, excluded)
                if page is None:
                    break
                flushed += page.rows
            except _Failed as failed:
                page = failed.page
                flushed += await self._halve(shard, failed)
            if len(over) > MAX_OVER:
                if page.rows >= self._batch:
                    self._from[shard] = page.last
                break
            place = page.last if page.rows >= self._batch else None
        await self._count(shard)
        if over:
            raise over[0]
        return flushed

    async def _count(self, shard: str) -> None:
        """Say how much still waits: what came meanwhile, what is ill, and what another flush is at."""
        now = self._clock.monotonic()
        if now - self._counted.get(shard, -COUNT_EVERY) < COUNT_EVERY:
            return
        self._counted[shard] = now
        with activate(RequestContext(deadline=now + self._timeout, priority=Priority.BULK)):
            rows = await self._database.pools[shard].fetch_value(
                self._sql.waiting, self._rows.name, MOST_COUNTED
            )
        self._sink.emit(BehindWaiting(self._database.name, shard, self._rows.name, rows))

    async def _take_keys(self, shard: str, keys: Sequence[Changed]) -> int:
        """Apply what waits for `keys`, as far as it can be."""
        if len(self._over[shard]) > MAX_OVER:
            return 0
        _, buckets, texts = self._rows.names_of(keys)
        try:
            page = await self._page(shard, self._sql.take_keys, buckets, texts)
        except _Failed as failed:
            return await self._halve(shard, failed)
        if page is None:
            return 0
        for key in keys:
            self._ill[shard].pop(key, None)
        return page.rows

    async def _halve(self, shard: str, failed: _Failed) -> int:
        keys = failed.page.keys
        if len(keys) > 1:
            middle = len(keys) // 2
            halves = [keys[:middle], keys[middle:]]
            random.shuffle(halves)  # where a pass is given up, each key has its turn in another one
            return sum([await self._take_keys(shard, half) for half in halves])
        for key in keys:
            self._fell_ill(shard, key, failed.cause)
        return 0

    def _fell_ill(self, shard: str, key: Changed, error: Exception) -> None:
        ill = self._ill[shard]
        if key not in ill and len(ill) >= MAX_ILL:
            self._over[shard].append(error)
            return
        failures = ill[key].failures + 1 if key in ill else 1
        pause = min(self._every * 2 ** min(failures, 20), LONGEST_PEACE)
        pause *= random.uniform(0.5, 1.5)  # noqa: S311 - spreads tries
        ill[key] = _Ill(failures, self._clock.monotonic() + pause)
        self._sink.emit(BehindFailed(self._database.name, self._rows.name, repr(error)))
        _log.error(
            "changes of %s for %r cannot be applied (%d times now), next try in %.1f s; they are kept",
            self._rows.name, key, failures, pause, exc_info=error,
        )  # fmt: skip

    async def _page(self, shard: str, sql: str, *arguments: Any) -> _Page | None:
        """Take one page and apply it; None when another flush is at work."""
        deadline = self._clock.monotonic() + self._timeout
        rows: list[Any] = []
        try:
            with activate(RequestContext(deadline=deadline, priority=Priority.BULK)):
                async with self._database.write(self._homes[shard]) as tx:
                    if not await tx.fetch_value(self._sql.lock, self._lock):
                        return None
                    rows = await tx.fetch(sql, self._rows.name, *arguments, self._batch)
                    rows.sort(key=_place)
                    changes = self._rows.decode(rows)
                    if changes:
                        await self._apply(tx, changes)
        except AWAY:
            raise
        except Exception as error:
            if not rows:  # nothing was taken, so it is no change's fault
                raise
            raise _Failed(self._taken(rows), error) from error
        if rows:
            waited = max(row["waited"] for row in rows)
            name, keys = self._rows.name, len(changes)
            self._sink.emit(BehindFlushed(self._database.name, name, len(rows), keys, waited))
        return self._taken(rows)

    def _taken(self, rows: Sequence[Any]) -> _Page:
        return _Page(len(rows), self._rows.keys(rows), _place(rows[-1]) if rows else START)


def _place(row: Any) -> _Place:
    return _Place(row["bucket"], row["key"], row["seq"])
