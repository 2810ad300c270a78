"""One statement over all shards gives what one table would give."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from tests.sharded import notes

from springtide.db import ASC, DESC, Bucket, Database, Keyset, desc
from springtide.errors import NotScatterable

TEXTS = ["b", "a", "B", "ä", "z", "", "é", "Z"]


@pytest.fixture(params=[1, 2])
async def db(
    request: pytest.FixtureRequest, database_urls: tuple[str, str], tmp_path: Path
) -> AsyncIterator[Database]:
    async with notes(database_urls[: request.param], tmp_path, size=5) as database:
        for number in range(40):
            bucket = number * 397 % 1024
            rank = None if number % 5 == 0 else number % 3
            async with database.write(Bucket(bucket)) as tx:
                await tx.execute(
                    "insert into notes.note (bucket, id, text, rank) values ($1, $2, $3, $4)",
                    bucket,
                    number << 10 | bucket,
                    TEXTS[number % 8],
                    rank,
                )
        yield database


def number(row: Any) -> int:
    return int(row["id"]) >> 10


async def test_pages_are_those_of_one_table(db: Database) -> None:
    """NULLs, ties, both directions and texts: limit and offset cut where one sorted table would be cut."""
    everything = [(None if n % 5 == 0 else n % 3, TEXTS[n % 8].encode(), n) for n in range(40)]

    def key(row: tuple[int | None, bytes, int]) -> Any:
        rank, text, n = row
        return (0, 0) if rank is None else (1, -rank), text, -n

    wanted = [row[2] for row in sorted(everything, key=key)]
    order = [("rank", DESC), ("text", ASC), ("id", DESC)]
    sql = "select id, rank, text from notes.note"
    assert [number(row) for row in await db.scatter(sql, order=order)] == wanted
    for offset in (0, 7, 39, 50):
        rows = await db.scatter(sql, order=order, limit=9, offset=offset)
        assert [number(row) for row in rows] == wanted[offset : offset + 9]


async def test_limits_and_offsets_are_checked(db: Database) -> None:
    for window in ({"limit": -1}, {"offset": -1}, {"limit": 1, "offset": -1}):
        with pytest.raises(ValueError, match="must be >= 0, got -1"):
            await db.scatter("select id from notes.note", **window)


async def test_a_part_without_an_order_or_a_limit(db: Database) -> None:
    sql = "select id from notes.note where bucket < $1"
    assert len(await db.scatter(sql, 1024, offset=38)) == 2
    assert len(await db.scatter(sql, 1024, limit=9, offset=38)) == 2
    assert len(await db.scatter(sql, 1024, limit=0)) == 0


async def test_arguments_and_comments_pass(db: Database) -> None:
    rows = await db.scatter("select id from notes.note where text = $1; -- x", "z", order=[("id", ASC)])
    assert [number(row) for row in rows] == [n for n in range(40) if n % 8 == 4]


async def test_an_order_column_must_be_selected(db: Database) -> None:
    """The error names the column; a column that is missing inside the statement stays PostgreSQL's error."""
    with pytest.raises(NotScatterable, match="column 'rank', which the statement does not select"):
        await db.scatter("select id from notes.note", order=[("id", ASC), ("rank", DESC)])
    with pytest.raises(asyncpg.UndefinedColumnError):
        await db.scatter("select id, rank from notes.note where nothing = 1", order=[("rank", ASC)])


async def test_sums(db: Database) -> None:
    assert await db.scatter_sum("select count(*) from notes.note") == 40
    assert await db.scatter_sum("select sum(rank) from notes.note") == sum(n % 3 for n in range(40) if n % 5)
    assert await db.scatter_sum("select sum(id) from notes.note where id < $1", -1) == 0
    for sql in ("select avg(rank) + 0.5 from notes.note", "select 'x'", "select true", "select 1.5::float8"):
        with pytest.raises(NotScatterable, match="whole numbers"):
            await db.scatter_sum(sql)


async def test_what_each_shard_would_answer_for_itself_is_refused(db: Database) -> None:
    """Also with one shard, so that a second one changes nothing."""
    with pytest.raises(NotScatterable, match="scatter_sum"):
        await db.scatter("select count(*) from notes.note")


async def test_a_shard_that_fails_ends_the_call_with_its_own_error(db: Database) -> None:
    """One shard has the bucket that makes the statement fail: the caller gets that error, not a group."""
    with pytest.raises(asyncpg.DivisionByZeroError):
        await db.scatter("select 1 / (bucket - 397) as x from notes.note", order=[("x", ASC)])


async def test_a_cursor_walks_over_all_shards(db: Database) -> None:
    """Keyset and scatter together: every row once, newest first."""
    keyset = Keyset(desc("id"))
    seen: list[int] = []
    cursor = None
    while True:
        step = keyset.step(cursor, limit=7)
        sql = f"select id from notes.note where {step.where}"
        page = step.page(await db.scatter(sql, *step.args, order=keyset.order, limit=step.fetch))
        seen += [number(row) for row in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == list(range(39, -1, -1))


async def test_a_forged_cursor_breaks_no_statement_on_a_small_column(db: Database) -> None:
    """The column is an `integer`, the cursor holds a number of eight bytes: rows, not an error."""
    keyset = Keyset(desc("rank"), desc("id"))
    step = keyset.step(keyset.encode({"rank": 1 << 40, "id": 1}), limit=50)
    sql = f"select id, rank from notes.note where {step.where}"
    rows = await db.scatter(sql, *step.args, order=keyset.order, limit=step.fetch)
    assert len(rows) == 32


async def test_times_are_merged_up_to_infinity(db: Database) -> None:
    """PostgreSQL's infinite times arrive without a zone; they are the last and the first all the same."""
    at = "case rank when 0 then 'infinity' when 1 then '-infinity' else at end"
    rows = await db.scatter(
        f"select id, {at}::timestamptz as at from notes.note where rank is not null",
        order=[("at", ASC), ("id", ASC)],
    )
    assert [number(row) % 3 for row in rows] == sorted((number(row) % 3 for row in rows), key=[1, 2, 0].index)


async def test_lengths_of_time_are_not_merged(database_urls: tuple[str, str], tmp_path: Path) -> None:
    """'1 year' is 360 days when PostgreSQL compares and 365 when Python does."""
    async with notes(database_urls, tmp_path) as two:
        with pytest.raises(NotScatterable, match="timedelta has no order"):
            await two.scatter("select interval '1 year' as length", order=[("length", ASC)])
