"""A cache over a real Redis and a real PostgreSQL, for tests.

    async with node(redis_server, db) as here, node(redis_server, other_db) as there:
        await here.write(7, "new")
        await there.notes.get(7)

Each `Node` is what one process has: a cache with a client of its own and the class `notes`, whose loader
counts its calls and can be held (`hold`). `trusted` waits until both levels may answer and fills are kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import msgspec
from tests._redis import RedisServer

from springtide.cache import Cache, CacheClass
from springtide.cache._place import Place
from springtide.db import Bucket, Database, Queries
from springtide.redis import Redis

__all__ = ["HANGS", "Node", "Note", "another", "client", "node", "until"]

HANGS = 60.0
"""Seconds that only tell a slow machine from one that hangs."""


class Note(msgspec.Struct, frozen=True):
    id: int
    text: str
    rank: int | None = None


async def until(condition: Callable[[], Any]) -> Any:
    """What `condition` (an async function, or not) answers once that is true."""
    async with asyncio.timeout(HANGS):
        while True:
            answer = condition()
            if asyncio.iscoroutine(answer):
                answer = await answer
            if answer:
                return answer
            await asyncio.sleep(0.005)


@asynccontextmanager
async def client(server: RedisServer, *, timeout: float = HANGS) -> AsyncIterator[Redis]:
    redis = Redis(server.url, timeout=timeout)
    await redis.start()
    try:
        yield redis
    finally:
        await redis.stop()


def another(db: Database) -> Database:
    """The same database as another process has it."""
    return Database(db.name, db.shards, db.pools, servers=db.servers)


class Node:
    """See the module."""

    def __init__(self, cache: Cache, db: Database, **options: Any) -> None:
        self.cache = cache
        self.db = db
        self.loads: list[Any] = []
        self.go = asyncio.Event()
        self.go.set()
        self.error: Exception | None = None
        self.reads = 0
        """How often the loader has read the rows."""
        self.notes: CacheClass[Note] = cache.define(
            "note:{id:int}",
            Note,
            database=db,
            **{
                "load": self._one,
                "load_many": self._many,
                "tags": ("rank:{rank}",),
                "hard_timeout": HANGS,
                **options,
            },
        )

    @property
    def stats(self) -> Any:
        return self.notes.stats

    @property
    def place(self) -> Place:
        return self.notes.places["main"]

    @property
    def entries(self) -> Mapping[Any, Any]:
        """What this process's memory has, by id."""
        assert self.notes.view is not None
        return self.notes.view.entries

    async def deaf(self) -> None:
        """Hear nothing from now on, while what was heard proves what is kept for a long time."""
        assert self.cache._bus is not None
        slot = self.place.slot
        slot.share = 1000.0
        good = slot.good_until
        await until(lambda: slot.good_until > good + 100.0)
        for reader in (bus := self.cache._bus)._readers.values():
            reader.cancel()
        await bus._task.stop()

    def hold(self) -> None:
        """Loaders wait after their read, until `go` is set."""
        self.go.clear()

    async def _one(self, source: Queries, id: int) -> Note | None:
        return (await self._rows(source, [id], id)).get(id)

    async def _many(self, source: Queries, ids: Sequence[int]) -> Mapping[int, Note]:
        return await self._rows(source, ids, list(ids))

    async def _rows(self, source: Queries, ids: Sequence[int], said: Any) -> dict[int, Note]:
        self.loads.append(said)
        if self.error is not None:
            raise self.error
        rows = await source.fetch(
            "select id, text, rank from notes.note where bucket = 0 and id = any($1)", list(ids)
        )
        self.reads += 1
        await self.go.wait()
        return {row["id"]: Note(row["id"], row["text"], row["rank"]) for row in rows}

    async def write(
        self, id: int, text: str, *, rank: int | None = None, told: bool = True, tags: Sequence[str] = ()
    ) -> None:
        """The row as it is from now on; told: its key is invalidated, as well as the tags."""
        async with self.db.write(Bucket(0)) as tx:
            await tx.execute(
                "insert into notes.note (bucket, id, text, rank) values (0, $1, $2, $3)"
                " on conflict (bucket, id) do update set text = excluded.text, rank = excluded.rank",
                id, text, rank,
            )  # fmt: skip
            if told:
                tx.invalidate(self.notes, id, tags=tags)
            elif tags:
                tx.invalidate(self.notes, tags=tags)

    async def text(self, id: int) -> str | None:
        note = await self.notes.get(id)
        return None if note is None else note.text

    async def trusted(self) -> None:
        """Wait until the slot is proven and has a horizon, so that what is loaded is kept."""
        await until(lambda: self.place.trusted(self.place.level()))
        probe = self.cache.classes["probe"]

        async def kept() -> bool:
            await probe.get("x")
            return probe.stats.fills > 0

        await until(kept)


@asynccontextmanager
async def node(
    server: RedisServer | str | None,
    db: Database,
    *,
    timeout: float = HANGS,
    cache: Mapping[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[Node]:
    """One process's cache over `db`; options are those of the class. timeout: of one question to Redis."""
    url = server.url if isinstance(server, RedisServer) else server
    redis = None if url is None else Redis(url, timeout=timeout)
    own = Cache("tests", redis=redis, **(cache or {}))
    made = Node(own, db, **options)

    async def probe(source: Queries, name: str) -> str:
        return str(await source.fetch_value("select $1::text", name))

    own.define("probe:{name}", str, database=db, load=probe, ttl=0.01, l1=0)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(asyncio.timeout(10 * HANGS))
        if redis is not None:
            await redis.start()
            stack.push_async_callback(redis.stop)
        await stack.enter_async_context(own)
        if redis is not None:
            await made.trusted()
        yield made
