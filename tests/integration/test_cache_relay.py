"""The relay: what was committed is applied, whoever dies, and a beat never says more than is true."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from tests._level2 import HANGS
from tests._redis import RedisServer
from tests.invalidating import TellingCache
from tests.relayed import Bus, connected, relay, running
from tests.sharded import notes

from springtide.cache._slot import EVERYTHING, Slot
from springtide.db import Database

pytestmark = pytest.mark.needs("redis-server")

LEFT = "select count(*) from notes._invalidation"


@pytest.fixture
async def db(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    """Its cache is told nothing by writes: all there is, is the rows."""
    async with notes([database_url], tmp_path) as db:
        db.invalidations = TellingCache()
        yield db


async def until(condition: Callable[[], Any]) -> Any:
    async with asyncio.timeout(HANGS):
        while True:
            answer = condition()
            if asyncio.iscoroutine(answer):
                answer = await answer
            if answer:
                return answer
            await asyncio.sleep(0.01)


async def invalidate(db: Database, *keys: object, cls: str = "user") -> int:
    """In one transaction; its number."""
    async with db.write(1) as tx:
        for key in keys:
            tx.invalidate(cls, key)
    assert tx.recorded is not None
    return tx.recorded.xid


async def none_left(db: Database) -> bool:
    return not await db.pools["main"].fetch_value(LEFT)


def epoch_of(db: Database) -> int:
    epoch = db.epoch("main")
    assert epoch is not None
    return epoch


async def test_rows_that_nobody_told_are_applied_and_deleted(
    db: Database, database_url: str, redis_server: RedisServer
) -> None:
    """A value that was there is gone, the number stays as a tombstone, the bus says so, and the rows of the
    class are no more."""
    await invalidate(db, 7)
    bus = Bus(redis_server, "user", epoch_of(db))
    redis_server.command("SET", bus.names.value("7"), "old")
    async with connected(redis_server) as redis:
        relayed = relay(db.pools["main"], database_url, redis, schemas=["notes"], classes=["user", "feed"])
        async with running(relayed):
            await until(lambda: none_left(db))
            await until(lambda: len(bus.beats()) > 2)
            assert redis_server.command("EXISTS", bus.names.value("7")) == 0
            second = await invalidate(db, 7)
            tombstone = ("HGET", bus.names.prefix + "T", "k:7")
            await until(lambda: redis_server.command(*tombstone) == str(second))
            await until(lambda: none_left(db))
        assert bus.voided() == ["k:7", "k:7"]
        assert relayed.state == "stopped"


async def test_a_proof_never_covers_a_write_that_was_not_heard(
    db: Database, database_url: str, redis_server: RedisServer
) -> None:
    """Writers commit all the time and tell nobody. Whenever a reader of the bus has proof that all up to a
    moment was heard, it has heard every write that had been answered by then."""
    loop = asyncio.get_running_loop()
    answered: dict[str, float] = {}
    heard: set[str] = set()

    async def write(number: int) -> None:
        for turn in range(30):
            key = f"{number}-{turn}"
            await invalidate(db, key)
            answered[f"k:{key}"] = loop.time()

    async with connected(redis_server) as redis:
        relayed = relay(db.pools["main"], database_url, redis, schemas=["notes"], classes=["user"])
        async with running(relayed):
            await invalidate(db, "first")
            bus = Bus(redis_server, "user", epoch_of(db))
            await until(lambda: "k:first" in bus.voided() and len(bus.beats()) > 1)
            slot = Slot("user@main", share=1.0, relayed=True, heard=lambda fields, _: heard.update(fields))
            link = redis.link("")
            assert link is not None
            began = loop.time()
            first = (await link.send("XREVRANGE", bus.names.bus, "+", "-", "COUNT", 1))[0]
            said = dict(zip(first[1][::2], first[1][1::2], strict=True))
            slot.begin(bus.names.scope, int(said[b"s"]), first[0].decode(), began)
            checked = 0
            async with asyncio.TaskGroup() as group:
                writing = [group.create_task(write(number)) for number in range(4)]
                async with asyncio.timeout(HANGS):
                    while not all(task.done() for task in writing) or heard - {EVERYTHING} != set(answered):
                        sent = loop.time()
                        for _, entries in (
                            await link.send("XREAD", "STREAMS", bus.names.bus, slot.last_id) or ()
                        ):
                            for entry_id, fields in entries:
                                said = dict(zip(fields[::2], fields[1::2], strict=True))
                                sequence, at = int(said[b"s"]), entry_id.decode()
                                if b"b" in said:
                                    assert slot.beat(at, sequence, said[b"b"].decode())
                                else:
                                    assert slot.void(at, sequence, said[b"f"].decode().split("\n"))
                        slot.complete(sent)
                        due = {field for field, moment in answered.items() if moment <= slot.proof}
                        assert due <= heard
                        checked += bool(due)
                        await asyncio.sleep(0.001)
            assert checked
            await until(lambda: none_left(db))


async def test_of_two_relays_one_leads(db: Database, database_url: str, redis_server: RedisServer) -> None:
    """The other one takes over when the first stops, and begins rounds of its own."""
    await invalidate(db, 1)
    bus = Bus(redis_server, "user", epoch_of(db))
    async with connected(redis_server) as redis:
        pair = [
            relay(db.pools["main"], database_url, redis, schemas=["notes"], classes=["user"])
            for _ in range(2)
        ]
        async with running(*pair):
            await until(lambda: any(one.leads for one in pair) and len(bus.beats()) > 5)
            assert [one.leads for one in pair].count(True) == 1
            assert len(bus.leaders()) == 1
            first, second = sorted(pair, key=lambda one: not one.leads)
            await first.stop()
            await until(lambda: second.leads and len(bus.leaders()) == 2)
            await invalidate(db, 2)
            await until(lambda: "k:2" in bus.voided())
