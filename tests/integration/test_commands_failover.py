"""Commands that ask the databases find them after a failover: who leads is not who the topology says."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests._cluster import Cluster

TOPOLOGY = """
name = "shop"
app = "shop_app:app"
modules = "shop_app:modules"
[nodes]
one.url = "{one}"
two.url = "{two}"
[clusters.main]
primary = "{primary}"
replicas = ["{replica}"]
[databases.default]
shards = ["main"]
"""

APP = """
from pathlib import Path
from typing import Protocol

import msgspec

from springtide.events import event
from springtide.flows import Step, Workflow
from springtide.jobs import Handler, Schedule, job
from springtide.services import Module


@job(kind="shop.sweep")
class Sweep(msgspec.Struct, frozen=True):
    pass


@event(kind="shop.swept")
class Swept(msgspec.Struct, frozen=True):
    pass


class Shop(Protocol):
    async def open(self) -> bool: ...


class Service:
    def __init__(self, context): ...

    async def open(self) -> bool:
        return True

    async def sweep(self, job, run): ...


async def app(scope, receive, send): ...


def modules():
    return [
        Module(
            "shop", migrations=Path(__file__).parent / "migrations", provides=Shop, factory=Service,
            jobs=[Handler(Sweep, Service.sweep)], schedules=[Schedule("sweep", Sweep(), every=60)],
            publishes=[Swept], workflows=[Workflow("shop.clean", Sweep, [Step("sweep", Service.sweep)])],
        )
    ]
"""


@pytest.mark.timeout(120)
async def test_commands_ask_the_server_that_leads(
    own_cluster: Callable[..., Cluster], tmp_path: Path
) -> None:
    world = await asyncio.to_thread(own_cluster, replicas=1)
    (replica,) = world.replicas
    urls = {"one": world.url(), "two": world.url(replica)}
    (tmp_path / "shop_app.py").write_text(APP)
    (tmp_path / "migrations").mkdir()
    before = TOPOLOGY.format(**urls, primary="one", replica="two")
    await run(tmp_path, before, "db", "migrate")
    await asyncio.to_thread(replica.catch_up)
    after = TOPOLOGY.format(**urls, primary="two", replica="one")
    for command in ("flows ls", "schedule ls", "jobs ls", "events ls", "db status"):
        await run(tmp_path, after, *command.split())


async def run(folder: Path, topology: str, *command: str) -> None:
    (folder / "springtide.toml").write_text(topology)
    ended = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-m", "springtide.ops.cli", *command], cwd=folder,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, f"{command}: {ended.stderr}"
