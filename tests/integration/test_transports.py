"""One suite for every transport: what jobs promise holds whatever carries them.

The worker and its jobs are those of the other suites of jobs; `postgres` is the same without a broker. A
broker may lose, repeat and delay messages as it likes: what is asked here is that nobody notices.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from tests.jobs_support import (
    DO,
    FAST,
    Deed,
    Doer,
    Heard,
    add,
    deeds,
    reach,
    rows,
    until,
    worker,
)
from tests.jobs_worker import Hold
from tests.transports import Broker, begin, came, connect, fresh_name, params

from springtide.context import Priority
from springtide.db import Database
from springtide.errors import TransportUnavailable
from springtide.jobs import Handler, Run, Worker, _carrier, _sent, job
from springtide.jobs._pausing import Pausing
from springtide.jobs.transports import Delivery, Message, Transport
from springtide.jobs.transports.seam import line_name
from springtide.signals import JobsReceived, JobsSent, TransportChanged
from springtide.testing.faults import FaultProxy

pytestmark = pytest.mark.timeout(600)

STEADY = {"lease": 20.0, "heartbeat": 2.0, "stall": 10.0}
"""Whose worker lives keeps its leases, also on a machine that is busy with other things."""


class Way:
    """How jobs come to the workers of one test: by `broker`, or from SQL where it is None."""

    def __init__(self, broker: Broker | None) -> None:
        self.broker = broker
        self.name = fresh_name()

    def transport(self, *, port: int | None = None) -> Transport | None:
        return connect(self.broker, self.name, port=port) if self.broker is not None else None


def _way(kind: str, shared: dict[str, Broker]) -> Iterator[Way]:
    if kind not in shared:
        shared[kind] = begin(kind)
    yield Way(shared[kind])
    shared[kind].start()


@pytest.fixture(params=["postgres", *params()])
def way(request: pytest.FixtureRequest, _shared_brokers: dict[str, Broker]) -> Iterator[Way]:
    if request.param == "postgres":
        yield Way(None)
    else:
        yield from _way(request.param, _shared_brokers)


@pytest.fixture(params=params())
def carried(request: pytest.FixtureRequest, _shared_brokers: dict[str, Broker]) -> Iterator[Way]:
    """For what a broker does, and nobody without one."""
    yield from _way(request.param, _shared_brokers)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is lost is sent again in a second, and a broker is away after another."""
    monkeypatch.setattr(_sent, "TRUST", 1.0)
    monkeypatch.setattr(_carrier, "AWAY_AFTER", 1.0)


@pytest.fixture
async def base(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    async with deeds([database_url], tmp_path / "migrations", size=40, acquire_timeout=60.0) as database:
        yield database


@contextlib.asynccontextmanager
async def working(
    way: Way,
    url: str,
    database: Database,
    handlers: Sequence[Handler[Any]],
    implementation: Any,
    *,
    port: int | None = None,
    **options: Any,
) -> AsyncIterator[Worker]:
    options = {"transport": way.transport(port=port), **STEADY, **options}
    made = worker(database, [url], handlers, implementation, **options)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


def line(database: Database, priority: Priority = Priority.NORMAL) -> str:
    return line_name(database.name, next(iter(database.pools)), int(priority))


async def done(database: Database, count: int) -> list[Any]:
    """All jobs, once so many are done and nothing else is left."""

    async def all_done() -> Any:
        found = await rows(database)
        return found if [row["state"] for row in found] == ["done"] * count else None

    found: list[Any] = await until(all_done, seconds=200)
    return found


async def effects(database: Database) -> list[str]:
    return sorted(row["what"] for row in await database.scatter("select what from deeds.effect"))


class Effects(Doer):
    """Writes what it did in the transaction that ends the job."""

    async def do(self, deed: Deed, run: Run) -> None:
        await super().do(deed, run)
        await run.tx.execute(
            "insert into deeds.effect (bucket, what, job) values ($1, $2, $3)",
            run.tx.bucket,
            deed.what,
            run.key,
        )


ONCE = Handler(Deed, Effects.do, effect="transactional")


# -- what jobs promise --------------------------------------------------------------------------------------


async def test_many_jobs_each_once(way: Way, database_url: str, base: Database) -> None:
    """Two workers share what was there before them and what comes while they run; each is done once."""
    whats = [f"deed {number}" for number in range(120)]
    async with base.write("a") as tx:
        await tx.enqueue_many([Deed(what) for what in whats[:80]])
    made = Effects()
    async with (
        working(way, database_url, base, [ONCE], made),
        working(way, database_url, base, [ONCE], made),
    ):
        for what in whats[80:]:
            await add(base, what)
        await done(base, 120)
    assert await effects(base) == sorted(whats)


async def test_in_the_order_of_its_key(way: Way, database_url: str, base: Database) -> None:
    """Jobs of one ordering key run one after the other, in the order of enqueueing, over two workers and
    through a failure; other keys do not wait for them."""
    begun: dict[str, list[str]] = {"a": [], "b": []}
    at_once = 0

    async def act(deed: Deed, run: Run) -> None:
        nonlocal at_once
        key = deed.what[0]
        begun[key].append(deed.what)
        at_once += key == "a"
        assert at_once <= 1
        await asyncio.sleep(0.001)
        at_once -= key == "a"
        if deed.what == "a3" and run.attempt == 1:
            raise OSError("not yet")

    doer = Doer(act)
    async with base.write("k") as tx:
        for key in ("a", "b"):
            await tx.enqueue_many([Deed(f"{key}{number}") for number in range(8)], ordering_key=key)
    async with (
        working(way, database_url, base, [DO], doer),
        working(way, database_url, base, [DO], doer),
    ):
        await done(base, 16)
    assert begun["a"] == ["a0", "a1", "a2", "a3", "a3", "a4", "a5", "a6", "a7"]
    assert begun["b"] == [f"b{number}" for number in range(8)]


async def test_when_it_is_due(way: Way, database_url: str, base: Database) -> None:
    """A delayed job is not run before its time, whatever the transport could do with it."""
    doer = Doer()
    async with working(way, database_url, base, [DO], doer):
        await add(base, "later", delay=0.7)
        await add(base, "now")
        later, _ = await done(base, 2)
        assert (later["started_at"] - later["enqueued_at"]).total_seconds() >= 0.7


async def test_important_first(way: Way, database_url: str, base: Database) -> None:
    """Of what waits the important is run first: it passes what was sent before it."""
    gate, doer = asyncio.Event(), Doer(lambda deed, run: _hold(deed, gate))
    transport = way.transport()
    async with working(way, database_url, base, [DO], doer, slots=1, transport=transport):
        await add(base, "gate")
        await until(lambda: doer.calls)
        for number in range(5):
            await add(base, f"bulk {number}", priority=Priority.BULK)
        if way.broker is not None:
            await until(lambda: _sent_jobs(base, 5))
        await add(base, "first", priority=Priority.CRITICAL)
        if transport is not None:
            await until(lambda: _sent_jobs(base, 6))
            await until(lambda: came(transport, line(base, Priority.CRITICAL)))
        gate.set()
        await done(base, 7)
    assert [what for what, _ in doer.calls][1] == "first"


async def _hold(deed: Deed, gate: asyncio.Event) -> None:
    if deed.what == "gate":
        await gate.wait()


async def _sent_jobs(database: Database, count: int) -> bool:
    return len(await rows(database, "state = 'sent'")) == count


async def test_poison_is_buried_and_others_go_on(way: Way, database_url: str, base: Database) -> None:
    """A job that always fails is a dead letter after its attempts, which are counted; the rest is done."""

    async def act(deed: Deed, run: Run) -> None:
        if deed.what == "poison":
            raise OSError(f"attempt {run.attempt}")

    doer = Doer(act)
    async with working(way, database_url, base, [DO], doer):
        await add(base, "poison")
        await add(base, "good")
        dead, good = await reach(base, "dead", "done")
    assert dead["attempt"] == 3 and "attempt 3" in dead["error"] and good["attempt"] == 1


@job(kind="deed.new", version=2)
class New(msgspec.Struct, frozen=True):
    what: str


class NewDoer(Doer):
    async def new(self, deed: New, run: Run) -> None:
        self.calls.append((deed.what, run))


async def test_an_unknown_kind_is_parked_and_done_by_who_knows_it(
    way: Way, database_url: str, base: Database
) -> None:
    """In a rolling deploy the old version takes nothing away from the new one: what it does not know is kept,
    visible, and done by the new one. Also when the old one was handed it."""
    old, new = Doer(), NewDoer()
    async with working(way, database_url, base, [DO], old):
        async with base.write("a") as tx:
            await tx.enqueue(New("unknown"))
        await add(base, "known")
        await reach(base, "parked", "done")
        if way.broker is not None:  # a newer relay sends what the old worker then receives
            await _send_by_hand(way, base, "parked")
            await until(lambda: _parked_again(base))
        async with working(way, database_url, base, [DO, Handler(New, NewDoer.new)], new):
            await done(base, 2)
    assert [what for what, _ in new.calls] == ["unknown"] and [what for what, _ in old.calls] == ["known"]


async def _parked_again(database: Database) -> bool:
    found = await database.scatter("select state from deeds._job where state = 'parked' and turn > 0")
    return bool(found)


async def _send_by_hand(way: Way, database: Database, state: str, *, times: int = 1) -> None:
    """Make the jobs in this state sent, and publish their messages so often, as another relay would."""
    (pool,) = database.pools.values()
    found = await pool.fetch(
        "update deeds._job set state = 'sent', turn = turn + 1,"
        " leased_until = clock_timestamp() + interval '60 s' where state = $1"
        " returning bucket, id, priority, turn",
        state,
    )
    await publish(
        way,
        [
            Message(line(database, Priority(row["priority"])), row["bucket"], UUID(int=row["id"].int), turn)
            for row in found
            for turn in range(row["turn"], row["turn"] + times)
        ],
    )


async def publish(way: Way, messages: Sequence[Message]) -> None:
    transport = way.transport()
    assert transport is not None
    await transport.start()
    try:
        async with asyncio.timeout(60):
            while not all(await _published(transport, messages)):
                await asyncio.sleep(0.1)
    finally:
        await transport.stop()


async def _published(transport: Transport, messages: Sequence[Message]) -> Sequence[bool]:
    try:
        return await transport.publish(messages)
    except TransportUnavailable:
        return [False]


async def test_limits_hold(way: Way, database_url: str, base: Database) -> None:
    """At most two of a limited kind run at once, over two workers, and all are done."""

    @job(kind="deed.narrow", concurrency=2)
    class Narrow(msgspec.Struct, frozen=True):
        what: str

    running, most = 0, 0

    class Narrows(Doer):
        async def narrow(self, deed: Narrow, run: Run) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            await asyncio.sleep(0.005)
            running -= 1

    handlers = [Handler(Narrow, Narrows.narrow)]
    async with base.write("a") as tx:
        await tx.enqueue_many([Narrow(str(number)) for number in range(20)])
    async with (
        working(way, database_url, base, handlers, Narrows()),
        working(way, database_url, base, handlers, Narrows()),
    ):
        await done(base, 20)
    assert most <= 2


async def test_a_drain_gives_back(way: Way, database_url: str, base: Database) -> None:
    """A worker that stops takes nothing with it: what it runs and cannot end is another's, at once, and its
    attempt is not counted; so is what it was just being sent."""
    never = asyncio.Event()
    slow, quick = Doer(lambda deed, run: _wait_for(never)), Doer()
    leaving = worker(
        base, [database_url], [DO], slow, transport=way.transport(), slots=2, drain=0.1, **STEADY
    )
    await leaving.start()
    for number in range(6):
        await add(base, f"deed {number}")
    await until(lambda: len(slow.calls) == 2)
    async with working(way, database_url, base, [DO], quick, slots=1):
        await leaving.stop()
        found = await done(base, 6)
    assert {row["attempt"] for row in found} == {1}
    assert sorted(what for what, _ in quick.calls) == [f"deed {number}" for number in range(6)]


async def _wait_for(event: asyncio.Event) -> None:
    await event.wait()


async def test_unique_keys_are_kept_until_a_run(way: Way, database_url: str, base: Database) -> None:
    """A job that was sent still takes the place of another of its key, until it begins."""
    gate, doer = asyncio.Event(), Doer(lambda deed, run: _hold(deed, gate))
    async with working(way, database_url, base, [DO], doer, slots=1):
        await add(base, "gate")
        await until(lambda: doer.calls)
        first = await add(base, "once", unique_key="key")
        if way.broker is not None:
            await until(lambda: _sent_jobs(base, 1))
        assert await add(base, "once", unique_key="key") == first
        gate.set()
        await done(base, 2)
        assert await add(base, "once", unique_key="key") != first
        await done(base, 3)


async def test_workers_and_relays_are_killed(way: Way, database_url: str, tmp_path: Path) -> None:
    """kill -9 of processes that relay, receive and run, while jobs flow: each job has one effect, whoever
    died with it in hand."""
    async with deeds([database_url], tmp_path / "migrations", size=8) as base:
        processes = [await _spawn(way, tmp_path, database_url) for _ in range(2)]
        try:
            for number in range(120):
                await add(base, f"slow {number}")
                if number in (40, 80):
                    processes[0].kill()
                    await processes[0].wait()
                    processes = [processes[1], await _spawn(way, tmp_path, database_url)]
            await done(base, 120)
            for process in processes:
                process.terminate()
        finally:
            await _ended(processes)
        found = await effects(base)
    assert found == sorted(f"slow {number}" for number in range(120))


async def test_what_kills_its_worker_is_buried_and_takes_nothing_with_it(
    way: Way, database_url: str, tmp_path: Path
) -> None:
    """A job that ends its process each time is a dead letter after its attempts, which are counted though no
    run of it has come to an end; what died with it in hand is done, with one effect each."""
    async with deeds([database_url], tmp_path / "migrations", size=8) as base:
        async with base.write("a") as tx:
            await tx.enqueue(Hold("poison", "kill"))
            await tx.enqueue_many([Deed(f"slow {number}") for number in range(30)])
        # as many as a job has that says nothing, not the three of this one: several may die in one process
        (pool,) = base.pools.values()
        await pool.execute("update deeds._job set max_attempts = 15 where kind = 'deed.do'")
        process, deaths = await _spawn(way, tmp_path, database_url), 0
        try:
            while not await _buried(base, 30):
                if process.returncode is not None:
                    deaths += 1
                    process = await _spawn(way, tmp_path, database_url)
                await asyncio.sleep(0.1)
            process.terminate()
        finally:
            await _ended([process])
        (dead,) = await rows(base, "state = 'dead'")
        found = await effects(base)
    assert dead["kind"] == "deed.hold" and dead["attempt"] == deaths == 3
    assert found == sorted(f"slow {number}" for number in range(30))


async def _buried(database: Database, others: int) -> bool:
    """One is a dead letter, and the others are done."""
    return sorted(row["state"] for row in await rows(database)) == ["dead", *["done"] * others]


async def _ended(processes: Sequence[asyncio.subprocess.Process]) -> None:
    """By themselves, as they were told to, or by force."""
    for process in processes:
        if process.returncode is None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(30):
                    await process.wait()
        if process.returncode is None:
            process.kill()
            await process.wait()


async def _spawn(way: Way, folder: Path, url: str) -> asyncio.subprocess.Process:
    options = FAST | {"lease": 6.0, "heartbeat": 1.0, "stall": 3.0}
    if way.broker is not None:
        options |= {"transport": [way.broker.kind, way.broker.url(), way.name], "trust": 1.0}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.jobs_worker", str(folder / "migrations"),
        msgspec.json.encode(options).decode(), url,
        stdout=asyncio.subprocess.PIPE, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert process.stdout is not None
    async with asyncio.timeout(60):
        assert await process.stdout.readline() == b"ready\n"
    return process


# -- what a broker may do, and nobody notices ---------------------------------------------------------------


async def test_duplicates_are_dropped(carried: Way, database_url: str, base: Database) -> None:
    """Each message comes three times or more: each job is run once, and what was dropped is counted."""
    for number in range(20):
        await add(base, f"deed {number}")
    await _send_by_hand(carried, base, "ready", times=3)
    heard, made = Heard(), Effects()
    async with (
        working(carried, database_url, base, [ONCE], made, sink=heard),
        working(carried, database_url, base, [ONCE], made, sink=heard),
    ):
        await done(base, 20)
        await until(lambda: sum(one.dropped for one in heard.of(JobsReceived)) >= 40)
    assert len(made.calls) == 20 and len(await effects(base)) == 20


async def test_messages_of_jobs_that_are_gone_are_dropped(
    carried: Way, database_url: str, base: Database
) -> None:
    """A message whose job was discarded, or never was, is settled: it does not come again and again."""
    heard = Heard()
    await publish(carried, [Message(line(base), 0, UUID(int=number), 1) for number in range(1, 4)])
    async with working(carried, database_url, base, [DO], Doer(), sink=heard):
        await until(lambda: sum(one.dropped for one in heard.of(JobsReceived)) >= 3)
        await add(base, "good")
        await done(base, 1)
    transport = carried.transport()
    assert transport is not None
    await transport.start()
    try:
        assert await transport.receive([line(base)], 10, 0.2) == []
    finally:
        await transport.stop()


async def test_what_was_never_published_is_sent_again(
    carried: Way, database_url: str, base: Database
) -> None:
    """A relay that died between its commit and its publishing, or a broker that lost everything: the job is
    sent again, and that is counted."""
    await add(base, "lost")
    (pool,) = base.pools.values()
    await pool.execute(
        "update deeds._job set state = 'sent', turn = 1, leased_until = clock_timestamp() + interval '0.5 s'"
    )
    heard = Heard()
    async with working(carried, database_url, base, [DO], Doer(), sink=heard):
        (row,) = await done(base, 1)
    assert row["attempt"] == 1
    assert sum(one.repeated for one in heard.of(JobsSent)) >= 1


async def test_workers_without_the_broker_take_back_what_was_sent(
    carried: Way, database_url: str, base: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A platform that gives up its broker loses nothing that was sent by it: workers without one do it."""
    monkeypatch.setattr("springtide.jobs._upkeep.FREE", 0.2)
    await add(base, "left")
    await _send_by_hand(carried, base, "ready")
    (pool,) = base.pools.values()
    await pool.execute("update deeds._job set leased_until = clock_timestamp()")
    async with working(Way(None), database_url, base, [DO], Doer()):
        await done(base, 1)


async def test_the_broker_is_killed_and_comes_back(carried: Way, database_url: str, base: Database) -> None:
    """kill -9 of the broker while jobs flow: everything is done once; where it lost its memory, SQL sends
    again."""
    assert carried.broker is not None
    made = Effects()
    async with (
        working(carried, database_url, base, [ONCE], made),
        working(carried, database_url, base, [ONCE], made),
    ):
        for number in range(30):
            await add(base, f"deed {number}")
            if number == 10:
                carried.broker.kill()
        carried.broker.start()
        await done(base, 30)
    assert len(await effects(base)) == 30


async def test_a_broker_that_stays_away_is_slowness_not_a_stop(
    carried: Way, database_url: str, base: Database
) -> None:
    """A worker that is without its broker claims from SQL after a while; when that is back, it carries again.
    Both changes are told."""
    assert carried.broker is not None
    heard = Heard()
    async with FaultProxy(target=carried.broker.port) as wires:
        wires.refuse()
        async with working(carried, database_url, base, [DO], Doer(), port=wires.port, sink=heard):
            await add(base, "without")
            await done(base, 1)
            assert not heard.of(TransportChanged)[0].carries
            wires.resume()
            await until(lambda: heard.of(TransportChanged)[-1].carries)
            count = 1
            while not any(one.claimed for one in heard.of(JobsReceived)):
                count += 1  # a look into SQL that was under way may take one more
                await add(base, "with")
                await done(base, count)


async def test_a_worker_cut_off_from_the_broker(carried: Way, database_url: str, base: Database) -> None:
    """The wires between one worker and the broker are cut, and stay so: what it was sent, and what comes, is
    done all the same, by it or by the other."""
    assert carried.broker is not None
    made = Effects()
    async with (
        FaultProxy(target=carried.broker.port) as wires,
        working(carried, database_url, base, [ONCE], made, port=wires.port),
        working(carried, database_url, base, [ONCE], made),
    ):
        for number in range(40):
            await add(base, f"deed {number}")
            if number == 20:
                wires.refuse()
                wires.cut()
        await done(base, 40)
    assert len(await effects(base)) == 40


async def test_a_silent_broker(carried: Way, database_url: str, base: Database) -> None:
    """Connections stay open and nothing passes: after a while jobs are claimed from SQL."""
    assert carried.broker is not None
    async with (
        FaultProxy(target=carried.broker.port) as wires,
        working(carried, database_url, base, [DO], Doer(), port=wires.port),
    ):
        await add(base, "before")
        await done(base, 1)
        wires.stall()
        await add(base, "meanwhile")
        await done(base, 2)
        wires.resume()


async def test_a_row_that_somebody_has_locked_is_not_lost(
    carried: Way, database_url: str, base: Database
) -> None:
    """A message whose row is locked (somebody enqueues with its unique key) is looked at again: the job runs
    soon after the lock is gone, without being sent again."""
    await add(base, "locked", unique_key="key")
    await _send_by_hand(carried, base, "ready")
    heard = Heard()
    (pool,) = base.pools.values()
    async with working(carried, database_url, base, [DO], Doer(), sink=heard):
        async with pool.acquire() as connection, connection.raw.transaction():
            await connection.raw.fetch("select from deeds._job for update")
            transport = carried.transport()
            await asyncio.sleep(0.3)
            assert transport is not None
        (row,) = await done(base, 1)
    assert row["attempt"] == 1
    assert sum(one.repeated for one in heard.of(JobsSent)) == 0


async def test_a_kind_that_is_paused_stays_where_it_is(
    carried: Way, database_url: str, base: Database
) -> None:
    """What was sent before its kind was paused is set aside by who receives it, and what comes is not sent;
    when it goes on, all of it is done."""
    (pool,) = base.pools.values()
    pausing = Pausing("deeds")
    await add(base, "sent before")
    await _send_by_hand(carried, base, "ready")
    await pausing.begin(pool, "deed.do", "a test")
    doer = Doer()
    async with working(carried, database_url, base, [DO], doer):
        await reach(base, "paused")
        await add(base, "comes later")
        await reach(base, "paused", "paused")
        assert doer.calls == []
        await pausing.end(pool, "deed.do")
        await done(base, 2)


class Leaky:
    """A transport that loses every third message that it confirms, and brings some of the others twice."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self.capabilities = transport.capabilities
        self.name = transport.name
        self._number = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    async def publish(self, messages: Sequence[Message]) -> Sequence[bool]:
        kept = []
        for message in messages:
            self._number += 1
            kept += [message] * (self._number % 3)
        if kept:
            await self._transport.publish(kept)
        return [True] * len(messages)

    async def receive(self, lines: Any, most: int, wait: float) -> Sequence[Delivery]:
        return await self._transport.receive(lines, most, wait)


async def test_a_leaky_broker(carried: Way, database_url: str, base: Database) -> None:
    """Every third message is lost though it was confirmed, others come twice: each job is done once."""
    transport = carried.transport()
    assert transport is not None
    made = Effects()
    leaky = worker(base, [database_url], [ONCE], made, transport=Leaky(transport), **STEADY)
    await leaky.start()
    try:
        for number in range(30):
            await add(base, f"deed {number}")
        await done(base, 30)
    finally:
        await leaky.stop()
    assert len(await effects(base)) == 30
