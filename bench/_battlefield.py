"""market as `springtide up` runs it beside a payment provider, in a folder of their own; and who kills them.

Everything is a process: the supervisor restarts PostgreSQL, the app server and the worker, this file restarts
the provider, which keeps its journal.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import random
import secrets
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from bench.start import free_port

__all__ = ["ROOT", "Battlefield", "battlefield"]

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 120.0

HEALTHY = 18.0
"""Seconds between two kills of one process. Whoever lives for 15 s is started again at once; the supervisor
makes others wait longer each time, and a market that is down for most of the time places few orders."""

TARGETS = ("app", "worker", "postgres", "provider")

TOPOLOGY = """
name = "market"
stage = 1
app = "market.asgi:app"
path = "{apps}"
modules = "market.platform:modules"

[servers]
port = {port}
request_timeout = 5.0

[telemetry]
log_level = "error"

[nodes.db]
max_connections = 100
"""

TROUBLE = {
    "failure_rate": 0.03, "lost_answer_rate": 0.03, "deliveries": 2,
    "delay": {"kind": "exponential", "seconds": 0.005},
    "answer_delay": {"kind": "exponential", "seconds": 0.005},
}  # fmt: skip
"""A provider on a bad day: errors, lost answers, every webhook twice."""


class Battlefield:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "springtide.toml"
        self.home = folder / ".springtide"
        self.kills: Counter[str] = Counter()
        self._killed_at = dict.fromkeys(TARGETS, -math.inf)
        self.http = httpx.AsyncClient(timeout=30, trust_env=False)
        app, provider = free_port(), free_port()
        self.url, self.provider_url = f"http://127.0.0.1:{app}", f"http://127.0.0.1:{provider}"
        self._provider_port = provider
        self._key, self._secret = secrets.token_hex(16), secrets.token_hex(16)
        self._supervisor: asyncio.subprocess.Process | None = None
        self._provider: asyncio.subprocess.Process | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._behaviour: dict[str, Any] = TROUBLE
        self.file.write_text(TOPOLOGY.format(apps=ROOT / "apps", port=app))

    @property
    def environment(self) -> dict[str, str]:
        """What a process of the platform needs to find the provider and this checkout."""
        return {
            **os.environ,
            "PYTHONPATH": f"{ROOT / 'apps'}{os.pathsep}{ROOT}",
            "MARKET_PAYMENTS_URL": self.provider_url,
            "MARKET_PAYMENTS_KEY": self._key,
            "MARKET_PAYMENTS_SECRET": self._secret,
        }

    async def start(self) -> None:
        self._keeping = asyncio.create_task(self._keep_provider())
        await self._answers(f"{self.provider_url}/control")
        with (self.folder / "up.log").open("wb") as out:
            self._supervisor = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "springtide.ops.cli", "up", "--file", str(self.file),
                cwd=self.folder, env=self.environment, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        await self._answers(f"{self.url}/market/categories")

    async def stop(self) -> None:
        if self._supervisor is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._supervisor.pid, signal.SIGINT)
            await self._supervisor.wait()
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        if self._provider is not None and self._provider.returncode is None:
            self._provider.kill()
            await self._provider.wait()
        await self.http.aclose()

    async def heal(self) -> None:
        """The provider is well from now on."""
        self._behaviour = {}
        await self._answers(f"{self.provider_url}/control")
        await self._behave()

    async def journal(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.http.get(f"{self.provider_url}/journal")).json()
        return found

    async def kill(self, chance: random.Random) -> None:
        """SIGKILL to one of the processes, each about as often, once it is healthy; none if it is down."""
        while not (targets := self._ripe()):
            await asyncio.sleep(0.05)
        target = chance.choice(targets)
        pid = self._provider.pid if target == "provider" and self._provider is not None else self._pid(target)
        if pid is None:
            return
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            self.kills[target] += 1
            self._killed_at[target] = time.monotonic()

    def _ripe(self) -> list[str]:
        """Those that were not killed lately, and not more often than others."""
        least, now = min(self.kills[target] for target in TARGETS), time.monotonic()
        return [
            target
            for target in TARGETS
            if now - self._killed_at[target] >= HEALTHY and self.kills[target] <= least + 1
        ]

    def _pid(self, kind: str) -> int | None:
        """The process of that kind that the supervisor started."""
        state = json.loads((self.home / "run" / "state.json").read_text())
        running = [node["identity"] for node in state["nodes"] if node["kind"] == kind and node["identity"]]
        pid: int | None = running[0]["pid"] if running else None
        return pid

    async def _keep_provider(self) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT / "apps"),
            "PROVIDER_API_KEY": self._key,
            "PROVIDER_WEBHOOK_SECRET": self._secret,
        }
        while True:
            with (self.folder / "provider.log").open("ab") as out:
                self._provider = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "market.provider", "--port", str(self._provider_port),
                    "--state", str(self.folder / "provider.journal"),
                    "--webhook", f"{self.url}/market/payments/webhook",
                    env=environment, stdout=asyncio.subprocess.PIPE, stderr=out,
                )  # fmt: skip
            assert self._provider.stdout is not None
            if await self._provider.stdout.readline():
                await self._behave()
            await self._provider.wait()
            await asyncio.sleep(0.3)

    async def _behave(self) -> None:
        for _ in range(50):
            with suppress(httpx.HTTPError):
                await self.http.put(f"{self.provider_url}/control", json=self._behaviour)
                return
            await asyncio.sleep(0.1)

    async def _answers(self, url: str) -> None:
        limit = time.monotonic() + PATIENCE
        while time.monotonic() < limit:
            with suppress(httpx.HTTPError):
                if (await self.http.get(url)).status_code == 200:
                    return
            if self._supervisor is not None and self._supervisor.returncode is not None:
                break
            await asyncio.sleep(0.1)
        log = self.folder / "up.log"
        said = log.read_text(errors="replace")[-3000:] if log.exists() else ""
        raise RuntimeError(f"{url} does not answer:\n{said}")


@asynccontextmanager
async def battlefield() -> AsyncIterator[Battlefield]:
    """Started, and stopped with nothing left of it."""
    folder = Path(tempfile.mkdtemp(prefix="springtide-orders-"))
    folder.chmod(0o755)  # otherwise root's data would go to /var/lib/springtide, and stay there
    made = Battlefield(folder)
    try:
        await made.start()
        yield made
    finally:
        await made.stop()
        shutil.rmtree(folder, ignore_errors=True)
