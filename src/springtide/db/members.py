"""Who may belong to a cluster right now: its servers, in no particular role.

    Fixed        a list, such as the urls of the nodes that a topology gives
    RunnerFile   what `springtide up` writes down, read again when it has changed
    Patroni      GET /cluster of Patroni's REST API, from any of its nodes

A source names candidates and nothing more. Which of them is the primary, and whether one may be read from,
only the servers themselves can say: a list may be old, and whoever wrote it may be cut off from the rest.
So a member that is listed wrongly costs a connection attempt, never a wrong answer.

Every source raises MembersUnknown when it cannot tell, and nothing else; its caller keeps what it knew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from springtide.db._rest import get_json
from springtide.errors import ConfigurationError, MembersUnknown
from springtide.topology import read_addresses

__all__ = ["Fixed", "Member", "Members", "Patroni", "RunnerFile"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One server: `url` names the PostgreSQL database too.

    `zone` says what it is near to. `weight` is its share of reads beside the others' 1.0; with 0 it is never
    read from, but may become the primary.
    """

    node: str
    url: str
    zone: str = "local"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise ValueError(f"weight of member {self.node} must be >= 0, got {self.weight}")


class Members(Protocol):
    async def members(self) -> Sequence[Member]:
        """The servers of one cluster now; at least one. Raises MembersUnknown."""


class Fixed:
    """Always the same members; raises ValueError for none, or for two of one name."""

    def __init__(self, members: Sequence[Member]) -> None:
        names = [member.node for member in members]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"members must be one or more, each of another name, got {names}")
        self._members = tuple(members)

    async def members(self) -> Sequence[Member]:
        return self._members


class RunnerFile:
    """The members of `cluster` in the runner's addresses.json at `path`; `dbname` None means the cluster's
    name. The primary of the file comes first. `describe` gives zone and weight of a node by its name.

    The file is replaced whole by its writer, so an unchanged (inode, time, size) means unchanged content.
    """

    def __init__(
        self,
        path: Path,
        cluster: str,
        *,
        dbname: str | None = None,
        describe: Callable[[str], tuple[str, float]] = lambda _: ("local", 1.0),
    ) -> None:
        self._describe = describe
        self._path = path
        self._cluster = cluster
        self._dbname = dbname or cluster
        self._stamp: tuple[int, int, int] | None = None
        self._members: tuple[Member, ...] = ()

    async def members(self) -> Sequence[Member]:
        try:
            await asyncio.to_thread(self._look)
        except (OSError, ValueError, ConfigurationError) as error:
            raise MembersUnknown(f"{self._path} does not tell the members of {self._cluster}") from error
        return self._members

    def _look(self) -> None:
        found = self._path.stat()
        stamp = (found.st_ino, found.st_mtime_ns, found.st_size)
        if stamp == self._stamp:
            return
        known = read_addresses(self._path)  # if it was replaced since, the next look finds another stamp
        cluster = known.clusters.get(self._cluster)
        if cluster is None:
            raise ValueError(f"the file has no cluster {self._cluster}")
        members = tuple(
            self._member(node, known.nodes[node])
            for node in (cluster.primary, *cluster.replicas)
            if node in known.nodes
        )
        if not members:
            raise ValueError(f"no node of cluster {self._cluster} has an address")
        self._members, self._stamp = members, stamp

    def _member(self, node: str, url: str) -> Member:
        zone, weight = self._describe(node)
        return Member(node=node, url=_with_database(url, self._dbname), zone=zone, weight=weight)


class Patroni:
    """The members that Patroni knows for `cluster`, asked over HTTP at one of `urls` after the other.

    urls:    REST addresses of its nodes, such as `http://10.0.0.1:8008`; the one that answered last is asked
             first, and one that is down, slow or answers nonsense is passed over.
    url:     user, password, PostgreSQL database and parameters for every member; Patroni adds the address.
    timeout: seconds for each of them.

    Members without an address (they never started) are left out. A member with Patroni's tag `noloadbalance`
    has weight 0. Raises ValueError for urls that are none.
    """

    def __init__(self, urls: Sequence[str], cluster: str, *, url: str, timeout: float = 1.0) -> None:
        if not urls:
            raise ValueError("urls must name one REST address at least, got none")
        for rest in urls:
            parts = urlsplit(rest)
            if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc:
                raise ValueError(f'urls must look like "http://host:8008", got {rest!r}')
        if not timeout > 0:
            raise ValueError(f"timeout must be > 0 seconds, got {timeout}")
        self._urls = list(urls)
        self._cluster = cluster
        self._url = url
        self._timeout = timeout

    async def members(self) -> Sequence[Member]:
        failures = []
        for rest in tuple(self._urls):
            try:
                answer = await get_json(f"{rest.rstrip('/')}/cluster", timeout=self._timeout)
                members = self._read(answer)
            except (OSError, ValueError) as error:
                failures.append(f"{rest}: {str(error) or type(error).__name__}")
                continue
            self._urls.remove(rest)
            self._urls.insert(0, rest)
            return members
        raise MembersUnknown(f"no Patroni tells the members of {self._cluster} ({'; '.join(failures)})")

    def _read(self, answer: Any) -> tuple[Member, ...]:
        listed = answer.get("members") if isinstance(answer, dict) else None
        if not isinstance(listed, list):
            raise ValueError("the answer has no list of members")
        found: dict[str, Member] = {}
        for entry in listed:
            name, host, port = (_of(entry, key) for key in ("name", "host", "port"))
            if not isinstance(name, str):
                raise ValueError("a member has no name")
            if isinstance(host, str) and isinstance(port, int) and 0 < port < 65536:
                idle = _of(_of(entry, "tags"), "noloadbalance") in (True, "true")
                weight = 0.0 if idle else 1.0
                found[name] = Member(node=name, url=_at(self._url, host, port), weight=weight)
        if not found:
            raise ValueError("no member has an address")
        return tuple(found.values())


def _of(entry: Any, key: str) -> Any:
    return entry.get(key) if isinstance(entry, dict) else None


def _with_database(url: str, dbname: str) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{dbname}"))


def _at(url: str, host: str, port: int) -> str:
    """`url` with another address."""
    parts = urlsplit(url)
    account, at, _ = parts.netloc.rpartition("@")
    shown = f"[{host}]" if ":" in host else host
    return urlunsplit(parts._replace(netloc=f"{account}{at}{shown}:{port}"))
