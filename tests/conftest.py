"""Fixtures for every test: real PostgreSQL servers, and a watch for blocking calls in the event loop.

`postgres`       one server for the whole run; make databases in it, do not stop or freeze it
`database_url`   a fresh, empty database on it for one test
`database_urls`  two of them: the two logical shards of a test
`own_postgres`   a factory: `own_postgres(max_connections=20)` is a server of the test's own, to be broken
`own_cluster`    a factory: `own_cluster(replicas=2)` is a primary with replicas (tests/_cluster.py)
`own_pooler`     a factory: `own_pooler({"main": url})` is a PgBouncer in front of them (tests/_pooler.py)
`redis_server`   one Redis for the run, emptied for each test; do not stop it or freeze it (tests/_redis.py)
`own_redis`      a factory: `own_redis(maxmemory="10mb")` is a Redis of the test's own, to be broken
`own_sentinel`   a factory: `own_sentinel(replicas=1)` is a primary, its replicas and three Sentinels
`own_redis_cluster`  a factory: `own_redis_cluster(nodes=3)` is a Redis Cluster
`broker`         one broker of each kind for the run, which a test may kill (tests/transports.py)
"""

from __future__ import annotations

import importlib.util
import signal
from collections.abc import Callable, Iterator, Mapping

import pytest
from blockbuster import BlockBuster, blockbuster_ctx
from hypothesis import HealthCheck, settings
from tests._cluster import Cluster
from tests._pooler import PoolerServer
from tests._redis import RedisCluster, RedisServer, SentinelGroup
from tests._servers import (  # hooks: pytest finds them by name here
    pytest_collection_modifyitems,
    pytest_runtest_setup,
    pytest_terminal_summary,
)
from tests.servers import LoopThread, PostgresServer
from tests.transports import Broker, begin

__all__ = ["pytest_collection_modifyitems", "pytest_runtest_setup", "pytest_terminal_summary"]

# How long an example takes says how busy the machine is, and nothing about the property.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")

# Who is started in the background of a shell ignores Ctrl-C, and so would what tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _nothing_blocks_the_loop() -> Iterator[BlockBuster]:
    """A blocking call made by our code inside a running event loop raises BlockingError."""
    ours = [name for name in ("springtide", "market") if importlib.util.find_spec(name) is not None]
    with blockbuster_ctx(ours) as watch:
        # asyncpg looks for ~/.pgpass and ~/.postgresql once per new connection; both are local and tiny.
        for call in ("os.stat", "io.TextIOWrapper.read"):
            watch.functions[call].can_block_in("asyncpg/connect_utils.py", {"_parse_connect_dsn_and_args"})
        # The process collector reads /proc, which no disk is behind.
        for call in ("io.BufferedReader.read", "os.listdir"):
            if call in watch.functions:
                watch.functions[call].can_block_in("prometheus_client/process_collector.py", {"collect"})
        yield watch


@pytest.fixture(scope="session")
def _server_loop() -> Iterator[LoopThread]:
    loop = LoopThread()
    yield loop
    loop.close()


@pytest.fixture(scope="session")
def postgres(_server_loop: LoopThread) -> Iterator[PostgresServer]:
    server = PostgresServer(_server_loop, max_connections=300)
    try:
        server.start()
        yield server
    finally:
        server.close()


@pytest.fixture
def database_url(postgres: PostgresServer) -> Iterator[str]:
    name = postgres.create_database()
    yield postgres.url(name)
    postgres.drop_database(name)


@pytest.fixture
def database_urls(postgres: PostgresServer) -> Iterator[tuple[str, str]]:
    first, second = postgres.create_database(), postgres.create_database()
    yield postgres.url(first), postgres.url(second)
    postgres.drop_database(first)
    postgres.drop_database(second)


@pytest.fixture
def own_postgres(_server_loop: LoopThread) -> Iterator[Callable[..., PostgresServer]]:
    servers: list[PostgresServer] = []

    def start(**options: object) -> PostgresServer:
        server = PostgresServer(_server_loop, **options)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def own_cluster(_server_loop: LoopThread) -> Iterator[Callable[..., Cluster]]:
    clusters: list[Cluster] = []

    def start(*, replicas: int = 1, **options: object) -> Cluster:
        made = Cluster(_server_loop, replicas=replicas, **options)
        clusters.append(made)
        return made

    yield start
    for made in clusters:
        made.close()


@pytest.fixture
def own_pooler(_server_loop: LoopThread) -> Iterator[Callable[..., PoolerServer]]:
    poolers: list[PoolerServer] = []

    def start(urls: Mapping[str, str], **options: object) -> PoolerServer:
        made = PoolerServer(_server_loop, urls, **options)
        poolers.append(made)
        made.start()
        return made

    yield start
    for made in poolers:
        made.close()


@pytest.fixture(scope="session")
def _shared_redis() -> Iterator[RedisServer]:
    server = RedisServer()
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture
def redis_server(_shared_redis: RedisServer) -> RedisServer:
    _shared_redis.flush()
    return _shared_redis


@pytest.fixture
def own_redis() -> Iterator[Callable[..., RedisServer]]:
    servers: list[RedisServer] = []

    def start(**config: object) -> RedisServer:
        made = RedisServer(**config)
        servers.append(made)
        return made.start()

    yield start
    for made in servers:
        made.close()


@pytest.fixture
def own_sentinel() -> Iterator[Callable[..., SentinelGroup]]:
    groups: list[SentinelGroup] = []

    def start(**options: object) -> SentinelGroup:
        groups.append(SentinelGroup(**options))
        return groups[-1]

    yield start
    for made in groups:
        made.close()


@pytest.fixture
def own_redis_cluster() -> Iterator[Callable[..., RedisCluster]]:
    clusters: list[RedisCluster] = []

    def start(**options: object) -> RedisCluster:
        clusters.append(RedisCluster(**options))
        return clusters[-1]

    yield start
    for made in clusters:
        made.close()


@pytest.fixture(scope="session")
def _shared_brokers() -> Iterator[dict[str, Broker]]:
    made: dict[str, Broker] = {}
    yield made
    for broker in made.values():
        broker.close()


@pytest.fixture
def broker(request: pytest.FixtureRequest, _shared_brokers: dict[str, Broker]) -> Iterator[Broker]:
    kind = request.param
    if kind not in _shared_brokers:
        _shared_brokers[kind] = begin(kind)
    yield _shared_brokers[kind]
    _shared_brokers[kind].start()
