"""One PgBouncer in front of a topology's clusters: installed on this machine, started here, transaction mode.

new -> starting -> running -> stopping -> stopped, by the lifecycle contract. A start writes its files anew
(0600, of the account it runs as, in a folder of its own), so nothing that an earlier one left matters; one
that a killed supervisor left running is ended with its programs (`leftovers`). `repoint` tells a running one
where its servers are now: clients stay connected, and connections to the old server are closed as soon as
their transaction ends. Never runs as root.
"""

from __future__ import annotations

import asyncio
import os
import re
import resource
import secrets
import shutil
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from springtide.errors import ProcessCrashed, RunnerError
from springtide.lifecycle import StartStop
from springtide.ops.runner import access, logs, pgdata, ports, processes
from springtide.ops.runner.accounts import Account, server_account
from springtide.ops.runner.certificates import verified
from springtide.ops.runner.cgroups import Cgroup
from springtide.ops.runner.home import Home
from springtide.ops.runner.installs import SHARED
from springtide.ops.runner.pooler_settings import USER, ini, upstream, userlist
from springtide.ops.runner.processes import Process, Stage

__all__ = ["PgBouncer", "find_pgbouncer", "pgbouncer_version"]

HOST = "127.0.0.1"
DEBIAN = "/usr/sbin/pgbouncer"
TRACKS = (1, 21)
"""The first version that keeps clients' prepared statements over transactions."""

SHUTDOWN = (Stage(signal.SIGINT, 5.0), Stage(signal.SIGTERM, 3.0), Stage(signal.SIGKILL, 8.0))
"""Transactions end, then connections, then by force. (From 1.23 on the second waits for clients as well.)"""

SPARE_FILES = 100
ASK_EVERY = 0.02
LOG_LINES = 15


def find_pgbouncer() -> str:
    """The program. Raises RunnerError when it is not installed."""
    found = shutil.which("pgbouncer") or (DEBIAN if Path(DEBIAN).exists() else None)
    if found is None:
        raise RunnerError(
            "PgBouncer is not installed: `apt-get install pgbouncer` (or `make servers`), give the pooler's "
            "node a url, or remove [poolers] from the topology"
        )
    return found


def pgbouncer_version(program: str) -> tuple[int, int]:
    """(1, 18) for PgBouncer 1.18.0. Raises RunnerError when it does not say."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except OSError as error:
        raise RunnerError(f"cannot start {program}: {error.strerror}") from error
    found = re.match(r"PgBouncer (\d+)\.(\d+)", done.stdout)
    if found is None:
        raise RunnerError(f"{program} --version does not say which PgBouncer it is: {done.stdout[:80]!r}")
    return int(found[1]), int(found[2])


class PgBouncer:
    """`urls` are the servers' by the name under which clients reach each. `port` None means a free one, kept
    over restarts. `query_wait` bounds the wait of a statement for one of `server_connections`.

    `tls`: clients must speak TLS and verify its certificate, `secrets/<name>.crt`.
    `prepared_statements` per server connection are kept for clients (PgBouncer 1.21 or newer); 0: none.
    """

    def __init__(
        self,
        name: str,
        urls: Mapping[str, str],
        *,
        home: Path,
        platform: str = "springtide",
        port: int | None = None,
        server_connections: int = 50,
        max_clients: int = 1000,
        query_wait: float = 30.0,
        prepared_statements: int = 0,
        tls: bool = False,
        start_timeout: float = 30.0,
        shared: Path = SHARED,
        cgroup: Cgroup | None = None,
    ) -> None:
        if not name or "/" in name or name.startswith("."):
            raise ValueError(f"name must be a plain file name, got {name!r}")
        if not urls:
            raise ValueError("urls must name at least one server, got none")
        for option, seconds in (("query_wait", query_wait), ("start_timeout", start_timeout)):
            if seconds <= 0:
                raise ValueError(f"{option} must be > 0 seconds, got {seconds}")
        self.name = name
        self.home = home.absolute()
        self.log = self.home / "logs" / f"{name}.log"
        self._urls = dict(urls)
        self._platform = platform
        self._wanted_port = port
        self._server_connections = server_connections
        self._max_clients = max_clients
        self._query_wait = query_wait
        self._prepared_statements = prepared_statements
        self._tls = tls
        self._start_timeout = start_timeout
        self._shared = shared
        self._cgroup = cgroup
        self._port: int | None = None
        self._password = ""
        self._mark = ""
        self._program = ""
        self._account: Account | None = None
        self._folder: Path | None = None
        self._sockets: Path | None = None
        self._process: Process | None = None
        self._life = StartStop(f"pgbouncer {name}", self._open, self._close)

    @property
    def state(self) -> str:
        return self._life.state

    @property
    def identity(self) -> processes.Identity:
        return self._running().identity

    @property
    def pid(self) -> int:
        return self._running().pid

    @property
    def port(self) -> int:
        assert self._port is not None, "the pooler was not started"
        return self._port

    @property
    def address(self) -> str:
        """host:port, for people."""
        return f"{HOST}:{self.port}"

    @property
    def known(self) -> bool:
        """Whether it was started once, so that it has an address."""
        return self._port is not None

    @property
    def socket_folder(self) -> Path:
        """Where the account it runs as connects to the console, as user `pgbouncer`, database `pgbouncer`."""
        assert self._sockets is not None, "the pooler was not started"
        return self._sockets

    def url(self, name: str = "") -> str:
        """Where clients reach the server called `name`; without one, the url to which they add it."""
        user = f"{USER}:{quote(self._password, safe='')}"
        proof = f"?{verified(self.home / 'secrets')}" if self._tls else ""
        return f"postgresql://{user}@{HOST}:{self.port}/{quote(name, safe='')}{proof}"

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    async def wait(self) -> int | None:
        """Return when the process has ended: its exit status."""
        return await self._running().wait()

    def repoint(self, urls: Mapping[str, str]) -> None:
        """The servers are at `urls` now; one that does not run is told at its next start.

        Raises RunnerError when the files cannot be written: then it goes on with the servers it knows.
        """
        if dict(urls) == self._urls:
            return
        before, self._urls = self._urls, dict(urls)
        if self._process is None:
            return
        try:
            self.reload()
        except OSError as error:
            self._urls = before
            raise pgdata.explain(error, f"tell PgBouncer {self.name} where its servers are:") from error

    def reload(self) -> None:
        """Have it read its files again: addresses, and its certificate after it was renewed."""
        if self._process is not None:
            self._write()
            self._process.send(signal.SIGHUP)

    def _running(self) -> Process:
        if self._process is None:
            raise RunnerError(f"PgBouncer {self.name} is not running: start it first")
        return self._process

    async def _open(self) -> None:
        try:
            await asyncio.to_thread(self._prepare)
            await self._launch()
        except OSError as error:
            raise pgdata.explain(error, f"start PgBouncer {self.name}:") from error

    def _prepare(self) -> None:
        self._program = find_pgbouncer()
        version = pgbouncer_version(self._program)
        if self._prepared_statements and version < TRACKS:
            raise RunnerError(
                f"PgBouncer {version[0]}.{version[1]} does not track prepared statements, "
                f"{TRACKS[0]}.{TRACKS[1]} is the first: leave prepared_statements of {self.name}'s pooler "
                "at 0, or install a newer one"
            )
        for part, mode in (("data", 0o755), ("secrets", 0o700), ("logs", 0o700)):
            (self.home / part).mkdir(mode=mode, parents=True, exist_ok=True)
        home = Home(self.home)
        self._password, self._mark = home.password(self.name), str(home.path)
        account = server_account()
        folder = pgdata.locate(
            self.home, self.name, platform=self._platform, account=account, shared=self._shared
        )
        folder.mkdir(mode=0o700, exist_ok=True)
        account.own(folder)
        self._account, self._folder = account, folder
        self._sockets = pgdata.socket_folder(folder, account)

    def _write(self) -> None:
        """Every file that PgBouncer reads, each replaced whole."""
        assert self._folder is not None and self._sockets is not None
        databases = {name: upstream(url) for name, url in self._urls.items()}
        text = ini(
            databases,
            port=self.port,
            folder=self._folder,
            sockets=self._sockets,
            server_connections=self._server_connections,
            max_clients=self._max_clients,
            query_wait=self._query_wait,
            prepared_statements=self._prepared_statements,
            tls=self._tls,
        )
        if self._tls:
            assert self._account is not None
            certificate, key = self._folder / "server.crt", self._folder / "server.key"
            access.copy_certificate(self.home / "secrets" / self.name, certificate, key, self._account)
        roots = {to.sslrootcert for to in databases.values() if to.sslrootcert is not None}
        for root in roots:
            self._replace("servers.crt", Path(root).read_text())
        self._replace("userlist.txt", userlist(self._password))
        self._replace("pgbouncer.ini", text)

    def _replace(self, file: str, text: str) -> None:
        assert self._folder is not None and self._account is not None
        temporary = self._folder / f".{file}.{secrets.token_hex(4)}"
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w") as out:
                out.write(text)
            self._account.own(temporary)
            temporary.replace(self._folder / file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    async def _launch(self) -> None:
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
        await asyncio.to_thread(self._write)
        begin = await asyncio.to_thread(lambda: self.log.stat().st_size if self.log.exists() else 0)
        assert self._folder is not None and self._account is not None
        process = await processes.spawn(
            [*self._allowing_files(), self._program, str(self._folder / "pgbouncer.ini")],
            log=self.log,
            env={
                "PATH": os.defpath,
                "LC_ALL": "C",
                "TZ": "UTC",
                "SPRINGTIDE_HOME": self._mark,  # by these two a later start knows it
                "SPRINGTIDE_PROGRAM": self.name,
            },
            account=self._account.switch,
        )
        try:
            if self._cgroup is not None:
                await asyncio.to_thread(self._cgroup.add, process.pid)
            async with asyncio.timeout(self._start_timeout):
                await self._ready(process, begin)
        except TimeoutError:
            await processes.stop(process, SHUTDOWN[2:])
            what = f"answer on {self.address} within {self._start_timeout:g} s"
            raise RunnerError(await self._failure(what, begin)) from None
        except BaseException:
            await processes.stop(process, SHUTDOWN[2:])
            raise
        self._process = process

    def _allowing_files(self) -> list[str]:
        """The command before the program's: each client and each server connection is an open file."""
        needed = self._max_clients + self._server_connections * len(self._urls) + SPARE_FILES
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if soft == resource.RLIM_INFINITY or soft >= needed:
            return []
        if hard != resource.RLIM_INFINITY and hard < needed:
            raise RunnerError(
                f"PgBouncer {self.name} needs {needed} open files for max_clients {self._max_clients}, and "
                f"{hard} are allowed: raise the limit (ulimit -Hn), or lower its pooler's max_clients"
            )
        return ["/bin/sh", "-c", f'ulimit -n {needed} && exec "$@"', "sh"]

    async def _ready(self, process: Process, begin: int) -> None:
        ending = asyncio.ensure_future(process.wait())
        try:
            while True:
                done, _ = await asyncio.wait([ending], timeout=ASK_EVERY)
                if done:
                    raise ProcessCrashed(await self._failure("start", begin))
                with suppress(OSError):
                    _, writer = await asyncio.open_connection(HOST, self.port)
                    writer.close()
                    return
        finally:
            ending.cancel()
            await asyncio.wait([ending])

    async def _failure(self, what: str, begin: int) -> str:
        text = await asyncio.to_thread(logs.tail, self.log, LOG_LINES, begin=begin)
        return f"PgBouncer {self.name} could not {what}\n{text}"

    async def _close(self) -> None:
        process, self._process = self._process, None
        try:
            if process is not None and not await processes.stop(process, SHUTDOWN):
                raise RunnerError(f"PgBouncer {self.name} (pid {process.pid}) does not end")
        finally:
            if self._folder is not None and self._account is not None:
                await asyncio.to_thread(pgdata.remove_socket_folder, self._folder, self._account)
