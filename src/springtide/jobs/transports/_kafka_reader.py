"""The side of Kafka that receives: one consumer, which blocks, in a thread of its own.

    the loop says      want these topics, until then; enough of those partitions; all before this has ended
    the thread says    assigned, message, end of a partition, revoked; `down`: nothing comes any more

The thread begins with `begin` and ends with `close`, or when the consumer can do no more. It asks for
messages all the time: a group is divided anew only while its members ask, and a partition is one process's,
so what is fetched ahead is kept from nobody. A reader that nobody has wanted anything of for LEAVE seconds,
because all its worker's slots are busy or it drains, leaves the group, so that others get its partitions.

The loop alone knows `places`: what the thread hears comes to it in order. What has ended is handed to the
client, which commits it by itself: twice a second, when a partition moves, and at the end. What ends after
its partition has moved comes a second time, to somebody else. The consumer serves one thread at a time, and
keeps others waiting meanwhile: so once it has begun the thread alone calls it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka import Message as Record

from springtide.clock import Clock
from springtide.jobs.transports._kafka_ended import Ended
from springtide.jobs.transports._kafka_writer import client_log, reason

__all__ = ["Place", "Reader"]

Place = tuple[str, int]
"""Topic and partition."""

POLL = 0.1
"""Seconds that one question may take; nothing that the loop says waits longer."""

BATCH = 500
"""Messages that are told at once, at most."""

LEAVE = 5.0
"""Below the time after which SQL sends again what nobody claimed; and rare, for dividing anew costs."""

COMMIT_MS = 500

FETCH_WAIT_MS = 500
"""Milliseconds for which a broker waits for a first message."""

QUEUED_KIB = 4096
"""What the client fetches ahead of the thread, at most."""

HEARTBEATS = 4
"""Signs of life per session."""


class Reader:
    """Make it in a thread, for it may read certificates, and then `begin`. In the loop `came` gets what came
    (the reader, its place and offset, its value), and `changed` is called when anything has happened."""

    def __init__(
        self,
        settings: Mapping[str, Any],
        *,
        group: str,
        session: float,
        came: Callable[[Reader, Place, int, bytes], None],
        changed: Callable[[], None],
        clock: Clock,
    ) -> None:
        self.down = ""
        self.places: dict[Place, Ended] = {}
        """What this process has, as the loop knows it."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._came = came
        self._changed = changed
        self._clock = clock
        self._subject: frozenset[str] = frozenset()
        self._until = float("-inf")
        self._full: frozenset[Place] = frozenset()
        self._lock = threading.Lock()
        self._settled: dict[Place, int] = {}
        self._ending = False
        self._subscribed: frozenset[str] = frozenset()
        self._paused: set[Place] = set()
        self._heard: list[tuple[str, Place, int, bytes]] = []
        self._consumer: Consumer | None = Consumer(
            {
                **settings,
                "group.id": group,
                "partition.assignment.strategy": "cooperative-sticky",
                "session.timeout.ms": int(session * 1000),
                "heartbeat.interval.ms": int(session * 1000 / HEARTBEATS),
                "auto.offset.reset": "earliest",
                "enable.auto.commit": True,
                "auto.commit.interval.ms": COMMIT_MS,
                "enable.auto.offset.store": False,
                "enable.partition.eof": True,
                "fetch.wait.max.ms": FETCH_WAIT_MS,
                "queued.max.messages.kbytes": QUEUED_KIB,
                "error_cb": self._failed,
            },
            logger=client_log,
        )
        self._thread = threading.Thread(
            target=self._work, args=[self._consumer], name="kafka-reader", daemon=True
        )

    def find(self, timeout: float) -> Reader:
        """This one, when a broker answers it. Else it is closed, and KafkaException says why. Blocks."""
        assert self._consumer is not None
        try:
            self._consumer.list_topics(timeout=timeout)
            self._consumer.poll(0)  # what it says of the time before is over
        except KafkaException:
            self.close()
            raise
        self.down = ""
        return self

    def begin(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._thread.start()

    def alive(self) -> bool:
        return not self.down

    def close(self) -> None:
        """Leave the group, end, and free the client. Blocks, for as long as a broker takes to answer."""
        self._ending = True
        if self._thread.is_alive():
            self._thread.join()
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            self._store(consumer)
            consumer.close()

    # -- from the loop: each sets what the thread reads at its next turn -------------------------------

    def want(self, topics: Collection[str], until: float) -> None:
        self._subject |= frozenset(topics)
        self._until = until

    def enough(self, places: Collection[Place]) -> None:
        """Nothing more of these partitions, and of these only."""
        self._full = frozenset(places)

    def settle(self, place: Place, position: int) -> None:
        """All before `position` has ended."""
        with self._lock:
            self._settled[place] = position

    def forget(self) -> None:
        """Others have all of it."""
        for ended in self.places.values():
            ended.gone = True
        self.places.clear()

    def _hear(self, heard: Sequence[tuple[str, Place, int, bytes]]) -> None:
        """In the loop, in the order in which the thread heard it."""
        for what, place, offset, value in heard:
            ended = self.places.get(place)
            if what == "assigned":
                self.places[place] = Ended()
            elif ended is None:
                pass  # it was forgotten meanwhile
            elif what == "message":
                ended.received(offset)
                self._came(self, place, offset, value)
            elif what == "end":
                ended.at_end = True
            else:
                self.places.pop(place).gone = True
        self._changed()

    # -- the thread ------------------------------------------------------------------------------------

    def _work(self, consumer: Consumer) -> None:
        try:
            while not self._ending and not self.down:
                self._turn(consumer)
                self._tell()
        except KafkaException as error:
            self._failed(error.args[0], certain=True)
        finally:
            self.down = self.down or "it was closed"
            self._tell()

    def _turn(self, consumer: Consumer) -> None:
        left = self._clock.monotonic() > self._until + LEAVE
        if (subject := frozenset[str]() if left else self._subject) != self._subscribed:
            self._subscribe(consumer, subject)
            self._subscribed = subject
        self._pause_only(consumer, self._full)
        self._store(consumer)
        first = consumer.poll(POLL)
        if first is not None:
            for record in (first, *consumer.consume(BATCH - 1, 0)):
                self._sort(record)

    def _subscribe(self, consumer: Consumer, topics: frozenset[str]) -> None:
        if topics:
            consumer.subscribe(
                sorted(topics), on_assign=self._assigned, on_revoke=self._revoked, on_lost=self._revoked
            )
        else:
            consumer.unsubscribe()

    def _pause_only(self, consumer: Consumer, places: Collection[Place]) -> None:
        if not places and not self._paused:
            return
        held = {(one.topic, one.partition) for one in consumer.assignment()}
        wished = held & set(places)
        if more := wished - self._paused:
            consumer.pause([TopicPartition(*place) for place in more])
        if less := (self._paused & held) - wished:
            consumer.resume([TopicPartition(*place) for place in less])
        self._paused = wished

    def _store(self, consumer: Consumer) -> None:
        """Hand over what may be committed."""
        with self._lock:
            settled, self._settled = self._settled, {}
        if settled:
            with contextlib.suppress(KafkaException):  # all of it has moved: it comes again, to others
                consumer.store_offsets(offsets=[TopicPartition(*place, at) for place, at in settled.items()])

    def _sort(self, record: Record) -> None:
        error = record.error()
        place = (record.topic() or "", record.partition() or 0)
        if error is None:
            self._heard.append(("message", place, record.offset() or 0, record.value() or b""))
        elif error.code() == KafkaError._PARTITION_EOF:
            self._heard.append(("end", place, 0, b""))
        else:  # a topic that is gone, a login that may not, a session it does not take: nothing that passes
            self._failed(error, certain=True)

    def _assigned(self, _: Consumer, some: Sequence[TopicPartition]) -> None:
        self._heard += [("assigned", (one.topic, one.partition), 0, b"") for one in some]

    def _revoked(self, consumer: Consumer, some: Sequence[TopicPartition]) -> None:
        self._store(consumer)
        places = [(one.topic, one.partition) for one in some]
        self._paused.difference_update(places)
        self._heard += [("revoked", place, 0, b"") for place in places]

    def _failed(self, error: KafkaError, *, certain: bool = False) -> None:
        self.down = self.down or (error.str() if certain else reason(error))

    def _tell(self) -> None:
        if self._loop is not None and (self._heard or self.down):
            heard, self._heard = self._heard, []
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody listens any more
                self._loop.call_soon_threadsafe(self._hear, heard)
