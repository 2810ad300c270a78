"""The webhooks module, and programs of sellers that listen to it well and badly: real HTTP servers."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
from standardwebhooks import Webhook
from tests.market.carrying import claiming
from tests.market.harness import Recorder, settled, topology

from market.notifications.api import Notifications, Told
from market.platform import modules
from market.webhooks.api import (
    EventType,
    Message,
    NewEndpoint,
    News,
    Registered,
    TurnedListing,
    Webhooks,
)
from market.webhooks.settings import WebhookSettings
from springtide.clock import Clock
from springtide.jobs import Queue, Worker
from springtide.jobs._run import JobRun, Route
from springtide.jobs._store import Store
from springtide.platform import Platform

Does = int | tuple[int, dict[str, str]] | str
"""What a receiver does with a request: a status, with headers, or `hang`, `die`, `drip` (a byte a while),
`late` (410 when it is let go)."""

RESCUED: dict[str, Any] = {"lease": 3.0, "heartbeat": 0.5, "upkeep": 0.3}
"""Options of workers whose jobs others take over soon after they were killed."""

_numbers = itertools.count(1)


def seller() -> int:
    """Somebody new; every other one is on the second of two shards."""
    number = next(_numbers)
    return number << 10 | (900 if number % 2 else 100)


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


class Request(msgspec.Struct, frozen=True):
    path: str
    headers: dict[str, str]
    body: bytes


class Receiver:
    """A seller's program. `does` is what it does with the requests to come, then always `then`."""

    def __init__(self) -> None:
        self.got: list[Request] = []
        self.does: list[Does] = []
        self.then: Does = 204
        self.port = 0
        self.let_go = asyncio.Event()
        self.open = self.most = 0
        """How many requests it has not ended with now, and at most had."""

    def url(self, path: str = "/hook") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def verify(self, secret: str, request: Request | None = None) -> dict[str, Any]:
        """What the last request says; raises when it is not signed with `secret`."""
        one = request or self.got[-1]
        said: dict[str, Any] = Webhook(secret).verify(one.body, one.headers)
        return said

    @property
    def ids(self) -> list[str]:
        return [one.headers["webhook-id"] for one in self.got]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            pairs = (line.split(": ", 1) for line in head[1:] if line)
            headers = {name.lower(): text for name, text in pairs}
            body = await reader.readexactly(int(headers.get("content-length", "0")))
            self.got.append(Request(head[0].split(" ")[1], headers, body))
            await self._do(self.does.pop(0) if self.does else self.then, reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()

    async def _do(self, does: Does, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if does == "die":
            return
        if does == "hang":
            ends = [asyncio.ensure_future(self.let_go.wait()), asyncio.ensure_future(reader.read(1))]
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
            for end in ends:
                end.cancel()
            return
        if does == "late":
            await self.let_go.wait()
            does = 410
        if does == "drip":
            for byte in b"HTTP/1.1 204 No Content\r\nx-slow: " + b"x" * 10_000:
                writer.write(bytes([byte]))
                await writer.drain()
                try:
                    async with asyncio.timeout(0.2):
                        await self.let_go.wait()
                        return
                except TimeoutError:
                    continue
        status, extra = does if isinstance(does, tuple) else (does, {})
        lines = [f"HTTP/1.1 {status} X", "content-length: 5", "connection: close"]
        lines += [f"{name}: {text}" for name, text in extra.items()]
        writer.write("\r\n".join([*lines, "", "hello"]).encode())
        await writer.drain()


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        made.let_go.set()
        server.close()


class Hooks:
    """The module, and the rows and jobs that it made."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.webhooks = platform.service(Webhooks)
        self.notifications = platform.service(Notifications)
        self.db = platform.database("webhooks")

    async def registered(self, seller: int, url: str, *events: EventType) -> Registered:
        wanted: list[EventType] = list(events) or ["order.confirmed", "order.shipped", "order.cancelled"]
        return await self.webhooks.register(seller, NewEndpoint(url=url, events=wanted))

    async def tell(
        self, seller: int, subject: str = "order 5", number: int = 1, type: EventType = "order.confirmed",
        at: datetime | None = None, mark: int = 7,
    ) -> None:  # fmt: skip
        """`mark` is in the data."""
        at = at or datetime.fromtimestamp(self.platform.clock.now() + 1, UTC)
        data = TurnedListing(listing_id=mark, title="Ä lamp", turn=number)
        news = News(type=type, subject=subject, number=number, at=at, data=data)
        await self.webhooks.tell(seller, [news])

    async def messages(self, seller: int, registered: Registered) -> list[Message]:
        """The oldest first, once everybody has what was written."""
        await settled(self.platform)
        page = await self.webhooks.messages(seller, registered.endpoint.id, 100, None)
        return page.items[::-1]

    async def inbox(self, seller: int) -> list[Told]:
        await settled(self.platform)
        return (await self.notifications.inbox(seller)).items

    async def run(self, *, attempt: int | None = None) -> int:
        """Run the jobs that are ready, due or not, once each and as a worker would; how many. `attempt` makes
        it the run of that number."""
        made, ran = self.platform._registry.implementation("webhooks"), 0
        (module,) = [one for one in self.platform.modules if one.name == "webhooks"]
        routes = {handler.kind.name: Route(handler, self.db, made) for handler in module.jobs}
        lease: Any = SimpleNamespace(worker="tests")
        async with claiming(self.platform) as claim:
            for shard, pool in self.db.pools.items():
                store = Store(self.db, shard)
                await pool.execute(
                    "update webhooks._job set run_at = statement_timestamp(), attempt = coalesce($1, attempt)"
                    " where state = 'ready'",
                    None if attempt is None else attempt - 1,
                )
                for claimed in await claim(store, list(routes)):
                    route = routes[f"{claimed.kind}/{claimed.version}"]
                    run = JobRun(claimed, route, store, lease, clock=self.platform.clock)
                    _, ending, _ = await run.perform()
                    assert ending is not None
                    assert await store.end(claimed.run, "tests", ending, ordering_key=claimed.ordering_key)
                    ran += 1
        return ran

    @asynccontextmanager
    async def working(self, *, slots: int = 5, **options: Any) -> AsyncIterator[Worker]:
        """A worker runs the jobs meanwhile."""
        made = worker(self.platform, slots=slots, **options)
        await made.start()
        try:
            yield made
        finally:
            await made.stop()


def worker(platform: Platform, *, slots: int = 5, **options: Any) -> Worker:
    (module,) = [one for one in platform.modules if one.name == "webhooks"]
    queue = Queue(
        database=platform.database("webhooks"),
        handlers=module.jobs,
        implementation=platform._registry.implementation("webhooks"),
    )
    options = {"poll": 0.2, "drain": 0.1, "transport": platform._transport(), **options}
    return Worker([queue], dsns=platform._primaries, slots=slots, **options)


def platform_of(urls: Sequence[str], home: Path, settings: WebhookSettings, **options: Any) -> Platform:
    parts = [one for one in modules(hooks=settings) if one.name in ("webhooks", "notifications")]
    return Platform(topology(urls), modules=parts, home=home, **options)


@asynccontextmanager
async def hooks(
    urls: Sequence[str], home: Path, settings: WebhookSettings, *, clock: Clock | None = None
) -> AsyncIterator[Hooks]:
    options: dict[str, Any] = {} if clock is None else {"clock": clock}
    async with platform_of(urls, home, settings, sink=Recorder(), check_calls=True, **options) as platform:
        yield Hooks(platform)
