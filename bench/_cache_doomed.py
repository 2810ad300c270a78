"""A writer process that is killed when PostgreSQL has committed and before it has heard of it.

    async with Doomed(fleet) as writer:         # it starts meanwhile
        version, moment = await writer.die(key, "value")

A proxy stands between the writer and the primary and holds back the answer to COMMIT; what is there then is
looked up beside it. So nobody invalidates anything, and the moment is that of the answer that never came.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from urllib.parse import urlsplit, urlunsplit

from bench._cache_fleet import Fleet
from bench._pinned import ROOT
from springtide.testing.faults import FaultProxy

__all__ = ["Doomed"]

PATIENCE = 120.0
LOOKS = 25
"""How often it is looked for what was written, every 20 ms, until another COMMIT must have been held back."""


class Doomed:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        address = urlsplit(fleet.world.primary.url)
        self._address = address
        self._proxy = FaultProxy(target=address.port or 5432)
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Doomed:
        await self._proxy.__aenter__()
        host = self._address.netloc.replace(f":{self._address.port}", f":{self._proxy.port}")
        folder = Path(tempfile.mkdtemp(prefix="doomed-", dir=self._fleet.folder))
        topology = self._fleet.topology(folder, primary=urlunsplit(self._address._replace(netloc=host)))
        environment = {
            **os.environ,
            "SPRINGTIDE_NODE": "app",
            "SPRINGTIDE_HOME": str(self._fleet.folder / ".springtide"),
        }
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.cached.doomed", str(topology), self._fleet.cache, cwd=ROOT,
            env=environment, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._kill()
        await self._proxy.__aexit__(kind, error, trace)

    async def die(self, key: int, value: str) -> tuple[int, float]:
        """The version that was committed, and when."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            if await process.stdout.readline() != b"ready\n":
                raise RuntimeError("a writer that was to be killed did not start")
            held = self._proxy.on(b"COMMIT", "stall", side="server")
            process.stdin.write(f"{key} {value}\n".encode())
            while True:
                await held
                moment = time.monotonic()
                version = await self._committed(key, value)
                if version is not None:
                    break
                held = self._proxy.on(b"COMMIT", "stall", side="server")  # it was another one
                self._proxy.resume()
            await self._kill()
        return version, moment

    async def _committed(self, key: int, value: str) -> int | None:
        sql = "select version from cached.past where bucket = $1 and id = $2 and value = $3"
        for _ in range(LOOKS):
            if rows := await self._fleet.fetch(sql, key & 1023, key, value):
                version: int = rows[0]["version"]
                return version
            await asyncio.sleep(0.02)
        return None

    async def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
