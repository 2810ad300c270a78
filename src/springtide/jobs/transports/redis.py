"""Redis Streams: one stream per line with one consumer group, all of a platform's in one slot.

    XADD -> new -> received (in the consumer's list) -> settled: XACK and XDEL, so a stream has what is not
                                                        settled and nothing else
                      `-> received by another           XAUTOCLAIM, RECLAIM seconds after

A group begins with the first message of its stream, and whoever receives makes both where they are missing:
after a restart without memory the next call finds an empty stream, and SQL sends again what was in it.

Publishing, receiving and settling are scripts: one round trip each, all of it or nothing. Only the wait for
new messages is a command, on a connection of its own. The streams of one platform share a hash tag, because
a receiver looks at several of them at once: in a Redis Cluster they are on one node.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pkgutil
import random
import secrets
import socket
from collections.abc import Awaitable, Collection, Sequence
from typing import Any, ClassVar, TypeVar
from uuid import UUID

from springtide.clock import Clock, SystemClock
from springtide.errors import ConfigurationError, RedisError, RedisUnavailable, TransportRefused
from springtide.errors import TransportUnavailable as Unavailable
from springtide.jobs.transports.seam import Capabilities, Delivery, Message, readable
from springtide.lifecycle import StartStop
from springtide.redis import Script
from springtide.redis.client import Redis
from springtide.redis.link import Link
from springtide.signals import Sink

__all__ = ["RedisTransport"]

T = TypeVar("T")

GROUP = "workers"

TIMEOUT = 2.0
"""Seconds that a command may take."""

MAX_WAIT = 5.0

RECLAIM = 5.0
"""Seconds after which what was received and not settled is taken over, and between two looks for that."""

FORGET = 600.0
"""Seconds after which a consumer that has nothing and asks for nothing is forgotten."""

MANY = 500
"""Messages per script."""

_NOBODY = UUID(int=0)


def _script(name: str) -> Script:
    text = pkgutil.get_data(__name__, f"lua/{name}.lua")
    if text is None:
        raise FileNotFoundError(f"springtide/jobs/transports/lua/{name}.lua is not installed")
    return Script(name, text.decode())


PUBLISH, RECEIVE, RECLAIMED, SETTLE, LEAVE = map(
    _script, ("publish", "receive", "reclaim", "settle", "leave")
)


class RedisTransport:
    """See the module; a lifecycle service."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        durable=(
            "the server has it in memory; with appendonly on, on disk within a second (appendfsync everysec)"
            " or before the confirm (appendfsync always)"
        ),
        survives_restart=False,
        redelivers=True,
        ordered=True,
        deduplicates=False,
        delays=False,
        priorities=True,
        max_body=512 * 2**20,
    )

    def __init__(self, url: str, *, name: str, clock: Clock | None = None, sink: Sink | None = None) -> None:
        self._clock = clock or SystemClock()
        self._redis = Redis(url, name=f"{name}-jobs", timeout=TIMEOUT, clock=clock, sink=sink)
        self.name = f"redis {','.join(map(str, self._redis.address.endpoints))}"
        self._tag = f"{name}.jobs"
        self._consumer = ""
        self._reader: Link | None = None
        self._reading = asyncio.Lock()
        self._judged: str | None = None
        self._seen: set[str] = set()
        self._reclaim_at = 0.0
        self._life = StartStop(self.name, self._open, self._close, sink=sink)

    @property
    def state(self) -> str:
        return self._life.state

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    async def _open(self) -> None:
        self._consumer = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self._reading, self._reclaim_at = asyncio.Lock(), self._next_reclaim()
        await self._redis.start()
        try:
            link = self._redis.link(self._tag)
            if link is not None:
                await self._judge(link)
        except (RedisUnavailable, RedisError):
            pass  # as if it had not answered: it is judged when it does
        except BaseException:
            await self._redis.stop()
            raise

    async def _close(self) -> None:
        if self._reader is not None:
            self._reader.close("the transport stops")
            self._reader = None
        link = self._redis.link(self._tag)
        if link is not None and self._seen:
            keys = [self._key(line) for line in sorted(self._seen)]
            with contextlib.suppress(RedisUnavailable, RedisError):  # then others take over what it had
                await link.call(LEAVE, keys, (GROUP, self._consumer))
        self._seen.clear()
        self._judged = None
        await self._redis.stop()

    # -- the seam --------------------------------------------------------------------------------------

    async def publish(self, messages: Sequence[Message]) -> Sequence[bool]:
        link = await self._link()
        chunks: list[tuple[list[int], asyncio.Future[Any]]] = []
        for line in dict.fromkeys(message.line for message in messages):
            numbers = [number for number, message in enumerate(messages) if message.line == line]
            for start in range(0, len(numbers), MANY):
                some = numbers[start : start + MANY]
                bodies = [messages[number].body for number in some]
                chunks.append((some, link.call(PUBLISH, [self._key(line)], bodies)))
        confirmed, failed = [False] * len(messages), ""
        for some, answer in chunks:
            try:
                await answer
            except (RedisUnavailable, RedisError) as error:
                failed = str(error)
            else:
                for number in some:
                    confirmed[number] = True
        if failed and not any(confirmed):
            raise Unavailable(self.name, failed)
        return confirmed

    async def receive(self, lines: Collection[str], most: int, wait: float) -> Sequence[Delivery]:
        names = list(lines)
        keys = [self._key(line) for line in names]
        self._seen.update(names)
        async with self._reading:
            reader = await self._connected()
            found: list[Any] = []
            if self._clock.monotonic() >= self._reclaim_at:
                self._reclaim_at = self._next_reclaim()
                milliseconds = (int(RECLAIM * 1000), int(FORGET * 1000))
                found = await self._asked(
                    reader.call(RECLAIMED, keys, (GROUP, self._consumer, most, *milliseconds))
                )
            if not found:
                found = await self._asked(reader.call(RECEIVE, keys, (GROUP, self._consumer, most)))
            if not found and wait > 0:
                found = await self._wait(reader, keys, most, min(wait, MAX_WAIT))
        return await self._read(names, found)

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        await self._settle(deliveries, "done")

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        await self._settle(deliveries, "again")

    async def depth(self, line: str) -> int | None:
        link = await self._link()
        return int(await self._asked(link.send("XLEN", self._key(line))))

    # -- what it is made of ----------------------------------------------------------------------------

    def _key(self, line: str) -> str:
        return f"springtide:{{{self._tag}}}:{line}"

    def _next_reclaim(self) -> float:
        return self._clock.monotonic() + RECLAIM * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load

    async def _link(self) -> Link:
        link = self._redis.link(self._tag)
        if link is None:
            raise Unavailable(self.name, "nobody is connected")
        if link.run_id != self._judged:
            try:
                await self._asked(self._judge(link))
            except ConfigurationError as error:
                raise Unavailable(self.name, str(error)) from error
        return link

    async def _connected(self) -> Link:
        """The connection that waits for messages."""
        await self._link()
        if self._reader is None or not self._reader.alive:
            self._reader = await self._asked(self._redis.reader(self._tag, block=MAX_WAIT))
        return self._reader

    async def _wait(self, reader: Link, keys: Sequence[str], most: int, wait: float) -> list[Any]:
        """Streams that had something meanwhile, in the form of the script; usually the first message."""
        each = max(most // len(keys), 1)
        command = ("XREADGROUP", "GROUP", GROUP, self._consumer, "COUNT", each, "BLOCK", int(wait * 1000))
        try:
            got = await self._asked(reader.send(*command, "STREAMS", *keys, *[">"] * len(keys)))
        except Unavailable as error:
            cause = error.__cause__
            if isinstance(cause, RedisError) and cause.code in ("NOGROUP", "UNBLOCKED"):
                return []  # somebody emptied the server; the next call makes the groups anew
            raise
        numbers = {key.encode(): number for number, key in enumerate(keys, 1)}
        return [(numbers[key], entries) for key, entries in got or ()]

    async def _read(self, lines: Sequence[str], found: Sequence[Any]) -> list[Delivery]:
        deliveries: list[Delivery] = []
        strange: list[Delivery] = []
        for number, entries in found:
            line = lines[number - 1]
            for id, fields in entries:
                message = readable(line, fields[1]) if fields else None
                if message is not None:
                    deliveries.append(Delivery(message, id))
                else:
                    strange.append(Delivery(Message(line, 0, _NOBODY, 0), id))
        if strange:
            await self.ack(strange)
        return deliveries

    async def _settle(self, deliveries: Sequence[Delivery], how: str) -> None:
        link = await self._link()
        lines: dict[str, list[Any]] = {}
        for delivery in deliveries:
            lines.setdefault(delivery.message.line, []).append(delivery.handle)
        answers = [
            link.call(SETTLE, [self._key(line)], (GROUP, how, *ids[start : start + MANY]))
            for line, ids in lines.items()
            for start in range(0, len(ids), MANY)
        ]
        for answer in answers:
            await self._asked(answer)

    async def _asked(self, answer: Awaitable[T]) -> T:
        try:
            return await answer
        except (RedisUnavailable, RedisError) as error:
            raise Unavailable(self.name, str(error)) from error

    async def _judge(self, link: Link) -> None:
        """Raise TransportRefused when this server cannot carry jobs."""
        facts = dict(
            line.split(":", 1)
            for line in (await link.send("INFO", "memory")).decode(errors="replace").splitlines()
            if ":" in line
        )
        policy = facts.get("maxmemory_policy", "noeviction")
        if policy.startswith("allkeys") and facts.get("maxmemory", "0") != "0":
            raise TransportRefused(
                self.name, "maxmemory-policy", policy, "must not evict streams: use noeviction or volatile-*"
            )
        self._judged = link.run_id
