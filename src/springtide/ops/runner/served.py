"""What the supervised servers have in common: one process of this machine that answers on a port of it.

    Served       life, process, port: PostgreSQL
    Configured   its files are written anew at every start, in a folder of its own: PgBouncer
    Watched      asked again and again; one that stays silent is replaced: Redis, RabbitMQ, NATS

new -> starting -> running -> stopping -> stopped, by the lifecycle contract. A start that fails or is
cancelled leaves no process. A port is asked for, or any free one, which is kept over restarts.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from springtide.errors import ProcessCrashed, RunnerError
from springtide.lifecycle import StartStop
from springtide.ops.runner import logs, pgdata, ports, processes
from springtide.ops.runner.accounts import Account, server_account
from springtide.ops.runner.cgroups import Cgroup
from springtide.ops.runner.home import Home
from springtide.ops.runner.processes import Process, Stage
from springtide.signals import Sink

__all__ = ["HOST", "Configured", "Program", "Served", "Watched"]

_log = logging.getLogger(__name__)

HOST = "127.0.0.1"

KILL = (Stage(signal.SIGKILL, 8.0),)

ASK_EVERY = 0.02
LOG_LINES = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A server that this machine has or has not. `tried`: names and places, in order; `instead`: what its
    node's owner may do but install `package`."""

    kind: str
    package: str
    tried: tuple[str, ...]
    instead: str

    def find(self) -> str:
        """Its path. Raises RunnerError when it is not installed."""
        for name in self.tried:
            if (found := shutil.which(name)) is not None:
                return found
        raise RunnerError(
            f"{self.kind} is not installed: `apt-get install {self.package}` (or `make servers`), "
            f"{self.instead}"
        )


class Served(ABC):
    """See the module. `port` None means a free one.

    KIND: how people call it. SERVICE: how signals do. SHUTDOWN: how it is ended, in order first.
    """

    KIND: ClassVar[str]
    SERVICE: ClassVar[str]
    SHUTDOWN: ClassVar[Sequence[Stage]]

    def __init__(
        self,
        name: str,
        *,
        home: Path,
        platform: str,
        port: int | None,
        start_timeout: float,
        shared: Path,
        cgroup: Cgroup | None,
        sink: Sink | None = None,
    ) -> None:
        if not name or "/" in name or name.startswith("."):
            raise ValueError(f"name must be a plain file name, got {name!r}")
        if start_timeout <= 0:
            raise ValueError(f"start_timeout must be > 0 seconds, got {start_timeout}")
        self.name = name
        self.home = home.absolute()
        self.log = self.home / "logs" / f"{name}.log"
        self._platform = platform
        self._wanted_port = port
        self._start_timeout = start_timeout
        self._shared = shared
        self._cgroup = cgroup
        self._port: int | None = None
        self._process: Process | None = None
        self._life = StartStop(f"{self.SERVICE} {name}", self._open, self._close, sink=sink)

    @property
    def state(self) -> str:
        return self._life.state

    @property
    def identity(self) -> processes.Identity:
        return self._running().identity

    @property
    def pid(self) -> int:
        """The process id; of several, of the one that started the others."""
        return self._running().pid

    @property
    def port(self) -> int:
        assert self._port is not None, "the server was not started"
        return self._port

    @property
    def address(self) -> str:
        """host:port, for people."""
        return f"{HOST}:{self.port}"

    @property
    def known(self) -> bool:
        """Whether it was started once, so that it has an address."""
        return self._port is not None

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    async def wait(self) -> int | None:
        """Return when the process has ended, by itself or by `stop`: its exit status, None if it is not
        known."""
        return await self._running().wait()

    @abstractmethod
    async def _begin(self) -> None:
        """Return when it answers, with `_process` and `_port` set."""

    @abstractmethod
    async def _clear(self) -> None:
        """Remove what a process that has ended leaves behind."""

    def _running(self) -> Process:
        if self._process is None:
            raise RunnerError(f"{self.KIND} {self.name} is not running: start it first")
        return self._process

    async def _open(self) -> None:
        try:
            await self._begin()
        except OSError as error:
            raise pgdata.explain(error, f"start {self.KIND} {self.name}:") from error

    async def _close(self) -> None:
        process, self._process = self._process, None
        try:
            if process is not None and not await processes.stop(process, self.SHUTDOWN):
                raise RunnerError(f"{self.KIND} {self.name} (pid {process.pid}) does not end")
        finally:
            await self._clear()

    async def _limit(self, *pids: int) -> None:
        if self._cgroup is not None:
            for pid in pids:
                await asyncio.to_thread(self._cgroup.add, pid)


class Configured(Served):
    """A program that is installed on this machine. It reads files that are written anew at every start, 0600,
    of the account it runs as, in a folder of its own, so nothing that an earlier one left matters.

    MARK: the variable of its environment by which, beside SPRINGTIDE_HOME, a later start knows it.
    """

    MARK: ClassVar[str]

    _kept: Home
    _account: Account
    _folder: Path
    _password: str
    """Known from `_prepare` on."""

    def _prepare(self) -> None:
        """Find and make what a start needs."""
        for part, mode in (("data", 0o755), ("secrets", 0o700), ("logs", 0o700)):
            (self.home / part).mkdir(mode=mode, parents=True, exist_ok=True)
        self._kept = Home(self.home)
        self._password = self._kept.password(self.name)
        self._account = server_account()
        self._folder = pgdata.locate(
            self.home, self.name, platform=self._platform, account=self._account, shared=self._shared
        )
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._account.own(self._folder)

    @abstractmethod
    def _write(self) -> None:
        """Write the files that it reads; its port is chosen."""

    @abstractmethod
    def _command(self) -> list[str]:
        """What is run."""

    def _variables(self) -> dict[str, str]:
        """What it finds in its environment, beside what all have."""
        return {}

    @abstractmethod
    async def _answers(self) -> bool:
        """Whether it is ready."""

    async def _launch(self) -> None:
        await self._choose_port()
        await asyncio.to_thread(self._write)
        begin = await asyncio.to_thread(lambda: self.log.stat().st_size if self.log.exists() else 0)
        process = await processes.spawn(
            self._command(),
            log=self.log,
            env={
                "PATH": os.defpath,
                "LC_ALL": "C",
                "TZ": "UTC",
                "SPRINGTIDE_HOME": str(self._kept.path),
                self.MARK: self.name,
                **self._variables(),
            },
            account=self._account.switch,
        )
        try:
            await self._limit(process.pid)
            async with asyncio.timeout(self._start_timeout):
                await self._ready(process, begin)
        except TimeoutError:
            await processes.stop(process, KILL)
            what = f"answer on {self.address} within {self._start_timeout:g} s"
            raise RunnerError(await self._failure(what, begin)) from None
        except BaseException:
            await processes.stop(process, KILL)
            raise
        self._process = process

    async def _choose_port(self) -> None:
        port = self._wanted_port or self._port
        if (
            port is not None
            and self._wanted_port is None
            and not await asyncio.to_thread(ports.is_free, port)
        ):
            port = None  # somebody took it meanwhile, and a free one was asked for
        remedy = f"choose another with nodes.{self.name}.port, or leave it out for a free one"
        bound = await asyncio.to_thread(ports.bind, HOST, port or 0, remedy=remedy)
        self._port = bound.getsockname()[1]
        bound.close()

    async def _ready(self, process: Process, begin: int) -> None:
        ending = asyncio.ensure_future(process.wait())
        try:
            while not await self._answers():
                if (await asyncio.wait([ending], timeout=ASK_EVERY))[0]:
                    raise ProcessCrashed(await self._failure("start", begin))
        finally:
            ending.cancel()
            await asyncio.wait([ending])

    async def _failure(self, what: str, begin: int) -> str:
        text = await asyncio.to_thread(logs.tail, self.log, LOG_LINES, begin=begin)
        return f"{self.KIND} {self.name} could not {what}\n{text}"


class Watched(Configured):
    """One that does not answer `SILENT` looks in a row (frozen, swapped out, hung) is killed, so that its
    watch starts another. LOOK_EVERY: seconds between two looks."""

    LOOK_EVERY: ClassVar[float]
    SILENT: ClassVar[int]

    async def wait(self) -> int | None:
        """Return when the process has ended: its exit status, None when it was taken over.

        One that stays silent is killed meanwhile.
        """
        process, silent = self._running(), 0
        ending = asyncio.ensure_future(process.wait())
        try:
            while not (await asyncio.wait([ending], timeout=self.LOOK_EVERY))[0]:
                silent = 0 if await self._answers() else silent + 1
                if silent == self.SILENT:
                    _log.error("%s does not answer: it is killed, and another one started", self.name)
                    process.send(signal.SIGKILL)
            return ending.result()
        finally:
            ending.cancel()
            await asyncio.wait([ending])
