"""Both levels over a real Redis and a real PostgreSQL: what is kept, for how long, and what ends it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests._redis import RedisServer
from tests.cached import HANGS, Node, Note, another, client, node, until
from tests.sharded import notes

from springtide.cache import EACH, FORBIDDEN, Cache
from springtide.cache._scripts import GET
from springtide.context import CausalityToken, Consistency, RequestContext, activate, reading
from springtide.db import Bucket, Database, Queries
from springtide.provenance import Provenance
from springtide.redis import Script

pytestmark = pytest.mark.needs("redis-server")


@pytest.fixture
async def db(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    async with notes([database_url], tmp_path) as db:
        yield db


async def test_what_was_loaded_is_kept_in_both_levels(redis_server: RedisServer, db: Database) -> None:
    """The second level serves other processes, the first one this one; nothing is loaded twice."""
    async with node(redis_server, db) as here, node(redis_server, another(db)) as there:
        await here.write(7, "old")
        assert await here.text(7) == "old"
        assert [await here.text(7) for _ in range(3)] == ["old"] * 3
        assert (here.stats.loads, here.stats.l1_hits) == (1, 3)
        assert await there.text(7) == "old"
        assert (there.stats.loads, there.stats.l2_hits) == (0, 1)
        assert await there.text(7) == "old"
        assert there.stats.l1_hits == 1


async def test_a_write_ends_what_it_invalidates_everywhere(redis_server: RedisServer, db: Database) -> None:
    """In this process when the write ends, in others as soon as they hear of it; a tag ends all that carry
    it, and what the write did not name stays."""
    async with node(redis_server, db) as here, node(redis_server, another(db)) as there:
        for id, rank in ((1, 5), (2, 5), (3, 6)):
            await here.write(id, "old", rank=rank)
        for one in (here, there):
            assert [await one.text(id) for id in (1, 2, 3)] == ["old"] * 3
        await here.write(1, "new", rank=5)
        assert await here.text(1) == "new"
        await until(lambda: 1 not in there.entries)
        assert await there.text(1) == "new"
        assert {2, 3} <= set(there.entries)
        await here.write(2, "new", rank=5, told=False, tags=["rank:5"])
        assert [await here.text(id) for id in (1, 2)] == ["new", "new"]
        await until(lambda: 2 not in there.entries)
        assert [await there.text(id) for id in (1, 2, 3)] == ["new", "new", "old"]
        assert set(there.entries) == {1, 2, 3}


async def test_what_was_read_before_a_write_does_not_come_back_after_it(
    redis_server: RedisServer, db: Database
) -> None:
    """A loader that is slow between its read and its end has read the old row. Who waited has it, nobody
    else: neither level keeps it, and whoever comes after the write begins a load of his own."""
    async with node(redis_server, db) as here, node(redis_server, another(db)) as there:
        await here.write(7, "old")
        for slow in (here, there):
            slow.hold()
            early = asyncio.create_task(slow.text(7))
            await until(lambda slow=slow: slow.reads)
            slot = slow.place.slot
            heard = slot.position
            await here.write(7, "new")
            await until(lambda slot=slot, heard=heard: slot.position > heard)
            late = asyncio.create_task(slow.text(7))
            await until(lambda slow=slow: slow.reads == 2)
            slow.go.set()
            assert await early == "old"
            assert await late == "new"
            assert [await one.text(7) for one in (here, there)] == ["new", "new"]
            assert sum(slow.stats.refused.values()) >= 1
            await here.write(7, "old")
            slow.reads = 0
            await until(lambda: not here.entries and not there.entries)


async def test_the_first_level_takes_nothing_that_was_invalidated_on_its_way(
    redis_server: RedisServer, db: Database
) -> None:
    """A value leaves Redis, its invalidation overtakes it on the bus: the caller has it, this memory not."""
    async with node(redis_server, db) as here, node(redis_server, another(db)) as there:
        await here.write(7, "old")
        assert await here.text(7) == "old"
        link = there.cache.redis.link() if there.cache.redis is not None else None
        assert link is not None
        call, go, answered = link.call, asyncio.Event(), asyncio.Event()

        async def late(script: Script, keys: Any, args: Any) -> Any:
            answer = await call(script, keys, args)
            if script is GET:
                answered.set()
                await go.wait()
            return answer

        link.call = late  # type: ignore[assignment, method-assign]  # the answer is on its way for longer
        reader = asyncio.create_task(there.text(7))
        await answered.wait()
        heard = there.place.slot.position
        await here.write(7, "new")
        await until(lambda: there.place.slot.position > heard)
        go.set()
        assert await reader == "old"
        assert 7 not in there.entries
        assert await there.text(7) == "new"


async def test_a_hundred_misses_over_four_processes_are_one_load(
    redis_server: RedisServer, db: Database
) -> None:
    """25 callers in each of four processes: a lease lets one of them ask the database."""
    async with (
        node(redis_server, db) as one,
        node(redis_server, another(db)) as two,
        node(redis_server, another(db)) as three,
        node(redis_server, another(db)) as four,
    ):
        nodes = (one, two, three, four)
        await one.write(7, "there")
        for each in nodes:
            each.hold()
        tasks = [asyncio.create_task(each.text(7)) for each in nodes for _ in range(25)]
        await until(lambda: sum(each.stats.waited > 3 for each in nodes) == 3)
        for each in nodes:
            each.go.set()
        assert await asyncio.gather(*tasks) == ["there"] * 100
        assert sum(len(each.loads) for each in nodes) == 1


async def test_who_takes_a_lease_and_dies_holds_nobody_up_for_long(
    redis_server: RedisServer, db: Database
) -> None:
    """The others wait as long as loads of the class take, a few times over, and load themselves."""
    async with node(redis_server, db) as here:
        await here.write(7, "there")
        assert await here.text(1) is None  # now it is known how long a load takes
        level = here.place.level()
        assert level is not None
        await level.lease(["note:7"], 1000.0)
        assert await here.text(7) == "there"
        assert here.stats.bypassed["lease"] == 1


async def test_many_are_asked_for_together(redis_server: RedisServer, db: Database) -> None:
    """What the first level has is taken from there, the rest is one question to Redis and one load."""
    async with node(redis_server, db) as here, node(redis_server, another(db)) as there:
        for id in range(1, 6):
            await here.write(id, f"text {id}")
        await there.text(1)
        await here.text(2)
        here.loads.clear()
        found = await here.notes.get_many([5, 2, 1, 9, 3])
        assert {id: note.text for id, note in found.items()} == {
            5: "text 5", 2: "text 2", 1: "text 1", 3: "text 3",
        }  # fmt: skip
        assert list(found) == [5, 2, 1, 3]
        assert here.loads == [[5, 9, 3]]
        here.loads.clear()
        assert await here.notes.get_many([5, 9, 3]) == {id: found[id] for id in (5, 3)}
        assert here.loads == []


async def test_nothing_there_is_kept_for_a_while_and_ended_by_a_write(
    redis_server: RedisServer, db: Database
) -> None:
    """As any value: fenced, and invalidated when the row comes. `negative=None` keeps none."""
    async with node(redis_server, db) as here, node(redis_server, another(db), negative=None) as never:
        assert [await here.text(7) for _ in range(3)] == [None] * 3
        assert here.loads == [7]
        await here.write(7, "there")
        assert await here.text(7) == "there"
        never.loads.clear()
        assert [await never.text(8) for _ in range(3)] == [None] * 3
        assert never.loads == [8, 8, 8]


async def test_lives_are_jittered(redis_server: RedisServer, db: Database) -> None:
    """Values that were loaded together do not expire together, and none lives longer than its ttl."""
    async with node(redis_server, db, ttl=1000.0, l1=0, jitter=0.2) as here:
        for id in range(1, 30):
            await here.write(id, "there")
        await here.notes.get_many(range(1, 30))
        keys = redis_server.command("KEYS", "*:v:note:*")
        lives = [redis_server.command("PTTL", key) / 1000 for key in keys]
        assert len(lives) == 29
        assert all(790.0 <= life <= 1000.0 for life in lives)
        assert max(lives) - min(lives) > 50.0


async def test_an_old_value_is_given_out_while_it_is_loaded_anew(
    redis_server: RedisServer, db: Database
) -> None:
    """Past its ttl a value of such a class is served at once, from both levels, and one load renews it."""
    async with node(redis_server, db, ttl=0.2, l1=0.1, stale_while_revalidate=1000.0) as here:
        await here.write(7, "old", told=False)
        assert await here.text(7) == "old"
        await here.write(7, "new", told=False)

        async def renewed() -> bool:
            return await here.text(7) == "new"

        await until(renewed)
        assert here.stats.stale_served["revalidate"] + here.stats.l1_hits >= 1
        here.hold()
        here.reads = 0
        await until(lambda: _asked(here))
        assert await here.text(7) == "new"
        assert here.reads == 1
        here.go.set()


async def _asked(here: Node) -> bool:
    """Ask once; whether a load is under way by now."""
    await here.text(7)
    return here.reads > 0


async def test_when_the_loader_fails_what_was_there_before_is_given(
    redis_server: RedisServer, db: Database
) -> None:
    """Where the class wants it: also a value that was invalidated, but not to the session that wrote."""
    async with node(redis_server, db, stale_if_error=1000.0) as here, node(redis_server, another(db)) as bare:
        await here.write(7, "old")
        assert await here.text(7) == "old"
        mine = RequestContext()
        with activate(mine):
            await here.write(7, "new")
        here.error = bare.error = LookupError("no database")
        assert await here.text(7) == "old"
        assert here.stats.stale_served["error"] == 1
        with activate(mine), pytest.raises(LookupError):
            await here.text(7)
        here.error = None
        assert await here.text(7) == "new"


async def test_what_is_kept_for_an_emergency_is_loaded_anew_after_its_ttl(
    redis_server: RedisServer, db: Database
) -> None:
    """It lies there and nobody is given it, so nobody waits for anybody either."""
    async with node(redis_server, db, ttl=0.05, l1=0, stale_if_error=1000.0) as here:
        await here.write(7, "old", told=False)
        assert await here.text(7) == "old"
        await here.write(7, "new", told=False)

        async def renewed() -> bool:
            return await here.text(7) == "new"

        await until(renewed)
        here.error = LookupError("no database")

        async def served_old() -> bool:
            return await here.text(7) == "new" and here.stats.stale_served["error"] > 0

        await until(served_old)
        assert here.stats.bypassed["lease"] == 0


async def test_an_error_is_kept_nowhere(redis_server: RedisServer, db: Database) -> None:
    """The next one who asks is loaded for, in this process and in others, at once."""
    async with node(redis_server, db) as here, node(redis_server, another(db)) as there:
        await here.write(7, "there")
        here.error = LookupError("no database")
        with pytest.raises(LookupError, match="no database"):
            await here.text(7)
        assert await there.text(7) == "there"
        here.error = None
        assert await here.text(7) == "there"


async def test_a_load_that_takes_long_does_not_hold_up_who_may_have_the_old_value(
    redis_server: RedisServer, db: Database
) -> None:
    """After the soft time-out the old value is given, the load goes on, and its value is kept."""
    async with node(redis_server, db, stale_if_error=1000.0, soft_timeout=0.01) as here:
        await here.write(7, "old")
        assert await here.text(7) == "old"
        await here.write(7, "new")
        here.hold()
        assert await here.text(7) == "old"
        assert here.stats.stale_served["soft"] == 1
        here.go.set()

        async def there() -> bool:
            return await here.text(7) == "new"

        await until(there)
        assert here.loads.count(7) == 2


async def test_what_is_too_large_is_loaded_by_each_who_asks(redis_server: RedisServer, db: Database) -> None:
    async with node(redis_server, db, max_bytes=500) as here:
        await here.write(7, "".join(map(chr, range(0x4E00, 0x4E00 + 400))))
        for _ in range(3):
            assert len(await here.text(7) or "") == 400
        assert here.loads == [7, 7, 7]
        assert here.stats.refused["oversized"] == 3


async def test_inside_a_write_its_own_rows_are_read_and_nothing_is_kept(
    redis_server: RedisServer, db: Database
) -> None:
    """Neither when the write ends well nor when it is undone has anybody else seen what it read."""
    async with node(redis_server, db) as here:
        await here.write(7, "old")
        assert await here.text(7) == "old"
        with pytest.raises(KeyError):
            async with db.write(Bucket(0)) as tx:
                await tx.execute("update notes.note set text = 'mine' where id = 7")
                assert await here.text(7) == "mine"
                assert (await here.notes.get_many([7]))[7].text == "mine"
                raise KeyError
        assert await here.text(7) == "old"
        assert here.stats.bypassed["write"] == 2


async def test_an_answer_learns_of_values_that_were_read_inside_a_write(
    redis_server: RedisServer, db: Database
) -> None:
    """They are part of it as any others are: its caches may keep it for what their class allows."""
    async with node(redis_server, db) as here:
        await here.write(7, "old", rank=3)
        context = RequestContext(provenance=Provenance())
        with activate(context):
            async with db.write(Bucket(0)):
                await here.notes.get(7)
        assert context.provenance is not None
        assert context.provenance.keys == ["note:7", "rank:3"] and context.provenance.unpoliced == "note"


@pytest.mark.parametrize("first", [15, 0])
async def test_an_answer_is_as_old_as_the_proof_of_what_is_kept(
    redis_server: RedisServer, db: Database, first: float
) -> None:
    """Out of memory, out of Redis: the value may be out of date since the last proof that was there."""
    async with node(redis_server, db, l1=first) as here:
        await here.write(7, "old")
        await here.text(7)
        context = RequestContext(provenance=Provenance())
        now = here.cache.clock.monotonic
        with activate(context):
            proof, hits = here.place.slot.proof, here.stats.l1_hits + here.stats.l2_hits
            before = now()
            assert await here.text(7) == "old"
            assert here.stats.l1_hits + here.stats.l2_hits == hits + 1
        assert context.provenance is not None
        assert before - here.place.slot.proof <= context.provenance.age <= now() - proof


async def test_a_load_never_reads_through_somebodys_write(redis_server: RedisServer, db: Database) -> None:
    """A class without a database whose loader reads one is loaded outside the open write of its caller."""
    async with node(redis_server, db) as here:
        await here.write(7, "old")
        async with client(redis_server) as redis:
            own = Cache("own", redis=redis)

            async def load(id: int) -> str | None:
                value = await db.read(Bucket(0)).fetch_value("select text from notes.note where id = $1", id)
                return str(value)

            texts = own.define("text:{id}", str, load=load)
            async with own:
                with pytest.raises(KeyError):
                    async with db.write(Bucket(0)) as tx:
                        await tx.execute("update notes.note set text = 'mine' where id = 7")
                        assert await texts.get(7) == "old"
                        raise KeyError


async def test_write_through_keeps_what_was_written(redis_server: RedisServer, db: Database) -> None:
    """After COMMIT both levels have it, and nobody loads; an undone block keeps nothing."""
    async with node(redis_server, db) as here, node(redis_server, another(db)) as there:
        async with db.write(Bucket(0)) as tx:
            await tx.execute("insert into notes.note (bucket, id, text) values (0, 7, 'written')")
            with pytest.raises(KeyError):
                async with tx.savepoint() as inner:
                    here.notes.put(inner, Note(8, "undone"), 8)
                    raise KeyError
            async with tx.savepoint() as inner:
                here.notes.put(inner, Note(7, "written"), 7)
        assert [await one.text(7) for one in (here, there)] == ["written", "written"]
        assert here.loads == there.loads == []
        assert here.stats.l1_hits == 1
        assert await here.text(8) is None
        assert here.loads == [8]


@pytest.mark.parametrize("again", ["put", "key", "tag"])
async def test_what_a_write_has_put_and_then_changed_again_is_not_kept(
    redis_server: RedisServer, db: Database, again: str
) -> None:
    """By another put of the same key, by the key or by a tag of what was put: the first value was never the
    row of anybody but this transaction."""
    async with node(redis_server, db) as here, node(redis_server, another(db)) as there:
        async with db.write(Bucket(0)) as tx:
            await tx.execute("insert into notes.note (bucket, id, text, rank) values (0, 7, 'first', 5)")
            here.notes.put(tx, Note(7, "first", 5), 7)
            here.notes.put(tx, Note(8, "beside", 6), 8)
            await tx.execute("update notes.note set text = 'second' where id = 7")
            if again == "put":
                here.notes.put(tx, Note(7, "second", 5), 7)
            elif again == "key":
                async with tx.savepoint() as inner:
                    inner.invalidate(here.notes, 7)
            else:
                tx.invalidate(here.notes, tags=["rank:5"])
        assert here.stats.fills == (2 if again == "put" else 1)
        assert [await one.text(7) for one in (here, there)] == ["second", "second"]
        assert await there.text(8) == "beside"
        assert there.loads == []


async def test_a_write_through_without_redis_says_nothing(
    db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody keeps anything, and the write is a write."""
    async with node(None, db) as here:
        async with db.write(Bucket(0)) as tx:
            await tx.execute("insert into notes.note (bucket, id, text) values (0, 7, 'written')")
            here.notes.put(tx, Note(7, "written"), 7)
        assert await here.text(7) == "written"
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_a_write_through_gives_way_to_a_later_write(redis_server: RedisServer, db: Database) -> None:
    """Whose invalidation came first: what it has not seen is not put over it."""
    async with node(redis_server, db) as here, node(redis_server, another(db)) as there:
        await here.write(7, "first")
        told, go = asyncio.Event(), asyncio.Event()

        async def hold() -> None:
            told.set()
            await go.wait()

        async def slow() -> None:
            async with db.write(Bucket(0)) as tx:
                await tx.execute("update notes.note set text = 'second' where id = 7")
                tx.on_commit(hold)  # runs after the invalidation and before the value is put
                here.notes.put(tx, Note(7, "second"), 7)

        writing = asyncio.create_task(slow())
        await told.wait()
        await there.write(7, "third")
        go.set()
        await writing
        assert [await one.text(7) for one in (here, there)] == ["third", "third"]
        assert here.stats.refused["unseen"] == 1


async def test_a_class_without_a_database_is_invalidated_by_hand(redis_server: RedisServer) -> None:
    """Everywhere; a load that began before is not kept."""
    async with client(redis_server) as redis, client(redis_server) as other:
        said, go, begun = ["old"], asyncio.Event(), asyncio.Event()
        go.set()

        async def load(name: str) -> str:
            value = said[0]
            begun.set()
            await go.wait()
            return value

        caches = [Cache("tests", redis=one) for one in (redis, other)]
        here, there = (one.define("rate:{name}", str, load=load, tags=("all",)) for one in caches)
        async with caches[0], caches[1]:
            places = [one.places[None] for one in (here, there)]
            await until(lambda: all(place.trusted(place.level()) for place in places))
            assert [await one.get("eur") for one in (here, there)] == ["old", "old"]
            assert there.stats.loads == 0
            said[0] = "new"
            assert [await one.get("eur") for one in (here, there)] == ["old", "old"]
            await here.invalidate("eur")
            assert await here.get("eur") == "new"
            await until(lambda: there.view is not None and "eur" not in there.view.entries)
            assert await there.get("eur") == "new"
            go.clear()
            begun.clear()
            early = asyncio.create_task(here.get("usd"))
            await begun.wait()
            said[0] = "newer"
            await there.invalidate(tags=["all"])
            go.set()
            assert await early == "new"
            assert await there.get("usd") == "newer"
            assert there.stats.bypassed["lease"] == 0


async def test_two_versions_of_a_type_do_not_read_each_other(redis_server: RedisServer, db: Database) -> None:
    """While a deploy is under way both serve, each what it knows; nothing breaks and nothing is mixed."""

    class Renamed(msgspec.Struct, frozen=True):
        id: int
        body: str

    async def load(source: Queries, id: int) -> Renamed | None:
        row = await source.fetch_one("select id, text from notes.note where bucket = 0 and id = $1", id)
        return None if row is None else Renamed(row["id"], row["text"])

    async with node(redis_server, db) as old, client(redis_server) as redis:
        other = another(db)
        cache = Cache("tests", redis=redis)
        new = cache.define("note:{id:int}", Renamed, database=other, load=load, tags=(), name="note")
        async with cache:
            await until(lambda: new.places["main"].trusted(new.places["main"].level()))
            await old.write(7, "there")
            for _ in range(3):
                assert await old.notes.get(7) == Note(7, "there")
                assert await new.get(7) == Renamed(7, "there")
            await old.write(7, "later")
            await until(lambda: new.view is not None and 7 not in new.view.entries)
            assert await new.get(7) == Renamed(7, "later")
            assert await old.notes.get(7) == Note(7, "later")
            assert not new.stats.waited and not old.stats.waited  # what cannot be read holds nobody up


async def test_a_read_that_asks_for_more_than_the_budget_is_loaded(
    redis_server: RedisServer, db: Database
) -> None:
    """`strong`, and `bounded` by less than the class's budget, read past both levels."""
    async with node(redis_server, db) as here:
        await here.write(7, "old")
        assert await here.text(7) == "old"
        await here.write(7, "new", told=False)
        assert await here.text(7) == "old"
        for wanted in (Consistency.STRONG, Consistency.bounded(0.1)):
            with reading(wanted):
                assert await here.text(7) == "new"
        with reading(Consistency.bounded(100.0)):
            await here.text(7)
        assert dict(here.stats.bypassed) == {"strong": 1, "bounded": 1}


async def test_a_session_sees_its_write_through_the_memory_of_another_process(
    redis_server: RedisServer, db: Database
) -> None:
    """Also when that process has not heard of it yet: its token says up to where it has to have heard."""
    async with node(redis_server, db) as here, node(redis_server, another(db)) as there:
        await here.write(7, "old")
        assert await there.text(7) == "old"
        await there.deaf()
        mine = RequestContext()
        with activate(mine):
            await here.write(7, "new")
        assert await there.text(7) == "old"  # everybody else is within the budget
        token = CausalityToken.decode(mine.causality.encode())
        with activate(RequestContext(causality=token)):
            assert await there.text(7) == "new"


async def test_a_session_that_is_not_known_yet_joins_no_load_of_another(
    redis_server: RedisServer, db: Database
) -> None:
    """What it has seen is looked up when it reads a database itself; a load of somebody who has seen nothing
    may read a server that is behind that. Who has brought what he has seen joins."""

    async def recall(context: RequestContext) -> None:
        """It would put the positions of the session into `causality`."""

    async with node(redis_server, db) as here:
        mine = RequestContext()
        with activate(mine):
            await here.write(7, "new")
        mark = CausalityToken.decode(mine.causality.encode())
        await until(lambda: here.notes._cache.mark(mine, here.place.slot) is not None)
        here.hold()
        first = asyncio.create_task(here.text(7))
        await until(lambda: here.reads)
        with activate(RequestContext(causality=mark)):
            joins = asyncio.create_task(here.text(7))
        await until(lambda: here.stats.joined == 1)
        with activate(RequestContext(causality=mark, recall=recall)):
            alone = asyncio.create_task(here.text(7))
        await until(lambda: here.stats.misses == 2)
        assert here.stats.joined == 1
        here.go.set()
        assert await asyncio.gather(first, joins, alone) == ["new"] * 3


async def test_forbidden_classes_are_in_no_memory(redis_server: RedisServer, db: Database) -> None:
    async with node(redis_server, db, l1=FORBIDDEN) as here:
        await here.write(7, "there")
        assert [await here.text(7) for _ in range(3)] == ["there"] * 3
        assert here.notes.view is None
        assert (here.stats.loads, here.stats.l2_hits, here.stats.l1_hits) == (1, 2, 0)


async def test_every_shard_has_its_own_value(
    redis_server: RedisServer, database_urls: tuple[str, str], tmp_path: Path
) -> None:
    """`get_each` gives one per shard; a write invalidates that of its own shard alone."""
    async with notes(list(database_urls), tmp_path) as db, client(redis_server) as redis:
        cache = Cache("tests", redis=redis)
        loads: list[str] = []

        async def load(source: Queries) -> int:
            loads.append("one")
            return int(await source.fetch_value("select count(*) from notes.note"))

        counts = cache.define("count", int, database=db, load=load, key=EACH)
        async with cache:
            await until(lambda: all(place.trusted(place.level()) for place in counts.places.values()))

            async def kept() -> bool:
                before = len(loads)
                return await counts.get_each() == [0, 0] and len(loads) == before

            await until(kept)
            loads.clear()
            async with db.write(Bucket(1023)) as tx:
                await tx.execute("insert into notes.note (bucket, id) values (1023, 1)")
                tx.invalidate(counts)
            assert await counts.get_each() == [0, 1]
            assert loads == ["one"]
            wrong: Any
            for wrong in ((), (("main",),)):  # the latter is what memory calls the value of one shard
                with pytest.raises(TypeError, match="count has a value on every shard: get_each gives them"):
                    await counts.get(*wrong)


async def test_invalidating_what_is_not_there_is_refused(redis_server: RedisServer, db: Database) -> None:
    """The message says what was meant to be given."""
    async with node(redis_server, db, tags=()) as here, node(redis_server, another(db)) as there:
        async with db.write(Bucket(0)) as tx:
            with pytest.raises(TypeError, match="only classes of 'cache tests' can be invalidated"):
                tx.invalidate(there.notes, 7)
            with pytest.raises(TypeError, match="note is defined without tags"):
                tx.invalidate(here.notes, tags=["rank:5"])
            with pytest.raises(TypeError, match="a key or tags must say"):
                tx.invalidate(here.notes)
        with pytest.raises(TypeError, match="note has a database: invalidate in the write"):
            await here.notes.invalidate(7)


async def test_what_fails_on_one_of_several_shards_is_raised_as_it_is(
    database_urls: tuple[str, str], tmp_path: Path
) -> None:
    """And not in a group of errors, which nobody who reads one value has ever to catch."""
    async with notes(database_urls, tmp_path) as db:
        cache = Cache("app")

        async def load(source: Queries, id: int) -> int:
            if id % 2:
                raise LookupError(f"no {id}")
            return id

        ids = cache.define("id:{id}", int, database=db, load=load, key=lambda id: Bucket(id))
        async with cache:
            with pytest.raises(LookupError, match="no 1023"):
                await ids.get_many([0, 1023])
            assert await ids.get_many([0, 1022]) == {0: 0, 1022: 1022}


async def test_tags_that_cannot_be_made_leave_nobody_waiting(redis_server: RedisServer, db: Database) -> None:
    """The function that makes them fails for a value that came from Redis: who asked is told, and the next
    one who asks for the others of his call gets them."""
    broken = False

    def tags(note: Note) -> list[str]:
        if broken:
            raise LookupError(f"no tag of {note.id}")
        return ["all"]

    async with node(redis_server, db, tags=tags) as here, node(redis_server, another(db), tags=tags) as there:
        for id in (7, 8):
            await here.write(id, "there")
            assert await here.text(id) == "there"
        broken = True
        with pytest.raises(LookupError, match="no tag of 7"):
            await there.notes.get_many([7, 8])
        broken = False
        async with asyncio.timeout(HANGS):
            assert [await there.text(id) for id in (7, 8)] == ["there", "there"]
        assert not there.place.flights


async def test_a_value_that_cannot_be_read_back_is_given_and_not_kept(
    redis_server: RedisServer, db: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """A text that is no UTF-8, a number that is none: whoever asks gets what the loader gave, as without a
    cache; one line in the log names the class, and the others of the batch are kept."""
    texts: dict[int, Any] = {7: "\ud800", 8: 8, 9: "good"}

    async def many(source: Queries, ids: Sequence[int]) -> dict[int, Note]:
        return {id: Note(id, texts[id]) for id in ids}

    async with node(redis_server, db, load_many=many, load=None) as here:
        for _ in range(2):
            found = await here.notes.get_many([7, 8, 9])
            assert {id: note.text for id, note in found.items()} == texts
        assert here.stats.refused["unreadable"] == 4
        assert set(here.entries) == {9}
        with pytest.raises(KeyError):
            async with db.write(Bucket(0)) as tx:
                here.notes.put(tx, Note(8, "put"), 8)
                raise KeyError
        async with db.write(Bucket(0)) as tx:
            here.notes.put(tx, Note(7, texts[7]), 7)
        assert here.stats.refused["unreadable"] == 5
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len(told) == 1
    assert told[0].startswith("values of note are loaded by each who asks: one cannot be kept: ")


async def test_nobody_has_in_hand_what_memory_gives_to_others(
    redis_server: RedisServer, db: Database
) -> None:
    """A loader gives lists where tuples are declared, and whoever loaded appends to one: the next reader has
    the tuple that was read, from memory as from Redis."""

    class Page(msgspec.Struct, frozen=True):
        names: tuple[str, ...]

    async def load(source: Queries, id: int) -> Page:
        return Page(["first"])  # type: ignore[arg-type]

    def define(cache: Cache, db: Database) -> Any:
        return cache.define("page:{id}", Page, database=db, load=load)

    async with client(redis_server) as redis, client(redis_server) as other:
        here, there = Cache("tests", redis=redis), Cache("tests", redis=other)
        pages, theirs = define(here, db), define(there, another(db))
        async with here, there:
            for one in (pages, theirs):
                await until(lambda one=one: one.places["main"].trusted(one.places["main"].level()))

            async def kept() -> bool:
                await pages.get(1)
                return pages.stats.fills > 0

            await until(kept)
            loaded = await pages.get(2)
            loaded.names.append("mine")
            assert await pages.get(2) == await theirs.get(2) == Page(("first",))
            assert (pages.stats.l1_hits > 0, theirs.stats.l2_hits) == (True, 1)


async def test_memory_is_charged_with_what_values_take_there(redis_server: RedisServer, db: Database) -> None:
    """A text of 200 kB is some hundred bytes in Redis, and 200 kB here."""
    async with node(redis_server, db, cache={"l1_bytes": 1 << 20}) as here:
        await here.write(7, "a" * 200_000)
        await here.write(8, "a" * 50_000)
        for id in (7, 8):
            await here.text(id)
            assert len(await here.text(id) or "") >= 50_000
        assert set(here.entries) == {8}
        assert here.entries[8].weight > 50_000
        assert here.stats.l2_hits == 1


async def test_who_leaves_while_redis_gives_him_a_lease_gives_it_back(
    redis_server: RedisServer, db: Database
) -> None:
    """The answer never reaches him, and nobody in another process waits for a load that there is not."""
    async with node(redis_server, db, hard_timeout=1000.0) as here:
        await here.write(7, "there")
        level = here.place.level()
        link = here.place.link_now(here.place.slot.name)
        assert level is not None and link is not None
        call, asked = link.call, asyncio.Event()

        async def late(script: Script, keys: Any, args: Any) -> Any:
            answer = await call(script, keys, args)
            if script is GET and args[1]:
                asked.set()
                await asyncio.Event().wait()
            return answer

        link.call = late  # type: ignore[assignment, method-assign]  # the answer stays on its way
        reader = asyncio.create_task(here.text(7))
        await asked.wait()
        assert await link.send("EXISTS", level.names.lease("note:7")) == 1
        reader.cancel()
        await asyncio.wait([reader])

        async def back() -> bool:
            return await link.send("EXISTS", level.names.lease("note:7")) == 0

        await until(back)
        assert here.loads == []


async def test_who_leaves_while_he_looks_for_an_old_value_is_not_waited_for(
    redis_server: RedisServer, db: Database
) -> None:
    """After the soft time-out he asks Redis for what was there before: he is cancelled there, and the load
    that nobody else wants ends with him."""
    async with node(redis_server, db, stale_if_error=1000.0, soft_timeout=0.01) as here:
        await here.write(7, "there")
        here.hold()
        asked = asyncio.Event()

        async def old(level: Any, flight: Any) -> Any:
            asked.set()
            await asyncio.Event().wait()

        here.notes._keeping.old = old  # type: ignore[method-assign]  # Redis takes its time
        reader = asyncio.create_task(here.text(7))
        await asked.wait()
        await until(lambda: here.reads)
        reader.cancel()
        await asyncio.wait([reader])
        await until(lambda: not here.place.flights)
        assert here.stats.failed == {"CancelledError": 1}
