"""Debian's PostgreSQL 15 with HypoPG, in a folder of its own, for what the embedded server cannot show."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from pathlib import Path
from types import TracebackType

__all__ = ["DebianPostgres"]

BIN = Path("/usr/lib/postgresql/15/bin")
HYPOPG = Path("/usr/share/postgresql/15/extension/hypopg.control")


class DebianPostgres:
    """Runs in the block; `url` connects as its superuser without a password, on this machine only.

    `settings` are lines for its command, as `name=value`.
    """

    def __init__(self, folder: Path, *settings: str) -> None:
        self.folder = folder
        self.url = ""
        self._settings = settings

    @staticmethod
    def installed() -> bool:
        return (BIN / "postgres").exists() and HYPOPG.exists()

    async def __aenter__(self) -> DebianPostgres:
        self.folder.mkdir(parents=True)
        if os.getuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
        await self._as_owner(
            BIN / "initdb", "-D", self.folder / "data", "-A", "trust", "-U", "postgres", "-N"
        )
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = [
            "fsync=off",
            "listen_addresses=127.0.0.1",
            f"port={port}",
            f"unix_socket_directories={self.folder}",
        ]
        flags = " ".join(f"-c {option}" for option in (*options, *self._settings))
        await self._as_owner(
            BIN / "pg_ctl", "-D", self.folder / "data", "-o", flags, "-l", self.folder / "log", "-w", "start"
        )
        self.url = f"postgresql://postgres@127.0.0.1:{port}/postgres"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._as_owner(BIN / "pg_ctl", "-D", self.folder / "data", "-m", "immediate", "-w", "stop")

    async def _as_owner(self, *command: object) -> None:
        """PostgreSQL refuses to run as root."""
        user = "postgres" if os.getuid() == 0 else None
        await asyncio.to_thread(
            subprocess.run, [str(part) for part in command], user=user, group=user, cwd="/", check=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
