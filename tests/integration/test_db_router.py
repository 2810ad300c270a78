"""Statements go to the shard of their key, and transactions keep to one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
from tests.sharded import notes

from springtide.context import RequestContext, activate
from springtide.db import Bucket, Consistency, Database, WriteTransaction, bucket_of
from springtide.errors import DeadlineExceeded, WrongShard

FIRST, LAST = Bucket(0), Bucket(1023)


@pytest.fixture(params=[1, 2])
async def db(
    request: pytest.FixtureRequest, database_urls: tuple[str, str], tmp_path: Path
) -> AsyncIterator[Database]:
    async with notes(database_urls[: request.param], tmp_path, size=5) as database:
        yield database


@pytest.fixture
async def two(database_urls: tuple[str, str], tmp_path: Path) -> AsyncIterator[Database]:
    async with notes(database_urls, tmp_path, size=5) as database:
        yield database


async def add(db: Database, key: Bucket, id: int, text: str = "") -> None:
    async with db.write(key) as tx:
        await tx.execute(
            "insert into notes.note (bucket, id, text) values ($1, $2, $3)", key.number, id, text
        )


async def ids(db: Database, key: Bucket) -> list[int]:
    rows = await db.read(key).fetch("select id from notes.note where bucket = $1 order by id", key.number)
    return [row["id"] for row in rows]


async def test_a_row_is_found_by_the_key_it_was_written_under(db: Database) -> None:
    """Reads and writes of one key meet on the same shard, whatever the kind of key."""
    for key in (5, 1030, "alice", b"\xff", Bucket(700)):
        bucket = bucket_of(key)
        async with db.write(key) as tx:
            await tx.execute(
                "insert into notes.note (bucket, id, text) values ($1, $2, $3)", bucket, bucket, repr(key)
            )
        found = await db.read(key, consistency=Consistency.STRONG).fetch_value(
            "select text from notes.note where bucket = $1 and text = $2", bucket, repr(key)
        )
        assert found == repr(key)


async def test_rows_of_the_two_halves_are_on_two_servers(two: Database) -> None:
    """The first bucket's rows are not on the shard that holds the last bucket."""
    await add(two, FIRST, 1)
    await add(two, LAST, 2)
    for shard, bucket in (("main", 0), ("second", 1023)):
        rows = await two.pools[shard].fetch("select bucket from notes.note")
        assert [row["bucket"] for row in rows] == [bucket]


async def test_a_write_that_raises_leaves_nothing(db: Database) -> None:
    with pytest.raises(ZeroDivisionError):
        async with db.write(FIRST) as tx:
            await tx.execute("insert into notes.note (bucket, id) values (0, 1)")
            raise ZeroDivisionError
    assert await ids(db, FIRST) == []


async def test_reads_inside_a_write_see_its_own_rows(db: Database) -> None:
    """A read of the same shard stays on the open transaction, as one statement and as a snapshot."""
    async with db.write(FIRST) as tx:
        await tx.execute("insert into notes.note (bucket, id) values (0, 1)")
        assert await ids(db, FIRST) == [1]
        async with db.read(Bucket(1)) as snapshot:
            assert await snapshot.fetch_value("select count(*) from notes.note") == 1
        assert await db.scatter_sum("select count(*) from notes.note") == 1
        assert await db.pools["main"].fetch_value("select count(*) from notes.note") == 0


async def test_reads_of_another_shard_inside_a_write_do_not_touch_it(two: Database) -> None:
    await add(two, LAST, 7)
    async with two.write(FIRST) as tx:
        await tx.execute("insert into notes.note (bucket, id) values (0, 1)")
        assert await ids(two, LAST) == [7]


async def test_a_write_on_another_shard_inside_a_write_is_refused(two: Database) -> None:
    """One transaction cannot commit on two servers; the outer one is unharmed."""
    async with two.write(FIRST) as tx:
        with pytest.raises(WrongShard, match=r"'main'.*'second'"):
            async with two.write(LAST):
                pass
        await tx.execute("insert into notes.note (bucket, id) values (0, 1)")
    assert await ids(two, FIRST) == [1]


async def test_one_statement_is_a_write_of_its_own_or_of_the_open_one(db: Database) -> None:
    """Committed at once where no write is open; inside one it is undone with it."""
    sql = "insert into notes.note (bucket, id) values (0, $1) on conflict do nothing returning id"
    made = await db.write_one(FIRST, sql, 1)
    assert made is not None and made["id"] == 1
    assert await db.write_one(FIRST, sql, 1) is None
    with pytest.raises(ZeroDivisionError):
        async with db.write(FIRST):
            assert await db.write_one(FIRST, sql, 2) is not None
            raise ZeroDivisionError
    assert await ids(db, FIRST) == [1]


async def test_a_nested_write_is_a_savepoint(db: Database) -> None:
    """What a nested write did is undone alone when it raises, and commits with the outer one otherwise."""
    ran: list[str] = []
    async with db.write(FIRST) as tx:
        await tx.execute("insert into notes.note (bucket, id) values (0, 1)")
        with pytest.raises(ZeroDivisionError):
            async with db.write(Bucket(3)) as inner:
                await inner.execute("insert into notes.note (bucket, id) values (3, 2)")
                inner.on_commit(lambda: ran.append("undone"))
                raise ZeroDivisionError
        async with db.write(FIRST) as inner:
            await inner.execute("insert into notes.note (bucket, id) values (0, 3)")
            await tx.execute("insert into notes.note (bucket, id) values (0, 4)")
            inner.on_commit(lambda: ran.append("kept"))
        with pytest.raises(RuntimeError, match="has ended"):
            inner.on_commit(lambda: ran.append("too late"))
        assert ran == []
    assert await ids(db, FIRST) == [1, 3, 4]
    assert await ids(db, Bucket(3)) == []
    assert ran == ["kept"]


async def test_a_nested_write_cannot_change_the_isolation(db: Database) -> None:
    async with db.write(FIRST, isolation="repeatable read"):
        with pytest.raises(ValueError, match="keeps its outer 'repeatable read', got 'serializable'"):
            async with db.write(FIRST, isolation="serializable"):
                pass


async def test_tasks_that_share_a_write_take_turns(db: Database) -> None:
    """Twenty child tasks write through one transaction at once; every row is there, and none outside it."""

    async def one(id: int) -> None:
        async with db.write(FIRST) as tx:
            await tx.execute("insert into notes.note (bucket, id) values (0, $1)", id)
            assert await db.read(FIRST).fetch_value("select id from notes.note where id = $1", id) == id
            if id % 2:
                raise ZeroDivisionError

    async def attempt(id: int) -> None:
        with pytest.raises(ZeroDivisionError) if id % 2 else _nothing():
            await one(id)

    async with db.write(FIRST) as tx, asyncio.TaskGroup() as group:
        for id in range(20):
            group.create_task(attempt(id))
            group.create_task(tx.fetch_value("select 1"))
    assert await ids(db, FIRST) == list(range(0, 20, 2))


async def test_a_block_that_waits_for_its_own_waiter_ends_at_the_deadline(db: Database) -> None:
    """The child needs the outer block's turn, which the nested one keeps while it awaits the child."""
    go = asyncio.Event()

    async def child(tx: WriteTransaction) -> None:
        await go.wait()
        await tx.execute("insert into notes.note (bucket, id) values (0, 1)")

    begun = time.monotonic()
    with activate(RequestContext(deadline=begun + 0.3)), pytest.raises(DeadlineExceeded, match="turn"):
        async with asyncio.timeout(5), db.write(FIRST) as tx:
            task = asyncio.create_task(child(tx))
            async with db.write(FIRST):
                go.set()
                await task
    assert await ids(db, FIRST) == []


async def test_a_cancelled_nested_write_takes_the_whole_transaction_with_it(db: Database) -> None:
    """Nothing that a cancelled nested block wrote is ever committed by the block around it."""
    entered = asyncio.Event()

    async def nested() -> None:
        async with db.write(FIRST) as inner:
            await inner.execute("insert into notes.note (bucket, id) values (0, 2)")
            entered.set()
            await asyncio.Event().wait()

    with pytest.raises(asyncpg.InFailedSQLTransactionError, match="can only roll back"):
        async with db.write(FIRST) as tx:
            await tx.execute("insert into notes.note (bucket, id) values (0, 1)")
            child = asyncio.create_task(nested())
            await entered.wait()
            child.cancel()
            await asyncio.wait([child])
    assert await ids(db, FIRST) == []


async def test_a_write_ends_with_its_block(db: Database) -> None:
    """A handle that outlives its block is refused, and a task that outlives it reads from the pool again."""
    go = asyncio.Event()

    async def later() -> list[int]:
        await go.wait()
        return await ids(db, FIRST)

    async with db.write(FIRST) as tx:
        await tx.execute("insert into notes.note (bucket, id) values (0, 1)")
        task = asyncio.create_task(later())
        await asyncio.sleep(0)
    go.set()
    assert await task == [1]
    with pytest.raises(RuntimeError, match="has ended"):
        await tx.fetch("select 1")


async def test_a_snapshot_sees_one_state(db: Database) -> None:
    """A row that is committed between two statements of a snapshot is in neither."""
    async with db.read(FIRST) as snapshot:
        assert await snapshot.fetch("select id from notes.note") == []
        await add(db, FIRST, 1)
        assert await snapshot.fetch("select id from notes.note") == []
    assert await ids(db, FIRST) == [1]


async def test_a_reader_is_one_snapshot_at_a_time(db: Database) -> None:
    """Two tasks that enter the same reader at once: one is refused, and no connection is lost."""
    reader = db.read(FIRST)

    async def look() -> None:
        async with reader as snapshot:
            await snapshot.fetch("select 1")

    results = await asyncio.gather(look(), look(), return_exceptions=True)
    assert [type(result) for result in results] == [type(None), RuntimeError]
    await look()
    pool = db.pools["main"]
    assert pool.stats().busy == 0


async def test_a_snapshot_cannot_write(db: Database) -> None:
    async with db.read(FIRST) as snapshot:
        with pytest.raises(Exception, match="read-only"):
            await snapshot.fetch("insert into notes.note (bucket, id) values (0, 1) returning id")


async def test_many_ids_cost_one_statement_per_shard(two: Database) -> None:
    """`fetch_many` answers for ids of both shards, and hands each shard only its own."""
    wanted = []
    for bucket in (0, 1, 511, 512, 1023):
        id = 7 << 10 | bucket
        wanted.append(id)
        await add(two, Bucket(bucket), id)
    rows = await two.fetch_many(
        "select id from notes.note where id = any($1::bigint[]) and text = $2", wanted, ""
    )
    assert sorted(row["id"] for row in rows) == sorted(wanted)
    assert await two.fetch_many("select id from notes.note where id = any($1::bigint[])", []) == []
    assert {shard: len(keys) for shard, keys in two.group(wanted).items()} == {"main": 3, "second": 2}


def test_a_database_needs_a_pool_for_each_shard() -> None:
    from springtide.db import ShardMap

    with pytest.raises(ValueError, match="none for main"):
        Database("notes", ShardMap.even(["main"]), {})


@pytest.mark.parametrize("staleness", [0, -1, float("inf"), float("nan")])
def test_a_bound_on_staleness_is_positive_and_finite(staleness: float) -> None:
    with pytest.raises(ValueError, match=str(staleness)):
        Consistency.bounded(staleness)


class _nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...
