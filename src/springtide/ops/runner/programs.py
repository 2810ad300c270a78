"""What the supervisor runs: a `Program` is one node's process behind start, stop, wait.

Three kinds exist: `EmbeddedPostgres`, `BesideProgram` for what the topology lists under programs, and, here,
`PythonProgram` for app servers and workers. That child says that it is ready by writing a byte into a pipe
which it inherited. To end, or not to be ready in time, is a failed start of either.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from springtide.errors import ProcessCrashed, RunnerError
from springtide.ops.runner import logs, processes
from springtide.ops.runner.cgroups import Cgroup
from springtide.ops.runner.processes import Identity, Process, Stage

__all__ = ["Program", "PythonProgram", "SpawnedProgram"]


class Program(Protocol):
    """The process of one node. After the process ended by itself: `stop`, then `start` starts a new one."""

    @property
    def name(self) -> str:
        """The node's name."""

    @property
    def log(self) -> Path:
        """Where its output goes."""

    @property
    def identity(self) -> Identity:
        """The process that runs now."""

    @property
    def address(self) -> str | None:
        """host:port for people; None when nobody connects to it."""

    async def start(self) -> None:
        """Return when it is ready; raise RunnerError, with nothing left running, when it cannot be."""

    async def stop(self) -> None:
        """Return when nothing of it is left."""

    async def wait(self) -> int | None:
        """Return when the process has ended: its exit status, None if it is not known."""


class SpawnedProgram(ABC):
    """A command in the topology's folder; how its readiness is seen is the subclass's.

    `drain` is how long it may finish what it does after SIGTERM before it is killed.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        folder: Path,
        env: Mapping[str, str],
        address: str | None = None,
        start_timeout: float = 60.0,
        drain: float = 10.0,
        cgroup: Cgroup | None = None,
    ) -> None:
        if start_timeout <= 0 or drain <= 0:
            raise ValueError(f"start_timeout and drain must be > 0 seconds, got {start_timeout} and {drain}")
        self.name = name
        self.log = log
        self.address = address
        self._command = list(command)
        self._folder = folder
        self._env = {**env, "SPRINGTIDE_NODE": name}
        self._start_timeout = start_timeout
        self._drain = drain
        self._cgroup = cgroup
        self._process: Process | None = None

    @property
    def identity(self) -> Identity:
        return self._running().identity

    @abstractmethod
    async def start(self) -> None:
        """Return when it is ready; raise RunnerError, with nothing left running, when it cannot be."""

    @abstractmethod
    async def _is_ready(self, process: Process) -> bool:
        """Return True when it is ready, False when it will never be: it has ended or is about to."""

    async def _launch(self, arguments: Sequence[str] = (), pass_fds: Sequence[int] = ()) -> None:
        """Spawn the command with `arguments` added, and return when it is ready."""
        begin = await asyncio.to_thread(lambda: self.log.stat().st_size if self.log.exists() else 0)
        process = await processes.spawn(
            [*self._command, *arguments],
            log=self.log,
            env=self._env,
            cwd=self._folder,
            pass_fds=pass_fds,
        )
        try:
            if self._cgroup is not None:
                await asyncio.to_thread(self._cgroup.add, process.pid)
            await self._become_ready(process, begin)
        except BaseException:
            await self._end(process, (Stage(signal.SIGKILL, 5.0),))
            raise
        self._process = process

    async def _become_ready(self, process: Process, begin: int) -> None:
        try:
            async with asyncio.timeout(self._start_timeout):
                ready = await self._is_ready(process)
        except TimeoutError:
            what = f"was not ready within {self._start_timeout:g} s"
            raise RunnerError(await self._failure(what, begin)) from None
        if not ready:
            try:
                async with asyncio.timeout(10.0):
                    status = await process.wait()
            except TimeoutError:  # a thread that the application started keeps it alive
                raise RunnerError(await self._failure("gave up its start and does not end", begin)) from None
            raise ProcessCrashed(await self._failure(f"ended at once (exit status {status})", begin))

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await self._end(process, (Stage(signal.SIGTERM, self._drain + 2.0), Stage(signal.SIGKILL, 5.0)))

    async def wait(self) -> int | None:
        return await self._running().wait()

    def _running(self) -> Process:
        if self._process is None:
            raise RunnerError(f"{self.name} is not running")
        return self._process

    async def _end(self, process: Process, stages: Sequence[Stage]) -> None:
        ended = await processes.stop(process, stages)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # what it started and left: same session, so ours
        if not ended:
            raise RunnerError(f"{self.name} (process {process.pid}) does not end, not even when killed")

    async def _failure(self, what: str, begin: int) -> str:
        return f"{self.name} {what}\n{await asyncio.to_thread(logs.tail, self.log, 15, begin=begin)}"


class PythonProgram(SpawnedProgram):
    """`python -m <module> <arguments> --ready-fd N`."""

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        *,
        log: Path,
        folder: Path,
        env: Mapping[str, str],
        address: str | None = None,
        pass_fds: Sequence[int] = (),
        start_timeout: float = 60.0,
        drain: float = 10.0,
        cgroup: Cgroup | None = None,
    ) -> None:
        super().__init__(
            name,
            [sys.executable, "-P", "-m", module, *arguments],
            log=log,
            folder=folder,
            env=env,
            address=address,
            start_timeout=start_timeout,
            drain=drain,
            cgroup=cgroup,
        )
        self._pass_fds = tuple(pass_fds)
        self._reader = self._writer = -1

    async def start(self) -> None:
        self._reader, self._writer = os.pipe()
        try:
            await self._launch(["--ready-fd", str(self._writer)], (*self._pass_fds, self._writer))
        finally:
            os.close(self._reader)
            self._close_writer()

    async def _is_ready(self, process: Process) -> bool:
        self._close_writer()  # the child's copy alone keeps the pipe open now, so that its end is seen
        return bool(await _read_byte(self._reader))

    def _close_writer(self) -> None:
        writer, self._writer = self._writer, -1
        if writer >= 0:
            os.close(writer)


async def _read_byte(descriptor: int) -> bytes:
    """One byte, or b"" when every writer has closed the pipe."""
    loop = asyncio.get_running_loop()
    readable: asyncio.Future[None] = loop.create_future()
    loop.add_reader(descriptor, lambda: None if readable.done() else readable.set_result(None))
    try:
        await readable
    finally:
        loop.remove_reader(descriptor)
    os.set_blocking(descriptor, False)
    return os.read(descriptor, 1)
