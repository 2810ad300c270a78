"""Write-behind: what was acknowledged is applied, once, in the order of its key, whatever dies meanwhile."""

from __future__ import annotations

import asyncio
import operator
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from bench._write_behind import contest
from tests.jobs_support import Heard
from tests.sharded import pools

from springtide.cache import _behind_flush
from springtide.cache._behind_sql import Sql
from springtide.cache.behind import Changed, WriteBehind
from springtide.context import RequestContext, activate
from springtide.db import Database, Migrator, ShardMap, WriteTransaction
from springtide.errors import (
    CommitUnknown,
    ConfigurationError,
    SpringtideError,
    Unavailable,
)
from springtide.signals import BehindFailed, BehindFlushed, BehindWaiting

PAGES = """
create table pages.page (
    bucket smallint not null,
    id     bigint   not null,
    views  bigint   not null check (views < 1000000),
    primary key (bucket, id)
);
"""

COUNT = """
insert into pages.page (bucket, id, views)
select n.id & 1023, n.id, n.views from unnest($1::bigint[], $2::bigint[]) as n (id, views)
on conflict (bucket, id) do update set views = page.views + excluded.views
"""


class Pages:
    """Counts views; `calls` is what `apply` was given, `failing` makes it raise for these keys."""

    def __init__(self, database: Database, **options: Any) -> None:
        self.database = database
        self.heard = Heard()
        self.calls: list[dict[Changed, int]] = []
        self.failing: set[Changed] = set()
        self.views = WriteBehind(
            "views", database, int, merge=operator.add, apply=self._count, sink=self.heard, **options
        )

    async def _count(self, tx: WriteTransaction, changes: Mapping[Changed, int]) -> None:
        self.calls.append(dict(changes))
        await tx.execute(COUNT, list(changes), list(changes.values()))
        if broken := self.failing & set(changes):
            raise ValueError(f"no page {broken}")

    async def stored(self) -> dict[int, int]:
        rows = await self.database.scatter("select id, views from pages.page")
        return {row["id"]: row["views"] for row in rows}

    async def waiting(self) -> int:
        return await self.database.scatter_sum("select count(*) from pages._behind")


@asynccontextmanager
async def opened(urls: Any, folder: Path) -> AsyncIterator[Database]:
    (folder / "0001_page.sql").write_text(PAGES)
    async with pools(urls) as started:
        await Migrator("pages", folder, started).apply()
        yield Database("pages", ShardMap.even(list(started)), started)


@pytest.fixture
async def database(database_urls: tuple[str, str], tmp_path: Path) -> AsyncIterator[Database]:
    async with opened(database_urls, tmp_path) as made:
        yield made


async def test_changes_are_merged_and_applied_by_key(database: Database) -> None:
    """Keys of two shards, many puts: each page's count is their sum, and nothing is left."""
    pages = Pages(database)
    await asyncio.gather(*(pages.views.put(id, 1) for id in (1, 2, 1023) for _ in range(50)))
    assert await pages.stored() == {}
    assert await pages.views.pending(1023) == 50
    assert await pages.views.flush() > 0
    assert await pages.stored() == {1: 50, 2: 50, 1023: 50}
    assert await pages.waiting() == 0 and await pages.views.pending(1023) is None
    assert await pages.views.flush() == 0
    flushed = pages.heard.of(BehindFlushed)
    assert sum(found.keys for found in flushed) == 3 and all(found.waited >= 0 for found in flushed)


async def test_callers_at_one_time_share_a_row_and_a_commit(database: Database) -> None:
    """A key that everybody changes costs one row for all that waited, not one each."""
    pages = Pages(database)
    await asyncio.gather(*(pages.views.put(7, 1) for _ in range(500)))
    assert await pages.waiting() <= 2
    await pages.views.flush()
    assert await pages.stored() == {7: 500}


async def test_a_change_in_a_transaction_exists_if_and_only_if_that_commits(database: Database) -> None:
    """With `tx` it is undone with it; without, it stays, whatever becomes of the write around it."""
    pages = Pages(database)
    async with database.write(7) as tx:
        await pages.views.put(7, 1, tx=tx)
        assert await pages.views.pending(7) == 1
    with pytest.raises(ZeroDivisionError):
        async with database.write(7) as tx:
            await pages.views.put(7, 10, tx=tx)
            await pages.views.put(7, 100)
            raise ZeroDivisionError
    await pages.views.flush()
    assert await pages.stored() == {7: 101}
    async with database.write(7) as tx:
        with pytest.raises(ConfigurationError, match="is kept on its own shard"):
            await pages.views.put(1023, 1, tx=tx)


async def test_the_last_of_a_keys_changes_wins_where_merge_says_so(database: Database) -> None:
    """In the order in which they were acknowledged, over pages, processes' batches and both ways to put."""
    seen: list[dict[Changed, str]] = []

    async def keep(tx: WriteTransaction, changes: Mapping[Changed, str]) -> None:
        seen.append(dict(changes))

    drafts = WriteBehind("drafts", database, str, merge=lambda _, new: new, apply=keep, batch=3)
    for number in range(8):
        if number % 2:
            await drafts.put("a", f"draft {number}")
        else:
            async with database.write("a") as tx:
                await drafts.put("a", f"draft {number}", tx=tx)
    assert await drafts.pending("a") == "draft 7"
    assert await drafts.flush() == 8
    assert [found["a"] for found in seen] == ["draft 2", "draft 5", "draft 7"]


async def test_a_flush_that_does_not_commit_is_done_again(database: Database) -> None:
    """`apply` has written when it fails: neither its writes nor the rows are lost or counted twice."""
    pages = Pages(database, every=0.01)
    await pages.views.put(7, 1)
    pages.failing.add(7)
    assert await pages.views.flush() == 0
    assert await pages.stored() == {} and await pages.waiting() == 1
    pages.failing.clear()
    async with asyncio.timeout(20):
        while await pages.views.flush() == 0:
            await asyncio.sleep(0.01)
    assert await pages.stored() == {7: 1}


async def test_a_key_that_fails_does_not_keep_the_others(database: Database) -> None:
    """Among hundreds it is found by halving, left in peace, tried again alone, and nothing of it is lost."""
    pages = Pages(database, every=0.05, batch=100)
    bad = 2 * 1024 + 5
    for _ in range(2):
        await asyncio.gather(*(pages.views.put(id * 1024 + 5, 1) for id in range(250)))
    pages.failing.add(bad)
    await pages.views.flush()
    assert await pages.stored() == {id * 1024 + 5: 2 for id in range(250) if id != 2}
    assert [found.name for found in pages.heard.of(BehindFailed)] == ["views"]
    pages.calls.clear()
    await pages.views.put(bad + 1024, 1)
    await pages.views.flush()
    assert {bad + 1024: 1} in pages.calls
    pages.failing.clear()
    async with asyncio.timeout(20):
        while await pages.waiting():
            await pages.views.flush()
            await asyncio.sleep(0.01)
    assert (await pages.stored())[bad] == 2


async def test_more_keys_that_fail_than_can_be_left_in_peace_do_not_keep_the_others(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many there are, whoever can be applied has his turn; that so many fail is an error."""
    monkeypatch.setattr(_behind_flush, "MAX_ILL", 5)
    monkeypatch.setattr(_behind_flush, "MAX_OVER", 3)
    pages = Pages(database, every=60.0, batch=10)
    keys = [id * 1024 + 5 for id in range(60)]
    await asyncio.gather(*(pages.views.put(key, 1) for key in keys))
    pages.failing |= set(keys[:45])
    with pytest.raises(ValueError, match="no page"):
        await pages.views.flush()
    async with asyncio.timeout(60):
        while await pages.stored() != dict.fromkeys(keys[45:], 1):
            with suppress(ValueError):
                await pages.views.flush()
    assert await pages.waiting() == 45
    pages.failing.clear()
    async with asyncio.timeout(60):
        while await pages.waiting() > 5:  # the five are left in peace
            await pages.views.flush()


async def test_a_value_that_cannot_be_read_any_more_is_kept(database: Database) -> None:
    """A newer version's row, say: it is one key's trouble, visible, and waits for code that can read it."""
    pages = Pages(database)
    texts = WriteBehind("views", database, str, merge=operator.add, apply=_never)
    await texts.put(7, "not a number")
    await pages.views.put(8, 1)
    await pages.views.flush()
    assert await pages.stored() == {8: 1} and await pages.waiting() == 1
    assert len(pages.heard.of(BehindFailed)) == 1
    assert sorted(found.rows for found in pages.heard.of(BehindWaiting)) == [0, 1]


async def _never(tx: WriteTransaction, changes: Mapping[Changed, Any]) -> None:
    raise AssertionError


async def test_two_flushes_at_once_apply_everything_once(database: Database) -> None:
    """As workers in several processes do it."""
    one, other = Pages(database), Pages(database)
    await asyncio.gather(*(one.views.put(id, 1) for id in range(300)))
    for _ in range(5):
        await asyncio.gather(one.views.flush(), other.views.flush(), one.views.flush())
    assert await one.stored() == dict.fromkeys(range(300), 1)


async def test_a_later_change_is_not_applied_before_an_earlier_one(database: Database) -> None:
    """A slow flush holds the key's first change; another worker's leaves the second one alone meanwhile."""
    applied: list[str] = []
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slowly(tx: WriteTransaction, changes: Mapping[Changed, str]) -> None:
        begun.set()
        await go_on.wait()
        applied.extend(changes.values())

    async def quickly(tx: WriteTransaction, changes: Mapping[Changed, str]) -> None:
        applied.extend(changes.values())

    slow = WriteBehind("drafts", database, str, merge=operator.add, apply=slowly)
    quick = WriteBehind("drafts", database, str, merge=operator.add, apply=quickly)
    await slow.put("a", "first")
    flushing = asyncio.create_task(slow.flush())
    await begun.wait()
    await quick.put("a", "second")
    assert await quick.flush() == 0
    go_on.set()
    assert await flushing >= 1
    await quick.flush()
    assert applied == ["first", "second"]


async def test_a_cancelled_caller_takes_nobody_along(database: Database) -> None:
    """The others of its batch are acknowledged; its own change, merged with theirs, may count."""
    pages = Pages(database)
    tasks = [asyncio.create_task(pages.views.put(7, 1)) for _ in range(10)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError) and results[1:] == [None] * 9
    await pages.views.flush()
    assert (await pages.stored())[7] in (9, 10)


async def test_a_put_keeps_to_its_deadline(own_postgres: Any, tmp_path: Path) -> None:
    """When the server is frozen, the caller hears in time that nobody knows; later the change is there."""
    server = own_postgres()
    async with opened([server.url()], tmp_path) as database:
        pages = Pages(database)
        await pages.views.put(7, 1)
        server.freeze()
        try:
            clock = asyncio.get_running_loop().time
            with activate(RequestContext(deadline=clock() + 0.3)), pytest.raises(CommitUnknown):
                await pages.views.put(7, 1)
        finally:
            server.thaw()
        async with asyncio.timeout(60):
            while await pages.views.pending(7) not in (1, 2):
                await asyncio.sleep(0.05)


async def test_while_the_database_is_away_puts_fail_and_nothing_is_lost(
    own_postgres: Any, tmp_path: Path
) -> None:
    """Callers hear it; a flush raises; what was acknowledged before is applied after."""
    server = own_postgres()
    async with opened([server.url()], tmp_path) as database:
        pages = Pages(database, timeout=2.0)
        await pages.views.put(7, 5)
        server.kill()
        with pytest.raises(SpringtideError):
            await pages.views.put(7, 1)
        with pytest.raises(SpringtideError):
            await pages.views.flush()
        server.restart()
        async with asyncio.timeout(60):
            while True:
                try:
                    await pages.views.flush()
                    break
                except SpringtideError:
                    await asyncio.sleep(0.05)
        assert (await pages.stored())[7] in (5, 6)


async def test_keys_of_any_letters_are_each_taken_once_in_a_pass(database: Database) -> None:
    """Pages follow each other in the order of the index, however the database orders texts."""
    seen: list[Changed] = []

    async def note(tx: WriteTransaction, changes: Mapping[Changed, int]) -> None:
        seen.extend(changes)

    keys = ["a", "B", "c", "D", "ä", "Z", "_", "é", "-a", "a-", "aB", "Ab", "日本", '"', "\\"]
    behind = WriteBehind("letters", database, int, merge=operator.add, apply=note, batch=2)
    await asyncio.gather(*(behind.put(key, 1) for key in keys))
    assert await behind.flush() == len(keys)
    assert sorted(map(str, seen)) == sorted(keys)


async def test_the_statements_find_their_rows_by_the_index(database: Database) -> None:
    """Among many kinds of changes: nothing is scanned, and a page not even sorted."""
    pages = Pages(database)
    sql = Sql("pages")
    pool = database.pools["main"]
    await pool.execute(
        "insert into pages._behind (name, bucket, key, value)"
        " select 'kind ' || n % 50, n % 1024, n::text, '1' from generate_series(1, 20000) as n"
    )
    await pool.execute("analyze pages._behind")
    await pages.views.put(7, 1)
    for statement, arguments in (
        (sql.take, ("kind 7", -1, "", 0, ["1"], 5)),
        (sql.take_keys, ("kind 7", [7, 57], ["7", "57"], 5)),
        (sql.pending, ("kind 7", 7, "7")),
    ):
        async with pool.transaction() as tx:
            await tx.execute("set local plan_cache_mode = force_generic_plan")
            plan = "\n".join(row[0] for row in await tx.fetch(f"explain {statement}", *arguments))
        assert "Seq Scan" not in plan and ("Sort" in plan) == (statement is sql.take_keys), plan
        assert "_behind_pkey" in plan, plan


async def test_what_waits_in_a_process_is_bounded(database: Database) -> None:
    """Keys beyond the bound are refused at once; known keys are merged."""
    pages = Pages(database, max_waiting=3)
    puts = [pages.views.put(key, 1) for key in (0, 1, 2, 3, 0)]
    results = await asyncio.gather(*puts, return_exceptions=True)
    assert [type(found) for found in results] == [type(None), type(None), type(None), Unavailable, type(None)]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (True, 1, "a key is an id or a text, got True"),
        (1.5, 1, "a key is an id or a text, got 1.5"),
        ("", 1, "a key has 1 to 500 characters without NUL, got ''"),
        ("a\0", 1, "without NUL"),
        (7, "x", "cannot be kept"),
        (7, object(), "cannot be kept"),
    ],
)
async def test_what_cannot_be_kept_is_refused(database: Database, key: Any, value: Any, message: str) -> None:
    """In the request that made the mistake."""
    with pytest.raises(ConfigurationError, match=message):
        await Pages(database).views.put(key, value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"every": 0}, "every must be > 0 seconds and less than a day, got 0"),
        ({"timeout": -1}, "timeout must be > 0 seconds and less than a day, got -1"),
        ({"batch": 0}, "batch must be >= 1, got 0"),
        ({"max_waiting": 0}, "max_waiting must be >= 1, got 0"),
    ],
)
async def test_options_are_checked(database: Database, options: dict[str, Any], message: str) -> None:
    """At construction, with the value and the rule."""
    with pytest.raises(ConfigurationError, match=message):
        Pages(database, **options)


async def test_a_value_has_a_largest_size(database: Database) -> None:
    """What is large is stored elsewhere, and its id is put."""
    texts = WriteBehind("texts", database, str, merge=operator.add, apply=_never)
    with pytest.raises(ConfigurationError, match="a change has at most 65536 bytes"):
        await texts.put(7, "x" * 70_000)


async def test_it_is_a_service_where_there_are_no_workers(database: Database) -> None:
    """Started, it flushes by itself."""
    pages = Pages(database, every=0.05)
    service = pages.views.service()
    await service.start()
    try:
        await pages.views.put(7, 1)
        async with asyncio.timeout(20):
            while await pages.stored() != {7: 1}:
                await asyncio.sleep(0.02)
    finally:
        await service.stop()


async def test_killed_writers_and_workers_lose_and_double_nothing(database_url: str, tmp_path: Path) -> None:
    """kill -9 of two writers and two workers at work: what was acknowledged is applied once, in order."""
    found = await contest(database_url, tmp_path, kills=6)
    assert found["acknowledged"] > 100
    assert {key: found[key] for key in ("lost", "doubled", "torn", "disordered")} == {
        "lost": 0, "doubled": 0, "torn": 0, "disordered": 0,
    }  # fmt: skip


@pytest.mark.stress
async def test_fifty_kills(database_url: str, tmp_path: Path) -> None:
    """The same, long enough to hit every place."""
    found = await contest(database_url, tmp_path, kills=50, seed=2)
    assert [found[key] for key in ("lost", "doubled", "torn", "disordered")] == [0, 0, 0, 0]
