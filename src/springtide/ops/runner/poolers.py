"""The poolers of one platform: those that the runner starts, between its databases and its app servers.

Each is told the addresses of its clusters' primaries, as they are now: at its start, and by `repoint` after
a server came back on another port or another server became the primary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from springtide.errors import RunnerError
from springtide.ops.runner.cgroups import Cgroup
from springtide.ops.runner.children import Child
from springtide.ops.runner.home import Home
from springtide.ops.runner.pgbouncer import PgBouncer
from springtide.topology import Node, Topology
from springtide.topology.layers import PoolerSpec

__all__ = ["Poolers"]


class Poolers:
    """`changed` is called after each change of a pooler's state, `restarted` after one was started again."""

    def __init__(self, home: Home, *, changed: Callable[[], None], restarted: Callable[[], None]) -> None:
        self._home = home
        self._changed = changed
        self._restarted = restarted
        self._programs: dict[str, PgBouncer] = {}
        self._clusters: dict[str, tuple[str, ...]] = {}
        self.children: list[Child] = []

    def add(self, spec: PoolerSpec, node: Node, topology: Topology, cgroup: Cgroup | None) -> Child:
        """A pooler to start; `topology` knows the addresses of its clusters. The child is the caller's to
        start and stop."""
        program = PgBouncer(
            node.name,
            _urls(spec.clusters, topology),
            home=self._home.path,
            platform=topology.name,
            port=node.port,
            server_connections=spec.server_connections,
            max_clients=spec.max_clients,
            query_wait=topology.servers.request_timeout,
            prepared_statements=spec.prepared_statements,
            tls=topology.network is not None and topology.network.tls,
            cgroup=cgroup,
        )
        self._programs[node.name] = program
        self._clusters[node.name] = spec.clusters
        child = Child(program, "pgbouncer", changed=self._changed, restarted=self._restarted)
        self.children.append(child)
        return child

    def urls(self) -> dict[str, str]:
        """Where clients reach each, by node; those that were started once."""
        return {name: program.url() for name, program in self._programs.items() if program.known}

    def reload(self, node: str) -> None:
        """Have the pooler of `node`, if it is one, read its certificate again."""
        if node in self._programs:
            self._programs[node].reload()

    def repoint(self, topology: Topology) -> None:
        """Tell each where the primaries of its clusters are, as `topology` knows it now.

        Raises RunnerError when one cannot be told; the others are.
        """
        failures = []
        for name, program in self._programs.items():
            try:
                program.repoint(_urls(self._clusters[name], topology))
            except RunnerError as error:
                failures.append(error)
        if failures:
            raise failures[0]


def _urls(clusters: tuple[str, ...], topology: Topology) -> Mapping[str, str]:
    return {cluster: topology.cluster_url(cluster) for cluster in clusters}
