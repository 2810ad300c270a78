"""The embedded PostgreSQL server of one node: a real server, on this machine, for this platform only.

new -> starting -> running -> stopping -> stopped, by the lifecycle contract. A start makes the data folder
when there is none, adopts the server that a killed supervisor left running, or starts one and waits until
it accepts connections. A start that fails or is cancelled leaves no process and no half-made folder.
Never opens a folder with another major version, and never runs as root.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import ParamSpec, TypeVar
from urllib.parse import quote

from springtide.errors import RunnerError
from springtide.lifecycle import StartStop
from springtide.ops.runner import logs, pgdata, ports, processes
from springtide.ops.runner.accounts import Account, server_account
from springtide.ops.runner.cgroups import Cgroup
from springtide.ops.runner.installs import SHARED, Install, find_install, reachable_install
from springtide.ops.runner.processes import Process, Stage
from springtide.signals import Sink

__all__ = ["EmbeddedPostgres"]

P = ParamSpec("P")
T = TypeVar("T")

POLL = 0.02
"""How often postmaster.pid is read while a server starts: PostgreSQL tells its state nowhere else."""

SHUTDOWN = (Stage(signal.SIGINT, 20.0), Stage(signal.SIGQUIT, 8.0), Stage(signal.SIGKILL, 8.0))
"""Fast shutdown (clients disconnected), then immediate, then by force (the next start recovers)."""

LOG_LINES = 15


class EmbeddedPostgres:
    """`home` holds data/, secrets/, logs/ and run/; `port` None means a free one, kept over restarts.

    `durable=False` switches fsync off: for tests, where a crash of the machine may lose the data.
    """

    def __init__(
        self,
        name: str,
        *,
        home: Path,
        platform: str = "springtide",
        port: int | None = None,
        max_connections: int = 200,
        durable: bool = True,
        start_timeout: float = 60.0,
        shared: Path = SHARED,
        cgroup: Cgroup | None = None,
        sink: Sink | None = None,
    ) -> None:
        if not name or "/" in name or name.startswith("."):
            raise ValueError(f"name must be a plain file name, got {name!r}")
        if start_timeout <= 0:
            raise ValueError(f"start_timeout must be > 0 seconds, got {start_timeout}")
        self.name = name
        self.home = home.absolute()
        self.log = self.home / "logs" / f"{name}.log"
        self.adopted = False
        self._platform = platform
        self._wanted_port = port
        self._max_connections = max_connections
        self._durable = durable
        self._start_timeout = start_timeout
        self._shared = shared
        self._cgroup = cgroup
        self._port: int | None = None
        self._password = ""
        self._data: Path | None = None
        self._account: Account | None = None
        self._install: Install | None = None
        self._sockets: Path | None = None
        self._process: Process | None = None
        self._life = StartStop(f"postgres {name}", self._open, self._close, sink=sink)

    @property
    def state(self) -> str:
        return self._life.state

    @property
    def pid(self) -> int:
        """The postmaster's process id."""
        return self._running().pid

    @property
    def identity(self) -> processes.Identity:
        return self._running().identity

    @property
    def port(self) -> int:
        assert self._port is not None, "the server was not started"
        return self._port

    @property
    def address(self) -> str:
        """host:port, for people."""
        return f"127.0.0.1:{self.port}"

    @property
    def data(self) -> Path:
        """The real data folder."""
        assert self._data is not None, "the server was not started"
        return self._data

    @property
    def socket_folder(self) -> Path:
        assert self._sockets is not None, "the server was not started"
        return self._sockets

    def url(self, dbname: str = "postgres") -> str:
        user = f"{pgdata.SUPERUSER}:{quote(self._password, safe='')}"
        return f"postgresql://{user}@127.0.0.1:{self.port}/{quote(dbname, safe='')}"

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    async def wait(self) -> int | None:
        """Return when the server has ended, by itself or by `stop`."""
        return await self._running().wait()

    async def ensure_database(self, dbname: str) -> None:
        """Create `dbname` when it does not exist."""
        await self.query(
            "SELECT format('CREATE DATABASE %I', :'name')"
            " WHERE NOT EXISTS (SELECT 1 FROM pg_database WHERE datname = :'name') \\gexec\n",
            name=dbname,
        )

    async def query(
        self, sql: str, *, dbname: str = "postgres", timeout: float = 30.0, **variables: str
    ) -> str:
        """Run `sql` by psql, which keeps the supervisor small; `:'name'` inserts a variable, quoted."""
        assert self._install is not None, "the server was not started"
        command = [str(self._install.program("psql")), "-XAtq", "-v", "ON_ERROR_STOP=1"]
        for key, value in variables.items():
            command += ["-v", f"{key}={value}"]
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={
                "PGHOST": "127.0.0.1",
                "PGPORT": str(self.port),
                "PGUSER": pgdata.SUPERUSER,
                "PGPASSWORD": self._password,
                "PGDATABASE": dbname,
                "PGCONNECT_TIMEOUT": str(max(2, round(timeout))),
                "PGAPPNAME": "springtide-runner",
                "LC_ALL": "C",
            },
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(sql.encode()), timeout)
        except TimeoutError:
            raise RunnerError(f"PostgreSQL {self.name} did not answer within {timeout:g} s") from None
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if process.returncode != 0:
            said = err.decode(errors="replace").strip()
            if "password authentication failed" in said:
                said += f"\n{self._password_file} is not the password of the database in {self._data}"
            raise RunnerError(f"PostgreSQL {self.name}: {said}")
        return out.decode().strip()

    def _running(self) -> Process:
        if self._process is None:
            raise RunnerError(f"PostgreSQL {self.name} is not running: start it first")
        return self._process

    async def _open(self) -> None:
        try:
            made = await asyncio.to_thread(self._prepare)
            assert self._data is not None
            if not made:
                await self._initialise(self._data)
            if not await self._adopt(self._data):
                await self._launch(self._data)
        except OSError as error:
            raise pgdata.explain(error, f"start PostgreSQL {self.name}:") from error

    def _prepare(self) -> bool:
        """Find everything that a start needs; whether the data folder is made already."""
        for folder, mode in (("", 0o755), ("data", 0o755), ("secrets", 0o700), ("logs", 0o700)):
            path = self.home / folder
            if not path.is_dir():
                path.mkdir(parents=True)
                path.chmod(mode)
        account = server_account()
        data = pgdata.locate(
            self.home, self.name, platform=self._platform, account=account, shared=self._shared
        )
        if (data / "PG_VERSION").exists():
            account = pgdata.owner(data, account)
        elif data.exists() and any(data.iterdir()):
            raise RunnerError(f"{data} exists and is no PostgreSQL data folder: move it away")
        self._install = reachable_install(find_install(data), account, shared=self._shared)
        self._password = self._read_password(data)
        self._account, self._data = account, data
        pgdata.Staging.clear(data)
        return (data / "PG_VERSION").exists()

    @property
    def _password_file(self) -> Path:
        return self.home / "secrets" / f"{self.name}.password"

    def _read_password(self, data: Path) -> str:
        path = self._password_file
        if path.exists() and (password := path.read_text().strip()):
            return password
        if (data / "PG_VERSION").exists():
            raise RunnerError(f"{path} is missing, and the database in {data} needs it: restore that file")
        password = secrets.token_urlsafe(24)
        temporary = path.with_name(f".{path.name}")  # a full disk must not leave an empty password
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(password + "\n")
        temporary.replace(path)
        return password

    async def _initialise(self, data: Path) -> None:
        assert self._install is not None and self._account is not None
        try:
            staging = await _uncut(pgdata.Staging, data, self._account)
            initdb = self._install.program("initdb")
            arguments = await asyncio.to_thread(
                staging.arguments, initdb, self._password, durable=self._durable
            )
            begin = await asyncio.to_thread(self._log_size)
            status = await processes.run(
                arguments, log=self.log, env=self._environment(), account=self._account.switch
            )
            if status != 0:
                raise RunnerError(await self._failure("make its data folder", begin, status))
            await _uncut(staging.finish)
        finally:
            await asyncio.to_thread(pgdata.Staging.clear, data)

    async def _adopt(self, data: Path) -> bool:
        """Take over a running server of this folder; one that does not answer is stopped instead."""
        found = await asyncio.to_thread(pgdata.postmaster, data)
        if found is None:
            return False
        try:
            process = await asyncio.to_thread(Process, found.pid)
        except ProcessLookupError:
            return False
        self._port, self._sockets = found.port, Path(found.socket_folder)
        usable = self._wanted_port in (None, found.port) and found.status == "ready"
        if usable and not await asyncio.to_thread(processes.suspended, found.pid):
            try:
                await self.query("SELECT 1", timeout=5.0)
            except RunnerError:
                pass
            else:
                await self._limit(*await asyncio.to_thread(pgdata.servers, data))
                self._process, self.adopted = process, True
                return True
        if not await processes.stop(process, SHUTDOWN):
            raise RunnerError(f"PostgreSQL {self.name} (pid {found.pid}) neither answers nor ends")
        return False

    async def _launch(self, data: Path) -> None:
        assert self._install is not None and self._account is not None
        await asyncio.to_thread(pgdata.clear_stale, data)
        try:
            self._sockets = await _uncut(pgdata.socket_folder, data, self._account)
            await self._launch_on_a_port(data)
        except BaseException:
            await asyncio.to_thread(pgdata.remove_socket_folder, data, self._account)
            raise

    async def _launch_on_a_port(self, data: Path) -> None:
        assert self._account is not None
        text = pgdata.settings_file(max_connections=self._max_connections, durable=self._durable)
        await asyncio.to_thread(pgdata.write_settings, data, text, self._account)
        begin = await asyncio.to_thread(self._log_size)
        for attempt in range(3):
            port = self._wanted_port or self._port if attempt == 0 else None
            self._port = port or _free_port()
            try:
                await self._launch_once(data, begin)
                return
            except _PortTaken:
                if self._wanted_port is not None:
                    break
                self._port = None  # between choosing and binding somebody else took it: choose again
        by = await asyncio.to_thread(ports.holder, self._wanted_port or 0)
        raise RunnerError(
            f"port {self._wanted_port} of node {self.name} is taken{f' by {by}' if by else ''}: choose "
            f"another with nodes.{self.name}.port, or leave it out for a free one"
        )

    async def _launch_once(self, data: Path, begin: int) -> None:
        assert self._install is not None and self._account is not None
        process = await processes.spawn(
            [
                str(self._install.program("postgres")),
                "-D",
                str(data),
                "-c",
                f"port={self._port}",
                "-c",
                f"unix_socket_directories={self._sockets}",
            ],
            log=self.log,
            env=self._environment(),
            account=self._account.switch,
        )
        try:
            await self._limit(process.pid)
            await asyncio.wait_for(self._ready(process, data, begin), self._start_timeout)
            await self._limit(*await asyncio.to_thread(pgdata.servers, data))  # those it started meanwhile
        except BaseException as error:
            await processes.stop(process, SHUTDOWN[1:])
            await asyncio.to_thread(pgdata.clear_stale, data)
            if isinstance(error, TimeoutError):
                what = f"be ready within {self._start_timeout:g} s"
                raise RunnerError(await self._failure(what, begin, None)) from None
            raise
        self._process, self.adopted = process, False

    async def _limit(self, *pids: int) -> None:
        if self._cgroup is not None:
            for pid in pids:
                await asyncio.to_thread(self._cgroup.add, pid)

    async def _ready(self, process: Process, data: Path, begin: int) -> None:
        ending = asyncio.ensure_future(process.wait())
        try:
            while True:
                done, _ = await asyncio.wait([ending], timeout=POLL)
                if done:
                    message = await self._failure("start", begin, ending.result())
                    if "could not bind" in message and "in use" in message:
                        raise _PortTaken(message)
                    raise RunnerError(message)
                found = await asyncio.to_thread(pgdata.postmaster, data)
                if found is not None and found.pid == process.pid and found.status == "ready":
                    return
        finally:
            ending.cancel()
            await asyncio.wait([ending])

    async def _close(self) -> None:
        process, self._process = self._process, None
        try:
            if process is not None and not await processes.stop(process, SHUTDOWN):
                raise RunnerError(f"PostgreSQL {self.name} (pid {process.pid}) does not end")
        finally:
            if self._data is not None:
                await asyncio.to_thread(pgdata.clear_stale, self._data)
                if self._account is not None:
                    await asyncio.to_thread(pgdata.remove_socket_folder, self._data, self._account)

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC", "HOME": "/"}

    def _log_size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0

    async def _failure(self, what: str, begin: int, status: int | None) -> str:
        """A sentence with the last lines that this start wrote to the log, and with what to do if known."""

        text = await asyncio.to_thread(logs.tail, self.log, LOG_LINES, begin=begin)
        ended = "" if status is None else f" (exit status {status})"
        message = f"PostgreSQL {self.name} could not {what}{ended}"
        if "No space left on device" in text:
            message += f": the disk of {self._data} is full, free some space"
        elif "Read-only file system" in text:
            message += f": {self._data} is on a file system that is mounted read-only"
        return f"{message}\n{text}"


async def _uncut(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """`function` in a thread; a cancelled caller waits for it, so that what it made can be undone."""
    running = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait([running])
        raise


class _PortTaken(Exception):
    """The server's port was in use when it tried to bind it."""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
