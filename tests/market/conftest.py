"""`api`: market on one logical shard and on two, its tables empty. Migrations run once per run.

With replicas or a pooler in between where the environment asks for them (tiers.py); every test finds the
replicas where the primary was when it began. Where a broker carries jobs, those that a test has left are run
after it: each is brought by the broker, and none fails but a push to nowhere.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio
from tests._cluster import Cluster as ReplicatedCluster
from tests.market import tiers
from tests.market.emptying import empty, note_migrated
from tests.market.harness import Api, serving, topology
from tests.market.outgoing import outgoing
from tests.market.working import work
from tests.servers import LoopThread, PostgresServer
from tests.transports import PATIENCE, Broker, begin

from market.notifications.push import PushFailed
from market.platform import modules
from springtide.errors import Unavailable
from springtide.platform import Platform

ABANDONED = """
select pg_terminate_backend(pid) from pg_stat_activity
where datname = current_database() and state like 'idle in transaction%'
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A broker takes its time to start on a busy machine, and whichever test is first waits for it."""
    for item in items:
        if tiers.carried() and Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.timeout(PATIENCE))


@pytest.fixture(autouse=True)
def _nobody_waits_for_third_parties() -> Iterator[None]:
    """A call out of a request to anybody but the platform's own servers fails the test (outgoing.py)."""
    outgoing.install()
    outgoing.take()
    yield
    found = outgoing.forbidden()
    if found:
        pytest.fail("; ".join(map(str, found)) + " (see tests/market/outgoing.py)")


@pytest.fixture(scope="session")
def _world(_server_loop: LoopThread) -> Iterator[ReplicatedCluster | None]:
    """The server of this run's tests with its replicas, if they are asked for."""
    if not tiers.replicated():
        yield None
        return
    with tiers.replicated_server(_server_loop) as world:
        yield world


@pytest.fixture(scope="session")
def _server(request: pytest.FixtureRequest, _world: ReplicatedCluster | None) -> PostgresServer:
    server: PostgresServer = _world.primary if _world else request.getfixturevalue("postgres")
    return server


@pytest.fixture(scope="session")
def _databases(
    _server: PostgresServer,
    _world: ReplicatedCluster | None,
    _server_loop: LoopThread,
    _shared_brokers: dict[str, Broker],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[list[str]]:
    """Two migrated databases; a test uses the first or both."""
    postgres = _server
    first = postgres.create_database()
    home = tmp_path_factory.mktemp("migrating")

    async def migrate() -> None:
        await Platform(topology([postgres.url(first)]), modules=modules(), home=home).migrate()
        connection = await asyncpg.connect(postgres.url(first))
        await note_migrated(connection)
        await connection.close()

    def broker(kind: str) -> Broker:
        if kind not in _shared_brokers:
            _shared_brokers[kind] = begin(kind)
        return _shared_brokers[kind]

    _server_loop.run(migrate())
    second = postgres.create_database(template=first)
    for replica in _world.replicas if _world else ():
        replica.catch_up()
    urls = [postgres.url(first), postgres.url(second)]
    with tiers.over(_server_loop, urls, _world, broker):
        yield urls
    postgres.drop_database(first)
    postgres.drop_database(second)


@pytest.fixture(params=[1, 2], ids=["one-shard", "two-shards"])
def shards(request: pytest.FixtureRequest) -> int:
    count: int = request.param
    return count


@pytest.fixture
def urls(
    _databases: list[str],
    shards: int,
    shared: bool,
    _server_loop: LoopThread,
    _admins: dict[str, asyncpg.Connection],
    _world: ReplicatedCluster | None,
) -> list[str]:
    """The databases of this test, empty; a platform that lives on has blocks of ids, so counters stay."""
    kept = "_id_counter" if shared else ""

    async def empty_all() -> None:
        for url in _databases[:shards]:
            if url not in _admins:
                _admins[url] = await asyncpg.connect(url)
            try:
                await empty(_admins[url], kept=kept)
            except asyncpg.LockNotAvailableError:
                # The loop of a platform stands still between two tests, and with it a transaction that a task
                # has left open there: it would hold its locks until the next test, which waits for this.
                await _admins[url].execute(ABANDONED)
                await empty(_admins[url], kept=kept)

    _server_loop.run(empty_all())
    tiers.flush()
    for replica in _world.replicas if _world else ():
        replica.catch_up()  # what another test left behind is nobody's to see
    return _databases[:shards]


@pytest.fixture(scope="session")
def _admins(_databases: list[str], _server_loop: LoopThread) -> Iterator[dict[str, asyncpg.Connection]]:
    connections: dict[str, asyncpg.Connection] = {}
    yield connections
    for connection in connections.values():
        _server_loop.run(connection.close())


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the platforms of all tests keep their token key."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def shared(request: pytest.FixtureRequest) -> bool:
    """Whether the tests of this module run in one event loop, and so on one platform."""
    marker = request.node.get_closest_marker("asyncio")
    return marker is not None and marker.kwargs.get("loop_scope") == "module"


@pytest.fixture
def api(request: pytest.FixtureRequest, urls: list[str], shared: bool) -> Api:
    """market, its tables empty; with `pytestmark = one_platform` started once for the module's tests."""
    if not shared:
        own: Api = request.getfixturevalue("_own_api")
        return own
    running: Api = request.getfixturevalue(f"_api_of_{len(urls)}")
    request.getfixturevalue("_left_to_workers").append(running)
    running.recorder.statements.clear()
    if tiers.cached() and running.platform.cache.memory is not None:
        running.platform.cache.memory.clear()
    return running


@pytest.fixture
async def _own_api(urls: list[str], home: Path) -> AsyncIterator[Api]:
    async with serving(urls, home) as api:
        yield api
        await _work(api)


@pytest_asyncio.fixture(loop_scope="module")
async def _left_to_workers() -> AsyncIterator[list[Api]]:
    """Those on which a test of a module with one platform ran."""
    used: list[Api] = []
    yield used
    for api in used:
        await _work(api)


async def _work(api: Api) -> None:
    if tiers.carried():
        try:
            await work(api.platform)
        except Unavailable as error:
            if not isinstance(error.__cause__, PushFailed):  # of a service that a test has made up
                raise


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _api_of_1(_databases: list[str], home: Path) -> AsyncIterator[Api]:
    async with serving(_databases[:1], home) as api:
        yield api


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def _api_of_2(_databases: list[str], home: Path) -> AsyncIterator[Api]:
    async with serving(_databases, home) as api:
        yield api
