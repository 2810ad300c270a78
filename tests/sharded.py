"""A module's database over one or two shards, for tests: pools, migrations, and rows to look at."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from springtide.db import Database, Migrator, ShardMap
from springtide.db.pool import Pool

SHARDS = ("main", "second", "third")

NOTES = """
create table notes.note (
    bucket smallint not null,
    id     bigint   not null,
    text   text     not null default '',
    rank   integer,
    at     timestamptz not null default now(),
    primary key (bucket, id)
);
"""


@asynccontextmanager
async def pools(urls: Sequence[str], **options: Any) -> AsyncIterator[dict[str, Pool]]:
    """A started pool for each address; `main`, `second`, `third`."""
    async with AsyncExitStack() as stack:
        started: dict[str, Pool] = {}
        for name, url in zip(SHARDS, urls, strict=False):
            started[name] = await stack.enter_async_context(Pool(url, cluster=name, **options))
        yield started


@asynccontextmanager
async def notes(urls: Sequence[str], folder: Path, **options: Any) -> AsyncIterator[Database]:
    """The database `notes` with the table `notes.note`, migrated on every shard."""
    (folder / "0001_note.sql").write_text(NOTES)
    async with pools(urls, **options) as started:
        await Migrator("notes", folder, started).apply()
        yield Database("notes", ShardMap.even(list(started)), started)
