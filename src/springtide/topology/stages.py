"""The seven stages: each is a function that takes the stage before and adds what it adds.

    stage users          adds
    1     0-100          app servers, workers and one PostgreSQL on one machine
    2     100-1 K        the database on a machine of its own, PgBouncer, backups, TLS and separated networks
    3     1 K-10 K       load balancer, several app servers, sessions outside, rolling deploys, monitoring
    4     10 K-100 K     cache, read replicas, rate limits over all servers, edge cache
    5     100 K-500 K    autoscaling, tokens, durable queues, workers scaled on their depth
    6     500 K-1 M      shards, services behind a gateway with breakers, events on a broker, a search engine
    7     1 M-20 M+      regions and replication, read models, stores by access pattern, edge computing

A preset is a start: every key can be set otherwise, every part taken out. Pure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from springtide.topology.layers import (
    AutoscalingSpec,
    BackupSpec,
    BalancerSpec,
    BreakerSpec,
    CacheSpec,
    DeploySpec,
    EdgeSpec,
    EventSpec,
    GatewaySpec,
    JobSpec,
    LimitSpec,
    MonitoringSpec,
    NetworkSpec,
    PoolerSpec,
    RegionSpec,
    ReplicationSpec,
    ServiceSpec,
    SessionSpec,
    StoreSpec,
    TokenSpec,
    WorkerScalingSpec,
)
from springtide.topology.spec import Cluster, DatabaseSpec, Node, Topology

__all__ = ["STAGES", "stage1", "stage2", "stage3", "stage4", "stage5", "stage6", "stage7", "stage_topology"]


def stage1(*, name: str = "app", app: str = "app:app") -> Topology:
    """Everything on one machine: app servers, workers, one PostgreSQL."""
    return Topology(
        name=name,
        app=app,
        stage=1,
        nodes=_named(Node(name="db", kind="postgres")),
        clusters={"main": Cluster(name="main", primary="db")},
        databases={"default": DatabaseSpec(name="default", shards=("main",))},
    )


def stage2(before: Topology) -> Topology:
    """The database on its own machine, pooled, backed up, encrypted and reached by the app tier only."""
    return replace(
        before,
        stage=2,
        nodes={
            **before.nodes,
            "db": replace(before.nodes["db"], machine="db"),
            **_named(Node(name="pooler", kind="pgbouncer", machine="db")),
        },
        poolers={"main": PoolerSpec(name="main", node="pooler")},
        backups=BackupSpec(),
        network=NetworkSpec(),
    )


def stage3(before: Topology) -> Topology:
    """A load balancer before several stateless app servers; any of them may stop without anyone noticing."""
    return replace(
        before,
        stage=3,
        servers=replace(before.servers, count=3),
        workers=replace(before.workers, count=2),
        nodes={
            **before.nodes,
            **_named(
                Node(name="balancer", kind="haproxy", machine="edge"),
                Node(name="metrics", kind="prometheus", machine="monitoring"),
                Node(name="alerts", kind="alertmanager", machine="monitoring"),
                Node(name="dashboards", kind="grafana", machine="monitoring"),
            ),
        },
        balancer=BalancerSpec(node="balancer"),
        sessions=SessionSpec(store="postgres"),
        deploys=DeploySpec(strategy="rolling"),
        monitoring=MonitoringSpec(metrics="metrics", alerts="alerts", dashboards="dashboards"),
    )


def stage4(before: Topology) -> Topology:
    """Reads leave the primary: two cache levels, three replicas, an edge cache; limits over all servers."""
    replicas = [
        Node(name=f"replica-{number}", kind="postgres", machine=f"replica-{number}") for number in (1, 2, 3)
    ]
    main = replace(before.clusters["main"], replicas=tuple(node.name for node in replicas))
    return replace(
        before,
        stage=4,
        nodes={
            **before.nodes,
            **_named(
                *replicas,
                Node(name="redis", kind="redis", machine="redis"),
                Node(name="edge", kind="nginx", machine="edge"),
            ),
        },
        clusters={**before.clusters, "main": main},
        sessions=SessionSpec(store="redis"),
        cache=CacheSpec(node="redis"),
        limits=LimitSpec(node="redis"),
        edge=EdgeSpec(node="edge"),
    )


def stage5(before: Topology) -> Topology:
    """The fleet follows the load; pools shrink per process so that the largest fleet still fits."""
    nodes = {
        name: replace(node, max_connections=450) if name.startswith("replica-") else node
        for name, node in before.nodes.items()
    }
    return replace(
        before,
        stage=5,
        pool=replace(before.pool, size=6),
        nodes=nodes,
        autoscaling=AutoscalingSpec(),
        worker_scaling=WorkerScalingSpec(),
        tokens=TokenSpec(),
        jobs=JobSpec(transport="postgres"),
    )


def stage6(before: Topology) -> Topology:
    """Writes spread over four shards; modules become services behind a gateway; events go over a broker."""
    nodes, clusters, poolers = dict(before.nodes), dict(before.clusters), dict(before.poolers)
    for number in (2, 3, 4):
        shard, machine = f"shard-{number}", f"db-{number}"
        nodes |= _named(
            Node(name=machine, kind="postgres", machine=machine),
            Node(name=f"pooler-{number}", kind="pgbouncer", machine=machine),
        )
        clusters[shard] = Cluster(name=shard, primary=machine)
        poolers[shard] = PoolerSpec(name=shard, node=f"pooler-{number}", clusters=(shard,))
    nodes |= _named(
        Node(name="db-users", kind="postgres", machine="db-users", max_connections=450),
        Node(name="broker", kind="nats", machine="broker"),
        Node(name="gateway", kind="nginx", machine="edge"),
        Node(name="search", kind="opensearch", machine="search"),
    )
    clusters["users"] = Cluster(name="users", primary="db-users")
    return replace(
        before,
        stage=6,
        nodes=nodes,
        clusters=clusters,
        poolers=poolers,
        databases={
            "default": DatabaseSpec(name="default", shards=("main", "shard-2", "shard-3", "shard-4")),
            "users": DatabaseSpec(name="users", shards=("users",)),
        },
        services={
            "users": ServiceSpec(name="users", modules=("users",)),
            "content": ServiceSpec(name="content", modules=("content",)),
        },
        gateway=GatewaySpec(node="gateway"),
        breaker=BreakerSpec(),
        events=EventSpec(node="broker"),
        stores={"search": StoreSpec(name="search", node="search")},
    )


def stage7(before: Topology) -> Topology:
    """A second region that can take over; each access pattern gets the store that fits it."""
    away = Node(name="db-away", kind="postgres", machine="db-away", region="away", max_connections=450)
    main = before.clusters["main"]
    return replace(
        before,
        stage=7,
        nodes={
            **before.nodes,
            **_named(
                away,
                Node(name="edge-away", kind="nginx", machine="edge-away", region="away"),
                Node(name="documents", kind="mongodb", machine="documents"),
                Node(name="timeseries", kind="timescaledb", machine="timeseries"),
                Node(name="graph", kind="neo4j", machine="graph"),
            ),
        },
        clusters={**before.clusters, "main": replace(main, replicas=(*main.replicas, "db-away"))},
        edge=replace(before.edge, compute=True)
        if before.edge is not None
        else EdgeSpec(node="edge", compute=True),
        events=replace(before.events, read_models=True) if before.events is not None else None,
        stores={
            **before.stores,
            **{name: StoreSpec(name=name, node=name) for name in ("documents", "timeseries", "graph")},
        },
        regions={
            "home": RegionSpec(name="home", mode="active"),
            "away": RegionSpec(name="away", mode="passive"),
        },
        replication=ReplicationSpec(),
    )


STAGES: tuple[Callable[[Topology], Topology], ...] = (stage2, stage3, stage4, stage5, stage6, stage7)


def stage_topology(stage: int, *, name: str = "app", app: str = "app:app") -> Topology:
    """The preset of `stage`, 1 to 7: the first, and then each stage's additions in turn."""
    if not 1 <= stage <= len(STAGES) + 1:
        raise ValueError(f"stage must be between 1 and {len(STAGES) + 1}, got {stage}")
    topology = stage1(name=name, app=app)
    for add in STAGES[: stage - 1]:
        topology = add(topology)
    return topology


def _named(*nodes: Node) -> dict[str, Node]:
    return {node.name: node for node in nodes}
