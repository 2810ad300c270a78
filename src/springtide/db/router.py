"""Send each statement to the shard that holds its key.

A `Database` is one module's tables on one or more clusters. Reads and writes name a key; the key's bucket and
the shard map say which cluster's pool serves them. Inside an open write, reads of its shard stay on it and
see its own rows; a nested write on the same shard becomes a savepoint of it, and one on another shard raises
WrongShard, because two servers cannot commit together.

A `Database` owns no connection: its pools are started and stopped by whoever made them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from springtide.clock import Clock, SystemClock
from springtide.context import Priority, wanted_consistency
from springtide.db import _writing, scatter, seeing
from springtide.db._invalidating import Invalidations
from springtide.db._names import identifier
from springtide.db._writing import Enqueue, Publish, WriteTransaction
from springtide.db.consistency import Consistency
from springtide.db.ids import Ids
from springtide.db.reservations import Reconciled, Reservations, Values
from springtide.db.seeing import Sight
from springtide.db.shards import K, Key, ShardMap, bucket_of
from springtide.errors import CommitUnknown, WrongShard

if TYPE_CHECKING:
    from springtide.db.pool import Pool
    from springtide.db.servers import Servers
    from springtide.db.transaction import Transaction

__all__ = ["Database", "Queries", "Reader", "Snapshot"]


class Queries(Protocol):
    """What a store's function needs in order to read: a `Reader`, `Snapshot` or `WriteTransaction`."""

    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        """Every row."""

    async def fetch_one(self, sql: str, *args: Any) -> Any | None:
        """The first row, None when there is none."""

    async def fetch_value(self, sql: str, *args: Any) -> Any:
        """The first column of the first row, None when there is none."""


class Snapshot:
    """Several statements that see the same state of one shard."""

    __slots__ = ("_queries", "database")

    def __init__(self, database: Database, queries: Transaction | WriteTransaction) -> None:
        self.database = database
        self._queries = queries

    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        return await self._queries.fetch(sql, *args)

    async def fetch_one(self, sql: str, *args: Any) -> Any | None:
        return await self._queries.fetch_one(sql, *args)

    async def fetch_value(self, sql: str, *args: Any) -> Any:
        return await self._queries.fetch_value(sql, *args)


class Reader:
    """Reads on one shard: each call is a statement of its own; `async with` makes them one snapshot.

    The snapshot is one read-only REPEATABLE READ transaction on one server. Inside an open write on the same
    shard both forms stay on the write's transaction, whose isolation then decides what they see.
    """

    __slots__ = ("_block", "_shard", "consistency", "database")

    def __init__(self, database: Database, shard: str, consistency: Consistency) -> None:
        self.database = database
        self._shard = shard
        self._block: AbstractAsyncContextManager[Transaction] | None = None
        self.consistency = consistency

    async def fetch(self, sql: str, *args: Any) -> list[Any]:
        return await self.database._queries(self._shard, self.consistency).fetch(sql, *args)

    async def fetch_one(self, sql: str, *args: Any) -> Any | None:
        return await self.database._queries(self._shard, self.consistency).fetch_one(sql, *args)

    async def fetch_value(self, sql: str, *args: Any) -> Any:
        return await self.database._queries(self._shard, self.consistency).fetch_value(sql, *args)

    async def __aenter__(self) -> Snapshot:
        if self._block is not None:
            raise RuntimeError("this reader's snapshot is open already; call db.read() again for another")
        write = self.database._write_on(self._shard)
        if write is not None:
            return Snapshot(self.database, write)
        block = self.database._snapshot(self._shard, self.consistency)
        self._block = block
        try:
            return Snapshot(self.database, await block.__aenter__())
        except BaseException:
            self._block = None
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        block, self._block = self._block, None
        if block is not None:
            await block.__aexit__(kind, error, traceback)


class Database:
    """One module's tables: `name` for people, `schema` (default: the name) where they are.

    `pools` maps every shard of `shards` to the pool of its cluster's primary, `servers` those of clusters
    that have or may get replicas to what is known of them; without it, every read is the primary's.
    `default` is the consistency of reads for which nothing else says one. `enqueue` puts jobs into this
    database's writes (a `jobs.Enqueuer`), `publish` events (an `events.Publisher`), `invalidations` is the
    cache, to which `tx.invalidate` goes; None of one means that it is refused. `local_commits` are shards
    on whose clusters standbys confirm commits, for other databases: writes of this one do not wait for them.
    """

    def __init__(
        self,
        name: str,
        shards: ShardMap,
        pools: Mapping[str, Pool],
        *,
        schema: str | None = None,
        servers: Mapping[str, Servers] | None = None,
        default: Consistency = Consistency.SESSION,
        local_commits: Collection[str] = (),
        clock: Clock | None = None,
        enqueue: Enqueue | None = None,
        publish: Publish | None = None,
        invalidations: Invalidations | None = None,
    ) -> None:
        missing = [shard for shard in shards.shards if shard not in pools]
        if missing:
            raise ValueError(f"database {name!r} needs a pool for each shard, none for {', '.join(missing)}")
        self.name = name
        self.schema = identifier(schema if schema is not None else name)
        self.shards = shards
        self.pools = {shard: pools[shard] for shard in shards.shards}
        self.servers = {shard: one for shard, one in (servers or {}).items() if shard in self.pools}
        self.default = default
        self._confirmation = dict.fromkeys(local_commits, "local")
        self.clock = clock or SystemClock()
        self.enqueue = enqueue
        self.publish = publish
        self.invalidations = invalidations
        self.ids = Ids(self.schema, shards, self.pools)
        self.reservations = Reservations(self)

    def read(self, key: Key, *, consistency: Consistency | None = None) -> Reader:
        """Reads on the shard of `key`.

        `consistency` None means what the block, the route or the database says (`springtide.db.consistency`).
        """
        return Reader(self, self.shards.shard_of(key), consistency or self._wanted())

    @asynccontextmanager
    async def write(
        self, key: Key, *, isolation: str | None = None, priority: Priority | None = None
    ) -> AsyncIterator[WriteTransaction]:
        """A transaction on the shard of `key`: commits when the block ends, rolls back when it raises.

        `isolation` is "read committed" (the default), "repeatable read" or "serializable". Inside an open
        write of this database the block is a savepoint of it, and must not ask for another isolation.
        Raises WrongShard inside an open write on another shard, CommitUnknown when COMMIT was sent and not
        answered, and what the pool raises.
        """
        shard = self.shards.shard_of(key)
        outer = _writing.innermost(self)
        if outer is None:
            level = isolation or "read committed"
            begun: WriteTransaction | None = None
            try:
                async with (
                    self._transaction(shard, isolation=level, priority=priority) as tx,
                    _writing.opened(tx, self, shard, bucket_of(key), level) as write,
                ):
                    begun = write
                    yield write
            except CommitUnknown:
                if begun is not None:
                    await begun._in_doubt()
                raise
            return
        if outer.shard != shard:
            raise WrongShard(
                f"a write on shard {outer.shard!r} of {self.name!r} is open and {key!r} is on {shard!r}:"
                " a transaction keeps to one shard"
            )
        if isolation not in (None, outer.isolation):
            raise ValueError(f"a nested write keeps its outer {outer.isolation!r}, got {isolation!r}")
        async with _writing.join(outer, bucket_of(key)) as write:
            yield write

    async def write_one(self, key: Key, sql: str, *args: Any) -> Any | None:
        """The first row of one statement that changes something on the shard of `key`; None: it has none.

        For a statement that finds out by itself whether it was done before: who hears no answer (Unavailable,
        DeadlineExceeded, a cancel) does not know whether it was. It commits alone, without the round trips of
        a transaction; inside an open write, over replicas, and where COMMIT is to be confirmed otherwise than
        the server does, it is a `write`, and raises as that.
        """
        shard = self.shards.shard_of(key)
        servers = self.servers.get(shard)
        alone = _writing.innermost(self) is None and self._confirmation.get(shard) is None
        if alone and (servers is None or not servers.replicated):
            return await self.pools[shard].fetch_one(sql, *args)
        async with self.write(key) as tx:
            return await tx.fetch_one(sql, *args)

    @asynccontextmanager
    async def seeing(
        self, shard: str, *, consistency: Consistency | None = None, within: float | None = None
    ) -> AsyncIterator[Sight]:
        """Reads pinned to one server of `shard`, and what it had before the first of them; for caches.

        They are statements of their own and must only read. The server is the one that `consistency` asks
        for (None: as `read`), and besides at most `within` seconds behind (None: that is no matter); a
        connection that is lost once the block was entered is not replaced.
        Raises RuntimeError inside an open write on the shard, whose own rows nobody else sees.
        """
        if shard not in self.pools:
            raise ValueError(f"database {self.name!r} has no shard {shard!r} ({', '.join(self.pools)})")
        if self._write_on(shard) is not None:
            raise RuntimeError(f"a write on shard {shard!r} of {self.name!r} is open: read through it")
        servers = self.servers.get(shard)
        if servers is None:
            block = seeing.opening(self.pools[shard], shard)
        else:
            block = servers.sight(consistency or self._wanted(), within=within)
        async with block as sight:
            yield sight

    def epoch(self, shard: str) -> int | None:
        """Which history the primary of `shard` is on, as far as is known now; None: it is not. Asks nobody.

        Equal or not, never ordered: see `springtide.db.seeing`.
        """
        pool, servers = self.pools[shard], self.servers.get(shard)
        looked = servers.epoch if servers is not None else None
        if looked is None:
            seeing.learn(pool)
            return pool.epoch
        return looked

    def reserving(
        self, owner_id: int, *, claim: Values | None = None, release: Values | None = None
    ) -> AbstractAsyncContextManager[WriteTransaction]:
        """A write on the shard of `owner_id` that commits only if the owner then holds each value of `claim`.

        The values of `release` are given up with the same commit; those that the owner does not hold are
        let be. Claiming what the owner holds already succeeds. Values are compared byte by byte: normalise
        them first. A change should check in the block that the entity still has the values to release
        (`update ... where username = $old`), because somebody may have changed it since they were read.

        Raises AlreadyReserved; Unavailable when another call is changing one of the values and does not
        finish in time; CommitUnknown; RuntimeError inside an open write.
        """
        return self.reservations.reserving(owner_id, claim=claim, release=release)

    async def lookup(self, kind: str, value: str, *, consistency: Consistency | None = None) -> int | None:
        """The id of the owner of a value, None when nobody holds it."""
        return await self.reservations.lookup(kind, value, consistency=consistency)

    async def fetch_held(
        self, kind: str, value: str, sql: str, *args: Any, consistency: Consistency | None = None
    ) -> Any | None:
        """The row of `sql` for the owner of a value; None when nobody holds it, or `sql` finds nothing.

        `sql` reads what has the owner's bucket, $1, and id, $2; `args` are its $3 and so on. Where value and
        owner are on one shard this is one statement, else `lookup` and a read of the owner's shard.
        The row may have columns more than `sql` selects, with names that begin with an underscore.
        """
        return await self.reservations.fetch_held(kind, value, sql, args, consistency=consistency)

    async def reconcile(self) -> Reconciled:
        """Finish the claims of writers that crashed; a worker calls it periodically, several may at once."""
        return await self.reservations.reconcile()

    async def scatter(
        self,
        sql: str,
        *args: Any,
        order: Sequence[tuple[str, scatter.Direction]] = (),
        limit: int | None = None,
        offset: int = 0,
        consistency: Consistency | None = None,
    ) -> list[Any]:
        """The rows of `sql` from every shard, merged by the columns of `order`; see `springtide.db.scatter`.

        `sql` has no ORDER BY, LIMIT or OFFSET of its own and selects each column of `order`. Without an order
        the rows come shard by shard.
        Raises NotScatterable when the rows cannot be merged.
        """
        shards = self._everywhere(consistency)
        return await scatter.rows(shards, sql, args, order=order, limit=limit, offset=offset)

    async def scatter_sum(self, sql: str, *args: Any, consistency: Consistency | None = None) -> int:
        """The sum over the shards of the whole number that `sql` answers; NULL counts as 0."""
        return await scatter.total(self._everywhere(consistency), sql, args)

    async def fetch_many(
        self, sql: str, keys: Iterable[int], *args: Any, consistency: Consistency | None = None
    ) -> list[Any]:
        """Rows of many ids: `sql` runs on each shard concerned with $1 = its ids (bigint[]), `args` from $2.

        In no particular order over shards.
        """
        groups = self.group(keys)
        wanted = consistency or self._wanted()
        shards = {shard: self._queries(shard, wanted) for shard in groups}
        return await scatter.each(shards, sql, groups, args)

    def group(self, keys: Iterable[K]) -> dict[str, list[K]]:
        """The keys by shard."""
        return self.shards.group(keys)

    def _wanted(self) -> Consistency:
        return wanted_consistency() or self.default

    def _everywhere(self, consistency: Consistency | None) -> dict[str, Queries]:
        wanted = consistency or self._wanted()
        return {shard: self._queries(shard, wanted) for shard in self.shards.shards}

    def writing(self, shard: str) -> WriteTransaction | None:
        """The innermost write on `shard` that is open in this task; None when there is none."""
        return self._write_on(shard)

    def _write_on(self, shard: str) -> WriteTransaction | None:
        write = _writing.innermost(self)
        return write if write is not None and write.shard == shard else None

    def _queries(self, shard: str, consistency: Consistency) -> Queries:
        write = self._write_on(shard)
        if write is not None:
            return write
        servers = self.servers.get(shard)
        if servers is None or not servers.replicated:
            return self.pools[shard]
        return servers.reading(consistency)

    def _snapshot(self, shard: str, consistency: Consistency) -> AbstractAsyncContextManager[Transaction]:
        servers = self.servers.get(shard)
        if servers is None or not servers.replicated:
            return self.pools[shard].transaction(read_only=True, isolation="repeatable read")
        return servers.snapshot(consistency)

    def _transaction(self, shard: str, **options: Any) -> AbstractAsyncContextManager[Transaction]:
        """A transaction on the primary of a shard, whose position the request's token takes."""
        options["synchronous_commit"] = self._confirmation.get(shard)
        servers = self.servers.get(shard)
        if servers is None:
            return self.pools[shard].transaction(**options)
        return servers.transaction(**options)
