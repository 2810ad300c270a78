"""The cluster of bench.failover: a platform of `springtide up`, with a primary and two replicas.

The runner does what it does everywhere: it notices that the primary is dead, fences it, promotes a replica,
writes addresses.json, rewinds the old primary and lets it follow. This file only kills, and looks.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg

from bench._cluster import scratch
from bench._failover_app import TABLE
from springtide.errors import ConfigurationError
from springtide.ops.runner import pgdata
from springtide.topology import Addresses, read_addresses

__all__ = ["DBNAME", "Fleet", "fleet"]

DBNAME = "main"
PATIENCE = 120.0

TOML = """
name = "failover"
app = "nothing:app"

[servers]
port = 0

[nodes.db]
kind = "postgres"

[nodes.db-2]
kind = "postgres"

[nodes.db-3]
kind = "postgres"

[clusters.main]
primary = "db"
replicas = ["db-2", "db-3"]

[databases.default]
shards = ["main"]
durability = "quorum"
"""

NOTHING = """
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"].endswith("shutdown"):
                return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})
"""

WATCH = """
read -r _ && exit
cd "$0" && "$1" -m springtide.ops.cli down
rm -rf "$0"
"""
"""Waits for a word from the benchmark; when that was killed (the pipe ends without one), cleans up for it."""

CONFIRMED = "select count(*) from pg_stat_replication where sync_state = 'quorum' and state = 'streaming'"


class Fleet:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / ".springtide"
        self.file = self.home / "run" / "addresses.json"
        (folder / "springtide.toml").write_text(TOML)
        (folder / "nothing.py").write_text(NOTHING)

    def command(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "springtide.ops.cli", *arguments]
        done = subprocess.run(command, cwd=self.folder, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode != 0:
            raise RuntimeError(f"springtide {' '.join(arguments)}:\n{done.stdout}{done.stderr}")

    @property
    def known(self) -> Addresses:
        return read_addresses(self.file)

    @property
    def primary(self) -> str:
        return self.known.clusters["main"].primary

    def url(self) -> str:
        """Of the database on the primary."""
        base, _, _ = self.known.nodes[self.primary].rpartition("/")
        return f"{base}/{DBNAME}"

    async def fetch(self, sql: str) -> list[asyncpg.Record]:
        connection = await asyncpg.connect(self.url(), timeout=10, ssl=False)
        try:
            return await connection.fetch(sql, timeout=10)
        finally:
            connection.terminate()

    async def prepare(self) -> None:
        connection = await asyncpg.connect(self.url(), timeout=10, ssl=False)
        try:
            await connection.execute(TABLE)
        finally:
            connection.terminate()

    async def whole(self) -> bool:
        """Whether both replicas follow and confirm."""
        try:
            return bool((await self.fetch(CONFIRMED))[0][0] == 2)
        except (OSError, asyncpg.PostgresError, KeyError, ConfigurationError):
            return False

    def kill_primary(self) -> float:
        """SIGKILL to every process of the primary, its postmaster first; the moment."""
        data = self.home / "data" / self.primary
        processes = pgdata.servers(data)
        found = pgdata.postmaster(data)
        if found is None:
            raise RuntimeError(f"no server runs on {data}")
        killed = time.monotonic()
        os.kill(found.pid, signal.SIGKILL)
        for pid in processes:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return killed

    def log(self) -> str:
        """The last lines of the runner's log."""
        found = sorted((self.home / "logs").glob("supervisor*"))
        return "\n".join(found[0].read_text().splitlines()[-40:]) if found else ""

    def until(self, condition: Callable[[], Any], what: str) -> None:
        give_up = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > give_up:
                raise RuntimeError(f"{what} did not happen within {PATIENCE:g} s:\n{self.log()}")
            time.sleep(0.02)


@contextmanager
def fleet() -> Iterator[Fleet]:
    """Running, in a folder of its own; nothing is left of it after the block."""
    folder = scratch("springtide-failover-")
    watch = subprocess.Popen(
        ["/bin/sh", "-c", WATCH, folder, sys.executable],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    made = Fleet(folder)
    try:
        made.command("up", "-d")
        yield made
    finally:
        made.command("down")
        shutil.rmtree(folder, ignore_errors=True)
        watch.communicate(b"closed\n")
