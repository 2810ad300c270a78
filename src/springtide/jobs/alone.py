"""Jobs in an application that has its own PostgreSQL, its own driver and its own transactions.

    jobs = Jobs("work", [Handler(Welcome, Mailer.welcome)])

    await jobs.migrate(url)                        # once per deploy: makes or updates the schema `work`
    await jobs.enqueue(connection, Welcome(7))     # in the transaction that is open on `connection`
    await jobs.run(url, Mailer())                  # in a process of its own, until SIGTERM

`connection` is one of asyncpg, psycopg (async) or SQLAlchemy (async; a session too), and stays the caller's:
a job exists if and only if what it was enqueued with is committed. Nothing here commits or rolls back, keeps
a connection, or touches another schema than its own and `springtide`, the record of migrations.

A worker hears of new jobs by polling, or at once where `notify` says so.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any
from uuid import UUID

from springtide.clock import Clock, SystemClock
from springtide.context import Priority
from springtide.db import Database, Key, Migrator, ShardMap, bucket_of
from springtide.db._names import identifier
from springtide.db.pool import Pool
from springtide.errors import JobError, MigrationError, QueueOverloaded
from springtide.jobs._ages import Ages
from springtide.jobs._foreign import Foreign, foreign
from springtide.jobs._rows import SOON, accept, due_in, row, rows
from springtide.jobs._statements import insert_many_sql, insert_sql
from springtide.jobs.enqueue import Enqueuer
from springtide.jobs.job import Handler, JobKind
from springtide.jobs.pressure import READ_EVERY, judge
from springtide.jobs.worker import Queue, Worker
from springtide.outbox.bell import CHANNEL, Bell
from springtide.outbox.kinds import check_counts
from springtide.signals import Sink

__all__ = ["Jobs"]

SHARD = "main"

TAKEN = ("public", "springtide", "information_schema")

NOTIFY = "SELECT pg_notify($1::text, $2::text)"


class Jobs:
    """The jobs of an application in the schema `name`; it holds no connection.

    handlers: who runs them. A job that none of them takes is refused where it is enqueued.
    notify:   wake workers by a NOTIFY in the caller's transaction, so a job begins within milliseconds of its
              commit; else within a worker's `poll`. PostgreSQL makes commits that notify take turns: leave it
              off where hundreds of transactions a second enqueue.

    Kinds with overload="refuse" are refused when their queue is too old (`pressure.py`). Once a second an
    `enqueue` of such a kind reads the ages, in the caller's transaction.

    Raises JobError for a name that a schema of its own cannot have, when two handlers take the same kind and
    version, and for overload="slow": that waits after the commit, which nobody sees here.
    """

    def __init__(
        self,
        name: str,
        handlers: Sequence[Handler[Any]],
        *,
        notify: bool = False,
        clock: Clock | None = None,
    ) -> None:
        names = [name for handler in handlers for name in handler.names]
        for one in names:
            if names.count(one) > 1:
                raise JobError(f"{name!r} has two handlers for {one}")
        for handler in handlers:
            if handler.kind.max_age is not None and handler.kind.overload == "slow":
                raise JobError(
                    f"{handler.kind.name} has overload='slow', which waits after the commit, and Jobs does"
                    " not see yours: use overload='refuse', or leave out max_age"
                )
        self.handlers = tuple(handlers)
        self.name = _schema(name)
        self.notify = notify
        self._names = frozenset(names)
        self._insert, self._insert_many = insert_sql(self.name), insert_many_sql(self.name)
        self._reading = Ages(self.name).reading
        self._clock = clock or SystemClock()
        self._read_at = float("-inf")
        self._ages: dict[str, float] = {}

    async def enqueue(
        self,
        connection: Any,
        job: Any,
        *,
        key: Key = 0,
        delay: float | None = None,
        run_at: datetime | None = None,
        priority: Priority | None = None,
        unique_key: str | None = None,
        ordering_key: str | None = None,
        limit_key: str | None = None,
        deadline: float | datetime | None = None,
    ) -> UUID:
        """Add `job` to the transaction that is open on `connection`; options as of `springtide.jobs.enqueue`.

        key: what the job is about, such as a user's id, for a database that may once be sharded: jobs lie in
             the bucket of their key, and unique and ordering keys hold within it. The default holds over all.

        Returns the id of the job, or of the one that takes its place. Raises JobError for what cannot run and
        for a connection without a transaction, QueueOverloaded (the transaction goes on), and what the driver
        raises.
        """
        spec = accept(job, self._names, self.name, listed="Jobs(...)")
        values = row(
            spec, job, bucket_of(key), delay=delay, run_at=run_at, priority=priority, unique_key=unique_key,
            ordering_key=ordering_key, limit_key=limit_key, deadline=deadline,
        )  # fmt: skip
        transaction = await foreign(connection)
        await self._admit(transaction, [spec])
        ((id, seconds),) = await transaction.fetch(self._insert, values)
        if self.notify and seconds < SOON:
            await transaction.fetch(NOTIFY, (CHANNEL, self.name))
        return UUID(str(id))

    async def enqueue_many(
        self,
        connection: Any,
        jobs: Sequence[Any],
        *,
        key: Key = 0,
        delay: float | None = None,
        run_at: datetime | None = None,
        priority: Priority | None = None,
        ordering_key: str | None = None,
        limit_key: str | None = None,
        deadline: float | datetime | None = None,
    ) -> list[UUID]:
        """Add `jobs`, of one kind or several, by one statement per 2,000; the options are those of `enqueue`.

        Returns their ids in the same order.
        """
        specs = [accept(job, self._names, self.name, listed="Jobs(...)") for job in jobs]
        chunks = rows(
            specs, jobs, bucket_of(key), delay=delay, run_at=run_at, priority=priority,
            ordering_key=ordering_key, limit_key=limit_key, deadline=deadline,
        )  # fmt: skip
        transaction = await foreign(connection)
        await self._admit(transaction, specs)
        added: list[UUID] = []
        for ids, values in chunks:
            await transaction.fetch(self._insert_many, values)
            added += ids
        if self.notify and added and due_in(delay, run_at) < SOON:
            await transaction.fetch(NOTIFY, (CHANNEL, self.name))
        return added

    async def _admit(self, transaction: Foreign, specs: Sequence[JobKind]) -> None:
        if all(spec.max_age is None for spec in specs):
            return
        now = self._clock.monotonic()
        if now - self._read_at >= READ_EVERY:
            before, self._read_at = self._read_at, now  # the others go on with what was known
            try:
                self._ages = {row[0]: row[1] for row in await transaction.fetch(self._reading, ())}
            except BaseException:
                self._read_at = before
                raise
        for spec in specs:
            age = self._ages.get(spec.kind, 0.0)
            if spec.max_age is not None and (after := judge(spec, age).retry_after) is not None:
                raise QueueOverloaded(spec.kind, age=age, limit=spec.max_age, retry_after=after)

    async def migrate(self, dsn: str) -> list[str]:
        """Make or update the tables; what was applied. `dsn` is the address of the server itself, no pooler.

        Several processes may call it at once: they take turns. Raises MigrationError.
        """
        async with Pool(dsn, cluster=SHARD, size=1, reserved=0) as pool:
            return await self._migrator(pool).apply()

    def database(self, pool: Pool, *, bell: Bell | None = None) -> Database:
        """For what the rest of `springtide.jobs` asks of one: `look`, `result`, a `Worker` with more options.

        `bell`: rung by what is enqueued through its writes.
        """
        enqueuer = Enqueuer(names=self._names, bell=bell)
        return Database(self.name, ShardMap.even([SHARD]), {SHARD: pool}, enqueue=enqueuer)

    @asynccontextmanager
    async def working(
        self,
        dsn: str,
        implementation: Any = None,
        *,
        slots: int = 10,
        poll: float = 1.0,
        drain: float = 20.0,
        clock: Clock | None = None,
        sink: Sink | None = None,
    ) -> AsyncIterator[Worker]:
        """A worker that runs in this process while the block does, and drains at its end.

        implementation: what handlers get as their first argument.
        dsn:            the address of the server itself, because wake-ups pass no transaction pooler.
        `slots`, `poll` and `drain` are those of `Worker`; it opens up to two connections per slot, and four.

        Raises MigrationError when migrations are pending, JobError for options that cannot be.
        """
        check_counts(f"worker of {self.name}", JobError, slots=slots)
        bell = Bell(clock=clock, sink=sink)
        async with Pool(dsn, cluster=SHARD, size=2 * slots + 2, clock=clock, sink=sink) as pool:
            if pending := await self._migrator(pool).pending():
                raise MigrationError(
                    f"{len(pending)} migrations are pending: {', '.join(pending)}; await Jobs.migrate(dsn)"
                )
            worker = Worker(
                [
                    Queue(
                        database=self.database(pool, bell=bell),
                        handlers=self.handlers,
                        implementation=implementation,
                    )
                ],
                dsns={SHARD: dsn},
                slots=slots,
                poll=poll,
                drain=drain,
                name=f"worker of {self.name}",
                clock=clock,
                sink=sink,
            )
            try:
                await bell.start()
                await worker.start()
                yield worker
            finally:
                await worker.stop()
                await bell.stop()

    async def run(
        self,
        dsn: str,
        implementation: Any = None,
        *,
        slots: int = 10,
        poll: float = 1.0,
        drain: float = 20.0,
        clock: Clock | None = None,
        sink: Sink | None = None,
    ) -> None:
        """`working` until SIGTERM or SIGINT, for a process of its own."""
        loop, stopping = asyncio.get_running_loop(), asyncio.Event()
        asked = (signal.SIGTERM, signal.SIGINT)
        for one in asked:
            loop.add_signal_handler(one, stopping.set)
        try:
            async with self.working(
                dsn, implementation, slots=slots, poll=poll, drain=drain, clock=clock, sink=sink
            ):
                await stopping.wait()
        finally:
            for one in asked:
                loop.remove_signal_handler(one)

    def _migrator(self, pool: Pool) -> Migrator:
        return Migrator(self.name, None, {SHARD: pool})


def _schema(name: str) -> str:
    """`name`, when nobody but Jobs has a schema of it."""
    try:
        identifier(name)
    except ValueError as error:
        raise JobError(f"name of Jobs: {error}") from error
    if name in TAKEN or name.startswith("pg_"):
        raise JobError(
            f"name of Jobs must be that of a schema of its own, none of {', '.join(TAKEN)} and not pg_...,"
            f" got {name!r}"
        )
    return name
