"""A faithful stand-in for SQS in tests: moto's server, as a process of its own.

It speaks the service's protocol and keeps its rules for queues, visibility, long polls and batches. What it
does not have: the disk (a restart has forgotten all queues), limits, other zones, and a standard queue's
liberty to repeat and to reorder. Synchronous, as the servers of `_redis.py` are.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

from tests._redis import free_port
from tests.servers import scratch, watch

__all__ = ["SqsStandIn"]

PATIENCE = 240.0

WATCH = """
read -r _ && exit
read -r pid < "$0/server.pid" && kill -KILL "$pid"
rm -rf "$0"
"""


class SqsStandIn:
    """It lets everybody in, whatever the key."""

    def __init__(self) -> None:
        self.folder = scratch("springtide-sqs-")
        self.port = free_port()
        self._fixed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._watch = watch(self.folder, WATCH)

    def start(self) -> SqsStandIn:
        """Return when it answers. A port that somebody else took meanwhile is exchanged, the first time."""
        end = time.monotonic() + PATIENCE
        while not self._begin():
            if time.monotonic() > end:
                raise TimeoutError(f"moto did not start:\n{(self.folder / 'log').read_text()[-2000:]}")
            if not self._fixed:
                self.port = free_port()
        self._fixed = True
        return self

    def _begin(self) -> bool:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self.port)],
                stdout=log,
                stderr=log,
                env=environment,
                start_new_session=True,
            )
        (self.folder / "server.pid").write_text(f"{self._process.pid}\n")
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self._process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"{self.url()}/moto-api/", timeout=10):
                return True
            time.sleep(0.02)
        self.kill()
        return False

    def url(self, port: int | None = None) -> str:
        return f"http://127.0.0.1:{port or self.port}"

    def kill(self) -> None:
        """kill -9: all that it had is gone."""
        if self._process is not None:
            if self._process.poll() is None:
                os.kill(self._process.pid, signal.SIGKILL)
            self._process.wait(PATIENCE)
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
