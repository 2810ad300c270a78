"""A driver that somebody else wrote: what the worker does while it is away, breaks, or takes its time."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Collection, Sequence
from pathlib import Path
from typing import Any, ClassVar
from uuid import UUID

import msgspec
import pytest
from tests.jobs_support import DO, Deed, Doer, Heard, add, deeds, reach, until, worker, working

from springtide.db import Database
from springtide.errors import TransportUnavailable
from springtide.jobs import Handler, Run, _carrier, _relay, _room, job
from springtide.jobs._sent import Claim, Sending
from springtide.jobs._store import Ending, Store
from springtide.jobs.transports import Delivery, Message
from springtide.jobs.transports.seam import Capabilities, line_name
from springtide.signals import JobsReceived, TransportChanged

pytestmark = pytest.mark.timeout(600)

STEADY = {"lease": 20.0, "heartbeat": 2.0, "stall": 10.0}
"""Whose worker lives keeps its leases, also on a machine that is busy with other things."""


@job(kind="deed.hold", max_run=600.0)
class Hold(msgspec.Struct, frozen=True):
    """Keeps a slot busy."""


class Holder:
    """Its jobs go on until `gate` is set."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.calls = 0

    async def hold(self, job: Hold, run: Run) -> None:
        self.calls += 1
        await self.gate.wait()


HOLD = Handler(Hold, Holder.hold)


class Own:
    """In memory. While `error` is set it is what everybody gets; while it is `full` nothing is taken, and
    while `open` is not set publishing does not end."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        durable="not at all",
        survives_restart=False,
        redelivers=False,
        ordered=True,
        deduplicates=False,
        delays=False,
        priorities=False,
        max_body=2048,
    )
    name = "own"

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.open = asyncio.Event()
        self.open.set()
        self.full = False
        self.refused = 0
        self.publishing = False
        self.published = 0
        self.returned: list[Message] = []
        self.messages: dict[str, deque[Message]] = {}
        self._news = asyncio.Event()

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    def put(self, message: Message) -> None:
        self.messages.setdefault(message.line, deque()).append(message)
        self._news.set()

    async def publish(self, messages: Sequence[Message]) -> Sequence[bool]:
        if self.error is not None:
            raise self.error
        if self.full:
            self.refused += 1
            return [False] * len(messages)
        self.publishing = True
        await self.open.wait()
        for message in messages:
            self.put(message)
        self.published += len(messages)
        return [True] * len(messages)

    async def receive(self, lines: Collection[str], most: int, wait: float) -> Sequence[Delivery]:
        if self.error is not None:
            raise self.error
        if not (found := self._take(lines, most)):
            self._news.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self._news.wait()
            found = self._take(lines, most)
        return found

    def _take(self, lines: Collection[str], most: int) -> list[Delivery]:
        found: list[Delivery] = []
        for line in lines:
            waiting = self.messages.get(line, deque())
            while waiting and len(found) < most:
                found.append(Delivery(waiting.popleft(), None))
        return found

    async def ack(self, deliveries: Sequence[Delivery]) -> None: ...

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            self.returned.append(delivery.message)
            self.put(delivery.message)

    async def depth(self, line: str) -> int | None:
        return len(self.messages.get(line, ()))


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_carrier, "AWAY_AFTER", 0.3)


@pytest.fixture
async def database(database_url: str, tmp_path: Path) -> AsyncIterator[Database]:
    async with deeds([database_url], tmp_path / "migrations", size=20, acquire_timeout=60.0) as made:
        yield made


def changes(heard: Heard) -> list[bool]:
    return [one.carries for one in heard.of(TransportChanged)]


async def test_a_worker_whose_slots_are_all_busy_finds_its_broker_again(
    database: Database, database_url: str
) -> None:
    """It is told while the one slot is busy, which it takes nothing beside: what it was given goes back."""
    holder, heard, own = Holder(), Heard(), Own()
    own.error = TransportUnavailable("own", "away")
    options: dict[str, Any] = {"slots": 1, "transport": own, "sink": heard, **STEADY}
    async with working(database, [database_url], [HOLD], holder, **options):
        async with database.write("a") as tx:
            await tx.enqueue(Hold())
        await until(lambda: holder.calls)
        assert changes(heard) == [False]
        other = Message(line_name("deeds", next(iter(database.pools)), 1), 0, UUID(int=1), 1)
        own.put(other)
        own.error = None
        await until(lambda: changes(heard) == [False, True])
        await until(lambda: own.returned == [other])
        assert heard.of(JobsReceived) == []
        assert holder.calls == 1
        holder.gate.set()
        await until(lambda: sum(one.dropped for one in heard.of(JobsReceived)) == 1)


async def test_a_message_that_is_late_finds_its_job(database: Database) -> None:
    """One whose job was taken back meanwhile brings it; else a broker that is late would bring nothing while
    jobs are sent again and again. A job that waits for its next run, and one that runs, it does not find."""
    store = Store(database, database.shards.shard_of("a"))
    sending, names = Sending(store), ["deed.hold/1"]
    async with database.write("a") as tx:
        await tx.enqueue(Hold())
    (sent,) = await sending.send(names, [10] * 3, 10)
    assert await sending.recall(everything=True) == 1

    async def came() -> Claim:
        return await sending.claim([(sent.bucket, sent.id)], names, names, "worker", 60.0, None)

    (claimed,) = (await came()).jobs
    again = await came()
    assert (again.jobs, again.dropped) == ([], 1)
    await store.end(claimed.run, "worker", Ending("ready", "not yet", 3600.0))
    again = await came()
    assert (again.jobs, again.dropped) == ([], 1)


async def test_a_driver_that_breaks_is_a_broker_that_is_away(database: Database, database_url: str) -> None:
    """Whatever it raises, its jobs are claimed from SQL meanwhile; mended, it carries again."""
    heard, own = Heard(), Own()
    own.error = ValueError("broken")
    async with working(database, [database_url], [DO], Doer(), transport=own, sink=heard, **STEADY):
        await add(database, "without")
        await reach(database, "done")
        assert changes(heard) == [False]
        own.error = None
        await until(lambda: changes(heard) == [False, True])
        await add(database, "with")
        await reach(database, "done", "done")
        assert sum(one.claimed for one in heard.of(JobsReceived)) == 1


async def test_a_line_that_has_nothing_to_send_knows_nothing_of_the_broker(
    database_urls: tuple[str, str], tmp_path: Path
) -> None:
    """A broker that takes nothing is away as long as there is something that it does not take, whoever else
    has nothing for it; then it carries."""
    holder, heard, own = Holder(), Heard(), Own()
    own.full = True
    options: dict[str, Any] = {"slots": 1, "transport": own, "sink": heard, "poll": 0.05, **STEADY}
    async with (
        deeds(database_urls, tmp_path / "migrations", size=20, acquire_timeout=60.0) as database,
        working(database, database_urls, [HOLD], holder, **options),
    ):
        async with database.write("a") as tx:
            await tx.enqueue_many([Hold(), Hold()])
        await until(lambda: holder.calls)
        refused = own.refused
        await until(lambda: own.refused >= refused + 5)
        assert changes(heard) == [False]
        holder.gate.set()
        await reach(database, "done", "done")
        await until(lambda: changes(heard) == [False, True])


async def test_a_stop_lets_what_is_being_published_be_published(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others get it at once, and not when the broker was trusted with it for long enough."""
    monkeypatch.setattr(_relay, "LEAVING", 60.0)
    own = Own()
    own.open.clear()
    made = worker(database, [database_url], [DO], Doer(), transport=own, **STEADY)
    await made.start()
    try:
        (relay,) = [part for part in made._group._services if part.name == "jobs relay"]
        await add(database, "under way")
        await until(lambda: own.publishing)
        stopping = asyncio.ensure_future(relay.stop())
        for _ in range(50):
            await asyncio.sleep(0)
        assert not stopping.done()
        own.open.set()
        await stopping
        assert own.published == 1
    finally:
        await made.stop()


async def test_a_relay_goes_on_as_soon_as_what_it_sent_is_claimed(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also what is claimed while it sends: it waits for no time to pass as long as there is more to send."""
    for name, value in (("AHEAD", 40), ("MANY", 20), ("ENOUGH", 10), ("FULL", 3600.0)):
        monkeypatch.setattr(_relay, name, value)
    monkeypatch.setattr(_room, "KEPT", 60.0)
    own, doer, sent, taken, ahead = Own(), Doer(), 0, 0, [0]
    send, claim = Sending.send, Sending.claim

    async def sending(self: Sending, *arguments: Any) -> Any:
        nonlocal sent
        out = await send(self, *arguments)
        sent += len(out)
        ahead.append(sent - taken)
        return out

    async def claiming(self: Sending, *arguments: Any) -> Claim:
        nonlocal taken
        claimed = await claim(self, *arguments)
        taken += len(claimed.jobs)
        return claimed

    monkeypatch.setattr(Sending, "send", sending)
    monkeypatch.setattr(Sending, "claim", claiming)
    async with database.write("a") as tx:
        await tx.enqueue_many([Deed(str(number)) for number in range(600)])
    options = {**STEADY, "poll": 3600.0, "slots": 10, "transport": own}
    async with working(database, [database_url], [DO], doer, **options):
        await until(lambda: len(doer.calls) == 600, seconds=120.0)
        await reach(database, *["done"] * 600)
    assert sent == 600 and max(ahead) <= 40
