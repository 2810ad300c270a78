"""One RabbitMQ: installed on this machine, started here, watched; its queues are kept.

Its life is that of `served`. It is ready when it begins to speak AMQP, which is after its queues were read
again. One that a killed supervisor left is ended first: two must not have its data open. Listens on
127.0.0.1, never runs as root, has no guest account.

Erlang's name server is a child of the server, in the foreground, on a port of its own, and the kernel ends it
with the server however that ends: none lingers, and the machine's own is not used.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import signal
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import quote

from springtide.errors import RunnerError
from springtide.ops.runner import access, ports
from springtide.ops.runner.cgroups import Cgroup
from springtide.ops.runner.installs import SHARED
from springtide.ops.runner.leftovers import end_broker
from springtide.ops.runner.processes import Stage
from springtide.ops.runner.rabbitmq_settings import (
    INETRC,
    PLUGINS,
    USER,
    conf,
    definitions,
    environment,
    watermark_bytes,
)
from springtide.ops.runner.rabbitmq_talk import greets
from springtide.ops.runner.served import HOST, Program, Watched

__all__ = ["PROGRAM", "RabbitServer"]

_log = logging.getLogger(__name__)

PROGRAM = Program(
    kind="RabbitMQ",
    package="rabbitmq-server",
    # Debian's program of that name in the PATH changes to an account of its own, and to files of its own.
    tried=("/usr/lib/rabbitmq/bin/rabbitmq-server", "rabbitmq-server"),
    instead="give the node a url, or take the node out of the topology",
)

SHUTDOWN = (Stage(signal.SIGTERM, 30.0), Stage(signal.SIGKILL, 8.0))

ANSWER_WITHIN = 5.0

BEGIN = 'setpriv --pdeathsig KILL "$1" -address 127.0.0.1 -port "$2" & exec "$3"'
"""$1 epmd, $2 its port, $3 the server, which takes the place of this shell and so is epmd's parent."""


class RabbitServer(Watched):
    """`port` None means a free one, kept over restarts. `max_bytes`: the memory above which publishers wait.

    `tls`: clients must speak TLS and verify its certificate, `secrets/<name>.crt`.
    """

    KIND, SERVICE, MARK, SHUTDOWN = "RabbitMQ", "rabbitmq", "SPRINGTIDE_BROKER", SHUTDOWN
    LOOK_EVERY, SILENT = 5.0, 6

    def __init__(
        self,
        name: str,
        *,
        home: Path,
        platform: str = "springtide",
        port: int | None = None,
        max_bytes: int | None = None,
        tls: bool = False,
        start_timeout: float = 120.0,
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
        if max_bytes is not None and max_bytes <= 0:
            raise ValueError(f"max_bytes must be > 0, got {max_bytes}")
        self._max_bytes = watermark_bytes(None) if max_bytes is None else max_bytes
        self._tls = tls
        self._programs: tuple[str, str] = ("", "")
        self._cookie = ""
        self._epmd_port = self._distribution_port = self._figures_port = 0

    @property
    def figures_port(self) -> int:
        """Where its Prometheus figures are, on 127.0.0.1."""
        return self._figures_port

    def url(self) -> str:
        """Where clients reach it, the password included."""
        login = f"{USER}:{quote(self._password, safe='')}"
        if not self._tls:
            return f"amqp://{login}@{HOST}:{self.port}/"
        root = quote(str(self.home / "secrets" / access.AUTHORITY), safe="/")
        return f"amqps://{login}@{HOST}:{self.port}/?ssl_ca_certs={root}"

    async def reload(self) -> None:
        """Have it read its certificate again, after that was renewed; it looks again within two minutes."""
        if self._process is None or not self._tls:
            return
        try:
            await asyncio.to_thread(self._write_certificate)
        except (OSError, RunnerError) as error:
            _log.error("%s goes on with its old certificate: %s", self.name, error)

    async def _begin(self) -> None:
        await asyncio.to_thread(self._prepare)
        await end_broker(self._kept, self.name, SHUTDOWN)
        await self._launch()

    def _prepare(self) -> None:
        server, epmd = PROGRAM.find(), shutil.which("epmd")
        if epmd is None:
            raise RunnerError("RabbitMQ needs Erlang's epmd: `apt-get install erlang-base` (`make servers`)")
        self._programs = (epmd, server)
        super()._prepare()
        self._cookie = self._kept.password(f"{self.name}.cookie")

    def _write(self) -> None:
        self._choose_inner_ports()
        folder = self._folder
        if self._tls:
            self._write_certificate()
        files = {
            "rabbitmq.conf": conf(
                port=self.port,
                figures_port=self._figures_port,
                max_bytes=self._max_bytes,
                folder=folder,
                tls=self._tls,
            ),
            "definitions.json": definitions(self._password),
            "enabled_plugins": PLUGINS,
            "inetrc": INETRC,
            ".erlang.cookie": self._cookie,
        }
        for name, text in files.items():
            access.replace(folder / name, text, self._account)

    def _choose_inner_ports(self) -> None:
        """All at once, so that they differ."""
        with ExitStack() as held:
            found = [held.enter_context(ports.bind(HOST, 0, remedy="")).getsockname()[1] for _ in range(3)]
        self._epmd_port, self._distribution_port, self._figures_port = found

    def _write_certificate(self) -> None:
        kept, folder = self.home / "secrets" / self.name, self._folder
        access.copy_certificate(kept, folder / "server.crt", folder / "server.key", self._account)
        access.install_root(kept.with_name(access.AUTHORITY), folder / access.AUTHORITY, self._account)

    def _command(self) -> list[str]:
        epmd, server = self._programs
        return ["/bin/sh", "-c", BEGIN, "sh", epmd, str(self._epmd_port), server]

    def _variables(self) -> dict[str, str]:
        return environment(self._folder, epmd_port=self._epmd_port, distribution_port=self._distribution_port)

    async def _answers(self) -> bool:
        try:
            return await asyncio.to_thread(greets, self.url(), timeout=ANSWER_WITHIN)
        except OSError:
            return False

    async def _clear(self) -> None:
        """Its settings are written anew by the next start; its queues stay."""
