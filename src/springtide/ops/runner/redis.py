"""One Redis for a platform's cache: installed on this machine, started here, watched, forgetful by intent.

Its life is that of `served`. One that a killed supervisor left is taken over when it answers and was told
what it would be told now: the cache stays warm. Any other is ended first. Listens on 127.0.0.1, never runs as
root.

One that does not answer `SILENT` times in a row (frozen, swapped out, hung) is killed, so that its watch
starts another: what it held is in the databases, and until then the platform reads it from there.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from pathlib import Path
from urllib.parse import quote

from springtide.errors import RunnerError
from springtide.ops.runner import access, processes
from springtide.ops.runner.cgroups import Cgroup
from springtide.ops.runner.installs import SHARED
from springtide.ops.runner.leftovers import hold, left_caches
from springtide.ops.runner.processes import Stage
from springtide.ops.runner.redis_settings import DEFAULT_BYTES, conf, noted_port
from springtide.ops.runner.redis_talk import RedisRefused, talk
from springtide.ops.runner.served import HOST, Program, Watched

__all__ = ["PROGRAM", "RedisServer"]

_log = logging.getLogger(__name__)

PROGRAM = Program(
    kind="Redis",
    package="redis-server",
    tried=("redis-server", "/usr/bin/redis-server"),
    instead="give the node a url, or remove [cache] and the node from the topology",
)

SHUTDOWN = (Stage(signal.SIGTERM, 5.0), Stage(signal.SIGKILL, 8.0))

ANSWER_WITHIN = 2.0


class RedisServer(Watched):
    """`port` None means a free one, kept over restarts. `max_bytes`: what it keeps before it forgets.

    `tls`: clients must speak TLS and verify its certificate, `secrets/<name>.crt`.
    """

    KIND, SERVICE, MARK, SHUTDOWN = "Redis", "redis", "SPRINGTIDE_CACHE", SHUTDOWN
    LOOK_EVERY, SILENT = 1.0, 5

    def __init__(
        self,
        name: str,
        *,
        home: Path,
        platform: str = "springtide",
        port: int | None = None,
        max_bytes: int = DEFAULT_BYTES,
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
        if max_bytes <= 0:
            raise ValueError(f"max_bytes must be > 0, got {max_bytes}")
        self._max_bytes = max_bytes
        self._tls = tls
        self._program = ""

    def url(self) -> str:
        """Where clients reach it, the password included."""
        login = f":{quote(self._password, safe='')}"
        if not self._tls:
            return f"redis://{login}@{HOST}:{self.port}/0"
        root = quote(str(self.home / "secrets" / access.AUTHORITY), safe="/")
        return f"rediss://{login}@{HOST}:{self.port}/0?ssl_ca_certs={root}"

    async def reload(self) -> None:
        """Have it read its certificate again, after that was renewed."""
        if self._process is None or not self._tls:
            return
        try:
            await asyncio.to_thread(self._write_certificate)
            command = ["CONFIG", "SET", "tls-cert-file", str(self._folder / "server.crt")]
            command += ["tls-key-file", str(self._folder / "server.key")]
            await asyncio.to_thread(talk, self.url(), command, timeout=ANSWER_WITHIN)
        except (OSError, RedisRefused, RunnerError) as error:
            _log.error("%s goes on with its old certificate: %s", self.name, error)

    async def _begin(self) -> None:
        await asyncio.to_thread(self._prepare)
        if not await self._take_over():
            await self._launch()

    def _prepare(self) -> None:
        self._program = PROGRAM.find()
        super()._prepare()
        if self._tls:
            self._write_certificate()

    def _write_certificate(self) -> None:
        kept, folder = self.home / "secrets" / self.name, self._folder
        access.copy_certificate(kept, folder / "server.crt", folder / "server.key", self._account)
        access.install_root(kept.with_name(access.AUTHORITY), folder / access.AUTHORITY, self._account)

    def _text(self) -> str:
        return conf(
            port=self.port,
            password=self._password,
            max_bytes=self._max_bytes,
            folder=self._folder,
            tls=self._tls,
        )

    async def _take_over(self) -> bool:
        """Go on with one that a killed supervisor left, when it does what is asked now; else end it."""
        held = await asyncio.to_thread(lambda: hold(left_caches(self._kept, self.name)))
        if len(held) == 1 and await asyncio.to_thread(self._was_told_so) and await self._answers():
            await self._limit(held[0].pid)
            self._process = held[0]
            _log.info("%s was left running and is taken over", self.name)
            return True
        for process in held:
            if not await processes.stop(process, SHUTDOWN):
                raise RunnerError(f"Redis {self.name} (process {process.pid}) of an earlier run does not end")
        return False

    def _was_told_so(self) -> bool:
        """Whether the settings of the one that was left are those of today, its port apart if any will do."""
        try:
            text = self._file.read_text()
        except FileNotFoundError:
            return False
        port = noted_port(text)
        if port is None or (self._wanted_port or port) != port:
            return False
        self._port = port
        return text == self._text()

    def _write(self) -> None:
        access.replace(self._file, self._text(), self._account)

    def _command(self) -> list[str]:
        return [self._program, str(self._file)]

    @property
    def _file(self) -> Path:
        return self._folder / "redis.conf"

    async def _answers(self) -> bool:
        """Whether it says PONG, or anything else that is no refusal of our password: it may be busy."""
        try:
            await asyncio.to_thread(talk, self.url(), ["PING"], timeout=ANSWER_WITHIN)
        except RedisRefused as refused:
            return not str(refused).startswith(("WRONGPASS", "NOAUTH", "ERR AUTH"))
        except OSError:
            return False
        return True

    async def _clear(self) -> None:
        """Its files are written anew by the next start."""
