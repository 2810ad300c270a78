"""The relay: what was committed is applied, whoever dies, and a beat never says more than is true."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests._cluster import Cluster
from tests._level2 import HANGS
from tests._pooler import PoolerServer
from tests._redis import RedisServer
from tests.invalidating import TellingCache
from tests.jobs_support import Heard
from tests.relayed import Bus, Follower, connected, process, relay, running, says, slots
from tests.replicated import registers, serving
from tests.sharded import notes

from springtide.cache._rounds import Targets
from springtide.db import Database, ShardMap
from springtide.db.pool import Pool
from springtide.lifecycle import Group
from springtide.redis import Redis
from springtide.signals import RelayMeasured
from springtide.testing import stress
from springtide.testing.faults import FaultProxy

pytestmark = pytest.mark.needs("redis-server")

LEFT = "select count(*) from notes._invalidation"


@pytest.fixture
async def db(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    """Its cache is told nothing by writes: all there is, is the rows."""
    async with notes([database_url], tmp_path) as db:
        db.invalidations = TellingCache()
        async with db.seeing("main"):
            pass  # now its epoch is known
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
        relayed = relay(db.pools["main"], database_url, redis, classes=["user", "feed"])
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
    async with connected(redis_server) as redis, running(relay(db.pools["main"], database_url, redis)):
        bus, link = Bus(redis_server, "user", epoch_of(db)), redis.link("")
        assert link is not None
        await until(lambda: len(bus.beats()) > 1)
        reader = Follower(bus, link)
        await reader.begin()

        async def write(number: int) -> None:
            turn = 0
            while turn < 30 or reader.checked < 3:  # a proof may come late, however fast they write
                await invalidate(db, f"{number}-{turn}")
                reader.answered[f"k:{number}-{turn}"] = time.monotonic()
                turn += 1

        async with asyncio.timeout(HANGS), asyncio.TaskGroup() as group:
            writing = [group.create_task(write(number)) for number in range(4)]
            while not (all(task.done() for task in writing) and reader.done):
                await reader.follow()
                await asyncio.sleep(0.001)
        await until(lambda: none_left(db))


async def test_of_two_relays_one_leads(db: Database, database_url: str, redis_server: RedisServer) -> None:
    """The other one takes over when the first stops, and begins rounds of its own."""
    await invalidate(db, 1)
    bus = Bus(redis_server, "user", epoch_of(db))
    async with connected(redis_server) as redis:
        pair = [relay(db.pools["main"], database_url, redis) for _ in range(2)]
        async with running(*pair):
            await until(lambda: any(one.leads for one in pair) and len(bus.beats()) > 5)
            assert [one.leads for one in pair].count(True) == 1
            assert len(bus.leaders()) == 1
            first, second = sorted(pair, key=lambda one: not one.leads)
            await first.stop()
            await until(lambda: second.leads and len(bus.leaders()) == 2)
            await invalidate(db, 2)
            await until(lambda: "k:2" in bus.voided())


async def test_what_a_killed_writer_committed_is_applied(
    db: Database, database_url: str, redis_server: RedisServer
) -> None:
    """kill -9 between COMMIT and telling the cache."""
    async with process("writer", database_url, "7") as writer:
        async with asyncio.timeout(HANGS):
            assert await writer.wait() == -signal.SIGKILL
    assert await db.pools["main"].fetch_value(LEFT) == 1
    await invalidate(db, 8)
    bus = Bus(redis_server, "user", epoch_of(db))
    async with connected(redis_server) as redis, running(relay(db.pools["main"], database_url, redis)):
        await until(lambda: {"k:7", "k:8"} <= set(bus.voided()))
        await until(lambda: none_left(db))


async def test_a_stopped_leader_is_replaced_and_does_no_harm_when_it_wakes(
    db: Database, database_url: str, redis_server: RedisServer
) -> None:
    """SIGSTOP of the leader's process, which keeps its connection open: another one leads and applies what
    was committed meanwhile. The one that wakes finds itself replaced; nothing is lost, and one leads."""
    await invalidate(db, 1)
    bus = Bus(redis_server, "user", epoch_of(db))
    async with process("relay", database_url, redis_server.url) as other, connected(redis_server) as redis:
        await says(other, "leads")
        await until(lambda: len(bus.beats()) > 2)
        here = relay(db.pools["main"], database_url, redis)
        async with running(here):
            other.send_signal(signal.SIGSTOP)
            await invalidate(db, 2)
            await until(lambda: here.leads and "k:2" in bus.voided())
            await until(lambda: len(bus.leaders()) == 2)
            other.send_signal(signal.SIGCONT)
            await says(other, "waits")
            await invalidate(db, 3)
            await until(lambda: "k:3" in bus.voided())
            await until(lambda: none_left(db))
            assert here.leads
        await says(other, "leads")  # and takes its turn again


async def test_a_relay_that_dies_before_it_deletes_repeats_what_it_did(
    db: Database, database_url: str, redis_server: RedisServer
) -> None:
    """Its connection is lost with the DELETE: the rows are applied once more, which changes nothing."""
    port = urlsplit(database_url).port
    assert port is not None
    async with FaultProxy(target=port) as proxy, connected(redis_server) as redis:
        through = database_url.replace(f":{port}", f":{proxy.port}")
        relayed = relay(db.pools["main"], through, redis)
        async with running(relayed):
            bus = Bus(redis_server, "user", epoch_of(db))
            await until(lambda: len(bus.beats()) > 2)
            lost = proxy.on(b"DELETE FROM", "drop")
            await invalidate(db, 2)
            async with asyncio.timeout(HANGS):
                await lost
            await until(lambda: len(bus.leaders()) == 2)
            await until(lambda: none_left(db))
            assert bus.voided().count("k:2") == 1


async def test_a_transaction_that_commits_late_is_not_overlooked(
    db: Database, database_url: str, redis_server: RedisServer
) -> None:
    """Its number is lower than all that was read meanwhile."""
    async with connected(redis_server) as redis, running(relay(db.pools["main"], database_url, redis)):
        async with db.write(1) as late:
            number = int(await late.fetch_value("select pg_current_xact_id()::text"))
            other = asyncio.create_task(invalidate(db, 1), context=contextvars.Context())
            assert await other > number
            bus = Bus(redis_server, "user", epoch_of(db))
            await until(lambda: "k:1" in bus.voided())
            await until(lambda: len(bus.beats()) > 5)
            late.invalidate("user", 2)
        await until(lambda: "k:2" in bus.voided())
        await until(lambda: none_left(db))


async def test_a_class_that_cannot_be_reached_delays_no_other_and_comes_back_whole(
    db: Database, database_url: str, redis_server: RedisServer
) -> None:
    """Its rows stay and its slot is not beaten, while the other class goes on. When it can be reached again,
    everything is voided before its first beat. So it is when Redis refuses its voids, and for a class that
    this process does not know until later."""
    async with connected(redis_server) as redis:
        both, away = slots(redis, ["user", "feed"]), {"feed"}

        def some(epoch: int) -> Targets:
            return {cls: None if cls in away else found for cls, found in both(epoch).items()}

        async with running(relay(db.pools["main"], database_url, redis, slots=some)):
            await invalidate(db, 1, cls="feed")
            await invalidate(db, 1)
            user, feed = (Bus(redis_server, cls, epoch_of(db)) for cls in ("user", "feed"))
            await until(lambda: "k:1" in user.voided())
            await invalidate(db, 2, cls="feed")
            beats = len(user.beats())
            await until(lambda: len(user.beats()) > beats + 5)
            assert feed.entries() == []
            assert await db.pools["main"].fetch_value(LEFT) == 2
            away.clear()
            await until(lambda: feed.beats())
            first = next(at for at, entry in enumerate(feed.entries()) if "b" in entry)
            assert {entry.get("f") for entry in feed.entries()[:first]} == {"k:1", "k:2"}
            await until(lambda: none_left(db))

            tombstones = feed.names.prefix + "T"
            redis_server.command("RENAME", tombstones, "aside")
            redis_server.command("LPUSH", tombstones, "no hash")
            await invalidate(db, 3, cls="feed")
            await invalidate(db, 2)
            await until(lambda: "k:2" in user.voided())
            seen = len(feed.entries())
            beats = len(user.beats())
            await until(lambda: len(user.beats()) > beats + 5)
            assert await db.pools["main"].fetch_value(LEFT) == 1
            redis_server.command("RENAME", "aside", tombstones)
            await until(lambda: len(feed.beats()) and len(feed.entries()) > seen)
            assert feed.entries()[seen].get("f") == "k:3"
            await until(lambda: none_left(db))


async def test_while_redis_is_away_the_rows_stay_and_it_is_told_how_old_they_are(
    db: Database, database_url: str, own_redis: Callable[..., RedisServer]
) -> None:
    """A leader that reaches no Redis steps down. A new run of it has all voided before it is beaten."""
    server, heard = own_redis(), Heard()
    async with connected(server) as redis:
        relayed = relay(db.pools["main"], database_url, redis, sink=heard)
        async with running(relayed):
            await until(lambda: relayed.leads)
            server.kill()
            await until(lambda: not relayed.leads)
            await invalidate(db, 1)
            await until(lambda: heard.of(RelayMeasured))
            assert await db.pools["main"].fetch_value(LEFT) == 1
            server.start()
            await until(lambda: relayed.leads)
            bus = Bus(server, "user", epoch_of(db))
            await until(lambda: bus.beats())
            assert bus.entries()[0].get("f") == "k:1"
            await until(lambda: none_left(db))


async def test_lost_tombstones_get_a_new_horizon_that_is_younger_than_the_loss(
    db: Database, database_url: str, redis_server: RedisServer
) -> None:
    """After a flush no snapshot of before is a horizon; the next one comes within rounds, without delay."""
    async with connected(redis_server) as redis, running(relay(db.pools["main"], database_url, redis)):
        await invalidate(db, 1)
        bus = Bus(redis_server, "user", epoch_of(db))
        horizon = ("HGET", bus.names.prefix + "T", "#horizon")
        await until(lambda: redis_server.command(*horizon))
        before = await invalidate(db, 2)
        await until(lambda: "k:2" in bus.voided())
        redis_server.flush()
        found = redis_server.command(*horizon)
        assert found is None or int(found) > before
        found = await until(lambda: redis_server.command(*horizon))
        assert int(found) > before


async def test_a_new_primary_is_another_history(
    own_cluster: Callable[..., Cluster], tmp_path: Path, redis_server: RedisServer
) -> None:
    """After a failover the relay leads on the new primary, and voids in the scope of its timeline. What had
    been replicated and not applied is applied there."""
    world = await asyncio.to_thread(own_cluster, replicas=1)
    async with registers(world, tmp_path) as (db, servers), connected(redis_server) as redis:
        db.invalidations = TellingCache()
        await serving(servers, 1)
        old = epoch_of(db)
        relayed = relay(
            db.pools["main"], lambda: servers.address or world.url(), redis, schemas=["registers"]
        )
        async with running(relayed):
            await invalidate(db, 1)
            before = Bus(redis_server, "user", old)
            await until(lambda: "k:1" in before.voided())
            await asyncio.to_thread(world.primary.kill)
            await asyncio.to_thread(world.replicas[0].promote)
            await until(lambda: db.epoch("main") != old)
            await invalidate(db, 2)
            after = Bus(redis_server, "user", epoch_of(db))
            await until(lambda: "k:2" in after.voided() and after.beats())
            assert "k:2" not in before.voided()


@pytest.mark.needs("pgbouncer")
async def test_it_works_past_a_pooler(
    database_url: str, tmp_path: Path, redis_server: RedisServer, own_pooler: Callable[..., PoolerServer]
) -> None:
    """Writes and those who wait to lead go through a transaction pooler with one server connection; the
    leader has a connection of its own, whose lock nobody else's session inherits."""
    async with notes([database_url], tmp_path):
        pass
    pooler = await asyncio.to_thread(own_pooler, {"main": database_url}, server_connections=1)
    async with (
        Pool(pooler.url("main"), pooled=True, cluster="main") as pool,
        connected(redis_server) as redis,
    ):
        cache = TellingCache()
        db = Database("notes", ShardMap.even(["main"]), {"main": pool}, invalidations=cache)
        pair = [relay(pool, database_url, redis) for _ in range(2)]
        async with running(*pair):
            await invalidate(db, 1)
            bus = Bus(redis_server, "user", epoch_of(db))
            await until(lambda: "k:1" in bus.voided())
            await until(lambda: none_left(db))
            await until(lambda: len(bus.beats()) > 2)
            assert [one.leads for one in pair].count(True) == 1
            assert len(bus.leaders()) == 1


@pytest.mark.needs("pgbouncer")
async def test_a_pooler_in_the_place_of_the_server_is_told(
    db: Database,
    database_url: str,
    redis_server: RedisServer,
    own_pooler: Callable[..., PoolerServer],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A lock that is held through a pooler is anybody's: such a relay never leads, and says why, once."""
    pooler = await asyncio.to_thread(own_pooler, {"main": database_url}, server_connections=2)
    said, tries = "unsupported startup parameter", list[str]()

    def dsn() -> str:
        tries.append(pooler.url("main"))
        return tries[-1]

    async with connected(redis_server) as redis:
        relayed = relay(db.pools["main"], dsn, redis)
        async with running(relayed):
            await until(lambda: len(tries) > 3)
            assert not relayed.leads
    assert sum(said in record.getMessage() for record in caplog.records) == 1


async def test_a_relay_survives_storms_of_start_stop_and_cancel(
    db: Database, database_url: str, redis_server: RedisServer
) -> None:
    """Leading or not, it leaves nothing behind: the last one that was started still leads."""
    async with connected(redis_server) as redis:

        def made() -> Group:
            pool = Pool(database_url, cluster="main", size=2, reserved=0)
            return Group("relaying", [pool, relay(pool, database_url, redis)])

        await stress(made, storms=8, pause=0.02)
        last = relay(db.pools["main"], database_url, redis)
        async with running(last):
            await until(lambda: last.leads)


def test_options_that_cannot_work_are_refused() -> None:
    pool, redis = Pool("postgresql://nobody@127.0.0.1:1/none"), Redis("redis://127.0.0.1:1")
    for options, said in (
        ({"schemas": []}, "schemas must be"),
        ({"busy": 1.0, "every": 0.5, "silence": 5.0}, "busy must be"),
        ({"silence": 0.1, "every": 0.05}, "silence must be"),
        ({"challenge": 0.0}, "challenge must be"),
    ):
        with pytest.raises(ValueError, match=said):
            relay(pool, "", redis, **options)
