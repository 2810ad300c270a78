"""The second level in a real Redis: what is kept, what is refused, what is gone."""

from __future__ import annotations

import pytest
from tests._level2 import Thing, level2, linked, primary, stand, standby
from tests._redis import RedisServer

from springtide.cache._fence import Refusal
from springtide.cache._level2 import Entry, Level2

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
