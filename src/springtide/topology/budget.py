"""How many connections a fleet may open to each of its servers and poolers, when everything runs at once.

    server   (app servers + workers) * pool.size per cluster, or what its pooler may open
             + 2 per worker and cluster: the listener and the heartbeat, which go round a pooler
             + 1 per process and server of a cluster with replicas: it asks who is what
             + 1 per cluster with a cache: its relay goes round a pooler, too
             + CONTROL per server: migrations, `springtide db`, people
    pooler   (app servers + workers) * pool.size per cluster behind it

With autoscaling its `max` counts. Replicas and backups take WAL senders, which PostgreSQL counts apart.
Pure: a topology's values in, numbers and the terms they are the sum of out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from springtide.topology.spec import Topology

__all__ = ["ADVICE", "CONTROL", "SUPERUSER_CONNECTIONS", "Demand", "client_demand", "server_demand"]

SUPERUSER_CONNECTIONS = (
    3  # PostgreSQL keeps these (superuser_reserved_connections), ordinary users get the rest
)
CONTROL = 5
PER_WORKER = 2
RELAY = 1

ADVICE = "or lower the number of processes or pool.size"


@dataclass(slots=True)
class Demand:
    """`amount` connections, the sum of `terms` (each with how many clusters ask for it)."""

    amount: int = 0
    terms: Counter[str] = field(default_factory=Counter)

    def add(self, amount: int, term: str) -> None:
        if amount:
            self.amount += amount
            self.terms[term] += 1

    def __str__(self) -> str:
        sum_ = " + ".join(term if n == 1 else f"{term} * {n} clusters" for term, n in self.terms.items())
        return f"{sum_} = {self.amount}"


def server_demand(topology: Topology) -> dict[str, Demand]:
    """For each node that is a server of some cluster."""
    servers, workers = _processes(topology)
    processes, counted = servers[0] + workers[0], f"({servers[1]} {servers[0]} + {workers[1]} {workers[0]})"
    demands: dict[str, Demand] = {}
    for cluster in topology.clusters.values():
        pooler = topology.pooler(cluster.name)
        for node in (cluster.primary, *cluster.replicas):
            demand = demands.setdefault(node, Demand())
            if pooler is not None and node == cluster.primary:
                term = f"poolers.{pooler.name}.server_connections {pooler.server_connections}"
                demand.add(pooler.server_connections, term)
            else:
                demand.add(processes * topology.pool.size, f"{counted} * pool.size {topology.pool.size}")
            if node == cluster.primary:
                term = f"{workers[1]} {workers[0]} * {PER_WORKER} (listener, heartbeat)"
                demand.add(workers[0] * PER_WORKER, term)
                if topology.cache is not None:
                    demand.add(RELAY, f"{RELAY} (relay of the cache)")
            if cluster.replicas:
                demand.add(processes, f"{counted} * 1 (who is primary)")
    for demand in demands.values():
        demand.add(CONTROL, f"{CONTROL} (migrations, people)")
    return demands


def client_demand(topology: Topology) -> dict[str, Demand]:
    """For each pooler, by its name."""
    servers, workers = _processes(topology)
    processes, counted = servers[0] + workers[0], f"({servers[1]} {servers[0]} + {workers[1]} {workers[0]})"
    demands: dict[str, Demand] = {}
    for name, pooler in topology.poolers.items():
        behind, size = len(pooler.clusters), topology.pool.size
        demands[name] = Demand()
        demands[name].add(processes * size * behind, f"{counted} * pool.size {size} * {behind} clusters")
    return demands


def _processes(topology: Topology) -> tuple[tuple[int, str], tuple[int, str]]:
    """The most app servers and the most workers that may run at once, each with the key that says so."""
    servers, workers = (topology.servers.count, "servers.count"), (topology.workers.count, "workers.count")
    if topology.autoscaling is not None:
        servers = max(servers, (topology.autoscaling.max, "autoscaling.max"))
    if topology.worker_scaling is not None:
        workers = max(workers, (topology.worker_scaling.max, "worker_scaling.max"))
    return servers, workers
