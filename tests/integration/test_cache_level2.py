"""The second level in a real Redis: what is kept, what is refused, what is gone."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from tests._level2 import HANGS, Thing, level2, linked, primary, stand, standby
from tests._redis import RedisCluster, RedisServer

from springtide.cache._fence import Mark, Refusal, Rounds, Tombstone, admissible
from springtide.cache._level2 import BATCH, BUS_ENTRIES, Entry, Level2
from springtide.cache._names import EVERYTHING, Heard, heard
from springtide.db.seeing import Seen
from springtide.errors import RedisError, RedisUnavailable
from springtide.redis import Link, Redis

pytestmark = pytest.mark.needs("redis-server")


async def values(level: Level2[Thing], *names: str) -> list[str | None]:
    return [
        None if one is None or one.value is None else one.value.text
        for one in (await level.read(names)).found
    ]


async def test_a_value_is_there_until_it_is_voided(redis_server: RedisServer) -> None:
    """A lease is one loader's; what it loaded is read by all; after the void nobody reads it."""
    async with linked(redis_server) as link:
        level = level2(link)
        await stand(level, 100)
        mine = await level.lease(["1"], 30)
        other = await level.lease(["1"], 30)
        assert (mine.found, other.found) == ([True], [False])
        kept = await level.fill(Entry("1", Thing(1, "old"), 60, mine.token), seen=primary(100))
        assert kept.refusal is None
        assert await values(level, "1", "2") == ["old", None]
        there = (await level.lease(["1"], 30)).found[0]
        assert not isinstance(there, bool) and there.value == Thing(1, "old")
        sequence = await level.void(["k:1"], xid=100)
        assert sequence == kept.sequence + 1
        assert await values(level, "1") == [None]


async def test_a_load_from_before_the_write_is_refused(redis_server: RedisServer) -> None:
    """A lease that is taken after the void does not help a snapshot that has not seen the write."""
    async with linked(redis_server) as link:
        level = level2(link)
        await stand(level, 100)
        await level.void(["k:1"], xid=105)
        lease = await level.lease(["1"], 30)
        entry = Entry("1", Thing(1, "old"), 60, lease.token)
        for early in (primary(100), primary(104, 106, 105), standby(105, 110)):
            assert (await level.fill(entry, seen=early)).refusal is Refusal.UNSEEN
        assert (await level.fill(entry, seen=primary(104, 106, 104))).refusal is None


async def test_the_value_of_a_tag_goes_with_it(redis_server: RedisServer) -> None:
    """A void of a tag invalidates all values that name it and no others, and refuses loads from before."""
    async with linked(redis_server) as link:
        level = level2(link, tagged=True)
        await stand(level, 100)
        lease = await level.lease(["1", "2"], 30)
        entries = [
            Entry("1", Thing(1, "one"), 60, lease.token, ("org:1", "org:2")),
            Entry("2", Thing(2, "two"), 60, lease.token, ("org:1",)),
        ]
        assert [one.refusal for one in await level.fill_many(entries, seen=primary(100))] == [None, None]
        await level.void(["t:org:2"], xid=100)
        assert await values(level, "1", "2") == [None, "two"]
        lease = await level.lease(["1"], 30)
        late = Entry("1", Thing(1, "one"), 60, lease.token, ("org:1", "org:2"))
        assert (await level.fill(late, seen=primary(100))).refusal is Refusal.UNSEEN
        assert (await level.fill(late, seen=primary(101))).refusal is None
        assert await values(level, "1", "2") == ["one", "two"]


async def test_without_a_database_the_lease_decides(redis_server: RedisServer) -> None:
    """A load that began before a void of its key or tag is refused, one that began after it is kept."""
    async with linked(redis_server) as link:
        level = level2(link, fenced=False, tagged=True)
        for field in ("k:1", "t:org:1"):
            lease = await level.lease(["1"], 30)
            await level.void([field])
            early = Entry("1", Thing(1, "old"), 60, lease.token, ("org:1",))
            assert (await level.fill(early, since=lease.sequence)).refusal is not None
            await level.release(["1"], lease.token)
            lease = await level.lease(["1"], 30)
            assert lease.found == [True]
            late = Entry("1", Thing(1, "new"), 60, lease.token, ("org:1",))
            assert (await level.fill(late, since=lease.sequence)).refusal is None
            assert await values(level, "1") == ["new"]
            await level.void(["k:1"])


async def test_the_script_judges_as_the_reference_does(redis_server: RedisServer) -> None:
    """For snapshots, tombstones, horizons and marks at random, fill.lua answers what `_fence.admissible`
    does, and what a lease comes with says the same."""
    chance = random.Random(5)
    verdicts = set()

    def snapshot() -> tuple[int, tuple[int, ...]]:
        xmax = chance.randrange(100, 116)
        return xmax, tuple(sorted(chance.sample(range(96, xmax), chance.randrange(4))))

    async with linked(redis_server) as link:
        for _ in range(250):
            level = level2(link, epoch=1)
            await link.send("FLUSHALL")
            xmax, running = snapshot()
            rounds = await stand(level, xmax, *running)
            horizon = rounds.newest
            rounds.delay = 1e9  # it stays
            tombstone = Tombstone()
            for _ in range(chance.randrange(3)):
                for xid in chance.sample(range(100, 116), chance.choice((1, 2, 9))):
                    await level.void(["k:1"], xid=xid)
                    tombstone = tombstone.merged(xid, rounds.round)
                if chance.random() < 0.5:
                    rounds.marked(*snapshot(), 0.0)
                    await level.beat(rounds, "relay", now=0.0)
            kept = await link.send("HGET", level.names.prefix + "T", "k:1")
            assert (kept or b"").decode() == str(tombstone)
            newest = rounds.newest if rounds.round > 2 else horizon
            xmax, running = snapshot()
            seen = Seen("main", 1, chance.random() < 0.4, min((*running, xmax)), xmax, running)
            if seen.standby:
                seen = Seen("main", 1, True, seen.xmin, xmax, ())
            (known,) = (await level.lease(["1"], 30)).known
            admitted = admissible(seen, [tombstone], horizon=horizon, newest=newest) is None
            assert known.admits(seen) == admitted, (seen, str(tombstone), horizon, newest)
            own = chance.choice((None, *range(100, 116)))
            wanted = admissible(seen, [tombstone], horizon=horizon, newest=newest, own=own)
            found = (await level.fill_many([Entry("1", Thing(1), 60)], seen=seen, own=own))[0].refusal
            assert found is wanted, (seen, str(tombstone), horizon, newest, own)
            verdicts.add(found)
    assert verdicts == {None, Refusal.EARLY, Refusal.UNSEEN}
    assert admissible(primary(100), [], horizon=None) is Refusal.HORIZON
    assert admissible(primary(100), [], horizon=Mark(1, 100)) is None


async def test_a_writer_puts_what_it_wrote(redis_server: RedisServer) -> None:
    """Its own transaction is not in its snapshot and stands in nobody's way; a later writer's does."""
    async with linked(redis_server) as link:
        level = level2(link)
        await stand(level, 100)
        inside = primary(100, 101, 100)
        await level.void(["k:1"], xid=100)
        assert (await level.put(Entry("1", Thing(1, "new"), 60), seen=inside, xid=100)).refusal is None
        assert await values(level, "1") == ["new"]
        await level.void(["k:1"], xid=102)
        refused = await level.put(Entry("1", Thing(1, "new"), 60), seen=inside, xid=100)
        assert refused.refusal is Refusal.UNSEEN
        assert await values(level, "1") == [None]


async def test_an_invalidated_value_can_be_asked_for_apart(redis_server: RedisServer) -> None:
    """What was moved aside, and what lies there with a tag that was voided, is `old` for as long as it is
    kept."""
    async with linked(redis_server) as link:
        for tagged, field in ((False, "k:1"), (True, "k:1"), (True, "t:x")):
            level = level2(link, f"c{tagged}{field[0]}", tagged=tagged, aside=100.0, aged=True)
            await stand(level, 100)
            lease = await level.lease(["1"], 30)
            entry = Entry("1", Thing(1, "old"), 60, lease.token, ("x",))
            assert (await level.fill(entry, seen=primary(100))).refusal is None
            await level.void([field], xid=100)
            assert await values(level, "1") == [None]
            found = await level.old("1")
            assert found is not None and found.value == Thing(1, "old")
            kind = "o:" if field == "k:1" else "v:"
            assert 0 < await link.send("PTTL", level.names.prefix + kind + "1") <= 60_000
            assert await level.old("2") is None


async def test_a_read_tells_the_remaining_life(redis_server: RedisServer) -> None:
    """Where it is asked for: of what is read and of what a lease finds; never more than `life`."""
    async with linked(redis_server) as link:
        level = level2(link, aged=True, life=50.0)
        await stand(level, 100)
        await level.fill(Entry("1", Thing(1), 1000.0), seen=primary(100))
        for found in ((await level.read(["1"])).found[0], (await level.lease(["1"], 30)).found[0]):
            assert not isinstance(found, bool) and found is not None
            assert found.remaining is not None and 0 < found.remaining <= 50
        again = await level.lease(["1"], 30, refresh=True)
        assert again.found == [True]
        assert (await level.lease(["1"], 30, refresh=True)).found == [False]
        await level.release(["1"], "not it")
        assert (await level.lease(["1"], 30, refresh=True)).found == [False]
        await level.release(["1"], again.token)
        assert (await level.lease(["1"], 30, refresh=True)).found == [True]


async def test_clearing_leaves_nothing_and_lets_no_load_back(redis_server: RedisServer) -> None:
    """Values, old ones and leases of the slot go, other slots stay; a load from before is refused."""
    async with linked(redis_server) as link:
        for fenced in (True, False):
            level, other = (level2(link, name, fenced=fenced) for name in ("things", "things2"))
            for one in (level, other):
                rounds = await stand(one, 100) if fenced else None
                lease = await one.lease(["1", "2"], 30)
                entry = Entry("1", Thing(1, "old"), 60, lease.token)
                kept = await one.fill(entry, seen=primary(100), since=lease.sequence)
                assert kept.refusal is None
            lease = await level.lease(["3"], 30)
            before = (await level.read([])).sequence
            assert await level.clear(xid=100 if fenced else None) == before + 1
            assert await values(level, "1") == [None]
            assert await values(other, "1") == ["old"]
            late = Entry("3", Thing(3, "old"), 60, lease.token)
            refused = await level.fill(late, seen=primary(100, 101, 100), since=lease.sequence)
            assert refused.refusal is (Refusal.HORIZON if fenced else Refusal.LEASE)
            if rounds is not None:
                await stand(level, 101, rounds=Rounds(0.0))
                lease = await level.lease(["3"], 30, refresh=True)
                entry = Entry("3", Thing(3), 60, lease.token)
                assert (await level.fill(entry, seen=primary(100, 101, 100))).refusal is Refusal.EARLY
                assert (await level.fill(entry, seen=primary(101))).refusal is None


async def test_the_bus_says_what_was_voided_in_order(redis_server: RedisServer) -> None:
    """Each void is one more than the last, whatever fields it has; repeating one says nothing; a sequence
    that was lost goes on above."""
    async with linked(redis_server) as link:
        level = level2(link, tagged=True)
        await level.beat(Rounds(0.0), "relay 1", now=0.0)
        first = await level.void(["k:1", "t:x", "k:2"], xid=100)
        assert await level.void(["k:2", "k:1"], xid=100) == first
        assert await level.void(["k:2"], xid=101) == first + 1
        assert await level.void([EVERYTHING], xid=102) == first + 2
        await link.send("DEL", level.names.sequence)
        assert (after := await level.void(["k:1"], xid=103)) > first + 3
        entries = []
        for _, flat in await link.send("XRANGE", level.names.bus, "-", "+"):
            entries.append(heard(dict(zip(flat[::2], flat[1::2], strict=True))))
        assert entries == [
            Heard(first - 1, beat="relay 1"),
            Heard(first, ("k:1", "t:x", "k:2")),
            Heard(first + 1, ("k:2",)),
            Heard(first + 2, ("*",)),
            Heard(after, ("k:1",)),
        ]
        with pytest.raises(ValueError, match="bus"):
            heard({b"s": b"1"})
        for wrong in ("k:a\nb", "t:\x1f", ""):
            with pytest.raises(ValueError, match="printable"):
                await level.void([wrong], xid=104)


async def test_many_names_are_several_commands(redis_server: RedisServer) -> None:
    """More than one command may hold: all of them are read, filled and voided."""
    async with linked(redis_server) as link:
        level = level2(link)
        await stand(level, 100)
        names = [str(number) for number in range(2 * BATCH + 7)]
        outcomes = await level.fill_many([Entry(n, Thing(int(n)), 60) for n in names], seen=primary(100))
        assert {outcome.refusal for outcome in outcomes} == {None}
        read = (await level.read(names)).found
        assert [one and one.value for one in read] == [Thing(int(name)) for name in names]
        await level.void([f"k:{n}" for n in names], xid=100)
        assert (await level.read(names)).found == [None] * len(names)
        with pytest.raises(ValueError, match=str(BATCH)):
            await level.lease(names, 30)


async def test_what_is_too_long_or_of_another_declaration_is_not_kept(redis_server: RedisServer) -> None:
    """Its size is told; what others wrote under the name is as if it were not there, and is loaded anew."""
    async with linked(redis_server) as link:
        level = level2(link)
        level.codec.max_bytes = 100
        await stand(level, 100)
        long = "".join(map(str, range(200)))
        entries = [Entry("1", Thing(1, long), 60), Entry("2", Thing(2, "short"), 60)]
        first, second = await level.fill_many(entries, seen=primary(100))
        assert first.refusal is Refusal.OVERSIZED and first.size > 100
        assert second.refusal is None
        await link.send("SET", level.names.value("2"), b"something else")
        assert (await level.read(["1", "2"])).found == [None, None]
        await level.drop(["2"])
        assert (await level.lease(["2"], 30)).found == [True]


async def test_a_slot_works_on_a_cluster(own_redis_cluster: Callable[..., RedisCluster]) -> None:
    """All keys of a slot lie on one node, those that scripts name by themselves too; each slot has its
    own."""
    cluster = await asyncio.to_thread(own_redis_cluster, nodes=3)
    redis = Redis(cluster.url, timeout=HANGS)
    await redis.start()
    try:
        for cls in ("a", "b", "c", "d"):
            link = await serving(redis, f"{cls}@main")
            level = level2(link, cls, tagged=True, aside=60.0)
            await stand(level, 100)
            lease = await level.lease(["1"], 30)
            entry = Entry("1", Thing(1, "one"), 60, lease.token, ("x",))
            assert (await level.fill(entry, seen=primary(100))).refusal is None
            assert await values(level, "1") == ["one"]
            await level.void(["t:x", "k:1"], xid=100)
            assert await values(level, "1") == [None]
            await level.clear(xid=101)
    finally:
        await redis.stop()


async def test_what_is_swept_is_not_filled_again_by_loads_of_before(redis_server: RedisServer) -> None:
    """Loads under leases from before end between any two steps of the walk: nothing of them stays, and
    another slot keeps what it has."""
    async with linked(redis_server) as link:
        level, other = level2(link, "a"), level2(link, "b")
        for one in (level, other):
            await stand(one, 100)
        names = [f"late-{number}" for number in range(100)]
        lease = await level.lease(names, 60)
        for number in range(0, 4000, 200):
            kept = [Entry(f"{n}", Thing(n), 60) for n in range(number, number + 200)]
            for one in (level, other):
                await one.fill_many(kept, seen=primary(100))
        late = [
            Entry(name, Thing(1, "old"), 60, lease.token, known=known)
            for name, known in zip(names, lease.known, strict=True)
        ]
        await level.disown()
        async for _ in level.sweep([level.names]):
            await level.fill_many(late, seen=primary(100), since=lease.sequence)
        assert await values(level, *names, "1", "3999") == [None] * 102
        assert await values(other, "1", "3999") == ["", ""]


async def test_a_void_that_fails_halfway_is_done_again_whole(
    own_redis_cluster: Callable[..., RedisCluster],
) -> None:
    """A slot begins to move to another node, so a key that is not there cannot be asked for any more: the
    void fails behind its tombstone. The move is given up, the same void comes again, and the value goes."""
    cluster = await asyncio.to_thread(own_redis_cluster, nodes=3)
    redis = Redis(cluster.url, timeout=HANGS)
    await redis.start()
    try:
        link = await serving(redis, "a@main")
        level = level2(link, "a", aside=60.0)
        await stand(level, 100)
        assert (await level.fill(Entry("1", Thing(1, "old"), 60), seen=primary(100))).refusal is None
        owner = cluster.owner("{a@main}")
        target = next(server for server in cluster.servers if server is not owner)
        cluster.begin_moving("{a@main}", target)
        with pytest.raises((RedisError, RedisUnavailable)):
            await level.void(["k:1"], xid=100)
        for server in (owner, target):
            server.command("CLUSTER", "SETSLOT", cluster.slot("{a@main}"), "STABLE")
        assert await values(level, "1") == ["old"]
        await level.void(["k:1"], xid=100)
        assert await values(level, "1") == [None]
    finally:
        await redis.stop()


async def serving(redis: Redis, tag: str) -> Link:
    async with asyncio.timeout(HANGS):
        while (link := redis.link(tag)) is None:
            await asyncio.sleep(0.01)
        return link


@pytest.mark.parametrize("fenced", [True, False])
async def test_the_bus_is_bounded_where_no_relay_beats(redis_server: RedisServer, fenced: bool) -> None:
    """Every thousandth void trims it to what readers need; between them it grows by no more than that."""
    async with linked(redis_server) as link:
        level = level2(link, fenced=fenced)
        sequence = 1_700_000_000_000_998
        await link.send("SET", level.names.sequence, sequence)
        for _ in range(3):
            await asyncio.gather(
                *(link.send("XADD", level.names.bus, "*", "s", 1, "f", "k:0") for _ in range(4000))
            )
        xid = 100 if fenced else None
        assert await level.void(["k:1"], xid=xid) == sequence + 1
        assert await link.send("XLEN", level.names.bus) == 12_001
        assert await level.void(["k:2"], xid=xid) == sequence + 2
        assert BUS_ENTRIES <= await link.send("XLEN", level.names.bus) <= BUS_ENTRIES + 200


async def test_a_void_of_a_tag_that_the_class_has_no_more_does_no_harm(redis_server: RedisServer) -> None:
    """A row of an older version of the application names one: the relay tells it, and goes on."""
    async with linked(redis_server) as link:
        level = level2(link)
        before = await level.void(["k:1"], xid=100)
        assert await level.void(["k:2", "t:org:1"], xid=101) == before + 1
