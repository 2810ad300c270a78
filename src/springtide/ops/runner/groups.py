"""Which nodes of a topology are the servers of one group, and what the groups mean for its clusters.

Two clusters may be two databases of one server: they have one primary, the replicas of either hold both, and
when a replica takes over it does so for both. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from springtide.topology import Cluster, Roles, Topology

__all__ = ["Group", "groups", "max_connections", "roles"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A primary and its replicas as the topology lists them; `name` is that of its first cluster."""

    name: str
    primary: str
    replicas: tuple[str, ...] = ()
    quorum: bool = False
    auto: bool = True
    failover_after: float = 5.0


class Kept(Protocol):
    """What runs of a group now."""

    @property
    def primary(self) -> str: ...

    @property
    def epoch(self) -> int: ...

    @property
    def replicas(self) -> tuple[str, ...]: ...


def groups(topology: Topology) -> list[Group]:
    """The groups of servers that the runner starts; a node that no cluster uses is one of its own."""
    made: list[Group] = []
    listed: set[str] = set()
    quorum = {
        shard
        for database in topology.databases.values()
        if database.durability == "quorum"
        for shard in database.shards
    }
    for primary in dict.fromkeys(cluster.primary for cluster in topology.clusters.values()):
        clusters = _of(topology, primary)
        listed.update((primary, *(node for cluster in clusters for node in cluster.replicas)))
        if topology.nodes[primary].given:
            continue
        leading = [cluster for cluster in clusters if cluster.replicas] or clusters
        made.append(
            Group(
                name=clusters[0].name,
                primary=primary,
                replicas=tuple(node for cluster in clusters for node in cluster.replicas),
                quorum=any(cluster.name in quorum for cluster in clusters),
                auto=all(cluster.failover == "auto" for cluster in leading),
                failover_after=max(cluster.failover_after for cluster in leading),
            )
        )
    alone = (
        name
        for name, node in topology.nodes.items()
        if node.kind == "postgres" and node.supervised and name not in listed
    )
    return [*made, *(Group(name=name, primary=name) for name in alone)]


def _of(topology: Topology, primary: str) -> list[Cluster]:
    return [cluster for cluster in topology.clusters.values() if cluster.primary == primary]


def max_connections(topology: Topology, node: str) -> int:
    """The greatest number in the node's group: a replica must not allow fewer than its primary."""
    for group in groups(topology):
        nodes = (group.primary, *group.replicas)
        if node in nodes:
            return max(topology.nodes[name].max_connections for name in nodes)
    return topology.nodes[node].max_connections


def roles(topology: Topology, kept: Mapping[str, Kept]) -> dict[str, Roles]:
    """cluster -> who does what now; `kept` by the primary that the topology names.

    A cluster lists the servers that the topology gives to it, and the primary of its group; each server once.
    """
    found: dict[str, Roles] = {}
    for primary, group in kept.items():
        free = set(group.replicas)
        for cluster in _of(topology, primary):
            own = (primary, *cluster.replicas) if cluster.replicas else ()
            replicas = tuple(node for node in own if node in free)
            free.difference_update(replicas)
            found[cluster.name] = Roles(primary=group.primary, replicas=replicas, epoch=group.epoch)
    return found
