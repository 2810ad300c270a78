"""docs/database.md is true: its example runs as it stands there, on one shard and on two."""

from __future__ import annotations

import asyncio
import re
import runpy
from pathlib import Path

import pytest

import springtide.db

GUIDE = (Path(__file__).parents[2] / "docs" / "database.md").read_text("utf-8")


def example(name: str) -> str:
    found = re.search(rf"`{re.escape(name)}`:\n\n```\w+\n(.*?)```", GUIDE, re.DOTALL)
    assert found is not None, f"docs/database.md has no example {name}"
    return found[1]


@pytest.mark.parametrize("shards", [1, 2])
async def test_the_example_runs(tmp_path: Path, database_urls: tuple[str, str], shards: int) -> None:
    """The guide's migration and module, taken from its text, add and find notes and page through them."""
    (tmp_path / "migrations").mkdir()
    for name in ("migrations/0001_note.sql", "notes.py"):
        (tmp_path / name).write_text(example(name))
    # in a thread: what it imports for the first time reads files
    main = (await asyncio.to_thread(runpy.run_path, str(tmp_path / "notes.py")))["main"]
    urls = dict(zip(("main", "second")[:shards], database_urls, strict=False))
    assert await main(urls) == ("number 3", [f"number {number}" for number in (4, 3, 2, 1, 0)])


def test_every_name_in_the_guide_exists() -> None:
    """What the guide writes as `db.name(` is a method, and what it imports is there."""
    for name in set(re.findall(r"\bdb\.(\w+)\(", GUIDE)):
        assert hasattr(springtide.db.Database, name), name
    for name in set(re.findall(r"\bdb\.ids\.(\w+)\(", GUIDE)):
        assert hasattr(springtide.db.Ids, name), name
    for name in ("STRONG", "SESSION", "EVENTUAL", "bounded"):
        assert name in GUIDE
        assert hasattr(springtide.db.Consistency, name)
