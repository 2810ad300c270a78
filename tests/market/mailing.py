"""The mailbox as tests use it: `python -m market.mailbox`, a process of its own."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import httpx

import market

APPS = str(Path(market.__file__).parent.parent)


class MailboxProcess:
    """To be started, told to misbehave, ended and started again with the same mails and ports."""

    def __init__(self, state: Path, *, login: str | None = None, keep: int = 500) -> None:
        self.state = state
        self.login = login
        self.keep = keep
        self.smtp_port = 0
        self.url = ""
        self.http = httpx.AsyncClient(timeout=10, trust_env=False)
        self._process: asyncio.subprocess.Process | None = None

    @property
    def smtp(self) -> str:
        who = "" if self.login is None else f"{self.login}@"
        return f"smtp://{who}127.0.0.1:{self.smtp_port}"

    async def start(self) -> None:
        port = self.url.rsplit(":", 1)[1] if self.url else "0"
        command = [
            "-m", "market.mailbox", "--smtp-port", str(self.smtp_port), "--http-port", port,
            "--state", str(self.state), "--keep", str(self.keep),
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": APPS, "MAILBOX_LOGIN": self.login or ""}
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, *command, env=environment, stdout=asyncio.subprocess.PIPE
        )
        assert self._process.stdout is not None
        words = (await self._process.stdout.readline()).decode().split()
        self.smtp_port, self.url = int(words[2].rsplit(":", 1)[1]), words[-1]

    async def terminate(self) -> None:
        """As a supervisor ends it."""
        assert self._process is not None
        self._process.terminate()
        await self._process.wait()

    async def close(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        await self.http.aclose()

    async def behave(self, **behaviour: Any) -> None:
        answer = await self.http.put(f"{self.url}/control", json=behaviour)
        assert answer.status_code == 200, answer.text

    async def mails(self, to: str | None = None) -> list[dict[str, Any]]:
        """The newest first."""
        answer = await self.http.get(f"{self.url}/api/mails", params={} if to is None else {"to": to})
        found: list[dict[str, Any]] = answer.json()
        return found

    async def clear(self) -> None:
        await self.behave()
        await self.http.delete(f"{self.url}/api/mails")


def header(mail: dict[str, Any], name: str) -> str | None:
    """The one header of that name; None when there is none."""
    found = [value for key, value in mail["headers"] if key.lower() == name.lower()]
    assert len(found) < 2, found
    return found[0] if found else None
