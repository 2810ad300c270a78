"""The rules between the keys of a topology: what must fit together for the platform to run.

A sentence names the other keys it depends on, dotted: the reader sees where to look, and the parser leaves
out faults that follow from a key which is faulty itself.

Pure: a topology's values in, faults out, every one of them. Lines are added by the parser.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from springtide.errors import TopologyFault
from springtide.topology.budget import ADVICE, SUPERUSER_CONNECTIONS, client_demand, server_demand
from springtide.topology.keys import described, redacted
from springtide.topology.kinds import KINDS
from springtide.topology.programs import faults_of_programs
from springtide.topology.suggest import nearest

if TYPE_CHECKING:
    from springtide.topology.spec import Node, Topology

__all__ = ["faults_between"]

BUCKETS = 1024
LOOKS_PER_LAG = 5
POSTGRES_PORT = 5432
ENCRYPTED = ("verify-full", "verify-ca", "require")
STORES = {"search": "opensearch", "documents": "mongodb", "timeseries": "timescaledb", "graph": "neo4j"}


def faults_between(topology: Topology) -> list[TopologyFault]:
    """Every fault between keys, in the order of the rules below."""
    rules: tuple[Callable[[Topology], Iterable[TopologyFault]], ...] = (
        _names,
        _nodes,
        _ports,
        _origins,
        faults_of_programs,
        _node_references,
        _clusters,
        _databases,
        _pool,
        _connections,
        _network,
        _targets,
        _layers,
        _regions,
    )
    return [fault for rule in rules for fault in rule(topology)]


def _fault(key: str, value: object, rule: str) -> TopologyFault:
    return TopologyFault(None, key, redacted(value), rule)


def _missing(kind: str, name: str, known: Iterable[str]) -> str:
    known = list(known)
    guess = nearest(name, known)
    hint = f" (did you mean {guess!r}?)" if guess else f" (there are: {', '.join(known) or 'none'})"
    return f"must name a {kind} of this topology{hint}"


def _names(topology: Topology) -> Iterator[TopologyFault]:
    for field in described(type(topology)):
        if field.tables is None:
            continue
        for name, item in getattr(topology, field.name).items():
            if getattr(item, "name", name) != name:
                yield _fault(f"{field.name}.{name}", item.name, "must be kept under its own name")
    for name in topology.nodes:
        role, dash, number = name.rpartition("-")
        if dash and role in ("app", "worker") and number.isdigit():
            rule = "this name belongs to the app servers and workers; choose another"
            yield _fault(f"nodes.{name}", None, rule)


def _nodes(topology: Topology) -> Iterator[TopologyFault]:
    for name, node in topology.nodes.items():
        for key in ("max_connections", "zone", "weight") if node.kind != "postgres" else ():
            if (value := getattr(node, key)) != getattr(type(node)(name=name), key):
                rule = f"only a node of kind postgres has it; this is a {node.kind}"
                yield _fault(f"nodes.{name}.{key}", value, rule)
        least = KINDS[node.kind].least_bytes
        if node.memory_bytes is not None and node.memory_bytes < least:
            yield _fault(
                f"nodes.{name}.memory_bytes", node.memory_bytes, f"must be >= {least} for {node.kind}"
            )
        if node.url is None:
            if KINDS[node.kind].given:
                rule = f"is required, because a node of kind {node.kind} is not started here"
                yield _fault(f"nodes.{name}.url", None, rule)
            continue
        for key in ("port", "cpu", "memory_bytes"):
            if getattr(node, key) is not None:
                rule = "a given node (url) is not started here; remove this key or the url"
                yield _fault(f"nodes.{name}.{key}", getattr(node, key), rule)
        if (sentence := _bad_url(node)) is not None:
            yield _fault(f"nodes.{name}.url", node.url, sentence)


def _bad_url(node: Node) -> str | None:
    schemes = KINDS[node.kind].schemes
    url = node.url or ""
    scheme = url.partition("://")[0]
    if scheme not in schemes:
        starts = " or ".join(f"{scheme}://" for scheme in schemes)
        return f"must start with {starts}, because nodes.{node.name}.kind is {node.kind}"
    if scheme == "unix":
        return None if urlsplit(url).path.strip("/") else "must name a socket: unix:///path"
    if scheme.endswith("+sentinel") and not urlsplit(url).path.strip("/"):
        return "must end in the primary's name, as the Sentinels know it: //h1:26379,h2:26379/name"
    several = scheme.endswith(("+sentinel", "+cluster")) or node.kind == "kafka"
    parts = urlsplit(url)
    login, at, hosts = parts.netloc.rpartition("@")
    try:
        for host in hosts.split(",") if several else [hosts]:
            one = urlsplit(f"//{login}{at}{host}")
            _ = one.port  # parsed, and checked for its range, on access
            if not one.hostname:
                return "must have a host"
    except ValueError:
        return "must have a valid host and port"
    return None


def _ports(topology: Topology) -> Iterator[TopologyFault]:
    fixed = {"servers.port": topology.servers.port}
    fixed |= {f"nodes.{name}.port": node.port or 0 for name, node in topology.nodes.items() if not node.url}
    for name, program in topology.programs.items():
        fixed |= {f"programs.{name}.ports.{port}": number for port, number in program.ports.items()}
    taken: dict[int, str] = {}
    for key, number in fixed.items():
        if number and number in taken:
            yield _fault(key, number, f"must differ from {taken[number]}")
        taken.setdefault(number, key)
    first, key = topology.workers.metrics_port, "workers.metrics_port"
    if first is None:
        return
    scaling = topology.worker_scaling
    last = first + max(topology.workers.count, scaling.max if scaling is not None else 0, 1) - 1
    if last > 65535:
        yield _fault(key, first, f"must leave each worker a port: the last one would have {last}")
    for number in range(first, last + 1):
        if number in taken:
            yield _fault(key, first, f"must differ from {taken[number]}: workers have {first} to {last}")


def _origins(topology: Topology) -> Iterator[TopologyFault]:
    origins = topology.servers.cors_origins
    if "*" in origins and len(origins) > 1:
        yield _fault("servers.cors_origins", list(origins), 'must be "*" alone or a list without it')


def _node_references(topology: Topology) -> Iterator[TopologyFault]:
    for path, structure in _structures(topology):
        for field in described(type(structure)):
            if field.key is None or field.key.kinds is None:
                continue
            value = getattr(structure, field.name)
            for name in value if isinstance(value, tuple) else () if value is None else (value,):
                node = topology.nodes.get(name)
                if node is None:
                    yield _fault(f"{path}.{field.name}", name, _missing("node", name, topology.nodes))
                elif node.kind not in field.key.kinds:
                    wanted = " or ".join(field.key.kinds)
                    rule = f"must name a node of kind {wanted}; nodes.{name}.kind is {node.kind}"
                    yield _fault(f"{path}.{field.name}", name, rule)


def _structures(topology: Topology) -> Iterator[tuple[str, object]]:
    for field in described(type(topology)):
        value = getattr(topology, field.name)
        if field.table is not None and value is not None:
            yield field.name, value
        elif field.tables is not None:
            for name, item in value.items():
                yield f"{field.name}.{name}", item


def _clusters(topology: Topology) -> Iterator[TopologyFault]:
    roles: dict[str, str] = {}
    databases: dict[tuple[str, str], str] = {}
    for name, cluster in topology.clusters.items():
        key = f"clusters.{name}"
        if cluster.patroni and cluster.replicas:
            rule = f"names the replicas itself: remove {key}.replicas"
            yield _fault(f"{key}.patroni", list(cluster.patroni), rule)
        if cluster.patroni and (node := topology.nodes.get(cluster.primary)) and node.supervised:
            rule = f"is for a given cluster: give nodes.{cluster.primary}.url"
            yield _fault(f"{key}.patroni", list(cluster.patroni), rule)
        if cluster.primary in cluster.replicas:
            yield _fault(f"{key}.replicas", cluster.primary, "must not list the cluster's primary")
        for replica in cluster.replicas:
            if replica in roles and replica != cluster.primary:
                yield _fault(f"{key}.replicas", replica, f"is already a replica of cluster {roles[replica]}")
            roles.setdefault(replica, name)
        if cluster.max_lag < LOOKS_PER_LAG * cluster.look_every:
            rule = f"must be >= {LOOKS_PER_LAG} x {key}.look_every, which is {cluster.look_every}"
            yield _fault(f"{key}.max_lag", cluster.max_lag, f"{rule}: lag is seen no finer")
        server, own = _server(topology.nodes.get(cluster.primary), cluster.primary)
        dbname = cluster.dbname or own or name
        other = databases.setdefault((server, dbname), name)
        if other != name:
            rule = f"cluster {other} uses database {dbname!r} on {server} already; give a dbname"
            yield _fault(f"{key}.dbname", cluster.dbname, rule)
    for name, cluster in topology.clusters.items():
        if cluster.primary in roles and cluster.primary not in cluster.replicas:
            rule = f"is a replica of cluster {roles[cluster.primary]}, it cannot be a primary too"
            yield _fault(f"clusters.{name}.primary", cluster.primary, rule)


def _server(node: Node | None, name: str) -> tuple[str, str]:
    """Which server a node is (two given nodes may be one), and the database that its url names."""
    if node is None or node.url is None or _bad_url(node) is not None:  # the last is reported by _nodes
        return f"node {name}", ""
    parts = urlsplit(node.url)
    return f"{parts.hostname}:{parts.port or POSTGRES_PORT}", parts.path.strip("/")


def _databases(topology: Topology) -> Iterator[TopologyFault]:
    for name, database in topology.databases.items():
        key = f"databases.{name}.shards"
        if not 1 <= len(database.shards) <= BUCKETS:
            yield _fault(key, list(database.shards), f"must name 1 to {BUCKETS} clusters")
        for shard in database.shards:
            if shard not in topology.clusters:
                yield _fault(key, shard, _missing("cluster", shard, topology.clusters))
            elif database.durability == "quorum" and not topology.clusters[shard].replicated:
                rule = f"needs a replica that confirms commits: give clusters.{shard}.replicas one"
                yield _fault(f"databases.{name}.durability", database.durability, rule)


def _pool(topology: Topology) -> Iterator[TopologyFault]:
    pool = topology.pool
    if pool.reserved >= pool.size:
        yield _fault("pool.reserved", pool.reserved, f"must be < pool.size, which is {pool.size}")
    if pool.acquire_timeout >= topology.servers.request_timeout:
        limit = topology.servers.request_timeout
        rule = f"must be < servers.request_timeout, which is {limit}: a request would end while it waits"
        yield _fault("pool.acquire_timeout", pool.acquire_timeout, rule)


def _connections(topology: Topology) -> Iterator[TopologyFault]:
    """PostgreSQL refuses what exceeds max_connections, a pooler what exceeds its max_clients."""
    for name, demand in server_demand(topology).items():
        node = topology.nodes.get(name)
        if node is not None and demand.amount > node.max_connections - SUPERUSER_CONNECTIONS:
            rule = (
                f"{demand} connections do not fit, {SUPERUSER_CONNECTIONS} are kept for the superuser:"
                f" set it to at least {demand.amount + SUPERUSER_CONNECTIONS}, {ADVICE}"
            )
            yield _fault(f"nodes.{name}.max_connections", node.max_connections, rule)
    for name, demand in client_demand(topology).items():
        if demand.amount > (most := topology.poolers[name].max_clients):
            rule = f"{demand} clients: set it to at least {demand.amount}, {ADVICE}"
            yield _fault(f"poolers.{name}.max_clients", most, rule)


def _network(topology: Topology) -> Iterator[TopologyFault]:
    """What the runner starts it can give certificates; a given server's url says how it proves itself."""
    if topology.network is None or not topology.network.tls:
        return
    for name, node in topology.nodes.items():
        if node.url is None or node.kind not in ("postgres", "pgbouncer") or _bad_url(node) is not None:
            continue
        mode = dict(parse_qsl(urlsplit(node.url).query)).get("sslmode")
        if mode not in ENCRYPTED:
            rule = f"must say sslmode={' or '.join(ENCRYPTED)}, because network.tls is true"
            yield _fault(f"nodes.{name}.url", node.url, rule)


def _targets(topology: Topology) -> Iterator[TopologyFault]:
    wanted = topology.objectives
    if wanted.p95 > wanted.page:
        yield _fault("objectives.p95", wanted.p95, f"must be <= objectives.page, which is {wanted.page}")
    if wanted.page >= topology.servers.request_timeout:
        rule = f"must be < servers.request_timeout, which is {topology.servers.request_timeout}"
        yield _fault("objectives.page", wanted.page, rule)


def _layers(topology: Topology) -> Iterator[TopologyFault]:
    behind: dict[str, str] = {}
    at: dict[str, str] = {}
    for name, pooler in topology.poolers.items():
        if (other := at.setdefault(pooler.node, name)) != name:
            yield _fault(f"poolers.{name}.node", pooler.node, f"is the node of pooler {other} already")
        for cluster in pooler.clusters:
            key = f"poolers.{name}.clusters"
            if cluster not in topology.clusters:
                yield _fault(key, cluster, _missing("cluster", cluster, topology.clusters))
            elif cluster in behind:
                yield _fault(key, cluster, f"is already behind pooler {behind[cluster]}")
            behind.setdefault(cluster, name)
    for scaling in ("autoscaling", "worker_scaling"):
        spec = getattr(topology, scaling)
        if spec is not None and spec.min > spec.max:
            yield _fault(f"{scaling}.min", spec.min, f"must be <= {scaling}.max, which is {spec.max}")
    scale = topology.autoscaling
    if scale is not None and scale.down_cpu >= scale.up_cpu:
        yield _fault(
            "autoscaling.down_cpu", scale.down_cpu, f"must be < autoscaling.up_cpu, which is {scale.up_cpu}"
        )
    if scale is not None and scale.down_rps >= scale.up_rps:
        yield _fault(
            "autoscaling.down_rps", scale.down_rps, f"must be < autoscaling.up_rps, which is {scale.up_rps}"
        )
    kinds = [node.kind for node in topology.nodes.values()]
    for table, key in (("jobs", "transport"), ("sessions", "store")):
        spec = getattr(topology, table)
        if spec is not None and (kind := getattr(spec, key)) not in kinds:
            yield _fault(f"{table}.{key}", kind, "needs a node of that kind")
    if (jobs := topology.jobs) is not None:
        if jobs.node is None:
            if jobs.transport != "postgres" and kinds.count(jobs.transport) > 1:
                yield _fault("jobs.node", None, f"must say which: several nodes are of kind {jobs.transport}")
        elif jobs.transport == "postgres":
            yield _fault(
                "jobs.node", jobs.node, "needs another jobs.transport than postgres, which has no node"
            )
        elif (node := topology.nodes.get(jobs.node)) is not None and node.kind != jobs.transport:
            yield _fault(
                "jobs.node",
                jobs.node,
                f"must name a node of kind {jobs.transport}; nodes.{jobs.node}.kind is {node.kind}",
            )
    for name, store in topology.stores.items():
        if name not in STORES:
            yield _fault(f"stores.{name}", None, f"a store must be one of {', '.join(STORES)}")
        elif (node := topology.nodes.get(store.node)) is not None and node.kind != STORES[name]:
            yield _fault(
                f"stores.{name}.node",
                store.node,
                f"must name a node of kind {STORES[name]}; nodes.{store.node}.kind is {node.kind}",
            )
    owners: dict[str, str] = {}
    for name, service in topology.services.items():
        for module in service.modules:
            if owners.setdefault(module, name) != name:
                rule = f"module {module} already belongs to service {owners[module]}"
                yield _fault(f"services.{name}.modules", module, rule)


def _regions(topology: Topology) -> Iterator[TopologyFault]:
    known = set(topology.regions) or {"home"}
    for name, node in topology.nodes.items():
        if node.region not in known:
            yield _fault(f"nodes.{name}.region", node.region, _missing("region", node.region, sorted(known)))
    if topology.regions and all(region.mode == "passive" for region in topology.regions.values()):
        yield _fault("regions", None, "at least one region must be active")
