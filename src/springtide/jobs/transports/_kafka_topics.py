"""What is asked of a Kafka about its topics. All of it blocks, so it is for a thread, and ends in time."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from springtide.jobs.transports._kafka_writer import client_log

__all__ = ["depth", "make"]

AGAIN = 0.1
"""Seconds between two looks at a topic that a broker is making."""


def make(
    settings: Mapping[str, Any], topics: Sequence[str], partitions: int, replicas: int, timeout: float
) -> None:
    """Make sure that topics are there. Raises KafkaException."""
    admin = AdminClient(dict(settings), logger=client_log)
    new = [NewTopic(topic, num_partitions=partitions, replication_factor=replicas) for topic in topics]
    end = time.monotonic() + timeout
    for topic, made in admin.create_topics(new, request_timeout=timeout).items():
        try:
            made.result(timeout)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                # not able, or not allowed: it may be there, and some brokers make what is asked for by name
                while not _there(admin, topic, timeout):
                    if time.monotonic() > end:
                        raise
                    time.sleep(AGAIN)


def _there(admin: AdminClient, topic: str, timeout: float) -> bool:
    return admin.list_topics(topic, timeout=timeout).topics[topic].error is None


def depth(settings: Mapping[str, Any], group: str, topic: str, timeout: float) -> int:
    """How many messages of a topic the group has not committed."""
    consumer = Consumer({**settings, "group.id": group}, logger=client_log)  # it asks, and joins nothing
    try:
        numbers = consumer.list_topics(topic, timeout=timeout).topics[topic].partitions
        total = 0
        for one in consumer.committed([TopicPartition(topic, number) for number in numbers], timeout):
            low, high = consumer.get_watermark_offsets(one, timeout)
            total += high - max(one.offset, low)
        return total
    finally:
        consumer.close()
