"""RabbitMQ: one durable quorum queue per line.

    published -> in the queue -> with a consumer, in this process -> received -> acknowledged
                      ^------------ given back, or the connection ended -----'

Publishing and consuming have a connection each: a broker that is short of memory or disk stops reading from
those who publish, and workers must go on emptying it. A message counts as confirmed when the broker says so;
one that came back because there was no queue does not, and the queue is made again before the next.

Consumers stay: each that comes or goes is an entry in the log of its queue. A consumer may have as many
messages unsettled as its worker has in hand and asked for, which is how many the worker runs at once; only
where that grows it is made anew. What nobody takes for HOLD seconds, because the worker is busy, goes back to
the queue, and the consumers end until somebody asks again.

Built on aiormq, without the layer that reconnects by rules of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import Counter
from collections.abc import Collection, Coroutine, Iterable, Sequence
from typing import Any, ClassVar, TypeVar
from urllib.parse import urlencode, urlsplit, urlunsplit

from aiormq import Channel, Connection
from aiormq.abc import AbstractConnection, DeliveredMessage
from aiormq.exceptions import (
    AMQPError,
    AuthenticationError,
    ChannelInvalidStateError,
    ChannelNotFoundEntity,
    ConnectionNotAllowed,
    ProbableAuthenticationError,
)
from pamqp.commands import Basic

from springtide.clock import Clock, SystemClock
from springtide.errors import TransportRefused, TransportUnavailable
from springtide.jobs.transports._addresses import authorities
from springtide.jobs.transports._fetched import Fetched
from springtide.jobs.transports._reconnecting import Reconnecting
from springtide.jobs.transports.seam import Capabilities, Delivery, Message, readable
from springtide.lifecycle import Periodic, StartStop
from springtide.signals import Sink

__all__ = ["RabbitTransport"]

T = TypeVar("T")

TIMEOUT = 5.0
"""Seconds that a batch of messages, or a connection, may take."""

HEARTBEAT = 10
"""Seconds between two signs of life; a side that misses two or three of them has lost the other."""

HOLD = 2.0
"""Seconds for which a message may lie here before somebody takes it."""

CLOSING = 1.0
"""Seconds that a broker has to take leave."""

MAX_PREFETCH = 10_000

REGISTERED = 1.0
"""Seconds after which a new queue is in the broker's register on disk, which is saved every 0.5. One that is
confirmed earlier and killed then is there again without its log, and never answers. Until it has a leader, a
consumer on it may cost the connection."""

FORGOTTEN = 1.0
"""Seconds between finding that there is no such queue and making it. The broker tells the consumers of a
deleted queue that it is gone only if it finds none of that name when it looks, milliseconds later: where one
is made again at once, they wait for ever."""

QUEUE = {"x-queue-type": "quorum"}

ERRORS = (AMQPError, ChannelInvalidStateError, OSError, EOFError, RuntimeError)
"""What the library raises when a connection cannot be made or does not hold; a RuntimeError is its answer to
a call on one that is closed."""


class RabbitTransport:
    """See the module; a lifecycle service."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        durable="a majority of the queue's members, or the one server there is, has synced it to disk",
        survives_restart=True,
        redelivers=True,
        ordered=True,
        deduplicates=False,
        delays=False,
        priorities=False,
        max_body=128 * 2**20,
    )

    def __init__(self, url: str, *, name: str, clock: Clock | None = None, sink: Sink | None = None) -> None:
        self._clock = clock or SystemClock()
        parts = urlsplit(url)
        self.name = f"rabbitmq {parts.hostname}:{parts.port or (5671 if parts.scheme == 'amqps' else 5672)}"
        self._roots = authorities(url, key=f"the rabbitmq node's url of {name}")
        query = urlencode({"heartbeat": HEARTBEAT, "name": f"{name}-jobs"})
        self._url = urlunsplit(parts._replace(query=query))
        self._tls: ssl.SSLContext | None = None
        self._prefix = f"{name}.jobs."
        common: Any = {"errors": ERRORS, "clock": self._clock}
        self._out = Reconnecting(self.name, self._open_writer, _Side.close, _Side.alive, **common)
        self._in = Reconnecting(self.name, self._open_reader, _Reader.close, _Reader.alive, **common)
        self._receiving = asyncio.Lock()
        self._returning = Periodic(f"{self.name}: give back", self._give_back_stale, every=HOLD / 2)
        self._life = StartStop(self.name, self._open, self._close, sink=sink)

    @property
    def state(self) -> str:
        return self._life.state

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    async def _open(self) -> None:
        if self._url.startswith("amqps:"):
            self._tls = await asyncio.to_thread(ssl.create_default_context, cafile=self._roots)
        try:
            await self._out.get(within=TIMEOUT)
        except TransportUnavailable as error:
            if isinstance(error.__cause__, (AuthenticationError, ProbableAuthenticationError)):
                rule = "must have a login that the broker accepts"
                raise TransportRefused(self.name, "url", "another login", rule) from error
            if isinstance(error.__cause__, ConnectionNotAllowed):
                rule = "must name a virtual host that the login may use"
                raise TransportRefused(self.name, "url", urlsplit(self._url).path, rule) from error
        await self._returning.start()

    async def _close(self) -> None:
        await self._returning.stop()
        await self._in.close()  # what is unsettled, here or with a worker, goes back to its queue
        await self._out.close()

    # -- the seam --------------------------------------------------------------------------------------

    async def publish(self, messages: Sequence[Message]) -> Sequence[bool]:
        confirmed, failed = [False] * len(messages), ""
        writer = await self._out.get(within=TIMEOUT)
        try:
            async with asyncio.timeout(TIMEOUT):
                await writer.declare({self._prefix + message.line: None for message in messages})
                async with asyncio.TaskGroup() as group:
                    for number, message in enumerate(messages):
                        group.create_task(self._publish(writer, number, message, confirmed))
        except TimeoutError:
            failed = f"no confirm within {TIMEOUT:g} s"
        except ERRORS as error:
            failed = _words(error)
        if not failed and not writer.alive():
            failed = "the connection was lost"
        if failed:
            await self._out.drop(writer, failed)
            if not any(confirmed):
                raise TransportUnavailable(self.name, failed)
        return confirmed

    async def _publish(self, writer: _Side, number: int, message: Message, confirmed: list[bool]) -> None:
        queue = self._prefix + message.line
        try:
            answer = await writer.channel.basic_publish(
                message.body,
                routing_key=queue,
                mandatory=True,
                properties=Basic.Properties(delivery_mode=2, correlation_id=message.key),
                wait=False,
            )
        except ERRORS:
            return  # refused, or lost with the connection
        if isinstance(answer, Basic.Ack):
            confirmed[number] = True
        else:
            writer.declared.discard(queue)  # it came back: there is no such queue

    async def receive(self, lines: Collection[str], most: int, wait: float) -> Sequence[Delivery]:
        end = self._clock.monotonic() + wait
        async with self._receiving:
            reader = await self._in.get(within=TIMEOUT)
            try:
                while True:
                    async with asyncio.timeout(TIMEOUT):
                        await reader.consume(lines, most)
                    if found := reader.take(lines, most):
                        return found
                    if (left := end - self._clock.monotonic()) <= 0:
                        return []
                    await reader.fetched.news(left)
                    if not reader.alive():
                        raise ConnectionError("the connection was lost, or a queue deleted")
            except (TimeoutError, *ERRORS) as error:
                await self._in.drop(reader, _words(error))
                raise TransportUnavailable(self.name, _words(error)) from error

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        await self._settle(deliveries, again=False)

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        await self._settle(deliveries, again=True)

    async def depth(self, line: str) -> int | None:
        """None: the broker counts only what waits, not what others have received."""
        return None

    # -- what it is made of ----------------------------------------------------------------------------

    async def _settle(self, deliveries: Sequence[Delivery], *, again: bool) -> None:
        """A handle of a connection that has ended is of no use, and needs none: it came back by itself."""
        reader = self._in.link
        mine = [delivery for delivery in deliveries if delivery.handle[0] is reader]
        if reader is None or not mine:
            return
        try:
            async with asyncio.timeout(TIMEOUT):
                await reader.settle(mine, again=again)
        except (TimeoutError, *ERRORS) as error:
            await self._in.drop(reader, _words(error))
            raise TransportUnavailable(self.name, _words(error)) from error

    async def _give_back_stale(self) -> None:
        reader = self._in.link
        if reader is None or self._receiving.locked() or not reader.fetched.stale(HOLD):
            return
        async with self._receiving:
            try:
                async with asyncio.timeout(TIMEOUT):
                    await reader.rest()
            except (TimeoutError, *ERRORS) as error:
                await self._in.drop(reader, _words(error))

    async def _connection(self) -> AbstractConnection:
        connection = Connection(self._url, context=self._tls)
        try:
            await _own(connection.connect())
        except BaseException:
            await _shut(connection)
            raise
        return connection

    async def _open_writer(self) -> _Side:
        connection = await self._connection()
        try:
            channel = await _own(connection.channel(publisher_confirms=True, on_return_raises=False))
            assert isinstance(channel, Channel)
        except BaseException:
            await _shut(connection)
            raise
        return _Side(connection, channel)

    async def _open_reader(self) -> _Reader:
        connection = await self._connection()
        try:
            channel = await _own(connection.channel(publisher_confirms=False))
            assert isinstance(channel, Channel)
        except BaseException:
            await _shut(connection)
            raise
        return _Reader(connection, channel, Fetched(self._clock), self._prefix)


class _Side:
    """A connection with one channel, and the queues that it has seen."""

    def __init__(self, connection: AbstractConnection, channel: Channel) -> None:
        self.connection = connection
        self.channel = channel
        self.declared: set[str] = set()

    def alive(self) -> bool:
        return not (self.channel.is_closed or self.connection.is_closed)

    async def declare(self, queues: Iterable[str]) -> None:
        """Make sure that these are there, not made too soon (FORGOTTEN) nor used too soon (REGISTERED)."""
        wanted = [queue for queue in queues if queue not in self.declared]
        found = {queue: await self._look(queue) for queue in wanted}
        missing = [queue for queue, count in found.items() if count is None]
        if missing:
            await asyncio.sleep(FORGOTTEN)
        for queue in missing:
            await _own(self.channel.queue_declare(queue, durable=True, arguments=dict(QUEUE)))
        if not all(found.values()):
            await asyncio.sleep(REGISTERED)
        self.declared.update(wanted)

    async def _look(self, queue: str) -> int | None:
        """How many messages and consumers it has: with none, somebody may have made it just now. None when
        there is no such queue."""
        asking = await _own(self.connection.channel(publisher_confirms=False))
        try:
            found = await _own(asking.queue_declare(queue, passive=True))
            return (found.message_count or 0) + (found.consumer_count or 0)
        except ChannelNotFoundEntity:  # which ends the channel that asked
            return None
        finally:
            if not asking.is_closed:
                await _own(asking.close())

    async def close(self) -> None:
        await _shut(self.connection)


class _Reader(_Side):
    """One that consumes. `fetched` has what was delivered and nobody has taken."""

    def __init__(
        self, connection: AbstractConnection, channel: Channel, fetched: Fetched, prefix: str
    ) -> None:
        super().__init__(connection, channel)
        self.fetched = fetched
        self._prefix = prefix
        self._prefetch = 0
        self._tags: dict[str, str] = {}
        self._in_hand: Counter[str] = Counter()
        self._spoilt = False
        channel.on_consumer_cancel_callbacks.add(self._cancelled)
        channel.closing.add_done_callback(lambda _: fetched.wake())

    async def consume(self, lines: Collection[str], most: int) -> None:
        """Have a consumer on each of `lines` that may bring `most` messages more than are in hand."""
        wanted = min(max((self._in_hand[line] for line in lines), default=0) + most, MAX_PREFETCH)
        if wanted > self._prefetch:
            await self._end()
            await _own(self.channel.basic_qos(prefetch_count=wanted))
            self._prefetch = wanted
        if missing := [line for line in lines if line not in self._tags]:
            await self.declare([self._prefix + line for line in missing])
            for line in missing:
                await self._begin(line)

    async def _begin(self, line: str) -> None:
        async def came(delivered: DeliveredMessage) -> None:
            tag = delivered.delivery_tag
            assert tag is not None, "only basic.get has messages without"
            message = readable(line, delivered.body)
            if message is None:
                await self.channel.basic_ack(tag, wait=False)
            else:
                self.fetched.put(Delivery(message, (self, tag)))

        begun = await _own(self.channel.basic_consume(self._prefix + line, came))
        assert begun.consumer_tag is not None, "the broker names every consumer"
        self._tags[line] = begun.consumer_tag

    async def _end(self) -> None:
        tags, self._tags = self._tags, {}
        for tag in tags.values():
            await _own(self.channel.basic_cancel(tag))

    def alive(self) -> bool:
        return not self._spoilt and super().alive()

    def _cancelled(self, frame: Basic.Cancel) -> None:
        """The broker ended a consumer: its queue was deleted. For a moment its channel still knows the old
        queue, and then drops what a new one of that name delivers: so this reader is of no use any more."""
        self._spoilt = True
        self.fetched.wake()

    def take(self, lines: Collection[str], most: int) -> list[Delivery]:
        found = self.fetched.take(lines, most)
        self._in_hand.update(delivery.message.line for delivery in found)
        return found

    async def settle(self, deliveries: Sequence[Delivery], *, again: bool) -> None:
        self._in_hand.subtract(delivery.message.line for delivery in deliveries)
        for delivery in deliveries:
            tag, last = delivery.handle[1], delivery is deliveries[-1]
            if again:
                await self.channel.basic_nack(tag, requeue=True, wait=last)
            else:
                await self.channel.basic_ack(tag, wait=last)

    async def rest(self) -> None:
        """End the consumers, then give back what they brought and nobody took."""
        await self._end()
        lines = self.fetched.lines
        if left := self.take(lines, sum(map(self.fetched.count, lines))):
            await self.settle(left, again=True)


async def _own(call: Coroutine[Any, Any, T]) -> T:
    """What the call gives. The library cancels calls of a connection that ends: to us that is an error."""
    task = asyncio.ensure_future(call)
    try:
        await asyncio.wait([task])
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait([task])
        raise
    if task.cancelled():
        raise ConnectionError("the connection ended")
    return task.result()


async def _shut(connection: AbstractConnection) -> None:
    """Close it; a broker that does not answer is left after a moment."""
    with contextlib.suppress(TimeoutError, *ERRORS):
        async with asyncio.timeout(CLOSING):
            await _own(connection.close())


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
