"""A faithful stand-in for Kafka in tests: librdkafka's mock cluster, as a process of its own.

It speaks the protocol of brokers and of groups as clients know it. What it does not have: the disk (a restart
has forgotten topics, groups and offsets), replicas, logins, TLS, and making topics by request (it makes those
that are asked for by name). Synchronous, as the servers of `_redis.py` are.
"""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time

from tests._redis import free_port
from tests.servers import scratch, watch

__all__ = ["KafkaStandIn"]

PATIENCE = 240.0

WATCH = """
read -r _ && exit
read -r pid < "$0/server.pid" && kill -KILL "$pid"
rm -rf "$0"
"""


class KafkaStandIn:
    """`port` is where clients connect to; `wire` where a proxy does whose clients are to stay behind it."""

    def __init__(self) -> None:
        self.folder = scratch("springtide-kafka-")
        self.port, self.wire = free_port(), free_port()
        self._fixed = False
        self._process: subprocess.Popen[str] | None = None
        self._watch = watch(self.folder, WATCH)

    def start(self) -> KafkaStandIn:
        """Return when it answers. Ports that somebody else took meanwhile are exchanged, the first time."""
        end = time.monotonic() + PATIENCE
        while not self._begin():
            if time.monotonic() > end:
                raise TimeoutError(f"the cluster did not start:\n{(self.folder / 'log').read_text()[-2000:]}")
            if not self._fixed:
                self.port, self.wire = free_port(), free_port()
        self._fixed = True
        return self

    def _begin(self) -> bool:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests._kafka_cluster", str(self.port), str(self.wire)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        (self.folder / "server.pid").write_text(f"{self._process.pid}\n")
        if self._answer() == "ready":
            return True
        self.kill()
        return False

    def _answer(self) -> str:
        assert self._process is not None and self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        return self._process.stdout.readline().strip() if ready else ""

    def tell_wire(self, port: int) -> None:
        """Who comes by `wire` is told that the broker is at `port`."""
        assert self._process is not None and self._process.stdin is not None
        self._process.stdin.write(f"{port}\n")
        self._process.stdin.flush()
        assert self._answer() == "told"

    def kill(self) -> None:
        """kill -9: all that it had is gone."""
        if self._process is not None:
            if self._process.poll() is None:
                os.kill(self._process.pid, signal.SIGKILL)
            self._process.communicate(timeout=PATIENCE)
            (self.folder / "server.pid").unlink(missing_ok=True)
            self._process = None

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)

    def close(self) -> None:
        try:
            self.kill()
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)
            self._watch.communicate(b"closed\n")
