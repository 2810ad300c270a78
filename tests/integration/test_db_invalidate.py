"""What a write makes stale is written down with it and told after it, and never without it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import urlsplit

import asyncpg
import msgspec
import pytest
from tests.invalidating import TellingCache
from tests.sharded import notes

from springtide.context import Part, RequestContext, activate
from springtide.db import Database
from springtide.db._invalidating import MAX_FIELDS, PART, Recorded
from springtide.errors import CommitUnknown, ConfigurationError
from springtide.testing.faults import FaultProxy

ROWS = "select xid::text, class, fields from notes._invalidation order by class, fields"


@pytest.fixture
async def db(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    async with notes([database_url], tmp_path) as db:
        db.invalidations = TellingCache()
        yield db


def cache_of(db: Database) -> TellingCache:
    cache = db.invalidations
    assert isinstance(cache, TellingCache)
    return cache


async def written_down(db: Database) -> list[tuple[int, str, list[str]]]:
    rows = await db.pools["main"].fetch(ROWS)
    return [(int(row["xid"]), row["class"], msgspec.json.decode(row["fields"])) for row in rows]


async def add(db: Database, id: int) -> None:
    async with db.write(1) as tx:
        await tx.execute("insert into notes.note (bucket, id) values (0, $1)", id)


async def test_it_is_written_down_with_the_write_and_told_after_it(db: Database) -> None:
    """One row per class under the number of the transaction, each field once; the cache hears of it when
    everybody can see the write, and before the write's own callbacks."""
    cache, order = cache_of(db), list[str]()

    async def look(recorded: Recorded) -> None:
        order.append("told")
        assert await db.pools["main"].fetch_value("select count(*) from notes.note") == 1
        assert {xid for xid, _, _ in await written_down(db)} == {recorded.xid}

    cache.before = look
    async with db.write(1) as tx:
        tx.on_commit(lambda: order.append("callback"))
        tx.invalidate("user", 7)
        await tx.execute("insert into notes.note (bucket, id) values (0, 1)")
        tx.invalidate("user", 7, tags=["org:5"])
        tx.invalidate("feed", tags=["org:5"])
        xid = int(await tx.fetch_value("select pg_current_xact_id()::text"))
        assert await tx.fetch_value("select count(*) from notes._invalidation") == 0
        assert cache.told == []
    assert order == ["told", "callback"]
    (told,) = cache.told
    assert told.fields == {"user": ["k:7", "t:org:5"], "feed": ["t:org:5"]}
    assert await written_down(db) == [(xid, "feed", ["t:org:5"]), (xid, "user", ["k:7", "t:org:5"])]
    assert told.recorded.xid == xid
    seen = told.recorded.seen
    assert not seen.standby
    assert xid >= seen.xmax or xid in seen.running  # it is not in its own past
    assert seen.epoch == db.epoch("main")  # a write says which history the primary is on


async def test_a_write_that_is_undone_takes_it_along(db: Database) -> None:
    """Nothing is written down and nobody is told: of a write that raises, of a savepoint that raises, of a
    nested write that raises; what the blocks around them said stays."""
    cache = cache_of(db)
    with pytest.raises(KeyError):
        async with db.write(1) as tx:
            tx.invalidate("user", 1)
            raise KeyError
    assert await written_down(db) == []
    async with db.write(1) as tx:
        tx.invalidate("user", 2)
        with pytest.raises(KeyError):
            async with tx.savepoint() as inner:
                inner.invalidate("user", 3)
                async with db.write(1) as innermost:
                    innermost.invalidate("user", 4)
                raise KeyError
        async with tx.savepoint() as inner:
            inner.invalidate("user", 5)
            async with db.write(1) as innermost:
                innermost.invalidate("feed", 6)
    (told,) = cache.told
    assert told.fields == {"user": ["k:2", "k:5"], "feed": ["k:6"]}
    assert [row[1:] for row in await written_down(db)] == [("feed", ["k:6"]), ("user", ["k:2", "k:5"])]


async def test_a_write_that_invalidates_nothing_pays_nothing(db: Database) -> None:
    """Not one statement more, and one more when it invalidates, however much."""
    begun = RequestContext()

    def calls() -> int:
        return begun.ledger.parts[Part.SQL].calls if begun.ledger.parts else 0

    async def statements(*keys: int) -> int:
        before = calls()
        async with db.write(1) as tx:
            await tx.execute("select 1")
            for key in keys:
                tx.invalidate("user", key)
                tx.invalidate("feed", key)
        return calls() - before

    with activate(begun):
        none, one, many = await statements(), await statements(1), await statements(*range(1000))
        before = calls()
        async with db.write(1) as tx:
            await tx.execute("select 1")
            tx.invalidate("user")  # no key and no tag: no field
        empty = calls() - before
    assert (one - none, many - none, empty - none) == (1, 1, 0)


async def test_many_fields_are_several_rows_and_there_is_a_limit(db: Database) -> None:
    """No row is longer than PART fields. What goes beyond the limit is refused where it is said, and the
    write may still end in another way."""
    async with db.write(1) as tx:
        tx.invalidate("user", tags=[str(n) for n in range(PART + 1)])
    rows = await written_down(db)
    assert sorted(len(fields) for _, _, fields in rows) == [1, PART]
    assert {field for _, _, fields in rows for field in fields} == {f"t:{n}" for n in range(PART + 1)}
    async with db.write(1) as tx:
        tx.invalidate("user", tags=[str(n) for n in range(MAX_FIELDS)])
        async with tx.savepoint() as inner:
            inner.invalidate("user", tags=["0"])  # that one is there already
        with pytest.raises(
            ValueError, match=rf"may invalidate {MAX_FIELDS} keys and tags, got {MAX_FIELDS + 1}"
        ):
            tx.invalidate("feed", 1)
    assert {cls for _, cls, _ in await written_down(db)} == {"user"}


async def test_it_is_refused_without_a_cache_and_after_the_end(db: Database) -> None:
    cache, db.invalidations = db.invalidations, None
    async with db.write(1) as tx:
        with pytest.raises(ConfigurationError, match="'notes' was built without a cache"):
            tx.invalidate("user", 1)
    db.invalidations = cache
    async with db.write(1) as tx:
        pass
    with pytest.raises(RuntimeError, match="has ended"):
        tx.invalidate("user", 1)


@pytest.mark.parametrize(("fault", "committed"), [("cut", 1), ("drop", 0)])
async def test_a_commit_of_unknown_outcome_is_told_too(
    database_url: str, tmp_path: Path, fault: str, committed: int
) -> None:
    """The caller has heard that it may have succeeded: when he has, the cache knows of it."""
    target = urlsplit(database_url)
    assert target.port is not None
    async with FaultProxy(target=target.port) as proxy:
        through = database_url.replace(f":{target.port}", f":{proxy.port}")
        async with notes([through], tmp_path) as db:
            db.invalidations = cache = TellingCache()
            with pytest.raises(CommitUnknown):
                async with db.write(1) as tx:
                    tx.invalidate("user", 1)
                    await tx.execute("insert into notes.note (bucket, id) values (0, 1)")
                    proxy.on(b"COMMIT\x00", fault)
            assert [told.fields for told in cache.told] == [{"user": ["k:1"]}]
            async with asyncio.timeout(20):
                while len(await written_down(db)) != committed:
                    await asyncio.sleep(0.01)


async def test_a_caller_waits_for_the_cache_no_longer_than_his_deadline(db: Database) -> None:
    """The write is committed; the cache hears of it all the same."""
    cache, go = cache_of(db), asyncio.Event()

    async def wait(recorded: Recorded) -> None:
        await go.wait()

    cache.before = wait
    with activate(RequestContext(deadline=time.monotonic() + 0.5)):
        async with db.write(1) as tx:
            tx.invalidate("user", 1)
    assert cache.told == []
    go.set()
    async with asyncio.timeout(20):
        await cache.more.wait()
    assert [told.fields for told in cache.told] == [{"user": ["k:1"]}]


async def test_a_cache_that_fails_does_not_fail_the_write(db: Database) -> None:
    """What it was not told is written down."""

    async def fail(recorded: Recorded) -> None:
        raise ConnectionError

    cache_of(db).before = fail
    async with db.write(1) as tx:
        tx.invalidate("user", 1)
    assert [row[1:] for row in await written_down(db)] == [("user", ["k:1"])]


async def test_nobody_sees_it_before_the_write(db: Database, database_url: str) -> None:
    """A row of an open transaction is invisible, and visible with it: a reader of rows misses nothing by
    coming in between."""
    other = await asyncpg.connect(database_url)
    try:
        await other.execute("begin isolation level read committed")
        async with db.write(1) as tx:
            tx.invalidate("user", 1)
            assert await other.fetch(ROWS) == []
        assert len(await other.fetch(ROWS)) == 1
    finally:
        await other.close()
