"""One Redis as this process sees it: where its links are found, and which of them serves a key.

A client never waits for a server: `link` gives what answers now, or None, and the caller does without. What
connects, looks and connects again runs beside. A key belongs to a link by its hash tag: the part between the
first `{` and the next `}`, or all of it, as Redis Cluster has it; the same tag has the same link as long as
that lives, so commands about one tag stay in order.

Nothing is opened before `start`. A client belongs to the process that started it; a fork of that is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from springtide.clock import Clock, SystemClock
from springtide.errors import ConfigurationError, RedisUnavailable
from springtide.lifecycle import StartStop
from springtide.redis._address import Address, Endpoint, Login, parse
from springtide.redis._cluster import Cluster, slot
from springtide.redis._connecting import CLUSTER, SENTINEL, STANDALONE, Connector
from springtide.redis._keeper import Finder, Keeper
from springtide.redis._sentinel import Sentinels
from springtide.redis.link import Link
from springtide.redis.script import Script
from springtide.signals import NullSink, Sink

__all__ = ["Link", "Redis", "Script"]

MAX_BLOCK = 60.0
MAX_CONNECTIONS = 64


class Redis:
    """See the module; a lifecycle service.

    timeout:         seconds that a command may take before its caller is told so; its answer is still read.
    connect_timeout: seconds for a connection with login and introduction.
    connections:     links per server. One is enough unless large values hold up small ones.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "redis",
        timeout: float = 0.25,
        connect_timeout: float = 1.0,
        clock: Clock | None = None,
        sink: Sink | None = None,
        connections: int = 1,
    ) -> None:
        if timeout <= 0:
            raise ValueError(f"timeout must be > 0 seconds, got {timeout}")
        if connect_timeout <= 0:
            raise ValueError(f"connect_timeout must be > 0 seconds, got {connect_timeout}")
        if not 1 <= connections <= MAX_CONNECTIONS:
            raise ValueError(f"connections must be 1 to {MAX_CONNECTIONS}, got {connections}")
        if not name or not name.isprintable() or " " in name:
            raise ValueError(f"name must be printable characters without spaces, got {name!r}")
        self.name = name
        self.address: Address = parse(url, key=name)
        self._connections = connections
        self._clock = clock or SystemClock()
        self._sink = sink or NullSink()
        self._timeouts = {"timeout": timeout, "connect_timeout": connect_timeout}
        mode = CLUSTER if self.address.kind == "cluster" else STANDALONE
        self._connect = self._connector(mode, self.address.login, self.address.db)
        self._keepers: list[Keeper] = []
        self._sentinels: Sentinels | None = None
        self._cluster: Cluster | None = None
        self._readers: set[Link] = set()
        self._pid = 0
        self._life = StartStop(name, self._open, self._close, sink=sink)

    # -- life ------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        return self._life.state

    async def start(self) -> None:
        """Return after the first attempt to connect, whether or not it was answered.

        Raises ConfigurationError when a server answered and can never serve: login, version, kind.
        """
        self._same_process()
        await self._life.start()

    async def stop(self) -> None:
        self._same_process()
        await self._life.stop()

    async def _open(self) -> None:
        self._pid = os.getpid()
        try:
            if self.address.kind == "cluster":
                await self._open_cluster()
            else:
                finder = self._finder()
                for _ in range(self._connections):
                    self._keepers.append(self._keeper(finder))
                    await self._keepers[-1].start()
        except BaseException:
            await self._close()
            raise

    async def _open_cluster(self) -> None:
        self._cluster = Cluster(
            self.name,
            self.address.endpoints,
            self._connect,
            lambda endpoint, on_doubt: self._keeper(_Fixed(endpoint), on_doubt),
            connections=self._connections,
            clock=self._clock,
            sink=self._sink,
        )
        await self._cluster.start()

    def _finder(self) -> Finder:
        if self.address.kind != "sentinel":
            return _Fixed(self.address.endpoints[0])
        connect = self._connector(SENTINEL, self.address.sentinel_login, 0)
        self._sentinels = Sentinels(self.name, self.address.endpoints, self.address.primary, connect)
        return self._sentinels

    def _connector(self, mode: str, login: Login, db: int) -> Connector:
        return Connector(
            login=login, db=db, tls=self.address.tls, name=self.name, mode=mode, **self._timeouts
        )

    def _keeper(self, finder: Finder, on_doubt: Callable[[], None] | None = None) -> Keeper:
        return Keeper(self.name, finder, self._connect, clock=self._clock, sink=self._sink, on_doubt=on_doubt)

    async def _close(self) -> None:
        for reader in list(self._readers):
            reader.close("the client stops")
        self._readers.clear()
        while self._keepers:
            await self._keepers[-1].stop()
            self._keepers.pop()
        if self._cluster is not None:
            await self._cluster.stop()
            self._cluster = None
        if self._sentinels is not None:
            self._sentinels.close()
            self._sentinels = None
        self._pid = 0

    def _same_process(self) -> None:
        if self._pid and self._pid != (here := os.getpid()):
            raise ConfigurationError(
                f"{self.name}: it was started in process {self._pid} and is used in {here}, "
                "a fork of it: start a client of its own there"
            )

    # -- links -----------------------------------------------------------------------------------------

    def link(self, tag: bytes | str = b"") -> Link | None:
        """What serves the keys with this hash tag now; None when nobody does, or not in time."""
        if self._pid != os.getpid():
            self._same_process()
            return None
        keepers = self._keepers
        if len(keepers) == 1:
            return keepers[0].link
        keeper = self._keeper_of(tag)
        return keeper.link if keeper is not None else None

    async def leads(self, link: Link) -> bool:
        """Whether the server of `link` is still the one that everybody is led to, asked now.

        Sentinels are asked, and False is the answer where none of them gives one. Without Sentinels nobody
        can say otherwise.
        """
        return self._sentinels is None or await self._sentinels.leads(link.address)

    def _keeper_of(self, tag: bytes | str) -> Keeper | None:
        if self._cluster is not None:
            return self._cluster.keeper_of(tag)
        return self._keepers[slot(tag) % len(self._keepers)] if self._keepers else None

    async def reader(self, tag: bytes | str = b"", *, block: float = 1.0) -> Link:
        """A connection of its own to the server of this tag, for commands that block up to `block` seconds.

        The caller closes it. Raises RedisUnavailable when it cannot be made.
        """
        if not 0 <= block <= MAX_BLOCK:
            raise ValueError(f"block must be 0 to {MAX_BLOCK:g} seconds, got {block}")
        self._same_process()
        keeper = self._keeper_of(tag)
        if keeper is None or keeper.link is None or keeper.endpoint is None:
            raise RedisUnavailable(self.name, "nobody is connected")
        link = await self._connect(keeper.endpoint, block=block)
        link.on_trouble = self._forget
        if not link.alive or self._life.state != "running":
            link.close("the client stops")
            raise RedisUnavailable(link.address, link.why)
        self._readers.add(link)
        return link

    def _forget(self, reader: Link) -> None:
        if not reader.alive:
            self._readers.discard(reader)


class _Fixed:
    """One server that is always at the same place."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint

    async def find(self) -> Endpoint:
        return self._endpoint

    async def still(self, endpoint: Endpoint) -> bool:
        return True
