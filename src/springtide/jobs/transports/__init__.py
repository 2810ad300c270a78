"""What carries "this job may run now" from SQL to the workers, where a topology names a broker for it.

seam      messages, capabilities, and what a driver gives
redis     Redis Streams
rabbitmq  RabbitMQ's quorum queues
nats      NATS JetStream
sqs       SQS
kafka     Kafka

The transport `postgres` is no driver: without a broker workers claim from SQL. A driver, and the client
library that it needs, is imported when a worker of a platform that names it is built.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from types import MappingProxyType

from springtide.clock import Clock
from springtide.errors import ConfigurationError
from springtide.jobs.transports.seam import Capabilities, Delivery, Message, Transport
from springtide.signals import Sink

__all__ = ["DRIVERS", "Capabilities", "Delivery", "Message", "Transport", "driver"]

DRIVERS: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "redis": ("springtide.jobs.transports.redis", "RedisTransport"),
        "rabbitmq": ("springtide.jobs.transports.rabbitmq", "RabbitTransport"),
        "nats": ("springtide.jobs.transports.nats", "NatsTransport"),
        "sqs": ("springtide.jobs.transports.sqs", "SqsTransport"),
        "kafka": ("springtide.jobs.transports.kafka", "KafkaTransport"),
    }
)
"""Module and class by kind of node."""


def driver(
    kind: str, url: str, *, name: str, clock: Clock | None = None, sink: Sink | None = None
) -> Transport:
    """The transport of this kind at `url`, for the platform `name`. Connects to nothing.

    Raises ConfigurationError when there is no such driver, or its client library is not installed.
    """
    if kind not in DRIVERS:
        raise ConfigurationError(f"transport must be one of {', '.join(DRIVERS)}, got {kind!r}")
    module, attribute = DRIVERS[kind]
    try:
        made = getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"the transport {kind} needs what is not installed ({error.name}):"
            f" pip install 'springtide[{kind}]'"
        ) from error
    transport: Transport = made(url, name=name, clock=clock, sink=sink)
    return transport
