"""Processes of a benchmark: which core they run on, and how much CPU each has used.

One core is the server's, everything else (PostgreSQL, the provider, the driver, this process) has the rest.
A child inherits where its parent may run, so a server is started while this process is on the server's core.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

__all__ = ["Cores", "Server", "cpu_seconds"]

ROOT = Path(__file__).resolve().parent.parent


def cpu_seconds(pid: int) -> float:
    """CPU time of a process, user and system, all its threads, those that ended as well.

    What /proc/<pid>/stat adds up in ticks of 10 ms, read from the same account in nanoseconds
    (clock_getcpuclockid(3): ~pid << 3 | CPUCLOCK_SCHED).
    """
    return time.clock_gettime((~pid << 3) | 2)


class Cores:
    """`server` is the core of the measured process, `others` those of everything else."""

    def __init__(self) -> None:
        found = sorted(os.sched_getaffinity(0))
        if len(found) < 2:
            sys.exit("this benchmark needs two cores: one for the server alone")
        self.server, self.others = found[0], set(found[1:])
        os.sched_setaffinity(0, self.others)

    @contextlib.contextmanager
    def on_server(self) -> Iterator[None]:
        """What is started inside the block runs on the server's core."""
        os.sched_setaffinity(0, {self.server})
        try:
            yield
        finally:
            os.sched_setaffinity(0, self.others)


class Server:
    """One ASGI application under the runner's own app server; on the server's core, if `cores` are given.

    It keeps its address over a kill and another start.
    """

    def __init__(
        self, name: str, app: str, *, cores: Cores | None, path: Path, env: Mapping[str, str], log: Path
    ) -> None:
        self.name = name
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self._app = app
        self._cores = cores
        self._path = path
        self._env = env
        self._log = log
        self.start()

    def start(self) -> None:
        """Return when it accepts connections."""
        reader, writer = os.pipe()
        command = [
            sys.executable, "-m", "springtide.ops.runner.appserver", self._app,
            "--fd", str(self.listener.fileno()), "--path", str(self._path), "--drain", "5",
            "--ready-fd", str(writer),
        ]  # fmt: skip
        with (
            self._cores.on_server() if self._cores else contextlib.nullcontext(),
            self._log.open("ab") as out,
        ):
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**os.environ, **self._env},
                pass_fds=(self.listener.fileno(), writer),
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        os.close(writer)
        with open(reader, "rb") as ready:
            if not ready.read(1):
                self.process.wait()
                raise RuntimeError(
                    f"{self.name} did not start:\n{self._log.read_text(errors='replace')[-4000:]}"
                )

    def cpu(self) -> float:
        """Seconds so far."""
        return cpu_seconds(self.process.pid)

    def memory_mb(self) -> float:
        """Proportional set size."""
        for line in Path(f"/proc/{self.process.pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) / 1024
        return 0.0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        self.listener.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(15)
        except subprocess.TimeoutExpired:
            self.kill()
