"""Databases for an application's own tests: a real PostgreSQL for the run, removed after it."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from springtide.ops.runner.postgres import EmbeddedPostgres
from springtide.topology import Topology, load

__all__ = ["temporary_databases"]


@contextmanager
def temporary_databases(file: Path) -> Iterator[Topology]:
    """The topology of `file` with one temporary server (no fsync) behind all its PostgreSQL nodes.

    Every cluster gets an empty database of its own, and no replicas. The servers that the file gives by url
    are not touched. Synchronous, so that a fixture of any scope can use it; not to be called inside a running
    event loop.
    """
    topology = load(file)
    folder = Path(tempfile.mkdtemp(prefix="springtide-test-"))
    folder.chmod(0o755)  # for root: the server runs as another account and must get in
    server = EmbeddedPostgres("db", home=folder / "home", durable=False)
    try:
        asyncio.run(_start(server, [f"cluster-{name}" for name in topology.clusters]))
        nodes = {name: replace(node, url=None) for name, node in topology.nodes.items()}
        clusters = {
            name: replace(cluster, dbname=f"cluster-{name}", replicas=())
            for name, cluster in topology.clusters.items()
        }
        databases = {
            name: replace(database, durability="async") for name, database in topology.databases.items()
        }
        supervised = replace(topology, nodes=nodes, clusters=clusters, databases=databases)
        yield supervised.with_addresses({name: server.url() for name in nodes})
    finally:
        asyncio.run(server.stop())
        shutil.rmtree(folder, ignore_errors=True)


async def _start(server: EmbeddedPostgres, dbnames: list[str]) -> None:
    await server.start()
    for dbname in dbnames:
        await server.ensure_database(dbname)
