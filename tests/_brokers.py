"""RabbitMQ and NATS for tests: started as the runner starts them, each in a home of its own, to be broken.

They listen on free ports that stay over restarts, keep their data over kill -9, and do not outlive the test
run, not even one that is killed. All of it is synchronous: the test's event loop stands still meanwhile.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Coroutine
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit, urlunsplit

import aiormq  # noqa: F401 - it reads its version from disk, which no test's loop should wait for
from tests._redis import _state, until
from tests.servers import LoopThread, scratch, watch

from springtide.ops.runner.nats import NatsServer
from springtide.ops.runner.rabbitmq import RabbitServer

__all__ = ["NatsBroker", "RabbitBroker"]

S = TypeVar("S", RabbitServer, NatsServer)

PATIENCE = 400.0
"""Seconds that only tell a slow machine from a server that hangs; RabbitMQ needs seconds of CPU to start."""

WATCH = """
read -r _ && exit
for process in /proc/[0-9]*; do
  grep -qs "SPRINGTIDE_HOME=$0/home" "$process/environ" && kill -KILL "${process#/proc/}"
done
rm -rf "$0"
"""


class _Broker(Generic[S]):
    """One server that runs from the beginning. `tests.transports.Broker`, and more."""

    kind: str
    real = True

    def __init__(self, make: type[S]) -> None:
        self._loop = LoopThread()
        self.folder = scratch(f"springtide-{self.kind}-")
        self._watch = watch(self.folder, WATCH)
        self.server: S = make(
            "broker", home=self.folder / "home", shared=self.folder / "shared", start_timeout=PATIENCE
        )
        self._alive = False
        try:
            self.start()
        except BaseException:
            self.close()
            raise

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def pid(self) -> int:
        return self.server.pid

    def url(self, port: int | None = None) -> str:
        """Where it listens, or where a proxy in front of it does."""
        parts = urlsplit(self.server.url())
        if port is None:
            return self.server.url()
        login = parts.netloc.rpartition("@")[0]
        return urlunsplit(parts._replace(netloc=f"{login}@{parts.hostname}:{port}"))

    def start(self) -> None:
        """Start it, if it does not run, and return when it answers."""
        if not self._alive:
            self._run(self.server.start())
            self._alive = True

    def stop(self) -> None:
        """End it in order."""
        if self._alive:
            self.thaw()
            self._run(self.server.stop())
            self._forget()

    def kill(self) -> None:
        """kill -9."""
        os.kill(self.pid, signal.SIGKILL)
        os.kill(self.pid, signal.SIGCONT)
        self._run(self.server.stop())
        self._forget()

    def freeze(self) -> None:
        """SIGSTOP: connections stay open, the kernel still takes what is sent, and nothing answers."""
        os.kill(self.pid, signal.SIGSTOP)
        until(lambda: _state(self.pid) == "T", f"freezing {self.kind}")

    def thaw(self) -> None:
        if self._alive:
            os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        try:
            if self._alive:
                self.kill()
        finally:
            self._loop.close()
            shutil.rmtree(self.folder, ignore_errors=True)
            self._watch.communicate(b"closed\n")

    def _forget(self) -> None:
        self._alive = False

    def _run(self, work: Coroutine[Any, Any, object]) -> None:
        self._loop.run(work, timeout=PATIENCE + 20)


class RabbitBroker(_Broker[RabbitServer]):
    kind = "rabbitmq"

    def __init__(self) -> None:
        super().__init__(RabbitServer)


class NatsBroker(_Broker[NatsServer]):
    kind = "nats"

    def __init__(self) -> None:
        super().__init__(NatsServer)
