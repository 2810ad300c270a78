"""What stands between market and the databases of its tests: nothing, replicas that lag, a pooler, a cache.

    SPRINGTIDE_TEST_REPLICAS=1        each shard has three replicas, LAGS behind
    SPRINGTIDE_TEST_POOLER=1          market reaches each shard through PgBouncer in transaction mode
    SPRINGTIDE_TEST_CACHE=1           market keeps values in its memory and in a Redis
    SPRINGTIDE_TEST_TRANSPORT=nats    a broker of this kind (tests/transports.py) carries market's jobs

conftest.py starts what is asked for and says in the environment where it listens, so that processes that a
test starts find it as well. Only the databases that conftest.py made are behind it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

from tests._cluster import Cluster as ReplicatedCluster
from tests._cluster import cluster
from tests._pooler import PoolerServer
from tests._redis import RedisServer
from tests.servers import LoopThread
from tests.transports import BROKERS, Broker, fresh_name

from springtide.topology import Cluster, Node
from springtide.topology.layers import CacheSpec, JobSpec, PoolerSpec

__all__ = [
    "LAGS", "cache", "cached", "carried", "carrier", "flush", "over", "pooled", "replicated",
    "replicated_server", "shape",
]  # fmt: skip

LAGS = (0.1, 0.2, 0.4)
"""Seconds that the three replicas are behind."""

SERVER_CONNECTIONS = 10
"""Fewer than market's pool has, so that sessions change hands."""

WHERE, REDIS, BROKER = "SPRINGTIDE_TEST_TIERS", "SPRINGTIDE_TEST_REDIS", "SPRINGTIDE_TEST_BROKER"


def replicated() -> bool:
    return os.environ.get("SPRINGTIDE_TEST_REPLICAS") == "1"


def pooled() -> bool:
    return os.environ.get("SPRINGTIDE_TEST_POOLER") == "1"


def cached() -> bool:
    return os.environ.get("SPRINGTIDE_TEST_CACHE") == "1"


def carried() -> str | None:
    """The kind of broker that carries market's jobs; None: workers claim them from SQL."""
    kind = os.environ.get("SPRINGTIDE_TEST_TRANSPORT", "postgres")
    if kind == "postgres":
        return None
    if kind not in BROKERS:
        raise ValueError(f"SPRINGTIDE_TEST_TRANSPORT must be one of {', '.join(BROKERS)}, got {kind!r}")
    return kind


def cache(urls: Sequence[str]) -> tuple[dict[str, Node], CacheSpec | None]:
    """Redis and the cache in it, for shards at these urls, if they are of those that have one.

    One for all platforms, whatever their number of shards: on each database one relay tells a Redis what has
    changed there, that of the platform which came first.
    """
    if REDIS not in os.environ or urls[0] not in json.loads(os.environ[WHERE]):
        return {}, None
    return {"redis": Node(name="redis", kind="redis", url=os.environ[REDIS])}, CacheSpec(node="redis")


def carrier(urls: Sequence[str]) -> tuple[str, dict[str, Node], JobSpec | None]:
    """A platform's name, the broker and what it is for, for shards at these urls, if they have one."""
    if BROKER not in os.environ or urls[0] not in json.loads(os.environ[WHERE]):
        return "market", {}, None
    kind, name, url = os.environ[BROKER].split(" ")
    return name, {"broker": Node(name="broker", kind=kind, url=url)}, JobSpec(transport=kind, node="broker")


@contextmanager
def replicated_server(loop: LoopThread) -> Iterator[ReplicatedCluster]:
    with cluster(loop, replicas=len(LAGS), max_connections=300) as world:
        for replica, seconds in zip(world.replicas, LAGS, strict=True):
            replica.delay(seconds)
        yield world


@contextmanager
def over(
    loop: LoopThread,
    urls: Sequence[str],
    world: ReplicatedCluster | None,
    broker: Callable[[str], Broker],
) -> Iterator[None]:
    """Around the tests on the databases at `urls`: what is asked for stands in front of them. `broker` gives
    the one of a kind that this run has."""
    names = {url: urlsplit(url).path.strip("/") for url in urls}
    with _redis(), _pooler(loop, {name: url for url, name in names.items()}) as pooler:
        os.environ[WHERE] = json.dumps(
            {
                url: {
                    "replicas": [replica.url(name) for replica in world.replicas] if world else [],
                    "pooler": pooler.url("") if pooler else None,
                }
                for url, name in names.items()
            }
        )
        if kind := carried():
            # By another name than what else the broker carries in this run.
            os.environ[BROKER] = f"{kind} market-{fresh_name()} {broker(kind).url()}"
        yield
        os.environ.pop(BROKER, None)
        del os.environ[WHERE]


@contextmanager
def _redis() -> Iterator[None]:
    if not cached():
        yield
        return
    server = RedisServer().start()
    os.environ[REDIS] = server.url
    _running.append(server)
    try:
        yield
    finally:
        _running.remove(server)
        del os.environ[REDIS]
        server.close()


_running: list[RedisServer] = []


def flush() -> None:
    """Forget what is kept of databases that were emptied by hand, which no invalidation tells of."""
    for server in _running:
        server.flush()


@contextmanager
def _pooler(loop: LoopThread, urls: Mapping[str, str]) -> Iterator[PoolerServer | None]:
    if not pooled():
        yield None
        return
    made = PoolerServer(loop, urls, server_connections=SERVER_CONNECTIONS)
    try:
        made.start()
        yield made
    finally:
        made.close()


def shape(
    shards: Mapping[str, str],
) -> tuple[dict[str, Node], dict[str, Cluster], dict[str, PoolerSpec]]:
    """Nodes, clusters and poolers of a topology whose shards are at these urls."""
    around = json.loads(os.environ.get(WHERE, "{}"))
    nodes: dict[str, Node] = {}
    clusters: dict[str, Cluster] = {}
    poolers: dict[str, PoolerSpec] = {}
    behind: list[str] = []
    for name, url in shards.items():
        found = around.get(url, {"replicas": [], "pooler": None})
        own = {f"db-{name}": url}
        own |= {f"db-{name}-{number}": other for number, other in enumerate(found["replicas"], 1)}
        nodes |= {node: Node(name=node, url=at) for node, at in own.items()}
        primary, *replicas = own
        clusters[name] = Cluster(name=name, primary=primary, replicas=tuple(replicas))
        if found["pooler"]:
            # it knows each cluster by the name of the database
            nodes["pooler"] = Node(name="pooler", kind="pgbouncer", url=found["pooler"])
            behind.append(name)
    if behind:
        poolers["pooler"] = PoolerSpec(
            name="pooler", node="pooler", clusters=tuple(behind), server_connections=SERVER_CONNECTIONS
        )
    return nodes, clusters, poolers
