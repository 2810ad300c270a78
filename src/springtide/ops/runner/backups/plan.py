"""What of a platform is backed up, where to, and from where: the topology seen by backups.

A physical backup is of a whole server, so clusters whose primaries share one are one group, named after the
first of them. A group is of the runner's own servers, or of one that is given by url; only the runner's own
archive their log here, for only their settings are ours.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit, urlunsplit

from springtide.errors import ConfigurationError, RunnerError
from springtide.ops.runner import access, pgdata
from springtide.ops.runner.accounts import Account, server_account
from springtide.ops.runner.backups.archiving import Archiving
from springtide.ops.runner.backups.server import Server, embedded, given, own_account
from springtide.ops.runner.backups.store import Store, open_folder
from springtide.ops.runner.home import Home
from springtide.ops.runner.installs import SHARED
from springtide.ops.runner.records import read_record
from springtide.topology import Topology, read_addresses
from springtide.topology.layers import BackupSpec

__all__ = ["Group", "Plan"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One server group: `nodes` are all that may be its primary. `given`: by url."""

    clusters: tuple[str, ...]
    nodes: tuple[str, ...]
    given: bool

    @property
    def cluster(self) -> str:
        """The first of its clusters, which names it."""
        return self.clusters[0]


def groups(topology: Topology) -> tuple[Group, ...]:
    """In the order of the file."""
    found: dict[object, Group] = {}
    for cluster in topology.clusters.values():
        node = topology.nodes[cluster.primary]
        parts = urlsplit(node.url or "")
        server: object = (parts.hostname, parts.port) if node.given else node.name
        nodes = (cluster.primary, *cluster.replicas)
        if (known := found.get(server)) is not None:
            nodes = (*known.nodes, *(name for name in nodes if name not in known.nodes))
        clusters = (cluster.name,) if known is None else (*known.clusters, cluster.name)
        found[server] = Group(clusters=clusters, nodes=nodes, given=node.given)
    return tuple(found.values())


class Plan:
    """`spec` None: the topology asks for no backups; those that were made earlier can still be restored."""

    def __init__(self, topology: Topology, home: Home, *, shared: Path = SHARED) -> None:
        self.topology = topology
        self.home = home
        self.spec = topology.backups or BackupSpec()
        self.groups = groups(topology)
        self.log = home.logs / "backups.log"
        self._shared = shared
        self._folder: Path | None = None
        self._servers: dict[tuple[str, str], Server] = {}

    def use(self, topology: Topology) -> None:
        """The topology has changed: replicas came or went."""
        self.topology, self.groups = topology, groups(topology)

    @property
    def folder(self) -> Path:
        """Of all backups. Raises RunnerError when it cannot be made."""
        if self._folder is None:
            named = None
            if self.spec.folder is not None:
                beside = self.topology.source.absolute().parent if self.topology.source else Path.cwd()
                named = (beside / self.spec.folder).resolve()
            self._folder = open_folder(
                self.home.path,
                named,
                platform=self.topology.name,
                account=self._account(all(group.given for group in self.groups)),
                shared=self._shared,
            )
        return self._folder

    def _account(self, foreign: bool) -> Account:
        return own_account() if foreign else server_account()

    def group(self, cluster: str | None) -> Group:
        """That of `cluster`; None: the only one. Raises ConfigurationError."""
        if cluster is None:
            if len(self.groups) == 1:
                return self.groups[0]
            names = ", ".join(group.cluster for group in self.groups)
            raise ConfigurationError(f"there are several clusters: name one with --cluster ({names})")
        if cluster not in self.topology.clusters:
            known = ", ".join(self.topology.clusters)
            raise ConfigurationError(f"there is no cluster {cluster!r} (known: {known})")
        return next(group for group in self.groups if cluster in group.clusters)

    def store(self, group: Group) -> Store:
        return Store(self.folder, group.cluster)

    def prepare(self) -> None:
        """Make every folder, so that servers can archive from their first moment on.

        Raises RunnerError where a server would begin to archive among what belongs to others.
        """
        for group in self.groups:
            store = self.store(group)
            store.create(self._account(group.given))
            if self.spec.folder is not None:
                store.belong(self.home.path)
            if group.given or store.system() is None:
                continue
            if not (self.data(self.primary(group)) / "PG_VERSION").exists():
                raise RunnerError(store.strange())

    def archiving(self, node: str) -> Archiving | None:
        """Where the server of `node` archives its log; None when it does not."""
        if not self.spec.archive_log:
            return None
        for group in self.groups:
            if node in group.nodes and not group.given:
                return Archiving(folder=self.store(group).wal, timeout=self.spec.archive_timeout)
        return None

    def archives(self, group: Group) -> bool:
        return self.spec.archive_log and not group.given

    def primary(self, group: Group) -> str:
        """The node whose data counts: what the runner wrote down, else what the topology began with."""
        record = read_record(self.home.path / "clusters", group.cluster)
        return group.nodes[0] if record is None else record.primary

    def data(self, node: str) -> Path:
        """The real folder of a node's data."""
        return pgdata.locate(
            self.home.path,
            node,
            platform=self.topology.name,
            account=server_account(),
            shared=self._shared,
        )

    async def server(self, group: Group) -> Server:
        """The group's primary as it runs now. Raises RunnerError when it is not known to run."""
        found = await asyncio.to_thread(self._found)
        if group.given:
            return await given(found.cluster_url(group.cluster))
        try:
            url = found.cluster_url(group.cluster)
        except ConfigurationError as error:
            raise RunnerError("the platform does not run: start it with `springtide up`") from error
        node = found.clusters[group.cluster].primary
        if (node, url) not in self._servers:  # finding its programs takes processes, and it is asked often
            self._servers[node, url] = await asyncio.to_thread(self._embedded, node, url)
        return self._servers[node, url]

    def _found(self) -> Topology:
        return self.topology.as_found(read_addresses(self.home.run / "addresses.json"))

    def _embedded(self, node: str, url: str) -> Server:
        data = self.data(node)
        proof = ""
        if "sslrootcert=" in urlsplit(url).query:  # its copy in the data, which the server's account may read
            proof = f"sslmode=verify-full&sslrootcert={quote(str(data / access.ROOT))}"
        base = urlunsplit(urlsplit(url)._replace(path="/postgres", query=proof))
        return embedded(base, data, shared=self._shared)
