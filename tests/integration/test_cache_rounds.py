"""The rounds of a leading relay, one by one, where its Redis does not answer."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests._level2 import Thing
from tests._redis import RedisServer
from tests.cached import until
from tests.invalidating import TellingCache
from tests.jobs_support import Heard
from tests.relayed import Bus, connected, slots
from tests.sharded import notes

from springtide.cache._fence import Refusal
from springtide.cache._level2 import Entry, Level2
from springtide.cache._names import Names, scope_name, slot_name
from springtide.cache._relays import _strangers
from springtide.cache._rounds import MEASURE, Leadership
from springtide.cache._slot import Slot
from springtide.db import Database
from springtide.signals import NullSink, RelayMeasured
from springtide.testing.clock import ManualClock

pytestmark = pytest.mark.needs("redis-server")


@pytest.fixture
async def db(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    """Its cache is told nothing by writes: all there is, is the rows."""
    async with notes([database_url], tmp_path) as db:
        db.invalidations = TellingCache()
        async with db.seeing("main"):
            pass  # now its epoch is known
        yield db


async def invalidate(db: Database, key: int, cls: str = "user") -> None:
    async with db.write(1) as tx:
        tx.invalidate(cls, key)


async def test_a_beat_whose_answer_never_came_proves_nothing_with_a_later_one(
    db: Database, own_redis: Callable[..., RedisServer]
) -> None:
    """Redis stands still, and two rounds' beats get no answer. Then a write commits, whose writer dies, and a
    reader asks for the bus. Redis goes on with the reader, and then with both beats, one after the other: the
    second round had begun before the write, so the two together prove nothing of that moment."""
    server, clock = own_redis(), ManualClock()
    epoch = db.epoch("main")
    assert epoch is not None
    async with connected(server, timeout=1.5) as redis:
        leader = Leadership("main", ["notes"], 30.0, clock, NullSink())
        pool, targets = db.pools["main"], slots(redis, ["user"])
        bus = Bus(server, "user", epoch)
        for _ in range(3):
            await leader.one(pool, targets(epoch))
        entry_id, said = server.command("XREVRANGE", bus.names.bus, "+", "-", "COUNT", 1)[0]
        reader = Slot(bus.names.slot, share=1.0, relayed=True, heard=lambda fields, sequence: None)
        reader.begin(bus.names.scope, int(said[1]), entry_id, 0.0)
        before, linked = len(bus.beats()), targets(epoch)

        def hear() -> None:
            after = f"({reader.last_id}"
            for entry_id, said in server.command("XRANGE", bus.names.bus, after, "+"):
                entry = dict(zip(said[::2], said[1::2], strict=True))
                if "b" in entry:
                    assert reader.beat(entry_id, int(entry["s"]), entry["b"])
                else:
                    assert reader.void(entry_id, int(entry["s"]), entry["f"].split("\n"))

        server.freeze()
        try:
            for _ in range(2):
                await leader.one(pool, linked)
                await clock.advance(1.0)  # the class is tried again
            await invalidate(db, 7)
        finally:
            server.thaw()
        reader.complete(100.0)
        await until(lambda: len(bus.beats()) > before)
        hear()
        assert reader.proof < 100.0

        async def proven() -> bool:
            await clock.advance(1.0)
            await leader.one(pool, targets(epoch))
            hear()
            return reader.proof >= 100.0

        await until(proven)
        assert "k:7" in bus.voided()


async def test_rows_of_a_class_that_nobody_knows_are_applied_in_the_end(
    db: Database, redis_server: RedisServer
) -> None:
    """A version that is gone wrote them, or one that is being deployed. Young ones wait for who knows the
    class; old ones are applied in the slot that it has, in each copy, so that nothing stays and nothing
    old is found when the class comes back. While its Redis cannot be reached they stay."""
    epoch, heard, clock, away = db.epoch("main"), Heard(), ManualClock(), True
    assert epoch is not None
    async with connected(redis_server) as redis:

        def strangers(cls: str, schema: str) -> Sequence[Level2[Any]] | None:
            return None if away else _strangers("tests", redis, "main", epoch, cls, schema)

        leader = Leadership("main", ["notes"], 30.0, clock, heard, strangers)
        pool, targets = db.pools["main"], slots(redis, ["user"])(epoch)
        scope = scope_name("tests", redis_server.run_id, "main", epoch, "notes")
        kept = [Names(slot_name("gone", "main", copy=copy), scope).value("7") for copy in (0, 1, 3)]
        for key in kept:
            redis_server.command("SET", key, "old")
        await invalidate(db, 7, "gone")
        await invalidate(db, 8, "gone")

        async def measured() -> int:
            await clock.advance(MEASURE)
            await leader.one(pool, targets)
            return heard.of(RelayMeasured)[-1].strangers

        assert await measured() == 0
        await pool.fetch(
            "update notes._invalidation set written_at = now() - interval '2 minutes' where fields ~ '7'"
        )
        assert await measured() == 0
        away = False
        assert await measured() == 1
        assert redis_server.command("EXISTS", *kept) == 0
        left = await pool.fetch("select class, fields from notes._invalidation")
        assert [(row["class"], row["fields"]) for row in left] == [("gone", '["k:8"]')]


async def test_a_leader_that_comes_back_to_a_redis_vouches_for_nothing_of_before(
    db: Database, own_redis: Callable[..., RedisServer]
) -> None:
    """While another leader had another Redis (a partition, or a deploy with another address), a writer died
    after its COMMIT: its row was applied where nobody of here could hear it, and deleted. The next leader is
    here again. It forgets what is kept here before its first beat; one that follows it here does not."""
    servers, clock, epoch = (own_redis(), own_redis()), ManualClock(), db.epoch("main")
    assert epoch is not None
    async with connected(servers[0]) as here, connected(servers[1]) as there:
        pool = db.pools["main"]

        def leader() -> Leadership:
            return Leadership("main", ["notes"], 30.0, clock, NullSink())

        async def keep(level: Level2[Any]) -> Refusal | None:
            async with db.seeing("main") as sight:
                entry = Entry("7", Thing(7, "value"), 60.0)
                return (await level.fill(entry, seen=sight.seen)).refusal

        targets = {redis: slots(redis, ["user"])(epoch) for redis in (here, there)}
        (level,) = targets[here]["user"] or ()
        first = leader()
        for _ in range(3):
            await first.one(pool, targets[here])
        assert await keep(level) is None
        elsewhere = leader()
        await elsewhere.one(pool, targets[there])
        await invalidate(db, 7)
        await elsewhere.one(pool, targets[there])
        assert await pool.fetch_value("select count(*) from notes._invalidation") == 0
        assert (await level.read(["7"])).found != [None]

        bus = Bus(servers[0], "user", epoch)
        beats = len(bus.beats())
        back = leader()
        for _ in range(3):
            await back.one(pool, targets[here])
        assert (await level.read(["7"])).found == [None]
        assert bus.voided() == ["*"]
        entries = bus.entries()
        assert ["b" in entry for entry in entries].index(False) == beats

        assert await keep(level) is None
        again = leader()
        for _ in range(3):
            await again.one(pool, targets[here])
        assert (await level.read(["7"])).found != [None]
        assert bus.voided() == ["*"]
