"""The nodes of a Redis Cluster, and which of them has a slot.

Any node can say who has which slot (CLUSTER SLOTS). One is asked when a client begins, every other second,
when a node says that a slot is elsewhere and when a link is lost or late; never more often than MIN_PAUSE.

Nothing is followed from node to node: a command that meets a slot elsewhere fails, and so does one about what
has left its node while the slot still moves. Keys may be built from `run_id`, and that is another one there.

A slot that left a node and came back has been changed elsewhere meanwhile, and the node still runs. So the
`run_id` of a cluster's link also names the node's configuration epoch, which Redis raises when the node takes
a slot over; and a node that has gained slots is connected to anew before it is used for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from binascii import crc_hqx
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

from springtide.clock import Clock
from springtide.errors import ConfigurationError, RedisError, RedisUnavailable
from springtide.lifecycle import Supervised
from springtide.redis._address import Endpoint
from springtide.redis._keeper import Keeper
from springtide.redis.link import Link
from springtide.signals import Sink

__all__ = ["Cluster", "owners", "slot"]

_log = logging.getLogger(__name__)

SLOTS = 16_384
REFRESH_EVERY = 2.0
MIN_PAUSE = 0.1
FAILED_PAUSE = 0.5


def slot(tag: bytes | str) -> int:
    """The slot of a key: CRC16 (XMODEM) of its hash tag modulo 16,384, as Redis Cluster specifies."""
    key = tag.encode() if isinstance(tag, str) else tag
    begin = key.find(b"{")
    if begin >= 0 and (end := key.find(b"}", begin + 1)) > begin + 1:
        key = key[begin + 1 : end]
    return crc_hqx(key, 0) % SLOTS


def owners(answer: Sequence[Any], asked: Endpoint) -> dict[Endpoint, list[range]]:
    """Who has which slots, from what CLUSTER SLOTS answered at `asked` (an empty host means that one's)."""
    found: dict[Endpoint, list[range]] = {}
    for begin, end, (host, port, *_), *_replicas in answer:
        endpoint = Endpoint(host.decode() if host else asked.host, int(port))
        found.setdefault(endpoint, []).append(range(int(begin), int(end) + 1))
    return found


class Cluster:
    """Keepers of all nodes that have slots. `keeper_of(tag)` is that of the node, None when nobody has it."""

    def __init__(
        self,
        name: str,
        seeds: Sequence[Endpoint],
        connect: Callable[[Endpoint], Awaitable[Link]],
        make_keeper: Callable[[Endpoint, Callable[[], None]], Keeper],
        *,
        connections: int,
        clock: Clock,
        sink: Sink,
    ) -> None:
        self._name = name
        self._seeds = seeds
        self._connect = connect
        self._make_keeper = make_keeper
        self._connections = connections
        self._clock = clock
        self._nodes: dict[Endpoint, list[Keeper]] = {}
        self._slots: list[list[Keeper] | None] = [None] * SLOTS
        self._ranges: Mapping[Endpoint, list[range]] = {}
        self._outdated = asyncio.Event()
        self._task = Supervised(f"{name}:cluster", self._run, clock=clock, sink=sink)

    def keeper_of(self, tag: bytes | str) -> Keeper | None:
        number = slot(tag)
        keepers = self._slots[number]
        return keepers[number % len(keepers)] if keepers else None

    async def start(self) -> None:
        """Raises ConfigurationError when a node answers that can never serve."""
        try:
            await self._refresh()
        except RedisUnavailable as error:
            _log.warning("%s: %s", self._name, error)
            self.refresh_soon()
        await self._task.start()

    async def stop(self) -> None:
        await self._task.stop()
        await self._drop(list(self._nodes))

    def refresh_soon(self) -> None:
        self._outdated.set()

    async def _run(self) -> None:
        failed = ""
        while True:
            pause = FAILED_PAUSE if failed else MIN_PAUSE
            await self._clock.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(REFRESH_EVERY * random.uniform(0.5, 1.5)):  # noqa: S311 - as above
                    await self._outdated.wait()
            self._outdated.clear()
            try:
                await self._refresh()
                failed = ""
            except (RedisUnavailable, ConfigurationError) as error:
                if str(error) != failed:
                    failed = str(error)
                    _log.warning("%s: who has which slot cannot be learned: %s", self._name, error)
                self.refresh_soon()

    async def _refresh(self) -> None:
        ranges = await self._ask()
        if ranges == self._ranges:
            return
        new = [endpoint for endpoint in ranges if endpoint not in self._nodes]
        for endpoint in new:
            self._nodes[endpoint] = [
                self._make_keeper(endpoint, self.refresh_soon) for _ in range(self._connections)
            ]
        owned: list[list[Keeper] | None] = [None] * SLOTS
        gained: set[Endpoint] = set()
        for endpoint, parts in ranges.items():
            keepers = self._nodes[endpoint]
            for part in parts:
                for number in part:
                    owned[number] = keepers
                    if self._slots[number] is not keepers:
                        gained.add(endpoint)
        for endpoint in gained.difference(new):
            for keeper in self._nodes[endpoint]:
                if keeper.link is not None:
                    keeper.link.close("the node took over slots")
        self._slots, self._ranges = owned, ranges
        await self._drop([endpoint for endpoint in self._nodes if endpoint not in ranges])
        await self._started(new)

    async def _started(self, new: Sequence[Endpoint]) -> None:
        """Start the keepers of new nodes; each returns after its first attempt."""
        starts = [keeper.start() for endpoint in new for keeper in self._nodes[endpoint]]
        outcomes = await asyncio.gather(*starts, return_exceptions=True)
        failed = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if failed:
            self._ranges = {}  # what could not be started is tried again by the next refresh
            await self._drop(new)
            raise failed[0]

    async def _drop(self, endpoints: Sequence[Endpoint]) -> None:
        for endpoint in endpoints:
            keepers = self._nodes.pop(endpoint, [])
            self._slots = [None if owner is keepers else owner for owner in self._slots]
            for keeper in keepers:
                await keeper.stop()

    async def _ask(self) -> dict[Endpoint, list[range]]:
        """The first good answer: of nodes that are linked, then of the others; each in random order."""
        error: Exception = RedisUnavailable(self._name, "no node of the cluster is known")
        for link, endpoint in self._known():
            try:
                if ranges := owners(await link.send("CLUSTER", "SLOTS"), endpoint):
                    return ranges
            except (RedisUnavailable, RedisError) as raised:
                error = raised
        for seed in random.sample(self._seeds, len(self._seeds)):
            try:
                link = await self._connect(seed)
            except RedisUnavailable as raised:
                error = raised
                continue
            try:
                if ranges := owners(await link.send("CLUSTER", "SLOTS"), seed):
                    return ranges
                error = RedisUnavailable(link.address, "it knows nobody who has slots")
            except (RedisUnavailable, RedisError) as raised:
                error = raised
            finally:
                link.close()
        if isinstance(error, RedisError):
            raise RedisUnavailable(error.address, error.what) from error
        raise error

    def _known(self) -> Iterator[tuple[Link, Endpoint]]:
        linked = [(k.link, k.endpoint) for keepers in self._nodes.values() for k in keepers]
        for link, endpoint in random.sample(linked, len(linked)):
            if link is not None and endpoint is not None:
                yield link, endpoint
