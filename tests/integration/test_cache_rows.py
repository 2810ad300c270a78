"""The rows of the relay: every one is read, in whole transactions, and no more than is new."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import asyncpg
import msgspec
import pytest
from tests.invalidating import TellingCache
from tests.sharded import notes

from springtide.cache._rows import BATCH, Row, Rows
from springtide.db import Database
from springtide.db._invalidating import MAX_FIELDS


@pytest.fixture
async def db(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    async with notes([database_url], tmp_path) as db:
        db.invalidations = TellingCache()
        yield db


async def invalidate(db: Database, cls: str, *tags: object) -> int:
    async with db.write(1) as tx:
        tx.invalidate(cls, tags=[str(tag) for tag in tags])
    assert tx.recorded is not None
    return tx.recorded.xid


async def read(rows: Rows, db: Database, ready: Sequence[str], *, apply: bool = True) -> list[Row]:
    found: list[Row] = []
    async for batch in rows.new(db.pools["main"], ready):
        found += batch.rows
        if apply:
            await rows.applied(db.pools["main"], batch.rows)
    return found


async def fill(db: Database, count: int) -> None:
    """So many transactions at once, of one field each."""
    sql = """insert into notes._invalidation (xid, class, fields, written_at)
        select (1000000 + n)::text::xid8, 'user', '["k:' || n || '"]', now()
        from generate_series(1, $1) as n"""
    await db.pools["main"].execute(sql, count)


async def test_more_than_a_batch_comes_in_batches_and_whole(db: Database) -> None:
    """Each row once, also of a transaction that has more rows than a batch."""
    await fill(db, BATCH * 2 + 7)
    classes = [f"class {number}" for number in range(BATCH + 20)]
    async with db.write(1) as tx:
        for cls in classes:
            tx.invalidate(cls, 1)
    rows = Rows(["notes"])
    batches: list[set[int]] = []
    found: list[tuple[int, str]] = []
    async for batch in rows.new(db.pools["main"], ["user", *classes]):
        batches.append({row.xid for row in batch.rows})
        found += [(row.xid, row.cls) for row in batch.rows]
        await rows.applied(db.pools["main"], batch.rows)
    assert len(batches) >= 3
    assert len(found) == len(set(found)) == BATCH * 2 + 7 + len(classes)
    assert sum(map(len, batches)) == len(set().union(*batches))  # no transaction is in two of them
    assert await db.pools["main"].fetch_value("select count(*) from notes._invalidation") == 0


async def test_the_parts_of_a_class_are_read_together(db: Database) -> None:
    xid = await invalidate(db, "user", *range(MAX_FIELDS))
    found = await read(Rows(["notes"]), db, ["user"])
    assert {row.xid for row in found} == {xid}
    assert sorted(field for row in found for field in row.fields) == sorted(
        f"t:{n}" for n in range(MAX_FIELDS)
    )


async def test_what_commits_late_is_read_and_nothing_twice(db: Database) -> None:
    """A transaction that ran while others were read has a lower number than they."""
    rows = Rows(["notes"])
    async with db.write(1) as late:
        await late.fetch_value("select pg_current_xact_id()::text")
        early = await asyncio.create_task(invalidate(db, "user", 1), context=contextvars.Context())
        assert [row.xid for row in await read(rows, db, ["user"], apply=False)] == [early]
        late.invalidate("user", 2)
    assert late.recorded is not None
    found = await read(rows, db, ["user"], apply=False)
    assert [(row.xid, row.fields) for row in found] == [(late.recorded.xid, ["k:2"])]
    assert late.recorded.xid < early
    assert await read(rows, db, ["user"], apply=False) == []


async def test_a_class_that_was_not_ready_or_not_applied_is_read_from_the_first_row(db: Database) -> None:
    """Its rows have stayed, while those of the others were read and deleted; one that was read and failed is
    read again."""
    rows = Rows(["notes"])
    await invalidate(db, "feed", 1)
    await invalidate(db, "user", 1)
    assert [row.cls for row in await read(rows, db, ["user"])] == ["user"]
    await invalidate(db, "feed", 2)
    assert await read(rows, db, ["user"]) == []
    assert [row.fields for row in await read(rows, db, ["user", "feed"], apply=False)] == [["t:1"], ["t:2"]]
    assert await read(rows, db, ["user", "feed"], apply=False) == []
    await invalidate(db, "user", 3)
    async for _ in rows.new(db.pools["main"], ["user", "feed"]):
        rows.left("feed")
    assert [row.fields for row in await read(rows, db, ["user", "feed"])] == [["t:1"], ["t:2"], ["t:3"]]


async def test_a_reading_that_breaks_off_counts_as_none(db: Database) -> None:
    rows = Rows(["notes"])
    await invalidate(db, "user", 1)
    reading = rows.new(db.pools["main"], ["user"])
    assert (await anext(reading)).rows
    await reading.aclose()
    assert len(await read(rows, db, ["user"])) == 1


async def test_an_old_snapshot_does_not_slow_the_reading_down(db: Database, database_url: str) -> None:
    """Somebody holds a snapshot, so no deleted row can be removed: a reading of what is new touches none of
    them, and a first one does."""
    rows, pool = Rows(["notes"]), db.pools["main"]
    holder = await asyncpg.connect(database_url)
    try:
        await holder.execute(
            "begin isolation level repeatable read; select count(*) from notes._invalidation"
        )
        await fill(db, 20_000)
        assert len(await read(rows, db, ["user"])) == 20_000
        await pool.execute("analyze notes._invalidation")

        async def pages(low: int, running: Sequence[int]) -> int:
            sql = f"explain (analyze, buffers, format json) {rows._read}"
            found = await pool.fetch_value(sql, list(map(str, running)), str(low), BATCH, ["user"])
            plan = (found if isinstance(found, list) else msgspec.json.decode(found))[0]["Plan"]
            return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])

        assert rows._low > 0
        assert await pages(0, ()) > 200
        assert await pages(2_000_000, rows._running) < 20
    finally:
        await holder.close()


async def test_the_oldest_row_is_known(db: Database) -> None:
    rows, pool = Rows(["notes"]), db.pools["main"]
    assert await rows.oldest(pool) == 0
    await invalidate(db, "user", 1)
    await pool.execute("update notes._invalidation set written_at = now() - interval '1 hour'")
    await invalidate(db, "user", 2)
    assert 3600 <= await rows.oldest(pool) < 4000
