"""Jobs on real PostgreSQL: enqueued with the transaction, run, retried, finished once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.jobs_support import deeds, rows, states, until, working

from springtide.db import Bucket, Database, bucket_of
from springtide.jobs import Handler, Run, job


@job(kind="deed.do", max_attempts=3, backoff=0.01, max_backoff=0.05, max_run=5.0)
class Deed(msgspec.Struct, frozen=True):
    what: str


class Doer:
    """Handlers that tell what they were called with and do what the test says."""

    def __init__(self, act: Callable[[Deed, Run], Awaitable[None]] | None = None) -> None:
        self.calls: list[tuple[str, Run]] = []
        self._act = act

    async def do(self, deed: Deed, run: Run) -> None:
        self.calls.append((deed.what, run))
        if self._act is not None:
            await self._act(deed, run)


DO = Handler(Deed, Doer.do)


@pytest.fixture
async def database(database_urls: tuple[str, str], tmp_path: Path) -> AsyncIterator[Database]:
    async with deeds(database_urls, tmp_path / "migrations", size=6) as made:
        yield made


async def add(database: Database, what: str, **options: Any) -> Any:
    async with database.write(what) as tx:
        return await tx.enqueue(Deed(what), **options)


async def test_a_job_runs_once_on_whichever_shard(
    database: Database, database_urls: tuple[str, str]
) -> None:
    """Jobs of both shards are run, each once, and their rows end as done in their key's bucket."""
    doer = Doer()
    wanted = [f"deed {number}" for number in range(30)]
    async with working(database, database_urls, [DO], doer):
        for what in wanted:
            await add(database, what)
        await until(lambda: len(doer.calls) == 30)
        async def all_done() -> bool:
            return await states(database) == ["done"] * 30
        await until(all_done)
    assert sorted(what for what, _ in doer.calls) == sorted(wanted)
    assert {row["bucket"] for row in await rows(database)} == {bucket_of(what) for what in wanted}
    assert len({database.shards.shard_of(Bucket(row["bucket"])) for row in await rows(database)}) == 2
