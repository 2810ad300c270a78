"""The tables of springtide.toml for the layers that stages 2 to 7 add.

Each is absent by default, which means that the layer is off. The figures are those to start from.
Whether a layer is already built is not known here: see built.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from springtide.topology.keys import (
    Key,
    above,
    at_least,
    between,
    check,
    each,
    matching,
    nothing_or_at_least,
    one_of,
)

__all__ = [
    "AutoscalingSpec",
    "BackupSpec",
    "BalancerSpec",
    "BreakerSpec",
    "CacheSpec",
    "Checked",
    "Cpu",
    "DeploySpec",
    "EdgeSpec",
    "EventSpec",
    "GatewaySpec",
    "JobSpec",
    "LimitSpec",
    "MemoryBytes",
    "MonitoringSpec",
    "NAME",
    "NetworkSpec",
    "PoolerSpec",
    "RegionSpec",
    "ReplicationSpec",
    "ServiceSpec",
    "SessionSpec",
    "StoreSpec",
    "TokenSpec",
    "WorkerScalingSpec",
]

NAME = matching(r"[A-Za-z][A-Za-z0-9-]{0,62}", "must be letters, digits and -, starting with a letter")
Cpu = Annotated[float | None, Key(says="CPU limit; absent = none", unit="cores", rule=above(0))]
MemoryBytes = Annotated[
    int | None, Key(says="memory limit; absent = none", unit="bytes", rule=at_least(16 * 1024 * 1024))
]


class Checked:
    """Every layer's table checks its own values when it is made."""

    __slots__ = ()

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class BackupSpec(Checked):
    """Backups of every cluster."""

    every: Annotated[float, Key(says="time between base backups", unit="s", rule=above(0))] = 86_400.0
    keep: Annotated[int, Key(says="base backups kept", rule=at_least(1))] = 7
    archive_log: Annotated[bool, Key(says="keep the log too, to restore any moment")] = True
    archive_timeout: Annotated[
        float, Key(says="a file of the log that is not full is kept after", unit="s", rule=above(0))
    ] = 300.0
    folder: Annotated[
        str | None,
        Key(
            says="where they go, relative to the file; absent = `.springtide/backups`",
            rule=matching(r"[^\0\n]+", "must not be empty"),
        ),
    ] = None
    max_rate_bytes: Annotated[
        int,
        Key(says="a base backup reads no faster", unit="bytes/s", rule=between(32_768, 1_073_741_824)),
    ] = 33_554_432


@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkSpec(Checked):
    """TLS and separation between the tiers."""

    tls: Annotated[bool, Key(says="TLS between the tiers")] = True
    database_from_app_only: Annotated[bool, Key(says="databases answer the app tier only")] = True


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolerSpec(Checked):
    """PgBouncer in transaction mode in front of clusters' primaries."""

    name: str
    node: Annotated[str, Key(says="node of the pooler", rule=NAME, kinds=("pgbouncer",))]
    clusters: Annotated[tuple[str, ...], Key(says="clusters behind it", rule=each(NAME))] = ("main",)
    server_connections: Annotated[
        int, Key(says="connections to each cluster's primary", unit="connections", rule=at_least(1))
    ] = 50
    max_clients: Annotated[int, Key(says="connections it accepts", unit="connections", rule=at_least(1))] = (
        1000
    )
    prepared_statements: Annotated[
        int,
        Key(
            says="prepared statements it keeps per server connection (PgBouncer 1.21 or newer); 0 = none",
            unit="statements",
            rule=at_least(0),
        ),
    ] = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class BalancerSpec(Checked):
    """The load balancer in front of the app servers."""

    node: Annotated[str, Key(says="node of the balancer", rule=NAME, kinds=("haproxy", "nginx"))]
    policy: Annotated[
        str, Key(says="who gets the next request", rule=one_of(("least_connections", "round_robin")))
    ] = "least_connections"
    check_every: Annotated[float, Key(says="time between health checks", unit="s", rule=above(0))] = 2.0
    slow_start: Annotated[float, Key(says="ramp of a new server", unit="s", rule=at_least(0))] = 30.0
    sticky: Annotated[bool, Key(says="keep a client on its server")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionSpec(Checked):
    """Sessions outside the app servers' memory."""

    store: Annotated[str, Key(says="where sessions live", rule=one_of(("postgres", "redis")))] = "postgres"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploySpec(Checked):
    """How a new version replaces the running one."""

    strategy: Annotated[
        str, Key(says="order of replacement", rule=one_of(("rolling", "blue_green", "canary")))
    ] = "rolling"
    drain: Annotated[float, Key(says="time for requests in progress", unit="s", rule=above(0))] = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitoringSpec(Checked):
    """Collecting metrics of many servers, alerts and dashboards."""

    metrics: Annotated[str, Key(says="node that collects", rule=NAME, kinds=("prometheus",))]
    alerts: Annotated[str, Key(says="node that alerts", rule=NAME, kinds=("alertmanager",))]
    dashboards: Annotated[str, Key(says="node that draws", rule=NAME, kinds=("grafana",))]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheSpec(Checked):
    """The two-level cache: memory of each process (L1) and Redis."""

    node: Annotated[str, Key(says="node of the shared level", rule=NAME, kinds=("redis",))]
    ttl: Annotated[
        float, Key(says="life of a value whose class does not say it", unit="s", rule=above(0))
    ] = 300.0
    l1_ttl: Annotated[float, Key(says="its part in L1; 0 = none", unit="s", rule=at_least(0))] = 15.0
    l1_bytes: Annotated[
        int, Key(says="memory of L1 per process; 0 = no L1", unit="bytes", rule=nothing_or_at_least(65_536))
    ] = 67_108_864
    wanted_hit_rate: Annotated[
        float, Key(says="a class below this is an alarm; 0 = never", rule=between(0, 1))
    ] = 0.8
    warm_up: Annotated[
        float,
        Key(
            says="longest time in which a process loads popular keys before it is ready; 0 = it does not",
            unit="s",
            rule=between(0, 60),
        ),
    ] = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LimitSpec(Checked):
    """Rate limits that hold over all servers."""

    node: Annotated[str, Key(says="node that counts", rule=NAME, kinds=("redis",))]
    client: Annotated[int, Key(says="per API key or user", unit="requests", rule=at_least(1))] = 100
    client_period: Annotated[float, Key(says="in this time", unit="s", rule=above(0))] = 60.0
    address: Annotated[int, Key(says="per anonymous address", unit="requests", rule=at_least(1))] = 100
    address_period: Annotated[float, Key(says="in this time", unit="s", rule=above(0))] = 900.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EdgeSpec(Checked):
    """The cache in front of the balancer: static files and public answers."""

    node: Annotated[str, Key(says="node of the edge", rule=NAME, kinds=("nginx", "varnish"))]
    compute: Annotated[bool, Key(says="answers computed at the edge")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoscalingSpec(Checked):
    """The number of app servers follows the load: up fast, down slow."""

    min: Annotated[int, Key(says="fewest app servers", unit="processes", rule=at_least(1))] = 2
    max: Annotated[int, Key(says="most app servers", unit="processes", rule=at_least(1))] = 50
    up_cpu: Annotated[float, Key(says="more above this share of CPU", rule=between(0, 1))] = 0.7
    up_rps: Annotated[float, Key(says="or this load per server", unit="requests/s", rule=above(0))] = 1000.0
    up_p95: Annotated[float, Key(says="or this p95", unit="s", rule=above(0))] = 0.5
    down_cpu: Annotated[float, Key(says="fewer below this share of CPU", rule=between(0, 1))] = 0.3
    down_cpu_for: Annotated[float, Key(says="for this time", unit="s", rule=above(0))] = 300.0
    down_rps: Annotated[
        float, Key(says="or below this load per server", unit="requests/s", rule=at_least(0))
    ] = 300.0
    down_rps_for: Annotated[float, Key(says="for this time", unit="s", rule=above(0))] = 600.0
    cool_down_up: Annotated[float, Key(says="pause after more", unit="s", rule=at_least(0))] = 180.0
    cool_down_down: Annotated[float, Key(says="pause after fewer", unit="s", rule=at_least(0))] = 600.0
    cost_ceiling: Annotated[
        float | None, Key(says="stop adding at this cost; absent = only max", unit="per month", rule=above(0))
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerScalingSpec(Checked):
    """The number of workers follows what the jobs need: more at once, fewer slowly, and by drain only."""

    min: Annotated[int, Key(says="fewest workers", unit="processes", rule=at_least(1))] = 1
    max: Annotated[int, Key(says="most workers", unit="processes", rule=at_least(1))] = 10
    time_to_drain: Annotated[
        float, Key(says="time in which what waits is to be done", unit="s", rule=above(0))
    ] = 60.0
    down_after: Annotated[
        float, Key(says="fewer when fewer would have done for so long", unit="s", rule=above(0))
    ] = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSpec(Checked):
    """Signed access tokens and revocable refresh tokens."""

    access: Annotated[float, Key(says="life of an access token", unit="s", rule=above(0))] = 900.0
    refresh: Annotated[float, Key(says="life of a refresh token", unit="s", rule=above(0))] = 604_800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec(Checked):
    """Durable jobs: their queue, and what carries them to the workers."""

    transport: Annotated[
        str,
        Key(
            says="carrier; another than postgres needs a node of that kind",
            rule=one_of(("postgres", "redis", "rabbitmq", "nats", "kafka", "sqs")),
        ),
    ] = "postgres"
    node: Annotated[
        str | None,
        Key(
            says="node of the carrier; absent = the only one of its kind",
            rule=NAME,
            kinds=("redis", "rabbitmq", "nats", "kafka", "sqs"),
        ),
    ] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventSpec(Checked):
    """Domain events on a broker, with many independent consumers."""

    node: Annotated[
        str, Key(says="node of the broker", rule=NAME, kinds=("nats", "kafka", "rabbitmq", "redis"))
    ]
    read_models: Annotated[bool, Key(says="denormalised read models kept up from events")] = False


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewaySpec(Checked):
    """The one door in front of the services."""

    node: Annotated[str, Key(says="node of the gateway", rule=NAME, kinds=("nginx", "haproxy"))]


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerSpec(Checked):
    """Circuit breakers around calls between services."""

    timeout: Annotated[float, Key(says="longest call", unit="s", rule=above(0))] = 3.0
    failures: Annotated[float, Key(says="opens at this share of failures", rule=between(0, 1))] = 0.5
    probe_after: Annotated[float, Key(says="probes after", unit="s", rule=above(0))] = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec(Checked):
    """Modules that run as a service of their own."""

    name: str
    modules: Annotated[tuple[str, ...], Key(says="modules it runs", rule=each(NAME))]
    count: Annotated[int, Key(says="processes", unit="processes", rule=between(1, 1000))] = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreSpec(Checked):
    """An engine for one access pattern: search, documents, timeseries or graph."""

    name: str
    node: Annotated[
        str,
        Key(says="node of the engine", rule=NAME, kinds=("opensearch", "mongodb", "timescaledb", "neo4j")),
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class RegionSpec(Checked):
    """One region; nodes belong to it by their `region`."""

    name: str
    mode: Annotated[str, Key(says="does it take writes", rule=one_of(("active", "passive")))] = "active"


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicationSpec(Checked):
    """What the regions do with conflicting writes and when they cannot see each other."""

    conflicts: Annotated[str, Key(says="who wins", rule=one_of(("last_writer", "home_region", "merge")))] = (
        "home_region"
    )
    partition: Annotated[str, Key(says="under partition, stay", rule=one_of(("consistent", "available")))] = (
        "consistent"
    )
