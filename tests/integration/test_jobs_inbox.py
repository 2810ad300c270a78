"""Effects on a shard that does not finish the job: the inbox makes them once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.jobs_support import DO, Deed, Doer, add, deeds, reach, working

from springtide.db import Database
from springtide.errors import JobError
from springtide.jobs import Run
from springtide.jobs._store import Store

Urls = tuple[str, str]


@pytest.fixture
async def database(database_urls: Urls, tmp_path: Path) -> AsyncIterator[Database]:
    async with deeds(database_urls, tmp_path / "migrations", size=8) as made:
        yield made


def elsewhere(database: Database, key: str) -> str:
    """A key on another shard than `key`."""
    home = database.shards.shard_of(key)
    return next(f"key {n}" for n in range(100) if database.shards.shard_of(f"key {n}") != home)


async def effects(database: Database) -> list[str]:
    return sorted(row["what"] for row in await database.scatter("select what from deeds.effect"))


async def write(database: Database, key: str, run: Run, what: str, part: str = "") -> bool:
    async with database.write(key) as tx:
        first = await run.once(tx, part)
        if first:
            await tx.execute("insert into deeds.effect (bucket, what) values ($1, $2)", tx.bucket, what)
        return first


async def test_a_job_that_runs_again_writes_once(database: Database, database_urls: Urls) -> None:
    """It fails after its effects have been committed, and each of its parts is there once."""
    other, firsts = elsewhere(database, "a"), []

    async def act(deed: Deed, run: Run) -> None:
        firsts.append(await write(database, other, run, f"{deed.what} debit", "debit"))
        firsts.append(await write(database, other, run, f"{deed.what} credit", "credit"))
        if run.attempt == 1:
            raise KeyError("after the effect")

    await add(database, "a")
    async with working(database, database_urls, [DO], Doer(act)):
        (row,) = await reach(database, "done")
    assert row["attempt"] == 2
    assert firsts == [True, True, False, False]
    assert await effects(database) == ["a credit", "a debit"]


async def test_an_effect_that_was_rolled_back_is_written_by_the_next_run(
    database: Database, database_urls: Urls
) -> None:
    other = elsewhere(database, "a")

    async def act(deed: Deed, run: Run) -> None:
        async with database.write(other) as tx:
            assert await run.once(tx)
            await tx.execute("insert into deeds.effect (bucket, what) values ($1, 'a')", tx.bucket)
            if run.attempt == 1:
                raise KeyError("before the commit")

    await add(database, "a")
    async with working(database, database_urls, [DO], Doer(act)):
        await reach(database, "done")
    assert await effects(database) == ["a"]


async def test_two_runs_at_once_write_once(database: Database, database_urls: Urls) -> None:
    """A run that has lost its lease, and does not know it yet, and the one after it."""
    other, answers = elsewhere(database, "a"), []

    async def act(deed: Deed, run: Run) -> None:
        answers.extend(await asyncio.gather(*(write(database, other, run, "a") for _ in range(2))))

    await add(database, "a")
    async with working(database, database_urls, [DO], Doer(act)):
        await reach(database, "done")
    assert sorted(answers) == [False, True]
    assert await effects(database) == ["a"]


async def test_what_was_written_long_ago_is_forgotten_and_nothing_else(
    database: Database, database_urls: Urls
) -> None:
    other = elsewhere(database, "a")

    async def act(deed: Deed, run: Run) -> None:
        await write(database, other, run, deed.what)
        with pytest.raises(JobError, match="part must have at most 100"):
            async with database.write(other) as tx:
                await run.once(tx, "x" * 101)

    await add(database, "a")
    await add(database, "a")
    async with working(database, database_urls, [DO], Doer(act)):
        await reach(database, "done", "done")
    store = Store(database, database.shards.shard_of(other))
    await store.pool.execute(
        "update deeds._job_inbox set written_at = written_at - interval '31 days'"
        " where job = (select min(job::text)::uuid from deeds._job_inbox)"
    )
    assert [await store.forget(30 * 86_400.0), await store.forget(30 * 86_400.0)] == [1, 0]
    assert await store.pool.fetch_value("select count(*) from deeds._job_inbox") == 1
