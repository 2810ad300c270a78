"""Platforms for tests of the runner: projects in a temporary folder, driven by the real command line."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from tests.servers import scratch

from springtide.ops import cli

PLAIN = """
import os
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"].endswith("shutdown"):
                return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(os.getpid()).encode()})
"""


class Project:
    """One project folder. `run` calls `springtide` in it."""

    def __init__(
        self, folder: Path, *, env: Mapping[str, str] | None = None, user: int | None = None
    ) -> None:
        self.folder = folder
        self.home = folder / ".springtide"
        self.env = {**os.environ, **(env or {})}
        self.user = user

    def write(self, toml: str = "", *, name: str = "plain", app: str = PLAIN) -> Project:
        base = f'name = "{name}"\napp = "plainapp:app"\n'
        if "[servers]" not in toml:
            toml += "\n[servers]\nport = 0\n"
        if "[nodes" not in toml:
            toml += '\n[nodes.db]\nkind = "postgres"\n[clusters.main]\nprimary = "db"\n'
            toml += '[databases.default]\nshards = ["main"]\n'
        (self.folder / "springtide.toml").write_text(base + toml)
        (self.folder / "plainapp.py").write_text(app)
        return self

    def prepare(self, template: Path) -> Project:
        """Start from the database of another home, which saves the time of making one."""
        self.home.mkdir()
        self.home.chmod(0o755)
        for name in ("data", "secrets"):
            subprocess.run(["cp", "-a", template / name, self.home / name], check=True)
        return self

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "springtide.ops.cli", *arguments]

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        """`springtide` in a session of its own, output captured."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.folder,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            user=self.user,
            group=self.user,
            extra_groups=[] if self.user is not None else None,
        )

    def run(self, *arguments: str, code: int | None = 0, timeout: float = 100) -> str:
        """Run a command to its end; its output. `code` None accepts any exit code."""
        process = self.popen(*arguments)
        try:
            out, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        assert code is None or process.returncode == code, f"exit code {process.returncode}:\n{out}"
        return out

    def call(self, *arguments: str, code: int = 0) -> str:
        """As `run`, in this process, which is quicker: for commands that end by themselves."""
        out = io.StringIO()
        with redirect_stdout(out), redirect_stderr(out):
            ended = cli.main([*arguments, "--file", str(self.folder / "springtide.toml")])
        assert ended == code, f"exit code {ended}:\n{out.getvalue()}"
        return out.getvalue()

    def status(self) -> dict[str, Any]:
        """What `springtide status --json` prints; asked in this process, because tests ask often."""
        out = io.StringIO()
        with redirect_stdout(out):
            cli.main(["status", "--json", "--file", str(self.folder / "springtide.toml")])
        found: dict[str, Any] = json.loads(out.getvalue())
        return found

    def pids(self) -> dict[str, int]:
        return {node["node"]: node["pid"] for node in self.status()["nodes"]}

    def get(self, path: str = "/") -> str:
        url = self.status()["url"] + path
        with urllib.request.urlopen(url, timeout=10) as answer:
            body: str = answer.read().decode()
        return body

    def leftovers(self) -> list[str]:
        """Command lines of processes that belong to this project, by folder or environment."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                environment = (entry / "environ").read_bytes()
                cwd = str((entry / "cwd").readlink())
            except OSError:
                continue
            if line and (str(self.folder) in line + cwd or str(self.home).encode() in environment):
                found.append(f"{entry.name}: {line}")
        return found


@contextmanager
def project(**options: Any) -> Iterator[Project]:
    """A folder that any account can enter, and whatever runs in it is stopped at the end."""
    folder = scratch("springtide-run-")
    made = Project(folder, **options)
    try:
        yield made
    finally:
        if made.home.exists():
            made.run("down", code=None)
        link = made.home / "data" / "db"
        if link.is_symlink():
            shutil.rmtree(link.readlink().parent, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)


def until(condition: Callable[[], object], *, seconds: float = 60.0) -> None:
    """Wait for what another process does; there is no event to await across processes."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def kill(pid: int, sig: signal.Signals = signal.SIGKILL) -> None:
    os.kill(pid, sig)
