"""Two Redis servers and their Sentinel, each server behind a proxy, and what can be done to them.

Clients, the Sentinel and the replica know the servers by their proxies' addresses only. The wall clock of a
server is stepped by a preloaded library (_clock.c) that leaves its monotonic clock alone: no clock of the
machine is touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import redis.asyncio
from redis.exceptions import RedisError

from bench._cluster import scratch
from bench._redis_proxy import RedisProxy

__all__ = ["SteppedClock", "RedisServer", "RedisWorld", "redis_world"]

MASTER = "cache"
DOWN_AFTER = 2.0
"""Seconds of silence after which the Sentinel promotes the other server."""

PATIENCE = 60.0

WATCH = """
read -r _ && exit
for file in "$0"/*.pid; do read -r pid < "$file" && kill -KILL "$pid"; done
rm -rf "$0"
"""
"""Waits for a word from the benchmark; when that was killed (the pipe ends without one), cleans up for it."""


class SteppedClock:
    """The wall clock of the processes started with its `env`: `step` seconds beside the true one.

    `works` is false where there is no C compiler; then nothing is stepped.
    """

    def __init__(self, folder: Path, name: str = "clock") -> None:
        self._file = folder / name
        library = folder / "stepped_clock.so"
        compiler = shutil.which("cc")
        if compiler is not None and not library.exists():
            source = Path(__file__).with_name("_clock.c")
            subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
        self.works = compiler is not None
        self._file.write_bytes(struct.pack("=q", 0))
        self.env = {"LD_PRELOAD": str(library), "STEPPED_CLOCK": str(self._file)} if self.works else {}

    def step(self, seconds: int) -> None:
        with self._file.open("r+b") as file:  # in place: the processes have it mapped
            file.write(struct.pack("=q", seconds))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def until(condition: Callable[[], Awaitable[object]], what: str) -> None:
    give_up = time.monotonic() + PATIENCE
    while not await condition():
        if time.monotonic() > give_up:
            raise RuntimeError(f"{what} did not happen within {PATIENCE:g} s")
        await asyncio.sleep(0.02)


class RedisServer:
    """One server; it keeps its port, its folder and its proxy over kills. Nothing is written by itself."""

    def __init__(self, name: str, folder: Path, proxy: RedisProxy, clock: SteppedClock) -> None:
        self.name = name
        self.port = proxy.target
        self.proxy = proxy
        self.folder = folder
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir()

    async def start(self, *, of: RedisServer | None = None) -> None:
        """As a replica of `of`, or as a primary, whatever it was before."""
        command = [
            "redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder),
            "--save", "", "--appendonly", "no", "--replica-announce-ip", "127.0.0.1",
            "--replica-announce-port", str(self.proxy.port), "--repl-diskless-sync-delay", "0",
            "--repl-diskless-load", "swapdb", "--repl-timeout", "10", "--logfile", "log",
        ]  # fmt: skip
        if of is not None:
            command += ["--replicaof", f"127.0.0.1 {of.proxy.port}"]
        environment = {**os.environ, **self._clock.env}
        self._process = subprocess.Popen(command, cwd=self.folder, env=environment)
        self.folder.with_suffix(".pid").write_text(f"{self._process.pid}\n")
        await until(self._answers, f"the start of {self.name}")

    async def _answers(self) -> bool:
        with contextlib.suppress(RedisError, OSError):
            return bool(await self.command("PING"))
        return False

    async def command(self, *words: object) -> Any:
        """Straight to the server, not through the proxy."""
        client = redis.asyncio.Redis(port=self.port, socket_timeout=5, protocol=2)
        try:
            return await client.execute_command(*words)
        finally:
            await client.aclose()

    async def count(self, section: str, key: str) -> int:
        """A number of INFO."""
        found = await self.command("INFO", section)
        return int(found.get(key, 0))

    def _signal(self, sig: signal.Signals) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(sig)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait()


class RedisWorld:
    def __init__(self, servers: list[RedisServer], clock: SteppedClock, sentinel: int) -> None:
        self.servers = servers
        self.clock = clock
        self.sentinel = sentinel

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:{self.sentinel}/{MASTER}"

    async def primary(self) -> RedisServer:
        """Who the Sentinel says it is."""
        client = redis.asyncio.Redis(port=self.sentinel, socket_timeout=5, protocol=2)
        try:
            _, port = await client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER)
        finally:
            await client.aclose()
        return next(server for server in self.servers if server.proxy.port == int(port))

    async def other_than(self, server: RedisServer) -> None:
        """Return when another one is the primary."""

        async def switched() -> bool:
            return await self.primary() is not server

        await until(switched, f"failover from {server.name}")

    async def paired(self) -> None:
        """Return when the primary has its replica: only then can there be a failover."""

        async def has_replica() -> bool:
            with contextlib.suppress(RedisError, OSError):
                found = await (await self.primary()).command("INFO", "replication")
                return found["role"] == "master" and found.get("slave0", {}).get("state") == "online"
            return False

        await until(has_replica, "replication of Redis")


@contextlib.contextmanager
def _folder() -> Iterator[Path]:
    """A folder for servers, which do not outlive it, not even when this process is killed."""
    folder = scratch("springtide-redis-")
    watch = subprocess.Popen(
        ["/bin/sh", "-c", WATCH, folder],
        stdin=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        watch.communicate(b"closed\n")


@asynccontextmanager
async def redis_world() -> AsyncIterator[RedisWorld]:
    """Running, with nothing left of it after the block."""
    sentinel: subprocess.Popen[bytes] | None = None
    async with contextlib.AsyncExitStack() as stack:
        folder = stack.enter_context(_folder())
        proxies = [await stack.enter_async_context(RedisProxy(free_port())) for _ in range(2)]
        clock = SteppedClock(folder)
        servers = [
            RedisServer(f"redis-{n}", folder / f"redis-{n}", proxy, clock) for n, proxy in enumerate(proxies)
        ]
        try:
            await servers[0].start()
            await servers[1].start(of=servers[0])
            port = free_port()
            file = folder / "sentinel.conf"
            file.write_text(
                f"port {port}\nbind 127.0.0.1\ndir {folder}\nlogfile {folder}/sentinel.log\n"
                f"sentinel monitor {MASTER} 127.0.0.1 {proxies[0].port} 1\n"
                f"sentinel down-after-milliseconds {MASTER} {round(DOWN_AFTER * 1000)}\n"
                f"sentinel failover-timeout {MASTER} 2000\n"
            )
            sentinel = subprocess.Popen(["redis-sentinel", str(file)], stdout=subprocess.DEVNULL)
            (folder / "sentinel.pid").write_text(f"{sentinel.pid}\n")
            made = RedisWorld(servers, clock, port)

            async def knows() -> bool:
                with contextlib.suppress(RedisError, OSError):
                    return await made.primary() is servers[0]
                return False

            await until(knows, "the start of the Sentinel")
            await made.paired()
            yield made
        finally:
            if sentinel is not None:
                sentinel.kill()
                sentinel.wait()
            for server in servers:
                server.thaw()
                server.kill()


@asynccontextmanager
async def redis_alone() -> AsyncIterator[str]:
    """The address of one server without proxy, replica and Sentinel."""
    with _folder() as folder:
        server = RedisServer("redis", folder / "redis", RedisProxy(free_port()), SteppedClock(folder))
        try:
            await server.start()
            yield f"redis://127.0.0.1:{server.port}/0"
        finally:
            server.kill()
