"""The write transactions that are open in this task, and who may speak in them.

A task that opened a write, and every task it started since, share the transaction: reads of the same shard
stay on it, a nested write of the same shard becomes a savepoint. One connection answers one statement at a
time, so whoever shares it takes turns on a lock. A nested write keeps its parent's lock for its whole block:
what a sibling task did in between would otherwise be undone with the savepoint.

A nested write that is cancelled cannot be undone alone (nobody waits for the server on behalf of a task that
has left): the pool's transaction then refuses to go on and rolls back.

Invariant: the lock a statement takes belongs to the innermost block of the transaction that is open in its
own context, so a task never waits for a lock that it holds itself.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from springtide.context import Priority, current
from springtide.db._invalidating import MAX_FIELDS, Fields, Recorded, count, record
from springtide.db.seeing import note
from springtide.errors import ConfigurationError, DeadlineExceeded

if TYPE_CHECKING:
    from springtide.db.router import Database
    from springtide.db.transaction import Transaction

__all__ = ["Enqueue", "Publish", "WriteTransaction", "innermost", "join", "open_writes", "opened"]

Callback = Callable[[], Awaitable[None] | None]


class Enqueue(Protocol):
    """How a job gets into a transaction: the seam to the layer above, filled by the composition root."""

    async def __call__(
        self,
        tx: WriteTransaction,
        job: Any,
        *,
        delay: float | None,
        run_at: datetime | None,
        priority: Priority | None,
        unique_key: str | None,
        ordering_key: str | None,
        limit_key: str | None,
        deadline: float | datetime | None,
    ) -> UUID: ...

    async def many(
        self,
        tx: WriteTransaction,
        jobs: Sequence[Any],
        *,
        delay: float | None,
        run_at: datetime | None,
        priority: Priority | None,
        ordering_key: str | None,
        limit_key: str | None,
        deadline: float | datetime | None,
    ) -> list[UUID]: ...


class Publish(Protocol):
    """How an event gets into a transaction: as `Enqueue`."""

    async def __call__(self, tx: WriteTransaction, event: Any, *, key: str | None) -> UUID: ...

    async def many(self, tx: WriteTransaction, events: Sequence[Any], *, key: str | None) -> list[UUID]: ...


class WriteTransaction:
    """One open write on one shard; usable from the tasks that share it until its block ends."""

    __slots__ = (
        "__weakref__",
        "_callbacks",
        "_depth",
        "_lock",
        "_open",
        "_recorded",
        "_root",
        "_stale",
        "_tx",
        "bucket",
        "database",
        "isolation",
        "shard",
    )

    def __init__(
        self,
        tx: Transaction,
        database: Database,
        shard: str,
        bucket: int,
        isolation: str,
        parent: WriteTransaction | None,
    ) -> None:
        self.database = database
        self.shard = shard
        self.bucket = bucket
        self.isolation = isolation
        self._tx = tx
        self._root: WriteTransaction = self if parent is None else parent._root
        self._depth: int = 0 if parent is None else parent._depth + 1
        self._lock = asyncio.Lock()
        self._open = True
        self._callbacks: list[Callback] = []
        self._stale: Fields | None = None
        self._recorded: Recorded | None = None

    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        async with self._turn():
            return await self._usable().fetch(sql, *args)

    async def fetch_one(self, sql: str, *args: Any) -> Any | None:
        async with self._turn():
            return await self._usable().fetch_one(sql, *args)

    async def fetch_value(self, sql: str, *args: Any) -> Any:
        async with self._turn():
            return await self._usable().fetch_value(sql, *args)

    async def execute(self, sql: str, *args: Any) -> str:
        """Run one statement; returns PostgreSQL's command tag, such as `UPDATE 1`."""
        async with self._turn():
            return await self._usable().execute(sql, *args)

    async def execute_many(self, sql: str, rows: Iterable[Sequence[Any]]) -> None:
        async with self._turn():
            await self._usable().execute_many(sql, rows)

    async def copy_in(
        self,
        table: str,
        columns: Sequence[str],
        records: Iterable[Sequence[Any]] | AsyncIterable[Sequence[Any]],
        *,
        schema: str | None = None,
    ) -> int:
        """COPY rows into `table` (of `schema`) and return how many."""
        async with self._turn():
            return await self._usable().copy_in(table, columns, records, schema=schema)

    async def enqueue(
        self,
        job: Any,
        *,
        delay: float | None = None,
        run_at: datetime | None = None,
        priority: Priority | None = None,
        unique_key: str | None = None,
        ordering_key: str | None = None,
        limit_key: str | None = None,
        deadline: float | datetime | None = None,
    ) -> UUID:
        """Add a job that exists if and only if this transaction commits; see `springtide.jobs.enqueue`.

        It lies in the bucket of the key that this write was opened with. Returns its id.
        Raises JobError, and ConfigurationError when the database was built without a platform's jobs.
        """
        return await self._enqueue()(
            self,
            job,
            delay=delay,
            run_at=run_at,
            priority=priority,
            unique_key=unique_key,
            ordering_key=ordering_key,
            limit_key=limit_key,
            deadline=deadline,
        )

    async def enqueue_many(
        self,
        jobs: Sequence[Any],
        *,
        delay: float | None = None,
        run_at: datetime | None = None,
        priority: Priority | None = None,
        ordering_key: str | None = None,
        limit_key: str | None = None,
        deadline: float | datetime | None = None,
    ) -> list[UUID]:
        """Add jobs by one statement, with the same options for all; see `springtide.jobs.enqueue_many`."""
        return await self._enqueue().many(
            self,
            jobs,
            delay=delay,
            run_at=run_at,
            priority=priority,
            ordering_key=ordering_key,
            limit_key=limit_key,
            deadline=deadline,
        )

    def _enqueue(self) -> Enqueue:
        enqueue: Enqueue | None = self.database.enqueue
        if enqueue is None:
            raise ConfigurationError(
                f"database {self.database.name!r} was built without jobs;"
                " use springtide.jobs.enqueue(tx, job)"
            )
        return enqueue

    async def publish(self, event: Any, *, key: str | None = None) -> UUID:
        """Append an event, in the log if and only if this commits; see `springtide.events.publish`.

        It lies in the bucket of the key that this write was opened with. Returns its id.
        Raises EventError, and ConfigurationError when the database was built without a platform's events.
        """
        return await self._publish()(self, event, key=key)

    async def publish_many(self, events: Sequence[Any], *, key: str | None = None) -> list[UUID]:
        """Append events by one statement, in their order; see `springtide.events.publish_many`."""
        return await self._publish().many(self, events, key=key)

    def _publish(self) -> Publish:
        publish: Publish | None = self.database.publish
        if publish is None:
            raise ConfigurationError(
                f"database {self.database.name!r} was built without events;"
                " use springtide.events.publish(tx, event)"
            )
        return publish

    def invalidate(self, cls: Any, *key: Any, tags: Sequence[str] = ()) -> None:
        """Values of a cache class that are stale once this commits: that of `key`, those with one of `tags`.

        Only remembers; it is written down with the commit, and undone with the block. After the commit the
        cache has been told when the block ends; should that fail, it is told a moment later.
        Raises ConfigurationError when the database was built without a cache, ValueError for more than
        10,000 keys and tags in one transaction, and what the cache raises for what `cls` has not.
        """
        invalidations = self.database.invalidations
        if invalidations is None:
            raise ConfigurationError(
                f"database {self.database.name!r} was built without a cache: nothing can be invalidated"
            )
        self._usable()
        name, fields = invalidations.fields_of(self, cls, key, tags)
        if named := dict.fromkeys(fields):
            self._make_stale({name: named})

    def _make_stale(self, fields: Fields) -> None:
        stale = self._stale or {}
        if (found := count(stale, fields)) > MAX_FIELDS:
            raise ValueError(
                f"a transaction may invalidate {MAX_FIELDS} keys and tags, got {found}: give what is changed"
                " together a tag"
            )
        for cls, named in fields.items():
            stale.setdefault(cls, {}).update(named)
        self._stale = stale

    @property
    def outermost(self) -> WriteTransaction:
        """The block that commits; this one, unless it is a savepoint of another."""
        return self._root

    @property
    def recorded(self) -> Recorded | None:
        """The number under which `invalidate` was written down; None until the outermost block ends."""
        return self._root._recorded

    async def _record(self) -> None:
        """The end of the outermost block: write down what it made stale, and tell the cache after COMMIT."""
        if self._stale:
            self._recorded = await record(self._tx, self.shard, self.database.schema, self._stale)
            note(self.database.pools[self.shard], self._recorded.seen)
            self._tx.on_commit(self._tell, first=True)

    async def _tell(self) -> None:
        assert self._recorded is not None
        assert self._stale is not None
        invalidations = self.database.invalidations
        if invalidations is not None:
            fields = {cls: list(named) for cls, named in self._stale.items()}
            await invalidations.void(self, self._recorded, fields)

    async def _in_doubt(self) -> None:
        """COMMIT may have succeeded: tell the cache, beside a caller who waits no longer than he has time."""
        if self._recorded is None:
            return
        context = current()
        left = context.remaining(self.database.clock.monotonic()) if context is not None else None
        telling = self.database.pools[self.shard]._spawn(self._tell(), "void")
        await asyncio.wait((telling,), timeout=None if left is None else max(left, 0.0))

    def on_commit(self, callback: Callback) -> None:
        """Call `callback` once the outermost transaction has committed; never when this block is undone."""
        if self is self._root:
            self._tx.on_commit(callback)
        elif self._open:
            self._callbacks.append(callback)
        else:
            raise RuntimeError(f"the write on shard {self.shard!r} has ended; open a new one")

    @asynccontextmanager
    async def savepoint(self) -> AsyncIterator[WriteTransaction]:
        """A block whose statements are undone together when it raises; the transaction goes on."""
        holder = innermost(self.database)
        parent = holder if holder is not None and holder._root is self._root else self
        async with join(parent) as inner:
            yield inner

    def _turn(self) -> _Turn:
        """What to hold while a statement of this task runs."""
        holder = innermost(self.database)
        if holder is None or holder._root is not self._root or holder._depth < self._depth:
            return _Turn(self)
        return _Turn(holder)

    def _usable(self) -> Transaction:
        if not self._open:
            raise RuntimeError(f"the write on shard {self.shard!r} has ended; open a new one")
        return self._tx


class _Turn:
    """The lock of a block, awaited no longer than the request's deadline: a block may wait for a task that
    waits for the block."""

    __slots__ = ("_write",)

    def __init__(self, write: WriteTransaction) -> None:
        self._write = write

    async def __aenter__(self) -> None:
        lock = self._write._lock
        context = current() if lock.locked() else None
        if context is None:
            await lock.acquire()
            return
        try:
            async with asyncio.timeout(context.remaining(self._write.database.clock.monotonic())):
                await lock.acquire()
        except TimeoutError:
            raise DeadlineExceeded("waiting for another task's turn in the same transaction") from None

    async def __aexit__(self, *_: object) -> None:
        self._write._lock.release()


_writes: contextvars.ContextVar[tuple[WriteTransaction, ...]] = contextvars.ContextVar(
    "springtide.writes", default=()
)
"""Innermost first; at most one transaction per database."""


open_writes = _writes.get
"""The writes that are open in this task, innermost first; empty for most."""


def innermost(database: object) -> WriteTransaction | None:
    """The innermost open write on `database` in this task, None when there is none."""
    for write in _writes.get():
        if write.database is database and write._open:
            return write
    return None


@asynccontextmanager
async def opened(
    tx: Transaction, database: Database, shard: str, bucket: int, isolation: str
) -> AsyncIterator[WriteTransaction]:
    """`tx` is the open write on `database` for this task inside the block."""
    write = WriteTransaction(tx, database, shard, bucket, isolation, None)
    async with _entered(write):
        yield write
    await write._record()


@asynccontextmanager
async def join(parent: WriteTransaction, bucket: int | None = None) -> AsyncIterator[WriteTransaction]:
    """A savepoint inside `parent`; the tasks that share the parent wait until the block ends."""
    if bucket is None:
        bucket = parent.bucket
    async with parent._turn():
        write = WriteTransaction(parent._tx, parent.database, parent.shard, bucket, parent.isolation, parent)
        async with parent._usable().savepoint(), _entered(write):
            yield write
        for callback in write._callbacks:
            parent.on_commit(callback)
        if write._stale:
            parent._make_stale(write._stale)


@asynccontextmanager
async def _entered(write: WriteTransaction) -> AsyncIterator[WriteTransaction]:
    before = _writes.get()
    _writes.set((write, *before))
    try:
        yield write
    finally:
        _writes.set(before)
        write._open = False  # who waits for a turn is refused
        async with write._lock:  # who has the turn finishes before COMMIT
            pass
