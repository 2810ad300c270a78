"""Fill a platform's databases by COPY, over all shards, in constant memory, all or nothing.

A `BulkLoad` holds one transaction per cluster from its first row to its last, so that an interrupted seeding
leaves nothing behind and is simply run again. (On several clusters the commits follow each other: a crash
exactly between two leaves part of the data, which the next attempt then refuses to add to.) An advisory lock
keeps two seedings apart. Statistics are brought up to date within the transactions, just before the commits.

Rows are any iterable of tuples whose first column is `bucket`; they are buffered per shard, at most `batch`
of them, and never all at once. Ids come from `block`, which moves the module's own counters, so the
application goes on where the seed ended.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Iterable, Sequence
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from springtide.db import Bucket, Database
from springtide.db.shards import BUCKET_BITS, BUCKETS, Key, bucket_of
from springtide.errors import LoadError
from springtide.ops.load.progress import Progress, Silent

if TYPE_CHECKING:
    from springtide.db.pool import Pool
    from springtide.db.transaction import Transaction
    from springtide.platform import Platform

__all__ = ["BulkLoad", "IdBlocks", "Seed", "SeedReport"]

LOCK = 0x5EED_5EED
BATCH = 5_000

Row = Sequence[Any]


class SeedReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was made: rows per table, and notes for people, such as how to log in."""

    users: int
    seed: int
    rows: dict[str, int]
    notes: list[str] = []

    @property
    def total(self) -> int:
        return sum(self.rows.values())


class Seed(Protocol):
    """An application's entry, named by `seed` in its topology."""

    def __call__(
        self, platform: Platform, *, users: int, seed: int, progress: Progress
    ) -> Awaitable[SeedReport]:
        """Fill the databases of the started `platform`; same `users` and `seed`, same content.

        Raises AlreadySeeded when there is data already.
        """


class IdBlocks:
    """Ids for a load, bucket by bucket, ascending: taken from the database's counters beforehand."""

    def __init__(self, starts: dict[int, int]) -> None:
        self._next = starts

    @classmethod
    async def take(cls, database: Database, counts: Sequence[int]) -> IdBlocks:
        """`counts[b]` ids in each bucket b. One statement per bucket that needs any, few at a time."""
        starts: dict[int, int] = {}
        slots = asyncio.Semaphore(4)

        async def one(bucket: int, count: int) -> None:
            async with slots:
                starts[bucket] = (await database.ids.take_many(Bucket(bucket), count))[0] >> BUCKET_BITS

        async with asyncio.TaskGroup() as group:
            for bucket, count in enumerate(counts):
                if count:
                    group.create_task(one(bucket, count))
        return cls(starts)

    def next(self, bucket: int) -> int:
        """The next id in `bucket`. Raises KeyError for a bucket that asked for none."""
        counter = self._next[bucket]
        self._next[bucket] = counter + 1
        return counter << BUCKET_BITS | bucket


class BulkLoad:
    """`async with BulkLoad([db, ...]) as load: await load.copy(...)`. Commits when the block ends well.

    Raises LoadError when another seeding is under way, and what the pools raise.
    """

    def __init__(
        self, databases: Sequence[Database], *, progress: Progress | None = None, batch: int = BATCH
    ) -> None:
        if batch < 1:
            raise ValueError(f"batch must be >= 1, got {batch}")
        self._databases = tuple(databases)
        self._progress = progress or Silent()
        self._batch = batch
        self._transactions: dict[int, Transaction] = {}
        self._owners: dict[Database, list[int]] = {}
        self._touched: dict[tuple[int, str], None] = {}
        self._stack = AsyncExitStack()
        self._claim = uuid.uuid4()
        self._began = datetime.now(UTC)
        self.rows: dict[str, int] = {}

    async def __aenter__(self) -> BulkLoad:
        try:
            for database in self._databases:
                for pool in database.pools.values():
                    if id(pool) not in self._transactions:
                        await self._open(pool)
            self._stack.push_async_exit(self._analyze)  # left first: what it raises undoes the transactions
        except BaseException:
            await self._stack.aclose()
            raise
        return self

    async def _open(self, pool: Pool) -> None:
        transaction = await self._stack.enter_async_context(pool.transaction())
        self._transactions[id(pool)] = transaction
        # Held per database and until commit; shards that share a server differ by their database.
        if not await transaction.fetch_value("SELECT pg_try_advisory_xact_lock($1)", LOCK):
            raise LoadError("another seeding of this platform is under way; wait for it or end it")

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.__aexit__(kind, error, trace)

    async def _analyze(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            for key, table in self._touched:
                await self._transactions[key].execute(f"ANALYZE {table}")

    async def copy(self, database: Database, table: str, columns: Sequence[str], rows: Iterable[Row]) -> int:
        """COPY `rows` into `schema.table` on the shard of each; how many there were.

        Raises ValueError unless the first column is `bucket`.
        """
        if not columns or columns[0] != "bucket":
            raise ValueError(f"the first column must be 'bucket', got {list(columns)}")
        owner = self._owner(database)
        name = f"{database.schema}.{table}"
        buffers: dict[int, list[Row]] = {id(pool): [] for pool in database.pools.values()}
        count = 0

        async def flush(key: int) -> None:
            batch = buffers[key]
            buffers[key] = []
            await self._transactions[key].copy_in(table, columns, batch, schema=database.schema)
            self._touched[key, name] = None
            self._progress.advance(name, len(batch))

        for row in rows:
            key = owner[row[0]]
            buffer = buffers[key]
            buffer.append(row)
            if len(buffer) >= self._batch:
                count += len(buffer)
                await flush(key)
        for key, buffer in buffers.items():
            if buffer:
                count += len(buffer)
                await flush(key)
        self.rows[name] = self.rows.get(name, 0) + count
        return count

    def _owner(self, database: Database) -> list[int]:
        """The transaction of each bucket. Kept: some copy a few rows at a time."""
        if database not in self._owners:
            self._owners[database] = [
                id(database.pools[database.shards.shard_of(Bucket(b))]) for b in range(BUCKETS)
            ]
        return self._owners[database]

    async def reserve(self, database: Database, kind: str, values: Iterable[tuple[str, int]]) -> int:
        """Reserve each (value, owner's id) as `database.reserving` would have; values are folded already.

        Raises asyncpg's UniqueViolationError when one of them is taken, and then nothing is kept.
        """
        rows = (
            (bucket_of(value), kind, value, owner, self._claim, "confirmed", self._began)
            for value, owner in values
        )
        columns = ["bucket", "kind", "value", "owner_id", "claim_id", "state", "claimed_at"]
        return await self.copy(database, "_reservation", columns, rows)

    async def fetch(self, database: Database, key: Key, sql: str, *args: Any) -> list[Any]:
        """Rows of the shard of `key` as the load sees them, with what it has copied so far."""
        pool = database.pools[database.shards.shard_of(key)]
        return await self._transactions[id(pool)].fetch(sql, *args)

    async def execute(self, database: Database, table: str, sql: str) -> int:
        """Run an INSERT ... SELECT into `table` on every shard, for what follows from loaded rows."""
        name = f"{database.schema}.{table}"
        count = 0
        for pool in database.pools.values():
            tag = await self._transactions[id(pool)].execute(sql)
            self._touched[id(pool), name] = None
            count += int(tag.rpartition(" ")[2])
        self.rows[name] = self.rows.get(name, 0) + count
        self._progress.advance(name, count)
        return count
