"""docs/replicas.md is true: its example runs as it stands there, and every name and default in it exists."""

from __future__ import annotations

import asyncio
import re
import runpy
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from tests._cluster import Cluster

import springtide.errors
from springtide.db.servers import RoutingSettings

GUIDE = (Path(__file__).parents[2] / "docs" / "replicas.md").read_text("utf-8")


async def test_the_example_runs(own_cluster: Callable[..., Cluster], tmp_path: Path) -> None:
    """It sees its own write at once, and notes where that is in a token."""
    world = await asyncio.to_thread(own_cluster, replicas=1)
    table = "create table item (bucket smallint, name text)"
    await asyncio.to_thread(world.primary.query, table, dbname=world.dbname)
    await asyncio.to_thread(world.replicas[0].catch_up)
    code = re.search(r"`shop.py`:\n\n```python\n(.*?)```", GUIDE, re.DOTALL)
    assert code is not None
    (tmp_path / "shop.py").write_text(code[1])
    main = runpy.run_path(str(tmp_path / "shop.py"))["main"]
    mine, somebodys, token, _ = await main({"db": world.url(), "db-2": world.url(world.replicas[0])})
    assert mine == 1 and somebodys in (0, 1)
    assert token.startswith("main:1:")


def test_every_setting_is_there_with_its_default() -> None:
    """The page names each option of RoutingSettings that is a number with the value that it has."""
    shown = dict(re.findall(r"`(?:RoutingSettings\.)?(\w+)` \(([\d.]+) ?(?:s|MiB)?\)", GUIDE))
    shown |= dict(re.findall(r"`(look_timeout)`, ([\d.]+) s", GUIDE))
    for field in fields(RoutingSettings):
        if field.name in ("zone", "look_every"):
            continue
        scale = 2**20 if field.name.endswith("bytes") else 1
        assert float(shown[field.name]) * scale == field.default, field.name
    assert RoutingSettings().look_every == 0.1 and "ten times a second" in GUIDE


def test_every_error_is_there() -> None:
    for name in ("StalenessUnknown", "ReplicaConflict"):
        assert name in GUIDE and hasattr(springtide.errors, name)
