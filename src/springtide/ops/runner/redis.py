"""One Redis for a platform's cache: installed on this machine, started here, watched, forgetful by intent.

new -> starting -> running -> stopping -> stopped, by the lifecycle contract. A start writes its files anew
(0600, of the account it runs as, in a folder of its own). One that a killed supervisor left is taken over
when it answers and was told what it would be told now: the cache stays warm. Any other is ended first.
Listens on 127.0.0.1, never runs as root.

One that does not answer `SILENT` times in a row (frozen, swapped out, hung) is killed, so that its watch
starts another: what it held is in the databases, and until then the platform reads it from there.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
from pathlib import Path
from urllib.parse import quote

from springtide.errors import ProcessCrashed, RunnerError
from springtide.lifecycle import StartStop
from springtide.ops.runner import access, logs, pgdata, ports, processes
from springtide.ops.runner.accounts import Account, server_account
from springtide.ops.runner.cgroups import Cgroup
from springtide.ops.runner.home import Home
from springtide.ops.runner.installs import SHARED
from springtide.ops.runner.leftovers import hold, left_caches
from springtide.ops.runner.processes import Process, Stage
from springtide.ops.runner.redis_settings import DEFAULT_BYTES, conf, noted_port
from springtide.ops.runner.redis_talk import RedisRefused, talk

__all__ = ["RedisServer", "find_redis"]

_log = logging.getLogger(__name__)

HOST = "127.0.0.1"
DEBIAN = "/usr/bin/redis-server"

SHUTDOWN = (Stage(signal.SIGTERM, 5.0), Stage(signal.SIGKILL, 8.0))
KILL = SHUTDOWN[1:]

ASK_EVERY = 0.02
LOOK_EVERY = 1.0
ANSWER_WITHIN = 2.0
SILENT = 5
"""Questions without an answer, one in three seconds at most, after which it is killed."""

LOG_LINES = 15


def find_redis() -> str:
    """The program. Raises RunnerError when it is not installed."""
    found = shutil.which("redis-server") or (DEBIAN if Path(DEBIAN).exists() else None)
    if found is None:
        raise RunnerError(
            "Redis is not installed: `apt-get install redis-server` (or `make servers`), give the node a "
            "url, or remove [cache] and the node from the topology"
        )
    return found


class RedisServer:
    """`port` None means a free one, kept over restarts. `max_bytes`: what it keeps before it forgets.

    `tls`: clients must speak TLS and verify its certificate, `secrets/<name>.crt`.
    """

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
        if not name or "/" in name or name.startswith("."):
            raise ValueError(f"name must be a plain file name, got {name!r}")
        if max_bytes <= 0:
            raise ValueError(f"max_bytes must be > 0, got {max_bytes}")
        if start_timeout <= 0:
            raise ValueError(f"start_timeout must be > 0 seconds, got {start_timeout}")
        self.name = name
        self.home = home.absolute()
        self.log = self.home / "logs" / f"{name}.log"
        self._platform = platform
        self._wanted_port = port
        self._max_bytes = max_bytes
        self._tls = tls
        self._start_timeout = start_timeout
        self._shared = shared
        self._cgroup = cgroup
        self._port: int | None = None
        self._kept: Home | None = None
        self._password = ""
        self._program = ""
        self._account: Account | None = None
        self._folder: Path | None = None
        self._process: Process | None = None
        self._life = StartStop(f"redis {name}", self._open, self._close)

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
        assert self._port is not None, "the Redis was not started"
        return self._port

    @property
    def address(self) -> str:
        """host:port, for people."""
        return f"{HOST}:{self.port}"

    @property
    def known(self) -> bool:
        """Whether it was started once, so that it has an address."""
        return self._port is not None

    def url(self) -> str:
        """Where clients reach it, the password included."""
        login = f":{quote(self._password, safe='')}"
        if not self._tls:
            return f"redis://{login}@{HOST}:{self.port}/0"
        root = quote(str(self.home / "secrets" / access.AUTHORITY), safe="/")
        return f"rediss://{login}@{HOST}:{self.port}/0?ssl_ca_certs={root}"

    async def start(self) -> None:
        await self._life.start()

    async def stop(self) -> None:
        await self._life.stop()

    async def wait(self) -> int | None:
        """Return when the process has ended: its exit status, None when it was taken over.

        One that stays silent is killed meanwhile.
        """
        process, silent = self._running(), 0
        ending = asyncio.ensure_future(process.wait())
        try:
            while not (await asyncio.wait([ending], timeout=LOOK_EVERY))[0]:
                silent = 0 if await self._answers() else silent + 1
                if silent == SILENT:
                    _log.error("%s does not answer: it is killed, and another one started", self.name)
                    process.send(signal.SIGKILL)
            return ending.result()
        finally:
            ending.cancel()
            await asyncio.wait([ending])

    async def reload(self) -> None:
        """Have it read its certificate again, after that was renewed."""
        if self._process is None or not self._tls:
            return
        assert self._folder is not None
        folder = self._folder
        try:
            await asyncio.to_thread(self._write_certificate)
            command = ["CONFIG", "SET", "tls-cert-file", str(folder / "server.crt")]
            command += ["tls-key-file", str(folder / "server.key")]
            await asyncio.to_thread(talk, self.url(), command, timeout=ANSWER_WITHIN)
        except (OSError, RedisRefused, RunnerError) as error:
            _log.error("%s goes on with its old certificate: %s", self.name, error)

    def _running(self) -> Process:
        if self._process is None:
            raise RunnerError(f"Redis {self.name} is not running: start it first")
        return self._process

    async def _open(self) -> None:
        try:
            await asyncio.to_thread(self._prepare)
            if not await self._take_over():
                await self._launch()
        except OSError as error:
            raise pgdata.explain(error, f"start Redis {self.name}:") from error

    def _prepare(self) -> None:
        self._program = find_redis()
        for part, mode in (("data", 0o755), ("secrets", 0o700), ("logs", 0o700)):
            (self.home / part).mkdir(mode=mode, parents=True, exist_ok=True)
        self._kept = Home(self.home)
        self._password = self._kept.password(self.name)
        account = server_account()
        folder = pgdata.locate(
            self.home, self.name, platform=self._platform, account=account, shared=self._shared
        )
        folder.mkdir(mode=0o700, exist_ok=True)
        account.own(folder)
        self._account, self._folder = account, folder
        if self._tls:
            self._write_certificate()

    def _write_certificate(self) -> None:
        assert self._account is not None and self._folder is not None
        kept, folder = self.home / "secrets" / self.name, self._folder
        access.copy_certificate(kept, folder / "server.crt", folder / "server.key", self._account)
        access.install_root(kept.with_name(access.AUTHORITY), folder / access.AUTHORITY, self._account)

    def _text(self) -> str:
        assert self._folder is not None
        return conf(
            port=self.port,
            password=self._password,
            max_bytes=self._max_bytes,
            folder=self._folder,
            tls=self._tls,
        )

    async def _take_over(self) -> bool:
        """Go on with one that a killed supervisor left, when it does what is asked now; else end it."""
        assert self._kept is not None
        kept = self._kept
        held = await asyncio.to_thread(lambda: hold(left_caches(kept, self.name)))
        if len(held) == 1 and await asyncio.to_thread(self._was_told_so) and await self._answers():
            if self._cgroup is not None:
                await asyncio.to_thread(self._cgroup.add, held[0].pid)
            self._process = held[0]
            _log.info("%s was left running and is taken over", self.name)
            return True
        for process in held:
            if not await processes.stop(process, SHUTDOWN):
                raise RunnerError(f"Redis {self.name} (process {process.pid}) of an earlier run does not end")
        return False

    def _was_told_so(self) -> bool:
        """Whether the settings of the one that was left are those of today, its port apart if any will do."""
        assert self._folder is not None
        try:
            text = (self._folder / "redis.conf").read_text()
        except FileNotFoundError:
            return False
        port = noted_port(text)
        if port is None or (self._wanted_port or port) != port:
            return False
        self._port = port
        return text == self._text()

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
        assert self._folder is not None and self._account is not None and self._kept is not None
        file = self._folder / "redis.conf"
        await asyncio.to_thread(access.replace, file, self._text(), self._account)
        begin = await asyncio.to_thread(lambda: self.log.stat().st_size if self.log.exists() else 0)
        process = await processes.spawn(
            [self._program, str(file)],
            log=self.log,
            env={
                "PATH": os.defpath,
                "LC_ALL": "C",
                "TZ": "UTC",
                "SPRINGTIDE_HOME": str(self._kept.path),  # by these two a later start knows it
                "SPRINGTIDE_CACHE": self.name,
            },
            account=self._account.switch,
        )
        try:
            if self._cgroup is not None:
                await asyncio.to_thread(self._cgroup.add, process.pid)
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

    async def _ready(self, process: Process, begin: int) -> None:
        ending = asyncio.ensure_future(process.wait())
        try:
            while not await self._answers():
                if (await asyncio.wait([ending], timeout=ASK_EVERY))[0]:
                    raise ProcessCrashed(await self._failure("start", begin))
        finally:
            ending.cancel()
            await asyncio.wait([ending])

    async def _answers(self) -> bool:
        """Whether it says PONG, or anything else that is no refusal of our password: it may be busy."""
        try:
            await asyncio.to_thread(talk, self.url(), ["PING"], timeout=ANSWER_WITHIN)
        except RedisRefused as refused:
            return not str(refused).startswith(("WRONGPASS", "NOAUTH", "ERR AUTH"))
        except OSError:
            return False
        return True

    async def _failure(self, what: str, begin: int) -> str:
        text = await asyncio.to_thread(logs.tail, self.log, LOG_LINES, begin=begin)
        return f"Redis {self.name} could not {what}\n{text}"

    async def _close(self) -> None:
        process, self._process = self._process, None
        if process is not None and not await processes.stop(process, SHUTDOWN):
            raise RunnerError(f"Redis {self.name} (pid {process.pid}) does not end")
