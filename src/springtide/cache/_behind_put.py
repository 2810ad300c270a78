"""Keep changes durably for many callers at once: one INSERT and one commit for all that wait.

    waiting -> sent (what comes now waits for the next one) -> kept | failed, for every caller alike

While one INSERT is under way, the changes of its shard gather and are merged by key; so a key that everybody
changes costs one row per commit. The batch is nobody's: a caller that is cancelled or runs out of time leaves
its change in there, because it is merged with those of others.
"""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

from springtide.cache._behind_sql import Changed, Rows, Sql
from springtide.clock import Clock
from springtide.context import RequestContext, activate, current, detached
from springtide.db import Database
from springtide.errors import CommitUnknown, Unavailable

__all__ = ["Keeper"]

T = TypeVar("T")

RETRY_AFTER = 1.0

MAX_MERGED = 1000
"""Changes of one key that one row takes at most: a merged value may grow with each of them."""


class _Batch(Generic[T]):
    """What one INSERT takes along."""

    def __init__(self) -> None:
        self.changes: dict[Changed, T] = {}
        self.counts: dict[Changed, int] = {}
        self.callers: list[asyncio.Future[None]] = []


class Keeper(Generic[T]):
    """`WriteBehind.put` without a transaction; see the module."""

    def __init__(
        self,
        database: Database,
        rows: Rows[T],
        sql: Sql,
        *,
        max_waiting: int,
        timeout: float,
        clock: Clock,
    ) -> None:
        self._database = database
        self._rows = rows
        self._sql = sql
        self._max_waiting = max_waiting
        self._timeout = timeout
        self._clock = clock
        self._waiting: dict[str, _Batch[T]] = {}
        self._sending: dict[str, asyncio.Task[None]] = {}

    async def put(self, key: Changed, value: T) -> None:
        shard = self._database.shards.shard_of(key)
        batch = self._waiting.setdefault(shard, _Batch())
        count = batch.counts.get(key, 0)
        if count >= MAX_MERGED or (count == 0 and len(batch.changes) >= self._max_waiting):
            raise Unavailable(
                f"too many changes of {self._rows.name} wait to be kept", retry_after=RETRY_AFTER
            )
        batch.changes[key] = self._rows.merge(batch.changes[key], value) if count else value
        batch.counts[key] = count + 1
        caller: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        batch.callers.append(caller)
        if shard not in self._sending:
            self._sending[shard] = asyncio.get_running_loop().create_task(
                self._send(shard), name=f"write-behind {self._rows.name} {shard}", context=detached()
            )
        await self._kept(caller)

    async def _kept(self, caller: asyncio.Future[None]) -> None:
        context = current()
        remaining = context.remaining(self._clock.monotonic()) if context is not None else None
        try:
            async with asyncio.timeout(remaining):
                await caller  # cancelled, it is alone: the batch goes on
        except TimeoutError:
            raise CommitUnknown(
                f"the deadline passed while a change of {self._rows.name} was being kept"
            ) from None

    async def _send(self, shard: str) -> None:
        """One INSERT after the other, until nothing waits."""
        batch: _Batch[T] | None = None
        try:
            while (batch := self._waiting.pop(shard, None)) is not None:
                await self._keep(shard, batch)
        except BaseException:
            ending = CommitUnknown(f"the process ended while changes of {self._rows.name} were being kept")
            for lost in (batch, self._waiting.pop(shard, None)):
                if lost is not None:
                    _tell(lost, ending)
            raise
        finally:
            del self._sending[shard]

    async def _keep(self, shard: str, batch: _Batch[T]) -> None:
        try:
            arguments = self._rows.encode(batch.changes)
            with activate(RequestContext(deadline=self._clock.monotonic() + self._timeout)):
                async with self._database._transaction(
                    shard, isolation="read committed", priority=None
                ) as transaction:
                    await transaction.execute(self._sql.put, *arguments)
        except Exception as error:
            _tell(batch, error)
        else:
            _tell(batch, None)


def _tell(batch: _Batch[T], error: Exception | None) -> None:
    for caller in batch.callers:
        if caller.done():
            continue  # it has left
        if error is None:
            caller.set_result(None)
        else:
            caller.set_exception(error)
