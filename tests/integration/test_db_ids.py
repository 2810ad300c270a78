"""Ids are unique over processes, carry their bucket and stay below 2**53."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.sharded import notes

from springtide.db import MAX_ID, Bucket, Database, Ids, bucket_of
from springtide.errors import IdSpaceExhausted


@pytest.fixture(params=[1, 2])
async def db(
    request: pytest.FixtureRequest, database_urls: tuple[str, str], tmp_path: Path
) -> AsyncIterator[Database]:
    async with notes(database_urls[: request.param], tmp_path, size=5) as database:
        yield database


def taker(db: Database, block: int = 4) -> Ids:
    """What another process would have."""
    return Ids(db.schema, db.shards, db.pools, block=block)


async def test_concurrent_takers_never_get_the_same_id(db: Database) -> None:
    """Several processes' takers, 50 tasks each, on one bucket and in bulk: every id is new."""
    takers = [taker(db) for _ in range(4)]
    async with asyncio.TaskGroup() as group:
        singles = [group.create_task(ids.take("alice")) for ids in takers for _ in range(50)]
        bulks = [group.create_task(ids.take_many("alice", 30)) for ids in takers]
    found = [task.result() for task in singles] + [id for task in bulks for id in task.result()]
    assert len(set(found)) == len(found) == 320
    assert {bucket_of(id) for id in found} == {bucket_of("alice")}
    assert all(0 < id <= MAX_ID for id in found)


async def test_ids_of_one_process_and_bucket_ascend(db: Database) -> None:
    ids = taker(db)
    found = [await ids.take(Bucket(9)) for _ in range(20)]
    assert found == sorted(found)


async def test_ids_taken_anywhere_spread_over_buckets(db: Database) -> None:
    """Three hundred ids are in far more buckets than a skewed choice would give, on every shard."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(db.ids.take_anywhere()) for _ in range(300)]
    buckets = Counter(bucket_of(task.result()) for task in tasks)
    assert len(buckets) > 200
    assert {db.shards.shard_of(Bucket(bucket)) for bucket in buckets} == set(db.shards.shards)


async def test_a_cancelled_taker_loses_nobody_elses_turn(db: Database) -> None:
    """While the counter is locked ten wait; the one who fetches is cancelled and the others get their ids."""
    ids = taker(db)
    pool = db.pools[db.shards.shard_of(Bucket(3))]
    await ids.take_many(Bucket(3), 1)
    async with pool.transaction() as tx:
        await tx.execute("select next from notes._id_counter where bucket = 3 for update")
        tasks = [asyncio.create_task(ids.take(Bucket(3))) for _ in range(10)]
        waiting = "select count(*) from pg_locks where not granted and locktype = 'transactionid'"
        while not await pool.fetch_value(waiting):
            pass
        tasks[0].cancel()
        tasks[5].cancel()
        await asyncio.wait(tasks[:1])
    results = await asyncio.gather(*tasks, return_exceptions=True)
    got = [result for result in results if isinstance(result, int)]
    assert len(set(got)) == 8
    assert [isinstance(r, asyncio.CancelledError) for r in results] == [n in (0, 5) for n in range(10)]


async def test_an_id_is_there_for_a_write_that_is_rolled_back(db: Database) -> None:
    """A block taken inside a write is kept when the write is undone: the same ids are not given again."""
    ids = taker(db, block=1)
    with pytest.raises(ZeroDivisionError):
        async with db.write(Bucket(3)):
            first = await ids.take(Bucket(3))
            raise ZeroDivisionError
    assert await ids.take(Bucket(3)) > first


async def test_a_bucket_ends_at_two_to_the_53(db: Database) -> None:
    """The last ids of a bucket are given, none beyond, and other buckets go on."""
    ids = taker(db)
    await ids.take(Bucket(1023))
    pool = db.pools[db.shards.shard_of(Bucket(1023))]
    await pool.execute("update notes._id_counter set next = $1 where bucket = 1023", (MAX_ID >> 10) - 1)
    ids = taker(db)
    assert [await ids.take(Bucket(1023)) for _ in range(2)] == [MAX_ID - 1024, MAX_ID]
    for _ in range(2):
        with pytest.raises(IdSpaceExhausted, match="bucket 1023"):
            await ids.take(Bucket(1023))
    with pytest.raises(IdSpaceExhausted):
        await ids.take_many(Bucket(1023), 5)
    assert await ids.take(Bucket(1)) > 0


async def test_asking_for_too_many_uses_up_nothing(db: Database) -> None:
    """A bulk load with a wrong number must not leave a bucket without ids for ever."""
    for _ in range(2):
        for count in (1 << 43, 1 << 80):
            with pytest.raises(IdSpaceExhausted, match="bucket 7"):
                await db.ids.take_many(Bucket(7), count)
        assert len(await db.ids.take_many(Bucket(7), 3)) == 3


async def test_counts_and_blocks_are_positive(db: Database) -> None:
    with pytest.raises(ValueError, match="count must be >= 1, got 0"):
        await db.ids.take_many(Bucket(0), 0)
    with pytest.raises(ValueError, match="block must be >= 1, got 0"):
        taker(db, block=0)
