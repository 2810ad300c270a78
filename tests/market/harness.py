"""market as a client meets it: the wrapped application, over HTTP semantics, on real PostgreSQL.

Every response that passes through `Api` is held against the specification: its status must be one of the
operation's, and its body must fit the schema of that status.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast

import asyncpg
import httpx
import pytest
from tests.market import tiers
from tests.market.realworld import specification

from market.application import application, layered
from market.platform import modules
from market.settings import Settings
from market.storefront.rim import Store
from springtide.cache import Cache
from springtide.context import RequestContext, activate, current
from springtide.db._looking import CAPTURE
from springtide.db.causality import position_of
from springtide.db.servers import RoutingSettings
from springtide.platform import Platform
from springtide.signals import Signal, StatementFinished
from springtide.topology import DatabaseSpec, PoolSpec, ServerSpec, TelemetrySpec, Topology

T = TypeVar("T")

PASSWORD = "correct horse battery"

one_platform = pytest.mark.asyncio(loop_scope="module")
"""For modules whose tests may share a platform that is running; its tables are empty for each of them."""

one_shard = pytest.mark.parametrize("shards", [1], ids=["one-shard"], indirect=True)
"""For tests of what is decided before any shard is asked."""

uncached = pytest.mark.skipif(
    tiers.cached(), reason="a cache saves statements, and repeats loads on the primary"
)
"""For tests that count the statements of what is asked for the first time."""


PATIENCE = 0.8
"""Part of the request's time that it may wait for a connection: tests hold however busy the machine is, and
who waits behind many others for one row is served in the end. A wait too long is the pool's own test."""

QUICK = RoutingSettings(settle=0.2, look_every=0.05, recover=0.1, slow_start=0.0)


def topology(
    urls: Sequence[str], *, servers: ServerSpec | None = None, pool: PoolSpec | None = None
) -> Topology:
    """One shard per URL, even ranges of buckets; behind what the tests run over (tiers.py)."""
    names = ["main", "second", "third"][: len(urls)]
    servers = servers or ServerSpec(body_bytes=1_048_576)
    nodes, clusters, poolers = tiers.shape(dict(zip(names, urls, strict=True)))
    redis, cache = tiers.cache(urls)
    name, broker, jobs = tiers.carrier(urls)
    return Topology(
        name=name,
        app="market.asgi:app",
        servers=servers,
        pool=pool or PoolSpec(acquire_timeout=servers.request_timeout * PATIENCE),
        telemetry=TelemetrySpec(log_format="text"),
        nodes=nodes | redis | broker,
        clusters=clusters,
        poolers=poolers,
        cache=cache,
        jobs=jobs,
        databases={"default": DatabaseSpec(name="default", shards=tuple(names))},
    )


UNCOUNTED = ("pg_notify", "pg_current_wal_insert_lsn", "pg_current_snapshot", "a.state_change")


class Recorder:
    """Remembers the statements that ran, but not the bell's, which are of no request (one rings for many
    commits, later), not the question where the log stands, which only reads over replicas ask, not what a
    server has seen, which only reads ask whose values are kept, and not whether another relay still leads."""

    def __init__(self) -> None:
        self.statements: list[StatementFinished] = []

    def emit(self, signal: Signal) -> None:
        if isinstance(signal, StatementFinished) and not any(word in signal.statement for word in UNCOUNTED):
            self.statements.append(signal)


@dataclass(frozen=True)
class Person:
    token: str
    username: str
    email: str


class Turns:
    """Whose request was the last that may have written. Each client must see its own writes by itself; what
    another has written it is promised only once that has arrived everywhere, so then the request waits."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform
        self.writer: Client | Inside | None = None

    async def before(self, client: Client | Inside) -> None:
        if self.writer not in (None, client):
            await settled(self.platform)
            self.writer = None

    def after(self, client: Client | Inside, method: str) -> None:
        if method not in ("GET", "HEAD"):
            self.writer = client


class Inside:
    """Somebody who calls services within this process: one session, as each client over HTTP is one.

    What calls in no request at all may be answered by is as old as the budget of its class allows.
    """

    def __init__(self, platform: Platform, turns: Turns | None = None) -> None:
        self.platform = platform
        self._turns = turns or Turns(platform)
        self._session = RequestContext()

    def service(self, interface: type[T]) -> T:
        """The service, for this session."""
        found: Any = _Inside(self, self.platform.service(interface))
        return cast(T, found)

    async def call(self, method: Callable[..., Any], /, *args: Any, **named: Any) -> Any:
        await self._turns.before(self)
        given = current()
        session = self._session
        if given is not None:  # a test has a deadline of its own
            session = replace(given, causality=session.causality)
        try:
            with activate(session):
                return await method(*args, **named)
        finally:
            self._turns.after(self, method.__name__)


class _Inside:
    def __init__(self, session: Inside, service: Any) -> None:
        self._session, self._service = session, service

    def __getattr__(self, name: str) -> Any:
        return functools.partial(self._session.call, getattr(self._service, name))


class Client(httpx.AsyncBaseTransport):
    """The way of one client to the application; `like` is that of another one."""

    def __init__(self, app: Any, turns: Turns) -> None:
        self.app, self.turns = app, turns
        self._way = httpx.ASGITransport(app=app, raise_app_exceptions=False)

    def like(self) -> Client:
        return Client(self.app, self.turns)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        await self.turns.before(self)
        try:
            return await self._way.handle_async_request(request)
        finally:
            self.turns.after(self, request.method)


class Api:
    def __init__(
        self, client: httpx.AsyncClient, platform: Platform, recorder: Recorder, store: Store | None = None
    ) -> None:
        self.store = store
        self.client = client
        self.platform = platform
        self.recorder = recorder
        self._numbers = itertools.count(1)
        transport = client._transport
        self._inside = Inside(platform, transport.turns if isinstance(transport, Client) else None)

    def service(self, interface: type[T]) -> T:
        """The service, for a session within this process, which is one more client."""
        return self._inside.service(interface)

    async def call(
        self,
        method: str,
        path: str,
        json: Any = None,
        *,
        by: Person | str | None = None,
        expect: int | None = None,
        **options: Any,
    ) -> Any:
        """The decoded body (None when empty) of a request to /api; fails when the status is not `expect`."""
        response = await self.send(method, path, json, by=by, **options)
        if expect is not None:
            assert response.status_code == expect, f"{method} {path}: {response.status_code} {response.text}"
        return response.json() if response.content else None

    async def send(
        self, method: str, path: str, json: Any = None, *, by: Person | str | None = None, **options: Any
    ) -> httpx.Response:
        headers = dict(options.pop("headers", {}))
        if by is not None:
            headers["Authorization"] = f"Token {by.token if isinstance(by, Person) else by}"
        if json is not None:
            options["json"] = json
        response = await self.client.request(method, f"/api{path}", headers=headers, **options)
        self.check(method, httpx.URL(f"http://market/api{path}").path.removeprefix("/api"), response)
        return response

    @staticmethod
    def check(method: str, path: str, response: httpx.Response) -> None:
        """Hold a response against the specification."""
        status, operation = response.status_code, specification.operation(method, path)
        if operation is None:
            assert status in (404, 405, *specification.TRANSPORT), f"{method} {path}: {status}"
            expected: Any = specification.ERRORS
        else:
            good, schema, refusals = specification.OPERATIONS[operation]
            allowed = (good, *refusals, *specification.TRANSPORT)
            assert status in allowed, f"{method} {path}: {status} {response.text}"
            expected = schema if status == good else specification.ERRORS
        if expected is None:
            assert response.content == b""
            return
        assert response.headers["content-type"] == "application/json"
        found = specification.faults(expected, response.json())
        assert not found, f"{method} {path}: {found}"

    async def person(self, username: str | None = None) -> Person:
        """Somebody who has just registered."""
        username = username or f"person{next(self._numbers)}"
        email = f"{username.replace(' ', '.')}@example.com"
        user = {"username": username, "email": email, "password": PASSWORD}
        answer = await self.call("POST", "/users", {"user": user}, expect=201)
        return Person(answer["user"]["token"], username, email)

    async def article(self, by: Person, title: str | None = None, **fields: Any) -> dict[str, Any]:
        number = next(self._numbers)
        article = {"title": title or f"Article {number}", "description": "About it", "body": "All of it"}
        answer = await self.call("POST", "/articles", {"article": {**article, **fields}}, by=by, expect=201)
        return dict(answer["article"])

    async def comment(self, by: Person, slug: str, body: str = "Well said") -> dict[str, Any]:
        path = f"/articles/{slug}/comments"
        answer = await self.call("POST", path, {"comment": {"body": body}}, by=by, expect=201)
        return dict(answer["comment"])

    async def titles(self, path: str, by: Person | None = None, **params: Any) -> tuple[list[str], int]:
        """The titles of a list and its articlesCount."""
        answer = await self.call("GET", path, by=by, expect=200, params=params)
        return [article["title"] for article in answer["articles"]], answer["articlesCount"]

    async def statements(self, method: str, path: str, **options: Any) -> int:
        """How many statements one successful request runs."""
        self.recorder.statements.clear()
        response = await self.send(method, path, **options)
        assert response.is_success, response.text
        return len(self.recorder.statements)


@asynccontextmanager
async def serving(
    urls: Sequence[str], home: Path, *, settings: Settings | None = None, **servers: Any
) -> AsyncIterator[Api]:
    """The whole application, started by its lifespan, on databases that are migrated already."""
    recorder = Recorder()
    shape = topology(urls, servers=replace(ServerSpec(), **servers))
    platform = Platform(shape, modules=modules(), home=home, sink=recorder, routing=QUICK, check_calls=True)
    made = application(platform, settings)
    app = layered(platform, made)
    async with lifespan(app):
        await replicas_serve(platform)
        transport = Client(app, Turns(platform))
        async with httpx.AsyncClient(transport=transport, base_url="http://market") as client:
            yield Api(client, platform, recorder, made.state.storefront)


async def replicas_serve(platform: Platform) -> None:
    """Return when every replica is read from, as long after the start."""
    async with asyncio.timeout(60):
        for servers in platform.servers.values():
            while any(replica.state != "serving" for replica in servers.replicas):
                await asyncio.sleep(0.02)


async def settled(platform: Platform) -> None:
    """Return when every replica is known to have all that has been written by now, and the platform's memory
    nothing that this made stale."""
    async with asyncio.TaskGroup() as group:
        group.create_task(replayed(platform))
        if platform.topology.cache is not None:
            group.create_task(heard(platform.cache))


async def replayed(platform: Platform) -> None:
    for cluster, servers in platform.servers.items():
        connection = await asyncpg.connect(platform.topology.cluster_url(cluster))
        try:
            now = position_of(await connection.fetchrow(CAPTURE))
        finally:
            await connection.close()
        async with asyncio.timeout(60):
            while any(replica.position is None or replica.position < now for replica in servers.replicas):
                await asyncio.sleep(0.02)


async def forgotten(platform: Platform) -> None:
    """Return when nobody has any more what was changed by hand, which no invalidation tells of."""
    await replayed(platform)
    tiers.flush()
    if tiers.cached() and platform.cache.memory is not None:
        platform.cache.memory.clear()


async def heard(cache: Cache) -> None:
    """Return when this process has heard of all that was committed by now, also through the relay alone."""
    now = cache.clock.monotonic()
    async with asyncio.timeout(60):
        for slot in [place.slot for cls in cache.classes.values() for place in cls.places.values()]:
            while slot.scope and slot.proof < now:
                await asyncio.sleep(0.01)


@asynccontextmanager
async def lifespan(app: Any) -> AsyncIterator[None]:
    """Run the ASGI lifespan protocol around the block, as a server does."""
    to_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    from_app: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    task = asyncio.create_task(app({"type": "lifespan", "asgi": {}, "state": {}}, to_app.get, from_app.put))

    async def change(verb: str) -> None:
        await to_app.put({"type": f"lifespan.{verb}"})
        answer = asyncio.create_task(from_app.get())
        await asyncio.wait([answer, task], return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            answer.cancel()
            await task
        assert answer.result()["type"] == f"lifespan.{verb}.complete", answer.result()

    await change("startup")
    try:
        yield
    finally:
        await change("shutdown")
        await task
