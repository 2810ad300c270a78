"""docs/adopting.md is true: its examples run against a primary and a replica that stands still."""

from __future__ import annotations

import asyncio
import importlib
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests._cluster import Cluster
from tests.replicated import serving

PAGE = (Path(__file__).parents[2] / "docs" / "adopting.md").read_text("utf-8")


def examples(folder: Path, monkeypatch: pytest.MonkeyPatch, world: Cluster) -> tuple[Any, Any]:
    """The modules of the page, new ones; urls in an order that is not that of the roles."""
    blocks = dict(re.findall(r"^```python file=(\S+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE))
    assert list(blocks) == ["service.py", "orm.py"]
    for name, text in blocks.items():
        (folder / name).write_text(text)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setenv("KEYS", str(folder / "causality.key"))
    monkeypatch.setenv("DATABASE_URLS", f"{world.url(world.replicas[0])} {world.url()}")
    for name in ("service", "orm"):
        sys.modules.pop(name, None)
    return importlib.import_module("service"), importlib.import_module("orm")


async def test_the_examples_read_their_writes(
    own_cluster: Callable[..., Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By SQL and by ORM: who wrote sees it although the replica does not; who did not write reads there."""
    world = await asyncio.to_thread(own_cluster, replicas=1)
    ask = world.primary.query
    await asyncio.to_thread(
        ask, "create table person (id serial primary key, name text not null)", dbname=world.dbname
    )
    service, orm = await asyncio.to_thread(examples, tmp_path, monkeypatch, world)
    transport = httpx.ASGITransport(app=service.app)

    def client() -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=transport, base_url="http://service")

    async with service.lifespan(service.api), client() as ann, client() as other:
        await serving(service.servers, 1)
        await asyncio.to_thread(world.replicas[0].hold)
        assert (await ann.post("/names/ann")).json() == {"added": "ann"}
        for path in ("/names", "/people"):
            assert (await ann.get(path)).json() == ["ann"], path
            assert (await other.get(path)).json() == [], path
        assert (await ann.put("/people/ann", params={"new": "bea"})).json() == {"name": "bea"}
        for path in ("/names", "/people"):
            assert (await ann.get(path)).json() == ["bea"], path
        await asyncio.to_thread(world.replicas[0].release)
        await orm.routing.close()
