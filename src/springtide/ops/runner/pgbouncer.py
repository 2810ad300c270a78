"""One PgBouncer in front of a topology's clusters: installed on this machine, started here, transaction mode.

Its life is that of `served`. One that a killed supervisor left running is ended with its programs
(`leftovers`). `repoint` tells a running one where its servers are now: clients stay connected, and
connections to the old server are closed as soon as their transaction ends. Never runs as root.
"""

from __future__ import annotations

import asyncio
import re
import resource
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from springtide.errors import RunnerError
from springtide.ops.runner import access, pgdata
from springtide.ops.runner.certificates import verified
from springtide.ops.runner.cgroups import Cgroup
from springtide.ops.runner.installs import SHARED
from springtide.ops.runner.pooler_settings import USER, ini, upstream, userlist
from springtide.ops.runner.processes import Stage
from springtide.ops.runner.served import HOST, Configured, Program

__all__ = ["PROGRAM", "PgBouncer", "pgbouncer_version"]

PROGRAM = Program(
    kind="PgBouncer",
    package="pgbouncer",
    tried=("pgbouncer", "/usr/sbin/pgbouncer"),
    instead="give the pooler's node a url, or remove [poolers] from the topology",
)
TRACKS = (1, 21)
"""The first version that keeps clients' prepared statements over transactions."""

SHUTDOWN = (Stage(signal.SIGINT, 5.0), Stage(signal.SIGTERM, 3.0), Stage(signal.SIGKILL, 8.0))
"""Transactions end, then connections, then by force. (From 1.23 on the second waits for clients as well.)"""

SPARE_FILES = 100


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


class PgBouncer(Configured):
    """`urls` are the servers' by the name under which clients reach each. `port` None means a free one, kept
    over restarts. `query_wait` bounds the wait of a statement for one of `server_connections`.

    `tls`: clients must speak TLS and verify its certificate, `secrets/<name>.crt`.
    `prepared_statements` per server connection are kept for clients (PgBouncer 1.21 or newer); 0: none.
    """

    KIND, SERVICE, MARK, SHUTDOWN = "PgBouncer", "pgbouncer", "SPRINGTIDE_PROGRAM", SHUTDOWN

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
        super().__init__(
            name,
            home=home,
            platform=platform,
            port=port,
            start_timeout=start_timeout,
            shared=shared,
            cgroup=cgroup,
        )
        if not urls:
            raise ValueError("urls must name at least one server, got none")
        if query_wait <= 0:
            raise ValueError(f"query_wait must be > 0 seconds, got {query_wait}")
        self._urls = dict(urls)
        self._server_connections = server_connections
        self._max_clients = max_clients
        self._query_wait = query_wait
        self._prepared_statements = prepared_statements
        self._tls = tls
        self._program = ""
        self._sockets: Path | None = None

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

    async def _begin(self) -> None:
        await asyncio.to_thread(self._prepare)
        await self._launch()

    def _prepare(self) -> None:
        self._program = PROGRAM.find()
        version = pgbouncer_version(self._program)
        if self._prepared_statements and version < TRACKS:
            raise RunnerError(
                f"PgBouncer {version[0]}.{version[1]} does not track prepared statements, "
                f"{TRACKS[0]}.{TRACKS[1]} is the first: leave prepared_statements of {self.name}'s pooler "
                "at 0, or install a newer one"
            )
        super()._prepare()
        self._sockets = pgdata.socket_folder(self._folder, self._account)

    def _write(self) -> None:
        """Every file that PgBouncer reads, each replaced whole."""
        assert self._sockets is not None
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
            certificate, key = self._folder / "server.crt", self._folder / "server.key"
            access.copy_certificate(self.home / "secrets" / self.name, certificate, key, self._account)
        roots = {to.sslrootcert for to in databases.values() if to.sslrootcert is not None}
        for root in roots:
            self._replace("servers.crt", Path(root).read_text())
        self._replace("userlist.txt", userlist(self._password))
        self._replace("pgbouncer.ini", text)

    def _replace(self, file: str, text: str) -> None:
        access.replace(self._folder / file, text, self._account)

    def _command(self) -> list[str]:
        return [*self._allowing_files(), self._program, str(self._folder / "pgbouncer.ini")]

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

    async def _answers(self) -> bool:
        try:
            _, writer = await asyncio.open_connection(HOST, self.port)
        except OSError:
            return False
        writer.close()
        return True

    async def _clear(self) -> None:
        if self._sockets is not None:
            await asyncio.to_thread(pgdata.remove_socket_folder, self._folder, self._account)
