"""A platform in this process over a cluster of the benchmark, migrated and served by its replicas."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from bench._cluster import Cluster, Node, scratch
from bench._pinned import ROOT
from bench.register.app import modules
from springtide.context import RequestContext, activate
from springtide.platform import Platform

__all__ = ["platform_over", "ready", "write_topology"]

PATIENCE = 60.0

TOPOLOGY = """
name = "register"
app = "bench.register.app:app"
path = {path}
modules = "bench.register.app:modules"
{nodes}
[clusters.main]
primary = {primary}
replicas = {replicas}
[databases.register]
shards = ["main"]
durability = {durability}
[servers]
request_timeout = 10.0
[telemetry]
log_level = "error"
"""


def write_topology(folder: Path, world: Cluster, replicas: Sequence[Node], *, durability: str) -> Path:
    """springtide.toml in `folder`, with `replicas` of those that the cluster has."""
    nodes = [world.primary, *replicas]
    text = TOPOLOGY.format(
        path=json.dumps(str(ROOT)),
        nodes="".join(f"[nodes.{node.name}]\nurl = {json.dumps(node.url)}\n" for node in nodes),
        primary=json.dumps(world.primary.name),
        replicas=json.dumps([node.name for node in replicas]),
        durability=json.dumps(durability),
    )
    file = folder / "springtide.toml"
    file.write_text(text)
    return file


async def ready(platform: Platform, replicas: int) -> None:
    """Return when so many replicas serve session reads: those that are new do so only after a while."""
    database = platform.database("register")
    give_up = time.monotonic() + PATIENCE
    seen: set[int] = set()
    while len(seen) < replicas:
        if time.monotonic() > give_up:
            raise RuntimeError(f"{len(seen)} of {replicas} replicas serve session reads after {PATIENCE:g} s")
        with activate(RequestContext()):
            row = await database.read(1).fetch_one(
                "select pg_is_in_recovery() as replica, inet_server_port() as port"
            )
        if row["replica"]:
            seen.add(row["port"])
        await asyncio.sleep(0.01)


@asynccontextmanager
async def platform_over(
    world: Cluster, replicas: Sequence[Node], *, durability: str = "async"
) -> AsyncIterator[Platform]:
    folder = scratch("springtide-register-")
    try:
        platform = Platform.from_topology(
            write_topology(folder, world, replicas, durability=durability), modules=modules()
        )
        await platform.migrate()
        async with platform:
            await ready(platform, len(replicas))
            yield platform
    finally:
        shutil.rmtree(folder, ignore_errors=True)
