"""A module with events for tests: its database on one or two shards, a worker, what its groups did."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from tests.sharded import SHARDS, pools

from springtide.db import Database, Migrator, ShardMap
from springtide.events import Delivery, EventWorker, Group, On, Publisher, Subscription, event
from springtide.outbox import Bell

SEEN = """
create table facts.seen (
    bucket   smallint not null,
    grp      text     not null,
    id       bigint   not null generated always as identity,
    what     text     not null,
    position bigint   not null,
    primary key (bucket, grp, id)
);
"""

FAST: dict[str, Any] = {"poll": 0.2, "upkeep": 0.1, "measure": 0.1, "drain": 5.0}
"""Options of a worker that tests need not wait for."""


@event(kind="fact.told")
class Told(msgspec.Struct, frozen=True):
    what: str


@event(kind="fact.other")
class Other(msgspec.Struct, frozen=True):
    what: str


@asynccontextmanager
async def facts(urls: Sequence[str], folder: Path, **options: Any) -> AsyncIterator[Database]:
    """The database `facts` with the table `facts.seen`, migrated on every shard, able to publish."""
    folder.mkdir(exist_ok=True)
    (folder / "0001_seen.sql").write_text(SEEN)
    async with pools(urls, **options) as started:
        await Migrator("facts", folder, started).apply()
        bell = Bell()
        await bell.start()
        try:
            shards = ShardMap.even(list(started))
            yield Database("facts", shards, started, publish=Publisher(bell=bell))
        finally:
            await bell.stop()


class Listener:
    """A handler that keeps what it was called with and does what the test says."""

    def __init__(self, act: Callable[[Any, Delivery], Awaitable[None]] | None = None) -> None:
        self.calls: list[tuple[str, Delivery]] = []
        self._act = act

    @property
    def heard(self) -> list[str]:
        return [what for what, _ in self.calls]

    async def hear(self, fact: Any, delivery: Delivery) -> None:
        self.calls.append((fact.what, delivery))
        if self._act is not None:
            await self._act(fact, delivery)

    async def write(self, fact: Any, delivery: Delivery) -> None:
        """Into the transaction that moves the group on."""
        self.calls.append((fact.what, delivery))
        await insert(delivery, fact.what)
        if self._act is not None:
            await self._act(fact, delivery)

    async def hear_many(self, heard: list[Any], deliveries: list[Delivery]) -> None:
        for fact, delivery in zip(heard, deliveries, strict=True):
            await self.hear(fact, delivery)


async def insert(delivery: Delivery, what: str) -> None:
    await delivery.tx.execute(
        "insert into facts.seen (bucket, grp, what, position) values ($1, $2, $3, $4)",
        delivery.tx.bucket,
        delivery.group,
        what,
        delivery.position,
    )


HEAR = On(Told, Listener.hear)
WRITE = On(Told, Listener.write, effect="transactional")

QUICK: dict[str, Any] = {"max_attempts": 3, "max_run": 5.0, "backoff": 0.01, "max_backoff": 0.05}


def group(name: str = "ears", handlers: Sequence[On[Any]] = (HEAR,), **options: Any) -> Group:
    return Group(name, handlers, **{**QUICK, **options})


def worker(
    database: Database, urls: Sequence[str], groups: Sequence[tuple[Group, Any]], **options: Any
) -> EventWorker:
    subscriptions = [Subscription(group=one, log=database, implementation=made) for one, made in groups]
    dsns = dict(zip(SHARDS, urls, strict=False))
    return EventWorker(subscriptions, logs=[database], dsns=dsns, **{**FAST, **options})


@asynccontextmanager
async def working(
    database: Database, urls: Sequence[str], *groups: tuple[Group, Any], **options: Any
) -> AsyncIterator[EventWorker]:
    made = worker(database, urls, groups, **options)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def tell(database: Database, *whats: str, key: str | None = None, at: Any = None) -> None:
    """Each in a transaction of its own, in the bucket of `at` or of itself."""
    for what in whats:
        async with database.write(what if at is None else at) as tx:
            await tx.publish(Told(what), key=key)


async def log(database: Database, shard: str = "main") -> list[Any]:
    """What was numbered, in the order of positions."""
    return await database.pools[shard].fetch("select * from facts._event order by pos")


async def lanes(database: Database, name: str = "ears", shard: str = "main") -> list[Any]:
    return await database.pools[shard].fetch(
        "select * from facts._event_lane where grp = $1 order by lane", name
    )


async def seen(database: Database, name: str = "ears") -> list[Any]:
    """What transactional handlers have written, in the order of writing within a shard."""
    found = await database.scatter("select * from facts.seen")
    return sorted((row for row in found if row["grp"] == name), key=lambda row: row["id"])
