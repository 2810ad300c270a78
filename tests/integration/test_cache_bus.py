"""The bus in a real Redis: what is heard, what shows a loss, and that proof ends by itself."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tests._redis import RedisCluster, RedisServer, SentinelGroup

from springtide.cache import Cache
from springtide.cache._bus import COUNT, GATHER, Bus
from springtide.cache._names import Names, scope_name
from springtide.cache._scripts import BEAT, VOID
from springtide.cache._slot import EVERYTHING, Slot, round_text
from springtide.context import Identity, RequestContext, activate
from springtide.errors import RedisUnavailable
from springtide.redis import Redis, _keeper
from springtide.testing import stress

pytestmark = pytest.mark.needs("redis-server")

HANGS = 60.0
"""Seconds that only tell a slow machine from one that hangs."""


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


async def until(holds: Callable[[], Any], what: str) -> None:
    try:
        async with asyncio.timeout(HANGS):
            while not holds():
                await asyncio.sleep(0.005)
    except TimeoutError:
        pytest.fail(f"{what}: not within {HANGS:.0f} s")


class Listener:
    """A slot, what it has heard, and the Redis that it is on."""

    def __init__(self, redis: Redis, bus: Bus, name: str = "users@main", **options: Any) -> None:
        self.redis = redis
        self.bus = bus
        self.heard: list[str] = []
        self.epoch: int | None = 1
        options = {"share": 1.0, "relayed": False, **options}
        self.slot = Slot(name, heard=self._hear, **options)
        bus.follow(self.slot, self.scope)
        self.heard.clear()

    def _hear(self, fields: Sequence[str], sequence: int) -> None:
        self.heard += fields

    def scope(self, run_id: str) -> str | None:
        return None if self.epoch is None else scope_name("tests", run_id, "main", self.epoch)

    @property
    def names(self) -> Names:
        return Names(self.slot.name, self.slot.scope)

    def is_proven(self) -> bool:
        return time.monotonic() < self.slot.good_until

    async def proven(self) -> None:
        await until(self.is_proven, f"a proof for {self.slot.name}")

    async def proven_anew(self) -> None:
        """Proven by something that was sent from now on."""
        now = time.monotonic()
        await until(lambda: self.slot.proof > now, f"a new proof for {self.slot.name}")

    async def void(self, *fields: str) -> int:
        link = self.redis.link(self.slot.name)
        assert link is not None
        arguments = (f"x{os.urandom(4).hex()}", "=0 60000", *fields)
        return int(await link.call(VOID, (self.names.sequence,), arguments))

    async def beat(self, relay: str, number: int) -> None:
        link = self.redis.link(self.slot.name)
        assert link is not None
        arguments = ("life", "", "", "", round_text(relay, number), 10_000, 60_000)
        await link.call(BEAT, (self.names.sequence,), arguments)


@asynccontextmanager
async def listening(
    server: RedisServer | RedisCluster | SentinelGroup, *, timeout: float = HANGS, connections: int = 1
) -> AsyncIterator[tuple[Redis, Bus]]:
    redis = Redis(server.url, timeout=timeout, connections=connections)
    bus = Bus(redis, wait=0.05)
    await redis.start()
    try:
        await bus.start()
        yield redis, bus
    finally:
        await bus.stop()
        await redis.stop()


async def test_what_is_voided_is_heard_in_order_and_proof_goes_on(redis_server: RedisServer) -> None:
    """Several slots on one connection; each hears its own, and silence proves as well as news does."""
    async with listening(redis_server) as (redis, bus):
        users, items = Listener(redis, bus), Listener(redis, bus, "items@main")
        await users.proven()
        await items.proven()
        users.heard.clear(), items.heard.clear()
        sequences = [await users.void("k:1"), await users.void("k:2", "t:org:5"), await items.void("k:1")]
        await until(lambda: users.slot.position == sequences[1], "two voids")
        await until(lambda: items.slot.position == sequences[2], "one void")
        assert users.heard == ["k:1", "k:2", "t:org:5"]
        assert items.heard == ["k:1"]
        await users.proven_anew()
        await users.proven_anew()
        assert users.slot.gaps == items.slot.gaps == 0
        readers = redis_server.command("CLIENT", "LIST").count("cmd=xread")
        assert readers == 1


async def test_more_than_an_answer_brings_is_heard_completely(redis_server: RedisServer) -> None:
    """A process that was away for a while reads on where it was; it is proven when it is through."""
    async with listening(redis_server) as (redis, bus):
        users = Listener(redis, bus)
        await users.proven()
        generation = users.slot.generation
        await asyncio.gather(*(users.void(f"k:{number}") for number in range(3 * COUNT)))
        await users.proven_anew()
        await until(lambda: f"k:{3 * COUNT - 1}" in users.heard, "the last of many")
        assert users.slot.generation == generation


async def test_however_much_is_voided_it_is_heard_together(redis_server: RedisServer) -> None:
    """One void a time wakes a listener only so often; the first after a silence is not kept waiting for."""
    async with listening(redis_server) as (redis, bus):
        users = Listener(redis, bus)
        await users.proven()
        begun, rounds = time.monotonic(), bus.rounds
        for number in range(300):
            await users.void(f"k:{number}")
        await until(lambda: "k:299" in users.heard, "the last void")
        assert bus.rounds - rounds <= (time.monotonic() - begun) / GATHER + 2


async def test_with_a_relay_two_rounds_of_it_are_the_proof(redis_server: RedisServer) -> None:
    async with listening(redis_server) as (redis, bus):
        users = Listener(redis, bus, relayed=True)
        await until(lambda: users.slot.scope, "a place in the stream")
        await users.beat("r1", 1)
        await until(lambda: users.slot._beat is not None, "the first round")
        assert not users.is_proven()
        await users.beat("r2", 2)
        await until(lambda: users.slot._beat and users.slot._beat[0] == "r2", "another relay's round")
        assert not users.is_proven()
        await users.beat("r2", 3)
        await until(lambda: users.slot.good_until > 0, "the second round of one relay")
        assert users.slot.gaps == 0


async def test_another_epoch_of_the_database_begins_anew_and_none_holds_nothing(
    redis_server: RedisServer,
) -> None:
    async with listening(redis_server) as (redis, bus):
        users = Listener(redis, bus)
        await users.proven()
        before, generation = users.slot.scope, users.slot.generation
        users.heard.clear()
        users.epoch = 2
        await until(lambda: users.slot.scope not in (before, ""), "another scope")
        assert users.heard == [EVERYTHING]
        assert users.slot.generation > generation
        await users.proven()
        users.epoch = None
        await until(lambda: not users.slot.scope, "no scope")
        assert not users.is_proven()


async def test_a_restarted_server_is_another_scope(own_redis: Callable[..., RedisServer]) -> None:
    """Nothing of before is there, so nothing of before may be held."""
    server = own_redis()
    async with listening(server) as (redis, bus):
        users = Listener(redis, bus)
        await users.proven()
        before = users.slot.scope
        users.heard.clear()
        await asyncio.to_thread(server.restart)
        await until(lambda: users.slot.scope not in (before, ""), "another scope")
        assert users.heard[0] == EVERYTHING
        await users.proven_anew()
        await users.void("k:1")
        await until(lambda: "k:1" in users.heard, "a void after the restart")


LOSSES = {
    "flushed": "redis.call('FLUSHALL') return 0",
    "stream": "{void} redis.call('DEL', p .. 'B') return 0",
    "trimmed": "{void} {void} {void} redis.call('XTRIM', p .. 'B', 'MAXLEN', 1) return 0",
    "sequence": "redis.call('DEL', p .. 'S') return 0",
    "sequence went back": "redis.call('SET', p .. 'S', 5) return 0",
    "stream counts from lower on": "redis.call('DEL', p .. 'B') {void:1-1} return 0",
}


@pytest.mark.parametrize("loss", list(LOSSES))
async def test_whatever_redis_loses_shows_as_a_gap_and_then_goes_on(
    redis_server: RedisServer, loss: str
) -> None:
    """A void that is never seen may be what is lost: everything that is held goes."""
    text = LOSSES[loss]
    for entry_id in ("*", "1-1"):
        append = (
            "do local s = redis.call('INCR', p .. 'S')"
            f" redis.call('XADD', p .. 'B', '{entry_id}', 's', s, 'f', 'k:1') end"
        )
        text = text.replace("{void}" if entry_id == "*" else "{void:1-1}", append)
    async with listening(redis_server) as (redis, bus):
        users = Listener(redis, bus)
        await users.proven()
        await users.void("k:0")
        await until(lambda: "k:0" in users.heard, "a void")
        users.heard.clear()
        link = redis.link("users@main")
        assert link is not None
        await link.send("EVAL", f"local p = KEYS[1] {text}", 1, users.names.prefix)
        await until(lambda: users.slot.gaps, f"a gap after {loss}")
        assert EVERYTHING in users.heard
        await users.proven_anew()
        await users.void("k:2")
        await until(lambda: "k:2" in users.heard, "a void after the loss")


async def test_a_sequence_ahead_of_a_stream_without_news_is_a_gap(redis_server: RedisServer) -> None:
    """Before any relay came: Redis forgot all, and whoever looked first began the sequence anew."""
    async with listening(redis_server) as (redis, bus):
        users = Listener(redis, bus, relayed=True)
        await until(lambda: users.slot.scope != "", "the slot to be followed")
        for _ in range(2):
            before = users.slot.generation
            redis_server.flush()
            await until(lambda: users.slot.generation > before, "a gap")  # noqa: B023
            await until(lambda: users.slot.scope != "", "the slot to be followed again")
            assert users.slot.position == await bus.sequence(users.slot)


async def test_rounds_in_a_stream_that_counts_from_lower_on_are_heard_again(
    redis_server: RedisServer,
) -> None:
    """Nothing would ever be read there: without proof for long, the reader looks where the stream stands."""
    async with listening(redis_server) as (redis, bus):
        users = Listener(redis, bus, relayed=True)
        await until(lambda: users.slot.scope, "a place in the stream")
        await users.void("k:0")
        await until(lambda: "k:0" in users.heard, "a void")
        link = redis.link("users@main")
        assert link is not None
        text = (
            "redis.call('DEL', KEYS[1] .. 'B') redis.call('XADD', KEYS[1] .. 'B', '1-1', 's', 1, 'b', 'r 1')"
        )
        await link.send("EVAL", text, 1, users.names.prefix)
        await until(lambda: users.slot.gaps, "a gap")
        await until(lambda: users.slot.last_id == "1-1", "the place in the new stream")


async def test_an_entry_that_is_none_of_ours_is_a_gap_and_passed_by(redis_server: RedisServer) -> None:
    async with listening(redis_server) as (redis, bus):
        users = Listener(redis, bus)
        await users.proven()
        redis_server.command("XADD", users.names.bus, "*", "x", "1")
        await until(lambda: users.slot.gaps == 1, "a gap")
        await users.proven_anew()
        assert users.slot.gaps == 1


async def test_a_reader_that_was_cut_off_reads_on_where_it_was(redis_server: RedisServer) -> None:
    """What was voided meanwhile is heard late, not lost: nothing has to go."""
    async with listening(redis_server) as (redis, bus):
        users = Listener(redis, bus)
        await users.proven()
        generation = users.slot.generation
        for turn in range(3):
            readers = [
                line for line in redis_server.command("CLIENT", "LIST").splitlines() if "cmd=xread" in line
            ]
            for line in readers:
                redis_server.command("CLIENT", "KILL", "ID", line.split()[0].removeprefix("id="))
            await users.void(f"k:{turn}")
            await until(lambda turn=turn: f"k:{turn}" in users.heard, "a void after the cut")
            await users.proven_anew()
        assert bus.restarts > 0
        assert users.slot.generation == generation


async def test_proof_ends_while_redis_stands_still_and_comes_back(
    own_redis: Callable[..., RedisServer],
) -> None:
    """Nothing tells the process: the moment passes. The same server goes on, so nothing has to go."""
    server = own_redis()
    async with listening(server, timeout=0.25, connections=2) as (redis, bus):
        users = Listener(redis, bus)
        await users.proven()
        generation = users.slot.generation
        server.freeze()
        try:
            await until(lambda: not users.is_proven(), "the end of the proof")
            proof = users.slot.proof
        finally:
            server.thaw()
        await until(lambda: users.slot.proof > proof, "a new proof")
        assert users.slot.generation == generation


async def test_the_sequence_can_be_asked_for_in_the_scope_that_is_followed_alone(
    redis_server: RedisServer,
) -> None:
    async with listening(redis_server) as (redis, bus):
        users = Listener(redis, bus)
        assert await bus.sequence(users.slot) is None
        await users.proven()
        assert await bus.sequence(users.slot) == users.slot.position
        assert await bus.sequence(users.slot) == await users.void("k:1") - 1
        users.epoch = 2  # the reader may not know yet
        assert await bus.sequence(users.slot) in (None, users.slot.position)
        scope, users.slot.scope = users.slot.scope, "0000000000"
        assert await bus.sequence(users.slot) is None
        users.slot.scope = scope
        bus.leave(users.slot)
        assert await bus.sequence(users.slot) is None
        assert not users.is_proven()
        with pytest.raises(ValueError, match="wait must be > 0"):
            Bus(redis, wait=0)


async def test_a_slot_is_followed_once(redis_server: RedisServer) -> None:
    async with listening(redis_server) as (redis, bus):
        users = Listener(redis, bus)
        with pytest.raises(ValueError, match="slot users@main is followed already"):
            bus.follow(users.slot, users.scope)


async def test_a_failover_is_another_scope(own_sentinel: Callable[..., SentinelGroup]) -> None:
    """A replica that became the primary may lack what was voided last: nothing of before is held."""
    group = own_sentinel(replicas=1)
    async with listening(group, timeout=0.25) as (redis, bus):
        users = Listener(redis, bus)
        await users.proven()
        before = users.slot.scope
        users.heard.clear()
        await asyncio.to_thread(group.failover)
        await until(lambda: users.slot.scope not in (before, ""), "another scope")
        assert users.heard[0] == EVERYTHING
        await users.proven_anew()


async def test_a_primary_that_was_replaced_vouches_for_nothing(
    own_sentinel: Callable[..., SentinelGroup],
    own_redis: Callable[..., RedisServer],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For a moment there are two, and who brings no token may have written at the other: what is kept here is
    not for him. And of what he writes here the other knows nothing: that is said, or waited for."""
    monkeypatch.setattr(_keeper, "LOOK_EVERY", 2 * HANGS)  # the moment lasts
    group, other, loads = own_sentinel(replicas=0), own_redis(), list[int]()

    async def load(id: int) -> int:
        loads.append(id)
        return id

    def bearer() -> RequestContext:
        return RequestContext(known=Identity(9, "token"), unproven=set())

    cache = Cache("app", redis=group.url)
    values = cache.define("value:{id}", int, load=load)
    async with asyncio.timeout(HANGS), cache:
        slot = values.places[None].slot
        await until(lambda: slot.proof > 0, "proof")
        with activate(bearer()):
            await values.invalidate(1)
            await values.get(1)
        for _ in range(2):
            with activate(bearer()):
                assert await values.get(1) == 1
        assert len(loads) == 1
        for sentinel in group.sentinels:
            sentinel.command("SENTINEL", "REMOVE", "main")
            sentinel.command("SENTINEL", "MONITOR", "main", "127.0.0.1", other.port, 2)
        with activate(bearer()):
            assert await values.get(1) == 1
        assert len(loads) == 2
        with activate(bearer()) as context, pytest.raises(RedisUnavailable, match="another server"):
            await values.invalidate(1)
        assert context.settled > 0.0
        with activate(RequestContext()):
            await values.get(1)
            await values.get(1)
        assert len(loads) <= 3


async def test_in_a_cluster_each_node_is_listened_to(
    own_redis_cluster: Callable[..., RedisCluster],
) -> None:
    """Slots of several nodes are heard and proven, and one that moves to another node begins anew there."""
    cluster = own_redis_cluster(nodes=2)
    names = [f"{name}@main" for name in ("users", "items", "carts", "feeds", "posts", "tags")]
    async with listening(cluster) as (redis, bus):
        slots = {name: Listener(redis, bus, name) for name in names}
        for slot in slots.values():
            await slot.proven()
        owners = {name: cluster.owner(f"{{{name}}}") for name in names}
        assert len({owner.port for owner in owners.values()}) == 2
        for name, slot in slots.items():
            sequence = await slot.void(f"k:{name}")
            await until(lambda slot=slot, s=sequence: slot.slot.position == s, f"the void of {name}")
            assert slot.heard == [EVERYTHING, f"k:{name}"]
            await slot.proven_anew()
        moved = slots[names[0]]
        before, target = moved.slot.scope, next(o for o in owners.values() if o is not owners[names[0]])
        await asyncio.to_thread(cluster.move, f"{{{names[0]}}}", target)
        await until(lambda: moved.slot.scope not in (before, ""), "another scope for what has moved")
        await moved.proven_anew()


FROZEN = """
import asyncio, os, signal, sys, time
from springtide.cache._bus import Bus
from springtide.cache._names import scope_name
from springtide.cache._slot import Slot
from springtide.redis import Redis

async def main():
    heard = []
    redis = Redis(sys.argv[1])
    bus = Bus(redis, wait=0.05)
    slot = Slot("users@main", share=1.0, relayed=False, heard=lambda fields, sequence: heard.extend(fields))
    bus.follow(slot, lambda run_id: scope_name("tests", run_id, "main", 1))
    await redis.start()
    await bus.start()
    while time.monotonic() >= slot.good_until:
        await asyncio.sleep(0.01)
    print("proven", slot.scope, flush=True)
    while time.monotonic() >= slot.good_until:
        await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGSTOP)
    # it goes on here, before the loop has turned: no socket was read
    print("bypassed" if time.monotonic() >= slot.good_until else "served", "k:1" in heard, flush=True)
    while "k:1" not in heard or time.monotonic() >= slot.good_until:
        await asyncio.sleep(0.01)
    print("proven again", slot.generation, flush=True)
    await bus.stop()
    await redis.stop()

asyncio.run(main())
"""


async def test_a_process_that_was_stopped_bypasses_before_it_has_read_its_socket(
    redis_server: RedisServer,
) -> None:
    """SIGSTOP, an invalidation, SIGCONT: the first thing that it does is not to trust what it holds."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FROZEN, redis_server.url, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    try:
        async with asyncio.timeout(HANGS):
            said = (await child.stdout.readline()).decode().split()
            assert said[0] == "proven"
            await until(lambda: _state(child.pid) == "T", "a stopped process")
            names = Names("users@main", said[1])
            redis_server.command("EVAL", VOID.text, 1, names.sequence, "x1", "k:1")
            stopped = time.monotonic()
            await until(lambda: time.monotonic() > stopped + 1.1, "the end of its share")
            os.kill(child.pid, signal.SIGCONT)
            assert (await child.stdout.readline()).decode().split() == ["bypassed", "False"]
            assert (await child.stdout.readline()).decode().split()[:2] == ["proven", "again"]
            assert await child.wait() == 0
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()


async def test_a_bus_survives_storms_of_start_stop_and_cancel(redis_server: RedisServer) -> None:
    """The last call decides, and a stopped bus leaves no task and no connection."""
    redis = Redis(redis_server.url)
    await redis.start()
    try:

        def made() -> Bus:
            bus = Bus(redis, wait=0.01)
            Listener(redis, bus)
            return bus

        await stress(made, storms=8, pause=0.01)
        await until(lambda: "cmd=xread" not in redis_server.command("CLIENT", "LIST"), "no reader left")
    finally:
        await redis.stop()
