"""Registering while the mail server takes 0.8 s for a mail: the welcome sent by a job, or in the request.

market twice on one embedded PostgreSQL, an app server each, with one mailbox that answers each mail after
0.8 s. One is market as it is, with a worker beside it that sends the mails meanwhile; the other one sends
them before it answers (`_mailing_app.py`), with the same mailer. They take turns; four people register at a
time.

- `register_p95_ms_vs_sync_mail`: the 95th percentile of a registration, queued over synchronous, the median
  of the rounds. Below 1 is faster.
- `register_p95_ms_queued`, `register_p95_ms_sync`: of all rounds, in milliseconds.
- `mails_missing`: people of either side who had no mail in the end; anything but 0 is a failure.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import httpx

from bench._harness import arguments, finish
from bench._pinned import ROOT, Server
from market.platform import modules
from springtide.ops.runner.postgres import EmbeddedPostgres
from springtide.platform import Platform

SLOW = 0.8
"""Seconds that the mail server takes."""

SIDES = {"queued": "market.asgi:app", "sync": "bench._mailing_app:app"}
AT_ONCE = 4
PATIENCE = 300.0
"""Seconds for the last mails; three are on their way at a time."""

TOPOLOGY = """
name = "market"
stage = 1
app = {app}
path = {path}
modules = "market.platform:modules"
[nodes.db]
url = {url}
[telemetry]
log_level = "warning"
"""


class Mailbox:
    """`python -m market.mailbox`, which answers each mail after SLOW seconds."""

    def __init__(self, folder: Path, keep: int) -> None:
        command = ["--smtp-port", "0", "--http-port", "0", "--state", str(folder), "--keep", str(keep)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "market.mailbox", *command],
            env={**os.environ, "PYTHONPATH": str(ROOT / "apps")},
            stdout=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        words = self.process.stdout.readline().decode().split()
        self.smtp, self.url = words[2], words[-1]
        httpx.put(f"{self.url}/control", json={"delay": SLOW}, trust_env=False).raise_for_status()

    async def missing(self, people: set[str], client: httpx.AsyncClient) -> set[str]:
        """Who of `people` (addresses) has no mail, once all have or PATIENCE is over."""
        give_up = time.monotonic() + PATIENCE
        while True:
            mails = (await client.get(f"{self.url}/api/mails")).json()
            left = people - {recipient for mail in mails for recipient in mail["recipients"]}
            if not left or time.monotonic() > give_up:
                return left
            await asyncio.sleep(0.5)

    def stop(self) -> None:
        self.process.kill()
        self.process.communicate()


class Worker:
    """A worker process, as the runner starts it."""

    def __init__(self, env: Mapping[str, str], log: Path) -> None:
        reader, writer = os.pipe()
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                [
                    sys.executable, "-m", "springtide.ops.runner.worker", "--ready-fd", str(writer),
                    "--drain", "5",
                ],
                cwd=ROOT, env={**os.environ, **env}, pass_fds=(writer,), stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip
        os.close(writer)
        with open(reader, "rb") as ready:
            if not ready.read(1):
                raise RuntimeError(f"the worker did not start:\n{log.read_text(errors='replace')[-4000:]}")

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


async def registered(client: httpx.AsyncClient, url: str, names: list[str]) -> list[float]:
    """Seconds of each registration, AT_ONCE at a time."""
    waiting, found = iter(names), []

    async def some() -> None:
        for name in waiting:
            user = {"username": name, "email": f"{name}@example.com", "password": "correct horse battery"}
            begun = time.perf_counter()
            answer = await client.post(f"{url}/api/users", json={"user": user})
            found.append(time.perf_counter() - begun)
            answer.raise_for_status()

    await asyncio.gather(*(some() for _ in range(AT_ONCE)))
    return found


def p95(seconds: list[float]) -> float:
    return sorted(seconds)[max(-(-len(seconds) * 95 // 100) - 1, 0)]


async def measure(home: Path, *, rounds: int, people: int) -> dict[str, float]:
    postgres = EmbeddedPostgres("db", home=home)
    mailbox = Mailbox(home / "mails", keep=(rounds + 2) * people * len(SIDES))
    running: list[Server | Worker | Mailbox] = [mailbox]
    try:
        await postgres.start()
        servers: dict[str, Server] = {}
        for name, app in SIDES.items():
            await postgres.ensure_database(name)
            topology = home / f"{name}.toml"
            values = {"app": app, "path": str(ROOT / "apps"), "url": postgres.url(name)}
            topology.write_text(TOPOLOGY.format(**{key: json.dumps(value) for key, value in values.items()}))
            await Platform.from_topology(topology, modules=modules()).migrate()
            env = {
                "SPRINGTIDE_NODE": "app",
                "SPRINGTIDE_TOPOLOGY": str(topology),
                "SPRINGTIDE_HOME": str(home / f".{name}"),
                "MARKET_SMTP_URL": mailbox.smtp,
                "MARKET_MAIL_FROM": "Market <market@example.com>",
                "PYTHONPATH": f"{ROOT / 'apps'}{os.pathsep}{ROOT}",
            }
            path, log = ROOT / "apps", home / f"{name}.log"
            servers[name] = Server(name, app, cores=None, path=path, log=log, env=env)
            running.append(servers[name])
            if name == "queued":
                running.append(Worker({**env, "SPRINGTIDE_NODE": "worker"}, home / "worker.log"))
        seconds: dict[str, list[float]] = {name: [] for name in SIDES}
        ratios, everybody = [], set()
        async with httpx.AsyncClient(timeout=60, trust_env=False) as client:
            for number in range(-1, rounds):  # the first one warms up
                took = {}
                for name in SIDES if number % 2 else reversed(SIDES):
                    names = [f"{name}{number + 1}x{each}" for each in range(people)]
                    everybody |= {f"{one}@example.com" for one in names}
                    took[name] = await registered(client, servers[name].url, names)
                if number < 0:
                    continue
                for name in SIDES:
                    seconds[name] += took[name]
                ratios.append(p95(took["queued"]) / p95(took["sync"]))
                shown = ", ".join(f"{name} {p95(took[name]) * 1000:.0f} ms" for name in SIDES)
                print(f"p95 of {people} registrations: {shown}", flush=True)
            missing = await mailbox.missing(everybody, client)
    finally:
        for one in reversed(running):
            one.stop()
        await postgres.stop()
    return {
        "register_p95_ms_vs_sync_mail": round(statistics.median(ratios), 3),
        "register_p95_ms_queued": round(p95(seconds["queued"]) * 1000, 1),
        "register_p95_ms_sync": round(p95(seconds["sync"]) * 1000, 1),
        "mails_missing": len(missing),
    }


async def main() -> int:
    options = arguments(__doc__, rounds=7)
    home = Path(tempfile.mkdtemp(prefix="springtide-registration-"))
    home.chmod(0o755)
    try:
        figures = await measure(home, rounds=options.rounds, people=12 if options.quick else 60)
    finally:
        shutil.rmtree(home, ignore_errors=True)
    finish(figures)
    return 1 if figures["mails_missing"] else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
