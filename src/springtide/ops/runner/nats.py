"""One NATS server with JetStream: installed on this machine, started here, watched; its streams are kept.

Its life is that of `served`. It is ready when JetStream answers, not when its port does. One that a killed
supervisor left is ended first: its streams are on disk. Listens on 127.0.0.1, never runs as root.
"""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import subprocess
from pathlib import Path
from urllib.parse import quote

from springtide.errors import RunnerError
from springtide.ops.runner import access
from springtide.ops.runner.cgroups import Cgroup
from springtide.ops.runner.installs import SHARED
from springtide.ops.runner.leftovers import end_broker
from springtide.ops.runner.nats_settings import DEFAULT_BYTES, SYSTEM, USER, conf
from springtide.ops.runner.nats_talk import NatsRefused, ask
from springtide.ops.runner.processes import Stage
from springtide.ops.runner.served import HOST, Program, Watched

__all__ = ["PROGRAM", "NatsServer"]

_log = logging.getLogger(__name__)

PROGRAM = Program(
    kind="NATS",
    package="nats-server",
    tried=("nats-server", "/usr/sbin/nats-server"),
    instead="give the node a url, or take the node out of the topology",
)

SHUTDOWN = (Stage(signal.SIGTERM, 10.0), Stage(signal.SIGKILL, 8.0))

ANSWER_WITHIN = 3.0
STREAMS = "$JS.API.INFO"


class NatsServer(Watched):
    """`port` None means a free one, kept over restarts. `go_bytes`: what its heap is kept below.

    `tls`: clients must speak TLS and verify its certificate, `secrets/<name>.crt`.
    """

    KIND, SERVICE, MARK, SHUTDOWN = "NATS", "nats", "SPRINGTIDE_BROKER", SHUTDOWN
    LOOK_EVERY, SILENT = 5.0, 6

    def __init__(
        self,
        name: str,
        *,
        home: Path,
        platform: str = "springtide",
        port: int | None = None,
        go_bytes: int = DEFAULT_BYTES,
        tls: bool = False,
        start_timeout: float = 60.0,
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
        if go_bytes <= 0:
            raise ValueError(f"go_bytes must be > 0, got {go_bytes}")
        self._go_bytes = go_bytes
        self._tls = tls
        self._program = ""
        self._version = (0, 0)
        self._system_password = ""

    def url(self) -> str:
        """Where clients reach it, the password included."""
        return self._url(USER, self._password)

    def system_url(self) -> str:
        """Where the runner asks what the server says of itself."""
        return self._url(SYSTEM, self._system_password)

    async def reload(self) -> None:
        """Have it read its certificate again, after that was renewed."""
        if self._process is None or not self._tls:
            return
        try:
            await asyncio.to_thread(self._write)
            self._process.send(signal.SIGHUP)
        except (OSError, RunnerError) as error:
            _log.error("%s goes on with its old certificate: %s", self.name, error)

    async def _begin(self) -> None:
        await asyncio.to_thread(self._prepare)
        await end_broker(self._kept, self.name, SHUTDOWN)
        await self._launch()

    def _prepare(self) -> None:
        self._program = PROGRAM.find()
        self._version = _version(self._program)
        super()._prepare()
        self._system_password = self._kept.password(f"{self.name}.system")

    def _write(self) -> None:
        if self._tls:
            kept, folder = self.home / "secrets" / self.name, self._folder
            access.copy_certificate(kept, folder / "server.crt", folder / "server.key", self._account)
        text = conf(
            name=self.name,
            port=self.port,
            password=self._password,
            system_password=self._system_password,
            folder=self._folder,
            version=self._version,
            tls=self._tls,
        )
        access.replace(self._file, text, self._account)

    def _command(self) -> list[str]:
        return [self._program, "--config", str(self._file)]

    def _variables(self) -> dict[str, str]:
        return {"GOMEMLIMIT": str(self._go_bytes)}

    async def _answers(self) -> bool:
        """Whether JetStream answers."""
        try:
            (answer,) = await asyncio.to_thread(ask, self.url(), STREAMS, timeout=ANSWER_WITHIN)
        except (OSError, NatsRefused):
            return False
        return '"error"' not in answer

    async def _clear(self) -> None:
        """Its settings are written anew by the next start; its streams stay."""

    @property
    def _file(self) -> Path:
        return self._folder / "nats.conf"

    def _url(self, user: str, password: str) -> str:
        address = f"{user}:{quote(password, safe='')}@{HOST}:{self.port}"
        if not self._tls:
            return f"nats://{address}"
        root = quote(str(self.home / "secrets" / access.AUTHORITY), safe="/")
        return f"tls://{address}?ssl_ca_certs={root}"


def _version(program: str) -> tuple[int, int]:
    """(2, 9) for v2.9.10. Raises RunnerError when it does not say."""
    try:
        done = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=30, check=False)
    except OSError as error:
        raise RunnerError(f"cannot start {program}: {error.strerror}") from error
    found = re.search(r"v(\d+)\.(\d+)", done.stdout)
    if found is None:
        raise RunnerError(f"{program} --version does not say which NATS it is: {done.stdout[:80]!r}")
    return int(found[1]), int(found[2])
