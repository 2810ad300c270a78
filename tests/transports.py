"""The brokers that the conformance suites run on: one class each, and a line in BROKERS.

Fixtures (tests/conftest.py): `broker` is one server per kind for the run; a test may kill it and leave it
dead, and finds it running. Names of platforms are made anew by each test, so nothing of another is there.
"""

from __future__ import annotations

import importlib
import itertools
import os
import time
from collections.abc import Mapping
from typing import Any, Protocol

import pytest
from tests._brokers import NatsBroker, RabbitBroker
from tests._kafka import KafkaStandIn
from tests._redis import RedisServer
from tests._sqs import SqsStandIn

from springtide.jobs.transports import DRIVERS, Transport, driver

__all__ = ["BROKERS", "Broker", "begin", "came", "connect", "fresh_name", "params"]

_numbers = itertools.count(1)


def fresh_name() -> str:
    """A platform's name that nobody has used on any broker."""
    return f"test{os.getpid()}x{next(_numbers)}"


class Broker(Protocol):
    """kind: of the driver. real: a server as people run it; else a stand-in, whose memory goes with it."""

    kind: str
    real: bool

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1: the same again after a restart."""

    def url(self, port: int | None = None) -> str:
        """For the driver; through a proxy that listens at `port`."""

    def kill(self) -> None:
        """kill -9."""

    def start(self) -> None:
        """Start it again, if it is not running, and return when it answers."""

    def close(self) -> None:
        """End it for good."""


class RedisBroker:
    kind, real = "redis", True

    def __init__(self) -> None:
        self._server = RedisServer().start()
        self._alive = True

    @property
    def port(self) -> int:
        return self._server.port

    def url(self, port: int | None = None) -> str:
        return f"redis://127.0.0.1:{port or self.port}/0"

    def kill(self) -> None:
        self._server.kill()
        self._alive = False

    def start(self) -> None:
        if not self._alive:
            self._server.start()
            self._alive = True

    def close(self) -> None:
        self._server.close()


class SqsBroker:
    """A faithful stand-in: moto's server. Who comes by a proxy holds messages for 5 s only: it is to die."""

    kind, real = "sqs", False

    def __init__(self) -> None:
        self._server = SqsStandIn().start()
        self._alive = True

    @property
    def port(self) -> int:
        return self._server.port

    def url(self, port: int | None = None) -> str:
        held = 5 if port else 600
        return f"http://key:secret@127.0.0.1:{port or self.port}?region=eu-central-1&visibility={held}"

    def kill(self) -> None:
        self._server.kill()
        self._alive = False

    def start(self) -> None:
        if not self._alive:
            self._server.start()
            self._alive = True

    def close(self) -> None:
        self._server.close()


class KafkaBroker:
    """A faithful stand-in: librdkafka's mock cluster. Sessions are short, because its groups wait for nearly
    a whole one whenever a member comes or goes."""

    kind, real = "kafka", False

    def __init__(self) -> None:
        self._server = KafkaStandIn().start()
        self._alive = True

    @property
    def port(self) -> int:
        """Where a proxy connects to; who comes by one is kept behind it."""
        return self._server.wire

    def url(self, port: int | None = None) -> str:
        if port is not None:
            self._server.tell_wire(port)
        return f"kafka://127.0.0.1:{port or self._server.port}?session=2"

    def kill(self) -> None:
        self._server.kill()
        self._alive = False

    def start(self) -> None:
        if not self._alive:
            self._server.start()
            self._alive = True

    def close(self) -> None:
        self._server.close()


BROKERS: Mapping[str, tuple[type[Broker], str]] = {
    "redis": (RedisBroker, "redis-server"),
    "rabbitmq": (RabbitBroker, "rabbitmq-server"),
    "nats": (NatsBroker, "nats-server"),
    "sqs": (SqsBroker, ""),
    "kafka": (KafkaBroker, ""),
}
"""By kind: what makes one, and the Debian package that it needs ("": none)."""


PATIENCE = 600
"""Seconds: a test may start a RabbitMQ three times, each with seconds of CPU, on a busy machine."""


def begin(kind: str) -> Broker:
    """A broker that runs. Its driver is imported as where a platform is built: not inside a loop."""
    importlib.import_module(DRIVERS[kind][0])
    return BROKERS[kind][0]()


def params() -> list[object]:
    """For `pytest.mark.parametrize("broker", params(), indirect=True)`."""
    return [
        pytest.param(
            kind,
            marks=[pytest.mark.timeout(PATIENCE), *([pytest.mark.needs(package)] if package else [])],
            id=kind if made.real else f"{kind}, a faithful stand-in",
        )
        for kind, (made, package) in BROKERS.items()
    ]


def connect(broker: Broker, name: str, *, port: int | None = None) -> Transport:
    return driver(broker.kind, broker.url(port), name=name)


def came(transport: Transport, line: str) -> bool:
    """Whether a message of `line` has come as far as it does before somebody asks for it. Kafka's are fetched
    ahead, a moment after they were published; a worker that has been busy for long has left its group. NATS'
    server sends what it was asked for a moment ago, RabbitMQ what its consumers have room for."""
    driver: Any = transport
    if transport.name.startswith("kafka "):
        return driver._fetched.count(line) > 0 or driver._in.link is None or not driver._in.link.places
    if transport.name.startswith("nats "):
        link = driver._link.link
        return driver._fetched.count(line) > 0 or not link or not link.asked_for(line, time.monotonic())
    if transport.name.startswith("rabbitmq "):
        reader = driver._in.link
        return reader is None or line not in reader._tags or reader.fetched.count(line) > 0
    return True
