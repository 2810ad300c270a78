"""The side of Kafka that publishes: one idempotent producer, and a thread that hears what became of messages.

A message is confirmed when all replicas in sync have it. The producer repeats what fails for `timeout`
seconds, without doubling it, and then says so; so every message is reported. When no broker is left, or the
producer says that it cannot go on, the writer is `down` for good, and a new one is made. The thread begins
with the writer and ends with `close`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Producer
from confluent_kafka import Message as Report

__all__ = ["Batch", "Writer", "client_log", "reason"]

client_log = logging.getLogger("springtide.jobs.transports.kafka.client")
"""What librdkafka tells."""

POLL = 0.2
"""Seconds after which the thread looks whether it should end."""

LINGER_MS = 2
"""Milliseconds for which messages wait for others: batches come whole, so it costs little and joins them."""


UNKNOWN_TOPIC = frozenset(
    {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC, KafkaError._UNKNOWN_PARTITION}
)


class Batch:
    """Messages published together, until each was reported. Made in the loop; any thread reports."""

    def __init__(self, size: int) -> None:
        self.confirmed = [False] * size
        self.refusal = ""
        self.unknown_topic = False
        self.ended = asyncio.Event()
        self._left = size
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        if not size:
            self.ended.set()

    def report(self, number: int, error: KafkaError | None) -> None:
        if error is None:
            self.confirmed[number] = True
        else:
            self.refusal = self.refusal or error.str()
            self.unknown_topic |= error.code() in UNKNOWN_TOPIC
        with self._lock:
            self._left -= 1
            last = not self._left
        if last:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits any more
                self._loop.call_soon_threadsafe(self.ended.set)


class Writer:
    """Make it in a thread, for it may read certificates."""

    def __init__(self, settings: Mapping[str, Any], *, timeout: float) -> None:
        self.down = ""
        self._refused: KafkaError | None = None
        self._ending = threading.Event()
        self._producer: Producer | None = Producer(
            {
                **settings,
                "enable.idempotence": True,
                "acks": "all",
                "message.timeout.ms": int(timeout * 1000),
                "linger.ms": LINGER_MS,
                "partitioner": "murmur2_random",
                "error_cb": self._failed,
            },
            logger=client_log,
        )
        self._thread = threading.Thread(
            target=self._hear, args=[self._producer], name="kafka-writer", daemon=True
        )
        self._thread.start()

    def find(self, timeout: float) -> Writer:
        """This one, when a broker answers it. Else it is closed, and KafkaException says why. Blocks."""
        assert self._producer is not None
        try:
            self._producer.list_topics(timeout=timeout)
        except KafkaException as error:
            self.close()
            raise (KafkaException(self._refused) if self._refused is not None else error) from None
        self.down = ""  # what it said of the time before is over
        return self

    def alive(self) -> bool:
        return not self.down

    def send(self, messages: Sequence[tuple[str, str, bytes]]) -> Batch:
        """Hand (topic, key, value) over; what has no room is reported as refused at once."""
        batch, producer = Batch(len(messages)), self._producer
        for number, (topic, key, value) in enumerate(messages):

            def told(error: KafkaError | None, _: Report, number: int = number) -> None:
                batch.report(number, error)

            try:
                if producer is None:
                    raise KafkaException(KafkaError(KafkaError._DESTROY))
                producer.produce(topic, value, key, on_delivery=told)
            except BufferError:
                batch.report(number, KafkaError(KafkaError._QUEUE_FULL))
            except KafkaException as error:
                batch.report(number, error.args[0])
        return batch

    def close(self) -> None:
        """What is not reported is reported as refused. Blocks, and frees the client, which takes a moment."""
        self._ending.set()
        self._thread.join()
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge()
            producer.poll(0)

    def _hear(self, producer: Producer) -> None:
        try:
            while not self._ending.is_set():
                producer.poll(POLL)
        finally:
            self.down = self.down or "it was closed"

    def _failed(self, error: KafkaError) -> None:
        self.down = self.down or reason(error)
        if error.code() == KafkaError._AUTHENTICATION:
            self._refused = error


def reason(error: KafkaError) -> str:
    """Why no broker can be used any more; "" when some can."""
    if error.fatal() or error.code() in (KafkaError._ALL_BROKERS_DOWN, KafkaError._AUTHENTICATION):
        return str(error.str())
    return ""
