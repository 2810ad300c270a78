"""A module with jobs for tests: its database on one or two shards, a worker, and rows to look at."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
from tests.sharded import SHARDS, pools

from springtide.db import Database, Migrator, ShardMap
from springtide.jobs import Enqueuer, Handler, Queue, Run, Worker, job
from springtide.outbox import Bell
from springtide.signals import Signal

EFFECT = """
create table deeds.effect (
    bucket smallint not null,
    id     bigint   not null generated always as identity,
    what   text     not null,
    job    text     not null default '',
    primary key (bucket, id)
);
"""

FAST: dict[str, Any] = {
    "lease": 1.5, "heartbeat": 0.3, "stall": 0.6, "poll": 0.2, "upkeep": 0.1, "measure": 0.1, "drain": 5.0,
    "park_after": 0.1,
}  # fmt: skip
"""Options of a worker that tests need not wait for."""


class Heard:
    """A sink that keeps what it hears."""

    def __init__(self) -> None:
        self.signals: list[Signal] = []

    def emit(self, signal: Signal) -> None:
        self.signals.append(signal)

    def of(self, kind: type[Any]) -> list[Any]:
        return [signal for signal in self.signals if isinstance(signal, kind)]


@asynccontextmanager
async def deeds(
    urls: Sequence[str], folder: Path, *, names: Sequence[str] | None = None, **options: Any
) -> AsyncIterator[Database]:
    """The database `deeds` with the table `deeds.effect`, migrated on every shard, able to enqueue."""
    folder.mkdir(exist_ok=True)
    file = folder / "0001_effect.sql"
    if not file.exists():  # children of a test share the folder: none reads what another is writing
        file.write_text(EFFECT)
    async with pools(urls, **options) as started:
        await Migrator("deeds", folder, started).apply()
        bell = Bell()
        await bell.start()
        try:
            yield Database(
                "deeds",
                ShardMap.even(list(started)),
                started,
                enqueue=Enqueuer(names=names, bell=bell),
            )
        finally:
            await bell.stop()


def worker(
    database: Database,
    urls: Sequence[str],
    handlers: Sequence[Handler[Any]],
    implementation: Any,
    **options: Any,
) -> Worker:
    queue = Queue(database=database, handlers=handlers, implementation=implementation)
    return Worker([queue], dsns=dict(zip(SHARDS, urls, strict=False)), **{**FAST, **options})


@asynccontextmanager
async def working(*arguments: Any, **options: Any) -> AsyncIterator[Worker]:
    made = worker(*arguments, **options)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def rows(database: Database, where: str = "true") -> list[Any]:
    """Every job row, in the order of enqueueing; those of the history have the state done."""
    same = (
        "select bucket, id, kind, version, attempt, max_attempts, priority, worker, error, started_at,"
        " enqueued_at, context, "
    )
    found = await database.scatter(
        f"select * from ({same} state, run_at, leased_until, finished_at, unique_key from deeds._job"
        f" union all {same} 'done', due_at, null, finished_at, null from deeds._job_done) as job"
        f" where {where}"
    )
    return sorted(found, key=lambda row: row["enqueued_at"])


def again(schema: str, where: str = "true") -> str:
    """SQL that makes jobs that are done ready again, as after a crash before their end was written.

    The history does not know how often they were sent, and brokers may drop a message that they have had.
    """
    kept = "bucket, id, kind, version, payload, context, priority, attempt, max_attempts, enqueued_at, due_at"
    return (
        f"with gone as (delete from {schema}._job_done where {where} returning *)"
        f" insert into {schema}._job ({kept}, state, run_at, turn)"
        f" select {kept}, 'ready', clock_timestamp(), (random() * 1e9)::integer from gone"
    )


async def until(condition: Callable[[], Any], *, seconds: float = 60.0) -> Any:
    """Wait until `condition` (also a coroutine function) is true: the database sends no event for it."""
    async with asyncio.timeout(seconds):
        while True:
            found = condition()
            if asyncio.iscoroutine(found):
                found = await found
            if found:
                return found
            await asyncio.sleep(0.02)


async def listening(database: Database) -> None:
    """Wait until a listener of each shard listens and what it found at first has been claimed."""

    async def both() -> bool:
        counts = await asyncio.gather(
            *(
                pool.fetch_value(
                    "select count(*) from pg_stat_activity where application_name = 'springtide listener'"
                    " and datname = current_database() and query like 'LISTEN%'"
                )
                for pool in database.pools.values()
            )
        )
        return all(counts)

    await until(both)


async def states(database: Database) -> list[str]:
    return [row["state"] for row in await rows(database)]


@job(kind="deed.do", max_attempts=3, backoff=0.01, max_backoff=0.05, max_run=5.0)
class Deed(msgspec.Struct, frozen=True):
    what: str


class Doer:
    """A handler that keeps what it was called with and does what the test says."""

    def __init__(self, act: Callable[[Deed, Run], Awaitable[None]] | None = None) -> None:
        self.calls: list[tuple[str, Run]] = []
        self._act = act

    async def do(self, deed: Deed, run: Run) -> None:
        self.calls.append((deed.what, run))
        if self._act is not None:
            await self._act(deed, run)


DO = Handler(Deed, Doer.do)
DO_ONCE = Handler(Deed, Doer.do, effect="transactional")


async def add(database: Database, what: str, **options: Any) -> UUID:
    async with database.write(what) as tx:
        return await tx.enqueue(Deed(what), **options)


async def reach(database: Database, *wanted: str) -> list[Any]:
    """Wait until the jobs have these states, in the order of enqueueing; their rows."""

    async def reached() -> bool:
        return await states(database) == list(wanted)

    try:
        await until(reached)
    except TimeoutError:
        raise AssertionError(f"jobs are {await states(database)}, not {list(wanted)}") from None
    return await rows(database)
