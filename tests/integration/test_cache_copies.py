"""Several copies of one class in Redis: a process reads one, a write ends the value in all."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests._redis import RedisServer
from tests.cached import Node, node, until
from tests.sharded import notes

from springtide.cache import Cache
from springtide.context import RequestContext, activate
from springtide.db import Bucket, Database
from springtide.db._invalidating import Recorded
from springtide.db._writing import WriteTransaction
from springtide.errors import CacheDefinitionError

pytestmark = pytest.mark.needs("redis-server")


@asynccontextmanager
async def fleet(
    server: RedisServer, url: str, folder: Path, turns: Sequence[int]
) -> AsyncIterator[list[Node]]:
    """Processes over one database, each with the copy of its turn, of two."""
    async with AsyncExitStack() as stack:
        db = await stack.enter_async_context(notes([url], folder))
        made = []
        for turn in turns:
            own = Database("notes", db.shards, db.pools)
            made.append(await stack.enter_async_context(node(server, own, cache={"turn": turn}, copies=2)))
        yield made


async def test_each_process_has_the_copy_of_its_turn(
    redis_server: RedisServer, database_url: str, tmp_path: Path
) -> None:
    """Two copies are filled by a load each; a third process finds what the first one has kept."""
    async with fleet(redis_server, database_url, tmp_path, (0, 1, 2)) as (first, second, third):
        await first.write(7, "a")
        assert [await process.text(7) for process in (first, second, third)] == ["a"] * 3
        assert [process.stats.loads for process in (first, second, third)] == [1, 1, 0]
        assert third.stats.l2_hits == 1
        keys = await asyncio.to_thread(redis_server.command, "KEYS", "*:v:note:7")
        assert sorted(key.partition(":")[0] for key in keys) == ["{note@main#1}", "{note@main}"]


async def test_who_wrote_reads_it_from_any_copy(
    redis_server: RedisServer, database_url: str, tmp_path: Path
) -> None:
    """The next request of the session, on the process of the other copy, sees the write although that has it
    in its memory and in Redis; so does everybody, a moment later."""
    async with fleet(redis_server, database_url, tmp_path, (0, 1)) as (first, second):
        await first.write(7, "0")
        for number in range(1, 21):
            writer, reader = (first, second) if number % 2 else (second, first)
            before = str(number - 1)
            await until(functools.partial(_is, reader, before))
            assert await reader.text(7) == before
            context = RequestContext()
            with activate(context):
                await writer.write(7, str(number))
            assert len(context.causality.marks) == 2
            with activate(RequestContext(causality=context.causality)):
                assert await reader.text(7) == str(number)


async def _is(process: Node, text: str) -> bool:
    return await process.text(7) == text


class Dies:
    """What a writer has whose process ends in the moment after its COMMIT: nobody is told."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def fields_of(
        self, tx: WriteTransaction, cls: Any, key: tuple[Any, ...], tags: Sequence[str]
    ) -> tuple[str, Iterable[str]]:
        return cls.name, cls.fields(key, tags)

    async def void(
        self, tx: WriteTransaction, recorded: Recorded, fields: Mapping[str, Sequence[str]]
    ) -> None:
        return None


async def test_the_relay_tells_every_copy(
    redis_server: RedisServer, database_url: str, tmp_path: Path
) -> None:
    """A writer that died after its COMMIT has told nobody: processes of both copies learn of it."""
    async with fleet(redis_server, database_url, tmp_path, (0, 1)) as (first, second):
        await first.write(7, "old")
        for process in (first, second):
            await until(functools.partial(_is, process, "old"))
        writer = Database("notes", first.db.shards, first.db.pools, invalidations=Dies(first.cache))
        async with writer.write(Bucket(0)) as tx:
            await tx.execute("update notes.note set text = 'new' where bucket = 0 and id = 7")
            tx.invalidate(first.notes, 7)
        for process in (first, second):
            await until(functools.partial(_is, process, "new"))


def test_copies_that_cannot_be_are_refused() -> None:
    """Of a class without a database nobody would tell all of them; a session has only so many marks."""

    async def load(id: int) -> str:
        return "x"

    for copies, rule in ((2, "must be 1 without a database"), (0, "from 1 to 4"), (9, "from 1 to 4")):
        with pytest.raises(CacheDefinitionError, match=rule):
            Cache("app").define("user:{id}", str, load=load, copies=copies)
