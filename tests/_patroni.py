"""Two nodes of Debian's Patroni over one etcd, for a test of who follows whom.

    with patroni_cluster() as world:
        world.leader().kill()          # kill -9 of Patroni and of its PostgreSQL

Everything listens on free ports of 127.0.0.1, lives in one temporary folder, runs as an unprivileged account
when the tests run as root, and does not outlive the test run, not even one that is killed.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests._servers import program
from tests.servers import scratch, watch

from springtide.ops.runner import pgdata
from springtide.ops.runner.accounts import server_account

__all__ = ["PatroniNode", "PatroniWorld", "patroni_cluster"]

PATIENCE = 60.0
BINARIES = "/usr/lib/postgresql/15/bin"

WATCH = """
read -r _ && exit
for file in "$0"/*.pid; do read -r pid < "$file" && kill -KILL -- "-$pid"; done
for file in "$0"/*/data/postmaster.pid; do read -r pid < "$file" && kill -QUIT "$pid"; done
rm -rf "$0"
"""

TIMES = {"ttl": 5, "loop_wait": 1, "retry_timeout": 2}
"""As short as they may be: a leader that is silent for `ttl` seconds is replaced."""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class _Process:
    """One program in a session of its own; its log and process id are in the world's folder."""

    def __init__(self, folder: Path, name: str, command: list[str]) -> None:
        self.log = folder / f"{name}.log"
        account = server_account()
        uid, gid = account.switch or (None, None)
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                command,
                cwd=folder,
                env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": str(folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                user=uid,
                group=gid,
                extra_groups=None if gid is None else [],
                start_new_session=True,
            )
        (folder / f"{name}.pid").write_text(f"{self._child.pid}\n")

    def end(self, sig: signal.Signals) -> None:
        """Send `sig` to the whole session, and see the program gone."""
        if self._child.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, sig)
        try:
            self._child.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._child.pid, signal.SIGKILL)
            self._child.wait()


class PatroniNode:
    def __init__(self, folder: Path, name: str, etcd: int, password: str) -> None:
        self.name = name
        self._world = folder
        self._folder = folder / name
        self._folder.mkdir(mode=0o700)
        server_account().own(self._folder)
        self.data = self._folder / "data"
        self.port, rest = _free_port(), _free_port()
        self.rest = f"http://127.0.0.1:{rest}"
        local = {"fsync": "off", "unix_socket_directories": str(self._folder), "shared_buffers": "16MB"}
        local["dynamic_shared_memory_type"] = "mmap"  # nothing is left in /dev/shm after a kill
        account = {"username": "springtide", "password": password}
        hba = ["host all all 127.0.0.1/32 scram-sha-256", "host replication all 127.0.0.1/32 scram-sha-256"]
        config: dict[str, Any] = {
            "scope": "springtide",
            "name": name,
            "etcd3": {"hosts": f"127.0.0.1:{etcd}"},
            "restapi": {"listen": f"127.0.0.1:{rest}", "connect_address": f"127.0.0.1:{rest}"},
            "bootstrap": {
                "dcs": {**TIMES, "synchronous_mode": True},
                "initdb": [{"encoding": "UTF8"}, {"locale": "C.UTF-8"}, "no-sync"],
            },
            "postgresql": {
                "listen": f"127.0.0.1:{self.port}",
                "connect_address": f"127.0.0.1:{self.port}",
                "data_dir": str(self.data),
                "bin_dir": BINARIES,
                "pgpass": str(self._folder / "pgpass"),
                "authentication": {"superuser": account, "replication": account},
                "parameters": local,
                "pg_hba": hba,
            },
        }
        self._config = self._folder / "patroni.yml"
        self._config.write_text(json.dumps(config))  # JSON is YAML
        self._config.chmod(0o600)
        server_account().own(self._config)
        self._process: _Process | None = None

    def start(self) -> None:
        patroni = program("patroni")
        assert patroni is not None
        self._process = _Process(self._world, self.name, [patroni, str(self._config)])

    def kill(self) -> None:
        """SIGKILL to Patroni, so that it cannot give the lead up, and to every process of PostgreSQL."""
        assert self._process is not None
        self._process.end(signal.SIGKILL)
        for pid in pgdata.servers(self.data):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        if self._process is not None:
            self._process.end(signal.SIGTERM)
        for pid in pgdata.servers(self.data):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def log(self) -> str:
        return "" if self._process is None else self._process.log.read_text()[-2000:]


class PatroniWorld:
    def __init__(self, folder: Path) -> None:
        password = secrets.token_hex(8)
        etcd = program("etcd-server")
        assert etcd is not None
        client, peer = _free_port(), _free_port()
        self.url = f"postgresql://springtide:{password}@whoever.leads:5432/postgres"
        data = folder / "etcd"
        data.mkdir(mode=0o700)
        server_account().own(data)
        here, there = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
        self._etcd = _Process(folder, "etcd", [
            etcd, "--data-dir", str(data), "--listen-client-urls", here, "--advertise-client-urls", here,
            "--listen-peer-urls", there, "--initial-advertise-peer-urls", there,
            "--initial-cluster", f"default={there}", "--unsafe-no-fsync",
        ])  # fmt: skip
        self.nodes = [PatroniNode(folder, name, client, password) for name in ("one", "two")]

    def start(self) -> None:
        for node in self.nodes:  # the first to come bootstraps, the other copies it
            node.start()
        self.until(lambda: self.roles() == ["leader", "sync_standby"])

    def roles(self) -> list[str]:
        return sorted(self._cluster().values())

    def leader(self) -> PatroniNode:
        name = next(name for name, role in self._cluster().items() if role == "leader")
        return next(node for node in self.nodes if node.name == name)

    def _cluster(self) -> dict[str, str]:
        for node in self.nodes:
            with (
                suppress(OSError, ValueError),
                urllib.request.urlopen(f"{node.rest}/cluster", timeout=2) as got,
            ):
                members = json.load(got)["members"]
                return {one["name"]: one["role"] for one in members if one["state"] == "running"}
        return {}

    def until(self, condition: Callable[[], bool]) -> None:
        give_up = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < give_up, "\n".join(node.log() for node in self.nodes)
            time.sleep(0.1)

    def close(self) -> None:
        for node in self.nodes:
            node.close()
        self._etcd.end(signal.SIGTERM)


@contextmanager
def patroni_cluster() -> Iterator[PatroniWorld]:
    folder = scratch("springtide-patroni-")
    watching = watch(folder, WATCH)
    try:
        server_account().own(folder)
        world = PatroniWorld(folder)
        try:
            world.start()
            yield world
        finally:
            world.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        watching.communicate(b"closed\n")
