"""docs/platform.md is true: its files make a platform that answers."""

from __future__ import annotations

import asyncio
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from springtide.lifecycle import Group

PAGE = Path(__file__).parents[2] / "docs" / "platform.md"


def test_the_five_minutes_of_the_page_work(
    tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Write the files, give the node its address, migrate, ask the application."""
    blocks = re.findall(r"^```\w+ file=(\S+)\n(.*?)^```$", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    for name, text in blocks:
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    topology = tmp_path / "springtide.toml"
    with topology.open("a") as file:
        file.write(f'[nodes.db]\nurl = "{database_url}"\n')
    for name in ("SPRINGTIDE_HOME", "SPRINGTIDE_NODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SPRINGTIDE_TOPOLOGY", str(topology))
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    try:
        made = importlib.import_module("shop.app")
        api = importlib.import_module("shop.api")
        asyncio.run(use(made, api))
    finally:
        for name in set(sys.modules) - before:
            if name.partition(".")[0] == "shop":
                del sys.modules[name]


async def use(made: Any, api: Any) -> None:
    await made.platform.migrate()
    async with made.platform:
        transport = httpx.ASGITransport(app=made.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            answer = await client.get("/")
            assert answer.headers["x-request-id"]
            order = await made.orders.find(answer.json()["id"])
            assert (order.customer, order.total) == ("Ann", 42)
            assert "springtide_pool_connections" in (await client.get("/metrics")).text
            assert (await client.get("/health/ready")).status_code == 200
        with pytest.raises(api.NoSuchOrder):
            await made.orders.find(1)
        work = Group("work", made.platform.background())
        await work.start()
        await made.orders.count()
        assert made.orders.placed == 1
        await work.stop()
