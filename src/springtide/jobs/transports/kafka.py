"""Kafka: one topic per line, one consumer group for all workers of a platform.

    published -> in a partition -> received by whoever has it -> ended -> committed, when all before it have
                     ^------------- its holder left, or gave no sign of life ----------'

A partition belongs to one process at a time. What is received is settled one by one, and committed in order
(`_kafka_ended.py`): so a crash repeats some messages and passes over none. What is repeated is judged by SQL.

A message's partition follows from the job and its turn. So one that lies in the partition of a process that
is busy is sent again by SQL to, most likely, another. What is given back is this process's still, and handed
out again; it is others' when this one leaves the group: when it stops, or asks for nothing for some seconds.

Earlier lines come first: messages of a later one wait until the ends of the earlier ones' partitions have
been seen, for at most PATIENCE seconds. The client blocks, and runs in threads: one that receives
(`_kafka_reader.py`), one that hears of what was published (`_kafka_writer.py`), and THREADS for questions,
each of which the client ends after its time. Topics that are missing are made; a broker that does not let us
is asked for them by name, which makes some brokers make them.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ClassVar, NamedTuple, TypeVar

from confluent_kafka import KafkaError, KafkaException

from springtide.clock import Clock, SystemClock
from springtide.errors import TransportRefused, TransportUnavailable
from springtide.jobs.transports._fetched import Fetched
from springtide.jobs.transports._kafka_address import parse, topic_name
from springtide.jobs.transports._kafka_ended import Ended
from springtide.jobs.transports._kafka_reader import Place, Reader
from springtide.jobs.transports._kafka_topics import depth, make
from springtide.jobs.transports._kafka_writer import Writer
from springtide.jobs.transports._reconnecting import Reconnecting
from springtide.jobs.transports.seam import Capabilities, Delivery, Message, readable
from springtide.lifecycle import StartStop
from springtide.signals import Sink

__all__ = ["KafkaTransport"]

T = TypeVar("T")
L = TypeVar("L", Writer, Reader)

TIMEOUT = 5.0
"""Seconds that a batch of messages or a question may take."""

CONNECT_TIMEOUT = 3.0
"""Seconds that a new client has to find a broker."""

PATIENCE = 1.0
"""Seconds for which messages of a later line wait for news of the earlier ones."""

ENOUGH = 1000
"""Messages of a line that are fetched ahead of the workers; half of it makes room for more."""

MAX_AHEAD = 50_000
"""Messages of one partition that may be received after one that has not ended."""

CLOSING = 5.0
"""Seconds that a client has to take leave; then its thread is left to end by itself."""

THREADS = 4


class _Handle(NamedTuple):
    reader: Reader
    ended: Ended
    place: Place
    offset: int


class KafkaTransport:
    """See the module; a lifecycle service."""

    capabilities: ClassVar[Capabilities] = Capabilities(
        durable=(
            "all replicas in sync have it in memory, and their systems write it to disk when they please: it"
            " is lost if all of them lose power at once (have three replicas, and min.insync.replicas 2)"
        ),
        survives_restart=True,
        redelivers=True,
        ordered=False,
        deduplicates=False,
        delays=False,
        priorities=False,
        max_body=1_000_000,
    )

    def __init__(self, url: str, *, name: str, clock: Clock | None = None, sink: Sink | None = None) -> None:
        self._address = parse(url, key=f"the kafka node's url of {name}")
        self._clock = clock or SystemClock()
        self.name = f"kafka {self._address.servers}"
        self._platform = name
        self._group = f"{name}.jobs"
        self._settings = {
            **self._address.settings,
            "client.id": f"{name}-jobs",
            "socket.timeout.ms": int(TIMEOUT * 2000),
            "socket.connection.setup.timeout.ms": int(CONNECT_TIMEOUT * 1000),
            "reconnect.backoff.max.ms": 1000,
            "log_level": 2,  # what it fails at is in our errors
        }
        self._fetched = Fetched(self._clock)
        self._lines: dict[str, str] = {}
        self._made: set[str] = set()
        self._full: set[Place] = set()
        self._receiving = asyncio.Lock()
        self._threads: ThreadPoolExecutor | None = None
        common: Any = {"errors": (KafkaException, TransportUnavailable), "clock": self._clock}
        self._out = Reconnecting(self.name, self._open_writer, self._close_one, Writer.alive, **common)
        self._in = Reconnecting(self.name, self._open_reader, self._close_reader, Reader.alive, **common)
        self._life = StartStop(self.name, self._open, self._close, sink=sink)

    @property
    def state(self) -> str:
        return self._life.state

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    async def _open(self) -> None:
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="kafka")
        try:
            await self._out.get(within=TIMEOUT)
        except TransportUnavailable as error:
            cause = error.__cause__
            if isinstance(cause, KafkaException) and (rule := _never(cause.args[0])):
                await self._close()
                raise TransportRefused(self.name, "url", cause.args[0].str(), rule) from error

    async def _close(self) -> None:
        await self._in.close()
        await self._out.close()
        self._fetched.take_all()
        threads, self._threads = self._threads, None
        if threads is not None:
            threads.shutdown(wait=False, cancel_futures=True)

    # -- the seam --------------------------------------------------------------------------------------

    async def publish(self, messages: Sequence[Message]) -> Sequence[bool]:
        writer = await self._out.get(within=TIMEOUT)
        await self._make(dict.fromkeys(message.line for message in messages))
        batch = writer.send([(self._topic(one.line), one.key, one.body) for one in messages])
        failed = ""
        try:
            async with asyncio.timeout(TIMEOUT + 1.0):
                await batch.ended.wait()
        except TimeoutError:
            failed = f"no confirm within {TIMEOUT:g} s"
        if why := writer.down or failed:
            await self._out.drop(writer, why)
        elif batch.unknown_topic:
            self._made.clear()  # the next call makes sure
        if messages and not any(batch.confirmed):
            raise TransportUnavailable(self.name, why or batch.refusal)
        return batch.confirmed

    async def receive(self, lines: Collection[str], most: int, wait: float) -> Sequence[Delivery]:
        end = self._clock.monotonic() + wait
        async with self._receiving:
            reader = await self._in.get(within=TIMEOUT)
            await self._make(lines)
            reader.want([self._topic(line) for line in lines], end)
            while not (got := self._take(reader, lines, most)):
                if not reader.alive():
                    raise TransportUnavailable(self.name, reader.down)
                if (left := end - self._clock.monotonic()) <= 0:
                    break
                await self._fetched.news(left)
            self._stem(reader)
            return got

    async def ack(self, deliveries: Sequence[Delivery]) -> None:
        """A message whose partition somebody else has now is theirs to settle."""
        for delivery in deliveries:
            _end(delivery.handle)

    async def give_back(self, deliveries: Sequence[Delivery]) -> None:
        for delivery in deliveries:
            if not delivery.handle.ended.gone:
                self._fetched.put(delivery)

    async def depth(self, line: str) -> int | None:
        """At most so many: what has ended counts until all before it in its partition has."""
        await self._make([line])
        return await self._asked(
            functools.partial(depth, self._settings, self._group, self._topic(line), TIMEOUT)
        )

    # -- what was received ----------------------------------------------------------------------------

    def _came(self, reader: Reader, place: Place, offset: int, value: bytes) -> None:
        handle = _Handle(reader, reader.places[place], place, offset)
        message = readable(self._lines[place[0]], value)
        if message is not None:
            self._fetched.put(Delivery(message, handle))
        else:
            _end(handle)

    def _changed(self) -> None:
        if (reader := self._in.link) is not None:
            self._stem(reader)
        self._fetched.wake()

    def _take(self, reader: Reader, lines: Collection[str], most: int) -> list[Delivery]:
        served = lines if self._fetched.stale(PATIENCE) else self._served(reader, lines)
        found: list[Delivery] = []
        while len(found) < most and (some := self._fetched.take(served, most - len(found))):
            found += [delivery for delivery in some if not delivery.handle.ended.gone]
        return found

    def _served(self, reader: Reader, lines: Collection[str]) -> list[str]:
        """Those of which messages may be handed out: up to the first whose ends were not all seen."""
        found: list[str] = []
        for line in lines:
            found.append(line)
            topic = self._topic(line)
            if not all(ended.at_end for place, ended in reader.places.items() if place[0] == topic):
                break
        return found

    def _stem(self, reader: Reader) -> None:
        """Say of which partitions there is enough here."""

        def enough(place: Place, ended: Ended) -> bool:
            most = ENOUGH // 2 if place in self._full else ENOUGH
            return len(ended) >= MAX_AHEAD or self._fetched.count(self._lines[place[0]]) >= most

        self._full = {place for place, ended in reader.places.items() if enough(place, ended)}
        reader.enough(self._full)

    # -- connections -----------------------------------------------------------------------------------

    async def _open_writer(self) -> Writer:
        self._made.clear()
        return await self._opened(lambda: Writer(self._settings, timeout=TIMEOUT).find(CONNECT_TIMEOUT))

    async def _open_reader(self) -> Reader:
        def opened() -> Reader:
            return Reader(
                self._settings,
                group=self._group,
                session=self._address.session,
                came=self._came,
                changed=self._changed,
                clock=self._clock,
            ).find(CONNECT_TIMEOUT)

        self._made.clear()
        reader = await self._opened(opened)
        reader.begin(asyncio.get_running_loop())
        return reader

    async def _close_reader(self, reader: Reader) -> None:
        await self._close_one(reader)
        reader.forget()

    async def _close_one(self, link: Writer | Reader) -> None:
        with contextlib.suppress(TimeoutError, KafkaException):
            async with asyncio.timeout(CLOSING):
                await self._threaded(link.close)

    async def _make(self, lines: Collection[str]) -> None:
        """Make sure that the topics of `lines` are there."""
        if missing := {topic for line in lines if (topic := self._topic(line)) not in self._made}:
            address = self._address
            await self._asked(
                functools.partial(
                    make, self._settings, sorted(missing), address.partitions, address.replicas, TIMEOUT
                )
            )
            self._made |= missing

    def _topic(self, line: str) -> str:
        topic = topic_name(self._platform, line)
        self._lines[topic] = line
        return topic

    async def _opened(self, call: Callable[[], L]) -> L:
        """What `call` opens; its thread closes it again when nobody waits for it any more."""
        opening = self._begun(call)
        try:
            return await asyncio.wrap_future(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_opened)
            raise

    async def _threaded(self, call: Callable[[], T]) -> T:
        return await asyncio.wrap_future(self._begun(call))

    def _begun(self, call: Callable[[], T]) -> Future[T]:
        if self._threads is None:
            raise TransportUnavailable(self.name, "it was not started")
        return self._threads.submit(call)

    async def _asked(self, call: Callable[[], T]) -> T:
        try:
            async with asyncio.timeout(TIMEOUT * 2):
                return await self._threaded(call)
        except TimeoutError as error:
            raise TransportUnavailable(self.name, f"no answer within {TIMEOUT * 2:g} s") from error
        except KafkaException as error:
            raise TransportUnavailable(self.name, error.args[0].str()) from error


def _close_opened(opening: Future[L]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _end(handle: _Handle) -> None:
    if not handle.ended.gone and handle.ended.ended(handle.offset):
        handle.reader.settle(handle.place, handle.ended.position)


def _never(error: KafkaError) -> str:
    """The rule that is broken, where trying again will not help; "" else."""
    if error.code() == KafkaError._AUTHENTICATION:
        return "must have a login that the broker accepts"
    if error.code() == KafkaError._INVALID_ARG:
        return "must be what the client takes"
    return ""
