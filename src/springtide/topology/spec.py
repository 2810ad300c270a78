"""The typed form of springtide.toml: what the whole platform is made of.

    Topology
    ├── objectives, servers, workers, pool, telemetry     one table each, always there
    ├── nodes      one process with an address: given (url) or supervised (the runner starts it)
    ├── clusters   one PostgreSQL server group: a primary and its replicas
    ├── databases  which clusters hold the buckets of a module's tables
    ├── programs   what runs beside the application; with secrets and environment, see programs.py
    └── the layers of stages 2 to 7, each off when absent (layers.py)

Invariant: a Topology that exists keeps every rule of its keys and between them; making another raises
TopologyError with all faults. Values only: nothing here reads files, connects or starts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Annotated
from urllib.parse import urlsplit, urlunsplit

from springtide.errors import ConfigurationError, TopologyError
from springtide.topology.addresses import Addresses, Roles
from springtide.topology.keys import Key, above, at_least, between, check, each, matching, network, one_of
from springtide.topology.kinds import KINDS
from springtide.topology.layers import (
    NAME,
    AutoscalingSpec,
    BackupSpec,
    BalancerSpec,
    BreakerSpec,
    CacheSpec,
    Checked,
    Cpu,
    DeploySpec,
    EdgeSpec,
    EventSpec,
    GatewaySpec,
    JobSpec,
    LimitSpec,
    MemoryBytes,
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
from springtide.topology.programs import ENVIRONMENT, ProgramSpec
from springtide.topology.rules import faults_between

__all__ = [
    "Cluster",
    "DatabaseSpec",
    "Node",
    "Objectives",
    "PoolSpec",
    "ServerSpec",
    "TelemetrySpec",
    "Topology",
    "WorkerSpec",
]

ENTRY = matching(
    r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", 'must look like "module:attr"'
)
ORIGIN = matching(
    r"(?ia)\*|[a-z][a-z0-9+.-]*://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?",
    'must look like "https://host" or "https://host:port", or be "*" alone',
)
PORT = between(1, 65535)


@dataclass(frozen=True, slots=True, kw_only=True)
class Objectives(Checked):
    """What the platform must reach; the doctor and the planner measure against it."""

    peak_rps: Annotated[float, Key(says="busiest expected load", unit="requests/s", rule=above(0))] = 50.0
    concurrent_users: Annotated[int, Key(says="people active at once", unit="users", rule=at_least(1))] = 100
    read_ratio: Annotated[float, Key(says="share of requests that only read", rule=between(0, 1))] = 0.9
    p95: Annotated[float, Key(says="95th percentile of API answers", unit="s", rule=above(0))] = 0.2
    page: Annotated[float, Key(says="time until a page is complete", unit="s", rule=above(0))] = 2.0
    availability: Annotated[float, Key(says="share of requests answered well", rule=between(0, 1))] = 0.9999
    growth: Annotated[float, Key(says="growth of load; 0.1 is 10 %", unit="per month", rule=at_least(-1))] = (
        0.0
    )
    headroom: Annotated[float, Key(says="designed for peak_rps times this", rule=at_least(1))] = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSpec(Checked):
    """The app servers: `count` processes behind one public address."""

    count: Annotated[int, Key(says="app server processes", unit="processes", rule=between(1, 1000))] = 1
    host: Annotated[
        str, Key(says="address of the public socket", rule=matching(r"\S+", "must not be empty"))
    ] = "127.0.0.1"
    port: Annotated[int, Key(says="port of the public socket; 0 = a free one", rule=between(0, 65535))] = 8000
    request_timeout: Annotated[float, Key(says="deadline of one request", unit="s", rule=above(0))] = 30.0
    body_bytes: Annotated[int, Key(says="largest request body", unit="bytes", rule=at_least(1))] = 1_048_576
    cors_origins: Annotated[
        tuple[str, ...],
        Key(
            says="web origins that browsers may call from",
            rule=each(ORIGIN),
        ),
    ] = ()
    trusted_proxies: Annotated[
        tuple[str, ...], Key(says="proxies whose X-Forwarded-* headers count", rule=each(network()))
    ] = ("127.0.0.1/32", "::1/128")
    cpu: Cpu = None
    memory_bytes: MemoryBytes = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec(Checked):
    """The worker processes that do what no request waits for; 0 = none."""

    count: Annotated[int, Key(says="worker processes", unit="processes", rule=between(0, 1000))] = 1
    metrics_port: Annotated[
        int | None,
        Key(
            says="port of worker-1's /metrics on servers.host, worker-2 has the next one; absent = none",
            rule=PORT,
        ),
    ] = None
    cpu: Cpu = None
    memory_bytes: MemoryBytes = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec(Checked):
    """The connection pool that each app server and worker keeps per cluster."""

    size: Annotated[
        int, Key(says="connections per process and cluster", unit="connections", rule=at_least(1))
    ] = 20
    reserved: Annotated[
        int, Key(says="of these, kept for critical work; < size", unit="connections", rule=at_least(0))
    ] = 2
    max_waiting: Annotated[int, Key(says="callers that may wait", unit="callers", rule=at_least(0))] = 1000
    acquire_timeout: Annotated[float, Key(says="longest wait for a connection", unit="s", rule=above(0))] = (
        2.0
    )
    idle: Annotated[float, Key(says="an unused connection is closed after", unit="s", rule=above(0))] = 30.0
    max_age: Annotated[float, Key(says="a connection is replaced after", unit="s", rule=above(0))] = 1800.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TelemetrySpec(Checked):
    """Logs and traces; metrics are always on."""

    slow_request: Annotated[
        float, Key(says="a request slower than this is logged", unit="s", rule=above(0))
    ] = 1.0
    slow_statement: Annotated[
        float, Key(says="a statement slower than this is logged with its plan", unit="s", rule=above(0))
    ] = 0.5
    log_level: Annotated[
        str, Key(says="least important level logged", rule=one_of(("debug", "info", "warning", "error")))
    ] = "info"
    log_format: Annotated[str, Key(says="form of a log line", rule=one_of(("json", "text")))] = "json"
    trace_sample: Annotated[float, Key(says="share of new traces marked as sampled", rule=between(0, 1))] = (
        0.0
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Node(Checked):
    """One process with an address: given (`url`) or supervised (`port`, or a free one)."""

    name: str
    kind: Annotated[str, Key(says="what runs there", rule=one_of(tuple(KINDS)))] = "postgres"
    url: Annotated[
        str | None,
        Key(
            says="where a given node is; absent = supervised",
            rule=matching(
                r"[a-z][a-z0-9+]*://([^\s/]\S*|/[^\s/]\S*)",
                'must look like "scheme://user:password@host:port/name" or "unix:///path"',
            ),
        ),
    ] = None
    port: Annotated[int | None, Key(says="port of a supervised node; absent = a free one", rule=PORT)] = None
    cpu: Cpu = None
    memory_bytes: MemoryBytes = None
    max_connections: Annotated[
        int, Key(says="what the server accepts (kind postgres)", unit="connections", rule=between(10, 10_000))
    ] = 200
    machine: Annotated[
        str, Key(says='machine it belongs to; "local" = that of the app servers', rule=NAME)
    ] = "local"
    region: Annotated[str, Key(says="region it belongs to", rule=NAME)] = "home"
    zone: Annotated[
        str, Key(says="what it is near to: a process of that zone reads it first (kind postgres)", rule=NAME)
    ] = "local"
    weight: Annotated[
        float,
        Key(says="its share of reads beside other replicas; 0 = none (kind postgres)", rule=between(0, 1000)),
    ] = 1.0

    @property
    def given(self) -> bool:
        """True when somebody else runs it and `url` says where."""
        return self.url is not None

    @property
    def supervised(self) -> bool:
        """True when the runner starts it on this machine."""
        return self.url is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster(Checked):
    """One PostgreSQL server group: the node of its primary and those of its replicas."""

    name: str
    primary: Annotated[str, Key(says="node of the primary", rule=NAME, kinds=("postgres",))]
    replicas: Annotated[
        tuple[str, ...], Key(says="nodes of the replicas", rule=each(NAME), kinds=("postgres",))
    ] = ()
    dbname: Annotated[
        str | None,
        Key(
            says="PostgreSQL database; absent = the given url's own, or the cluster's name",
            rule=matching(r"[A-Za-z_][A-Za-z0-9_-]{0,62}", "must be letters, digits, _ and -, at most 63"),
        ),
    ] = None
    failover: Annotated[
        str,
        Key(
            says="who replaces a dead primary that the runner started: the runner, or `replicas promote`",
            rule=one_of(("auto", "manual")),
        ),
    ] = "auto"
    failover_after: Annotated[
        float, Key(says="a primary counts as dead when it was silent for", unit="s", rule=above(0))
    ] = 5.0
    patroni: Annotated[
        tuple[str, ...],
        Key(
            says="REST addresses of the Patroni that runs it; the primary's url gives the account",
            rule=each(matching(r"https?://[^\s/@]+/?", 'must look like "http://host:8008"')),
        ),
    ] = ()
    max_lag: Annotated[
        float,
        Key(
            says="a replica further behind is left alone",
            unit="s",
            rule=between(0.1, 10),
        ),
    ] = 10.0
    min_serving: Annotated[
        int,
        Key(
            says="so many are read from, also when they are up to 3 x max_lag behind",
            unit="replicas",
            rule=between(0, 100),
        ),
    ] = 1
    look_every: Annotated[
        float,
        Key(
            says="pause between two looks of one process at one server; longer for many processes",
            unit="s",
            rule=between(0.05, 1),
        ),
    ] = 0.1

    @property
    def replicated(self) -> bool:
        """True when it has replicas, or Patroni says which."""
        return bool(self.replicas or self.patroni)


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseSpec(Checked):
    """Which clusters hold the buckets of one module's tables; "default" is for every module not listed."""

    name: str
    shards: Annotated[
        tuple[str, ...], Key(says="clusters, in the order of even bucket ranges", rule=each(NAME))
    ]
    durability: Annotated[
        str,
        Key(
            says="a commit is acknowledged when the primary has it, or when one replica has it too",
            rule=one_of(("async", "quorum")),
        ),
    ] = "async"
    consistency: Annotated[
        str,
        Key(
            says="how fresh reads are unless they say otherwise; bounded(s) is at most s seconds behind",
            rule=matching(
                r"strong|session|eventual|bounded\((?!0+(\.0*)?\))\d{1,9}(\.\d{1,9})?\)",
                "must be strong, session, eventual or bounded(seconds)",
            ),
        ),
    ] = "session"


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """The whole platform, validated; made by `load`, `loads` or a stage's function."""

    name: Annotated[str, Key(says="name of the platform", rule=NAME)]
    app: Annotated[str, Key(says="the ASGI application", rule=ENTRY)]
    stage: Annotated[int | None, Key(says="preset to start from", rule=between(1, 7))] = None
    path: Annotated[
        str, Key(says="import path, relative to the file", rule=matching(r"[^\0]+", "must not be empty"))
    ] = "."
    modules: Annotated[str | None, Key(says="list of modules, or a function giving it", rule=ENTRY)] = None
    seed: Annotated[str | None, Key(says="entry of `springtide seed`", rule=ENTRY)] = None
    journeys: Annotated[str | None, Key(says="entry of `springtide load`", rule=ENTRY)] = None
    secrets: Annotated[
        tuple[str, ...],
        Key(says="texts made once, kept in `.springtide/secrets`: {secrets.NAME}", rule=each(NAME)),
    ] = ()
    objectives: Objectives = field(default_factory=Objectives)
    servers: ServerSpec = field(default_factory=ServerSpec)
    workers: WorkerSpec = field(default_factory=WorkerSpec)
    pool: PoolSpec = field(default_factory=PoolSpec)
    telemetry: TelemetrySpec = field(default_factory=TelemetrySpec)
    nodes: Mapping[str, Node] = field(default_factory=dict)
    clusters: Mapping[str, Cluster] = field(default_factory=dict)
    databases: Mapping[str, DatabaseSpec] = field(default_factory=dict)
    programs: Mapping[str, ProgramSpec] = field(default_factory=dict)
    environment: Annotated[
        Mapping[str, str],
        Key(says="environment variables of app servers and workers", rule=ENVIRONMENT),
    ] = field(default_factory=dict)
    backups: BackupSpec | None = None
    network: NetworkSpec | None = None
    poolers: Mapping[str, PoolerSpec] = field(default_factory=dict)
    balancer: BalancerSpec | None = None
    sessions: SessionSpec | None = None
    deploys: DeploySpec | None = None
    monitoring: MonitoringSpec | None = None
    cache: CacheSpec | None = None
    limits: LimitSpec | None = None
    edge: EdgeSpec | None = None
    autoscaling: AutoscalingSpec | None = None
    worker_scaling: WorkerScalingSpec | None = None
    tokens: TokenSpec | None = None
    jobs: JobSpec | None = None
    events: EventSpec | None = None
    gateway: GatewaySpec | None = None
    breaker: BreakerSpec | None = None
    services: Mapping[str, ServiceSpec] = field(default_factory=dict)
    stores: Mapping[str, StoreSpec] = field(default_factory=dict)
    regions: Mapping[str, RegionSpec] = field(default_factory=dict)
    replication: ReplicationSpec | None = None
    source: Path | None = field(default=None, compare=False)
    addresses: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for declared in fields(self):
            value = getattr(self, declared.name)
            if isinstance(value, Mapping):
                object.__setattr__(self, declared.name, MappingProxyType(dict(value)))
        check(self)
        if faults := faults_between(self):
            raise TopologyError(str(self.source or "topology"), faults)

    @property
    def import_path(self) -> Path:
        """`path`, made absolute from the folder of the file (or from the working folder without a file)."""
        folder = self.source.parent if self.source is not None else Path()
        return (folder / self.path).resolve()

    def database(self, module: str) -> DatabaseSpec:
        """The database of `module`; modules that the file does not list share "default".

        Raises ConfigurationError when neither is there.
        """
        found = self.databases.get(module) or self.databases.get("default")
        if found is None:
            raise ConfigurationError(
                f"module {module!r} has no database: add [databases.default] or [databases.{module}]"
            )
        return found

    @property
    def carrier(self) -> str | None:
        """The node that carries jobs to the workers; None when these claim them from SQL."""
        if self.jobs is None or self.jobs.transport == "postgres":
            return None
        return self.jobs.node or next(
            name for name, node in self.nodes.items() if node.kind == self.jobs.transport
        )

    def confirmed(self, cluster: str) -> bool:
        """True when a database on `cluster` has `durability = "quorum"`: replicas confirm commits there."""
        return any(
            database.durability == "quorum" and cluster in database.shards
            for database in self.databases.values()
        )

    def with_addresses(self, addresses: Mapping[str, str]) -> Topology:
        """The same topology, knowing where its supervised nodes answer; a given node keeps its own url.

        Raises ConfigurationError for an address of a node that is not there.
        """
        unknown = sorted(set(addresses) - set(self.nodes))
        if unknown:
            raise ConfigurationError(f"addresses of nodes that the topology lacks: {', '.join(unknown)}")
        return replace(self, addresses={**self.addresses, **addresses})

    def with_roles(self, clusters: Mapping[str, Roles]) -> Topology:
        """The same topology with the primaries and replicas that the runner has now.

        Roles of a cluster, or with a node, that the topology lacks are left out: the file changed meanwhile.
        """
        changed = {
            name: replace(self.clusters[name], primary=roles.primary, replicas=roles.replicas)
            for name, roles in clusters.items()
            if name in self.clusters and self.nodes.keys() >= {roles.primary, *roles.replicas}
        }
        return replace(self, clusters={**self.clusters, **changed})

    def as_found(self, found: Addresses) -> Topology:
        """The same topology as it runs now; addresses of nodes that it gives by url itself do not count."""
        own = {
            name: url
            for name, url in found.nodes.items()
            if name in self.nodes and self.nodes[name].supervised
        }
        return self.with_roles(found.clusters).with_addresses(own)

    def node_url(self, name: str) -> str:
        """Where a node answers. Raises ConfigurationError when that is not known."""
        node = self.nodes[name]
        url = node.url or self.addresses.get(name)
        if url is None:
            raise ConfigurationError(
                f"node {name!r} has no address: start it with `springtide up` or give its url"
            )
        return url

    def cluster_url(self, cluster: str, node: str | None = None) -> str:
        """Where the primary of `cluster`, or another node of it, answers, its PostgreSQL database included.

        Raises ConfigurationError when the cluster is unknown or the node has no address yet.
        """
        found = self.clusters.get(cluster)
        if found is None:
            known = ", ".join(self.clusters) or "none"
            raise ConfigurationError(f"there is no cluster {cluster!r} (known: {known})")
        chosen = self.nodes[node or found.primary]
        url = self.node_url(chosen.name)
        parts = urlsplit(url)
        own = parts.path.strip("/") if chosen.given else ""
        return urlunsplit(parts._replace(path=f"/{found.dbname or own or found.name}"))

    def pooler(self, cluster: str) -> PoolerSpec | None:
        """The pooler that clients of `cluster` go through; None when they connect to its servers."""
        return next((pooler for pooler in self.poolers.values() if cluster in pooler.clusters), None)

    def client_url(self, cluster: str) -> str:
        """Where clients of `cluster` connect: its pooler, else its primary.

        A pooler started by the runner knows each cluster by its name; a given one by the database in its own
        url, or by the cluster's. Raises ConfigurationError as `cluster_url` does.
        """
        direct, pooler = self.cluster_url(cluster), self.pooler(cluster)
        if pooler is None:
            return direct
        node = self.nodes[pooler.node]
        url = self.node_url(node.name)
        parts = urlsplit(url)
        dbname = cluster if node.supervised else parts.path.strip("/") or urlsplit(direct).path.strip("/")
        return urlunsplit(parts._replace(path=f"/{dbname}"))
