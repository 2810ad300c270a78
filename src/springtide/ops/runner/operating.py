"""What `springtide replicas` does to a running platform: the file and the servers change together or not.

The new text of springtide.toml is validated and lies on the disk, beside the file, before a server is
touched; to rename it into place is the last step. Whatever fails or is cancelled before that is undone.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from springtide.errors import ConfigurationError, RunnerError
from springtide.ops.runner import replication
from springtide.ops.runner.clusters import Keeper
from springtide.ops.runner.making import uncut
from springtide.ops.runner.pgdata import explain
from springtide.ops.runner.standby import slot_name
from springtide.topology import Topology, loads

__all__ = ["Operator", "Staged", "chosen_cluster"]


class Operator:
    """`running` gives the topology as it runs, `adopt` takes a changed one; `keepers`: cluster -> keeper."""

    def __init__(
        self,
        source: Path,
        *,
        running: Callable[[], Topology],
        adopt: Callable[[Topology], None],
        keepers: Callable[[], Mapping[str, Keeper]],
    ) -> None:
        self._source = source
        self._running = running
        self._adopt = adopt
        self._keepers = keepers
        self._changing = asyncio.Lock()

    async def handle(self, request: Mapping[str, Any]) -> Any:
        """The answer to one request of the control socket."""
        text = {key: str(value) for key, value in request.items() if isinstance(value, str)}
        match text.get("do"):
            case "list":
                return await self.rows()
            case "add":
                return await self.add(text.get("cluster"), text.get("name"))
            case "remove" if "node" in text:
                return await self.remove(text["node"])
            case "promote" if "node" in text:
                return await self.promote(text["node"], forced=request.get("force") is True)
        raise RunnerError(
            f"this supervisor does not know the command {request.get('do')!r}: was it upgraded?"
        )

    async def add(self, cluster: str | None, name: str | None) -> str:
        from springtide.ops.runner import editing  # only when it is needed: it brings a TOML library

        async with self._changing, self._staged() as staged:
            before = self._running()
            cluster = chosen_cluster(staged.topology, cluster)
            node = name or editing.free_name(staged.topology)
            staged.text = editing.added(staged.text, staged.topology, cluster, node, source=self._source)
            keeper = self._keeper(cluster)
            new = loads(staged.text, source=self._source).nodes[node]
            await uncut(staged.prepare)
            own = before.clusters[cluster]
            self._adopt(
                replace(
                    before,
                    nodes={**before.nodes, node: new},
                    clusters={**before.clusters, cluster: replace(own, replicas=(*own.replicas, node))},
                )
            )
            try:
                await keeper.add(node)
                try:
                    await uncut(staged.commit)
                except BaseException:
                    await keeper.remove(node)
                    raise
            except BaseException:
                self._adopt(before)
                raise
            await keeper.joined()
            return node

    async def remove(self, node: str) -> str:
        from springtide.ops.runner import editing

        async with self._changing, self._staged() as staged:
            cluster = _cluster_of(staged.topology, node)
            keeper = self._keeper(cluster)
            staged.text = editing.removed(
                staged.text, staged.topology, cluster, node, primary=keeper.primary, source=self._source
            )
            await uncut(staged.prepare)
            await keeper.remove(node)
            await uncut(staged.commit)
            self._adopt(_without(self._running(), node, keeper))
            return cluster

    async def promote(self, node: str, *, forced: bool) -> str:
        for keeper in self._keepers().values():
            if node in keeper.members:
                await keeper.promote(node, forced=forced)
                return keeper.name
        raise RunnerError(f"{node} is not a node of a cluster that runs here")

    async def rows(self) -> list[dict[str, Any]]:
        """Every server of every cluster that has replicas, the primary first."""
        rows: list[dict[str, Any]] = []
        for name, keeper in self._keepers().items():
            rows += await _rows(name, keeper)
        return rows

    def _keeper(self, cluster: str) -> Keeper:
        keeper = self._keepers().get(cluster)
        if keeper is None:
            raise RunnerError(
                f"cluster {cluster} is not kept by this supervisor: its servers are given by url"
            )
        return keeper

    @asynccontextmanager
    async def _staged(self) -> AsyncIterator[Staged]:
        staged = await asyncio.to_thread(Staged, self._source)
        try:
            yield staged
        finally:
            await uncut(staged.clear)


class Staged:
    """A new text for a file: read, changed by the caller (`text`), laid beside it, renamed into its place."""

    def __init__(self, source: Path) -> None:
        self._source = source
        self._target = source.resolve()  # the file may be a link
        try:
            self._before = self._target.read_bytes()
            self.text = self._before.decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{source} cannot be read: {error}") from error
        self.topology = loads(self.text, source=source)
        self._temporary = self._target.with_name(f".{self._target.name}.{secrets.token_hex(4)}")

    def prepare(self) -> None:
        """Write the new text beside the file; what is left to do can hardly fail."""
        try:
            found = self._target.stat()
            descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", newline="") as file:
                file.write(self.text)
                file.flush()
                os.fchmod(descriptor, found.st_mode & 0o7777)
                if os.geteuid() == 0:
                    os.fchown(descriptor, found.st_uid, found.st_gid)
                os.fsync(descriptor)
        except OSError as error:
            raise explain(error, f"write {self._source.name} in") from error

    def commit(self) -> None:
        """Rename it into place, unless somebody has changed the file meanwhile."""
        try:
            if self._target.read_bytes() != self._before:
                raise RunnerError(f"{self._source} was changed meanwhile: try again")
            self._temporary.replace(self._target)
        except OSError as error:
            raise explain(error, f"replace {self._source.name}:") from error

    def clear(self) -> None:
        self._temporary.unlink(missing_ok=True)


def chosen_cluster(topology: Topology, name: str | None) -> str:
    """`name`, or the only cluster whose servers the runner starts."""
    if name is not None:
        return name
    own = [c.name for c in topology.clusters.values() if topology.nodes[c.primary].supervised]
    if len(own) != 1:
        raise ConfigurationError(f"say which cluster: {', '.join(own) or 'none is started by the runner'}")
    return own[0]


def _cluster_of(topology: Topology, node: str) -> str:
    for cluster in topology.clusters.values():
        if node in (cluster.primary, *cluster.replicas):
            return cluster.name
    raise ConfigurationError(f"node {node} belongs to no cluster")


def _without(topology: Topology, node: str, keeper: Keeper) -> Topology:
    clusters = {
        name: replace(
            cluster,
            primary=keeper.primary if cluster.primary == node else cluster.primary,
            replicas=tuple(r for r in cluster.replicas if r not in (node, keeper.primary))
            if cluster.primary == node
            else tuple(r for r in cluster.replicas if r != node),
        )
        for name, cluster in topology.clusters.items()
    }
    nodes = {name: found for name, found in topology.nodes.items() if name != node}
    return replace(topology, nodes=nodes, clusters=clusters)


async def _rows(cluster: str, keeper: Keeper) -> list[dict[str, Any]]:
    if not keeper.replicas:
        return []
    try:
        links = await replication.links(keeper.server())
    except RunnerError:
        links = {}
    nodes = (keeper.primary, *keeper.replicas)
    timelines = await asyncio.gather(*(replication.timeline(keeper.server(node)) for node in nodes))
    rows = []
    for node, timeline in zip(nodes, timelines, strict=True):
        child = keeper.members[node].child.state()
        link = links.get(slot_name(node)) if node != keeper.primary else None
        state = child.state
        if node != keeper.primary and state == "running":
            state = "lost" if link and link.lost else (link.state if link else None) or "disconnected"
        rows.append(
            {
                "cluster": cluster,
                "node": node,
                "role": "primary" if node == keeper.primary else "replica",
                "state": state,
                "confirms": link.sync_state in ("sync", "quorum") if link else None,
                "lag_bytes": link.lag_bytes if link else None,
                "lag_seconds": link.lag_seconds if link else None,
                "slot": slot_name(node) if link else None,
                "timeline": timeline,
                "epoch": keeper.epoch,
                "error": child.error or (keeper.notice if node == keeper.primary else None),
            }
        )
    return rows
