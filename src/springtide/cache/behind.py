"""Write-behind: take a change durably now, apply it to the tables a moment later, together with others.

    views = WriteBehind("views", db, int, merge=operator.add, apply=count)

    await views.put(article_id, 1)                  # returns when it is durable
    await views.put(article_id, 1, tx=tx)           # or: exists if and only if tx commits

    async def count(tx: WriteTransaction, changes: Mapping[Changed, int]) -> None: ...

A put is a row of the module's own database: what was acknowledged is as safe as any other committed write.
`flush` takes the rows of many keys, merges those of one key in the order in which they were put, hands the
result to `apply` and deletes them, all in one transaction: the effect of each row happens exactly once,
whatever is killed and wherever. Every worker calls it every `every` seconds; one at a time gets to a shard.

Order: of two puts of one key, the one that was acknowledged before the other was asked for comes first.
Puts that overlap have no order of their own. A put whose caller heard an error may still be applied, once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

import msgspec

from springtide.cache._behind_flush import Flusher
from springtide.cache._behind_put import Keeper
from springtide.cache._behind_sql import Changed, Rows, Sql
from springtide.clock import Clock
from springtide.db import Database, WriteTransaction
from springtide.errors import ConfigurationError
from springtide.lifecycle import Periodic
from springtide.signals import NullSink, Sink

__all__ = ["Changed", "WriteBehind"]

T = TypeVar("T")

MAX_VALUE_BYTES = 65_536
MAX_KEY_CHARS = 500


class WriteBehind(Generic[T]):
    """Changes of one kind, each of a value of `type`, which msgspec can encode.

    name:        of this kind within the module; it is kept with the rows, so it stays.
    merge:       what two changes of one key are together, the earlier first: `operator.add` for counters,
                 `lambda old, new: new` where the last one counts. Pure and associative.
    apply:       writes merged changes in the transaction that takes them; all keys are of one shard, and its
                 own writes of this database on that shard join in. It is called again with the same changes
                 when that did not commit, so it does nothing else.
    every:       seconds between two flushes of a worker, jittered: about how long a change waits.
    batch:       rows that one transaction takes at most.
    max_waiting: keys that wait in this process for the next INSERT at most; more are refused.
    timeout:     seconds that an INSERT for many callers, and a transaction of a flush, may take.

    Raises ConfigurationError.
    """

    def __init__(
        self,
        name: str,
        database: Database,
        type: type[T],
        *,
        merge: Callable[[T, T], T],
        apply: Callable[[WriteTransaction, Mapping[Changed, T]], Awaitable[None]],
        every: float = 1.0,
        batch: int = 5000,
        max_waiting: int = 10_000,
        timeout: float = 10.0,
        clock: Clock | None = None,
        sink: Sink | None = None,
    ) -> None:
        if not 0 < len(name) <= 100 or "\0" in name:
            raise ConfigurationError(f"write-behind: name must have 1 to 100 characters, got {name!r}")
        for option, seconds in (("every", every), ("timeout", timeout)):
            if not 0 < seconds < 86_400:
                raise ConfigurationError(
                    f"write-behind {name}: {option} must be > 0 seconds and less than a day, got {seconds}"
                )
        for option, count in (("batch", batch), ("max_waiting", max_waiting)):
            if count < 1:
                raise ConfigurationError(f"write-behind {name}: {option} must be >= 1, got {count}")
        self.name = name
        self.every = every
        self.database = database
        self._clock = clock or database.clock
        self._sink = sink or NullSink()
        self._sql = sql = Sql(database.schema)
        self._rows = rows = Rows(name, type, merge)
        self._keeper = Keeper(
            database, rows, sql, max_waiting=max_waiting, timeout=timeout, clock=self._clock
        )
        self._flusher = Flusher(
            database, rows, sql, apply, every=every, batch=batch, timeout=timeout, clock=self._clock,
            sink=self._sink,
        )  # fmt: skip

    async def put(self, key: Changed, value: T, *, tx: WriteTransaction | None = None) -> None:
        """Take the change: it is durable when this returns, or with `tx` when that has committed.

        Without `tx` the callers of this process share small transactions of their own, also inside an open
        write: such a put stays when the write is undone.
        Raises ConfigurationError for what cannot be kept, also a `tx` on another shard than `key`;
        Unavailable when too many wait; CommitUnknown when the deadline passed; what the database raises.
        """
        self._check(key, value)
        if tx is None:
            await self._keeper.put(key, value)
            return
        if tx.database is not self.database or tx.shard != self.database.shards.shard_of(key):
            raise ConfigurationError(
                f"write-behind {self.name}: a change of {key!r} is kept on its own shard of"
                f" {self.database.name!r}, got a write on {tx.shard!r} of {tx.database.name!r}"
            )
        await tx.execute(self._sql.put, *self._rows.encode({key: value}))

    async def pending(self, key: Changed) -> T | None:
        """What has been put for `key` and is not applied yet, merged; None when there is nothing.

        Read on the primary, inside an open write of the key's shard as that sees it.
        """
        self._check(key)
        shard = self.database.shards.shard_of(key)
        queries = self.database._write_on(shard) or self.database.pools[shard]
        rows = await queries.fetch(self._sql.pending, *self._rows.name_of(key))
        return self._rows.decode(rows).get(key)

    async def flush(self) -> int:
        """Apply what has been put, on every shard; how many rows that were. For a module's background work.

        A shard on which another flush is at work is left to that. A key whose changes cannot be applied is
        logged, counted, and tried again later. A shard that is away is left for the next call, and so is one
        on which very many keys fail; its error is raised after the others are done.
        """
        flushed = 0
        failed: Exception | None = None
        for shard in self.database.pools:
            try:
                flushed += await self._flusher.flush(shard)
            except Exception as error:  # raised below: what one shard or `apply` says keeps no other shard
                failed = failed or error
        if failed is not None:
            raise failed
        return flushed

    def service(self) -> Periodic:
        """`flush` as a lifecycle service, for an application without a platform's workers."""

        async def body() -> None:
            await self.flush()

        return Periodic(
            f"write-behind {self.name}", body, every=self.every, clock=self._clock, sink=self._sink
        )

    def _check(self, key: Changed, *values: T) -> None:
        if isinstance(key, bool) or not isinstance(key, int | str):
            raise ConfigurationError(f"write-behind {self.name}: a key is an id or a text, got {key!r}")
        if isinstance(key, str) and (not 0 < len(key) <= MAX_KEY_CHARS or "\0" in key):
            raise ConfigurationError(
                f"write-behind {self.name}: a key has 1 to {MAX_KEY_CHARS} characters without NUL,"
                f" got {key!r}"
            )
        for value in values:
            try:
                size = self._rows.check(value)
            except (msgspec.MsgspecError, TypeError, ValueError) as error:
                raise ConfigurationError(
                    f"write-behind {self.name}: the change of {key!r} cannot be kept: {error}"
                ) from error
            if size > MAX_VALUE_BYTES:
                raise ConfigurationError(
                    f"write-behind {self.name}: a change has at most {MAX_VALUE_BYTES} bytes, got {size}"
                )
