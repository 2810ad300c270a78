"""Clusters kept by the runner, for tests that kill their servers: a child process with one Keeper in it.

async with kept(home, replicas=("r1", "r2"), quorum=True) as keeper: ...     in this process
python -m tests._keeping HOME NAME...                                        to be killed itself
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from springtide.ops.runner import pgdata, standby
from springtide.ops.runner.clusters import Keeper
from springtide.ops.runner.postgres import EmbeddedPostgres

__all__ = ["keeper_of", "kept", "primaries", "until"]


def keeper_of(home: Path, *, primary: str = "db", replicas: tuple[str, ...] = (), **options: Any) -> Keeper:
    async def make(node: str) -> EmbeddedPostgres:
        return EmbeddedPostgres(node, home=home, durable=False, max_connections=50)

    options.setdefault("changed", lambda: None)
    return Keeper("main", primary=primary, replicas=replicas, folder=home / "clusters", make=make, **options)


@asynccontextmanager
async def kept(home: Path, **options: Any) -> AsyncIterator[Keeper]:
    keeper = keeper_of(home, **options)
    try:
        await keeper.start()
        yield keeper
    finally:
        await keeper.stop()


async def until(condition: Callable[[], Awaitable[object]], *, seconds: float = 60.0) -> None:
    """Wait for what another process does; there is no event to await across processes."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


def primaries(home: Path) -> list[str]:
    """The nodes whose server runs and whose folder is a primary's."""
    folders = [folder for folder in (home / "data").iterdir() if (folder / "PG_VERSION").exists()]
    running = [folder for folder in folders if pgdata.postmaster(folder.resolve()) is not None]
    return sorted(folder.name for folder in running if not standby.is_standby(folder.resolve()))


async def _main(home: Path, options: dict[str, Any]) -> None:
    options["replicas"] = tuple(options["replicas"])
    async with kept(home, **options):
        print("up", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1]), json.loads(sys.argv[2])))
