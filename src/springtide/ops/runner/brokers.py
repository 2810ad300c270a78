"""The brokers of one platform, RabbitMQ and NATS: those that the runner starts, beside its databases."""

from __future__ import annotations

from collections.abc import Callable

from springtide.ops.runner.cgroups import Cgroup
from springtide.ops.runner.children import Child
from springtide.ops.runner.home import Home
from springtide.ops.runner.nats import NatsServer
from springtide.ops.runner.nats_settings import go_bytes
from springtide.ops.runner.rabbitmq import RabbitServer
from springtide.ops.runner.rabbitmq_settings import watermark_bytes
from springtide.topology import Node, Topology

__all__ = ["KINDS", "Brokers"]

KINDS = ("rabbitmq", "nats")


class Brokers:
    """`changed` is called after each change of a server's state, `restarted` after one was started again."""

    def __init__(self, home: Home, *, changed: Callable[[], None], restarted: Callable[[], None]) -> None:
        self._home = home
        self._changed = changed
        self._restarted = restarted
        self._servers: dict[str, RabbitServer | NatsServer] = {}
        self.children: list[Child] = []

    def add(self, node: Node, topology: Topology, cgroup: Cgroup | None) -> Child:
        """A server to start. The child is the caller's to start and stop."""
        tls = topology.network is not None and topology.network.tls
        server: RabbitServer | NatsServer
        if node.kind == "rabbitmq":
            server = RabbitServer(
                node.name,
                home=self._home.path,
                platform=topology.name,
                port=node.port,
                max_bytes=watermark_bytes(node.memory_bytes),
                tls=tls,
                cgroup=cgroup,
            )
        else:
            server = NatsServer(
                node.name,
                home=self._home.path,
                platform=topology.name,
                port=node.port,
                go_bytes=go_bytes(node.memory_bytes),
                tls=tls,
                cgroup=cgroup,
            )
        self._servers[node.name] = server
        child = Child(server, node.kind, changed=self._changed, restarted=self._restarted)
        self.children.append(child)
        return child

    def urls(self) -> dict[str, str]:
        """Where clients reach each, by node; those that were started once."""
        return {name: server.url() for name, server in self._servers.items() if server.known}

    async def reload(self, node: str) -> None:
        """Have the server of `node`, if it is one, read its certificate again."""
        if node in self._servers:
            await self._servers[node].reload()
