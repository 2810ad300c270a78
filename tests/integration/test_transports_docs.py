"""docs/transports.md: its topology, its example, and a table that says what the drivers declare."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
from tests._redis import RedisServer
from tests.jobs_support import DO, Doer, add, deeds, reach
from tests.transports import BROKERS

from springtide.jobs.transports import DRIVERS
from springtide.topology import loads
from springtide.topology.built import missing_parts

PAGE = (Path(__file__).parents[2] / "docs" / "transports.md").read_text()


def block(language: str) -> str:
    found = re.search(rf"```{language}\n(.*?)```", PAGE, re.S)
    assert found is not None
    return found[1]


def test_the_topology_of_the_page() -> None:
    """It is read, names the carrier, and lacks nothing of jobs in this version."""
    topology = loads(block("toml") + '[nodes.db]\n[clusters.main]\nprimary = "db"\n')
    assert topology.carrier == "broker" and missing_parts(topology) == []


@pytest.mark.needs("redis-server")
async def test_the_example_of_the_page(database_url: str, tmp_path: Path, redis_server: RedisServer) -> None:
    """A worker by hand, with a transport, does what is enqueued."""
    doer = Doer()
    async with deeds([database_url], tmp_path / "migrations") as database:
        names: dict[str, Any] = {
            "database": database,
            "handlers": [DO],
            "implementation": doer,
            "url": database_url,
        }
        text = block("python").replace("redis://127.0.0.1:6379/0", redis_server.url)
        text = text.replace('dsns={"main": url}', "dsns=dict.fromkeys(database.pools, url)")
        exec(compile(text, "docs/transports.md", "exec"), names)
        await names["worker"].start()
        try:
            await add(database, "deed")
            await reach(database, "done")
        finally:
            await names["worker"].stop()
    assert [what for what, _ in doer.calls] == ["deed"]
    assert redis_server.commands_done("xreadgroup") > 0


def test_the_table_says_what_drivers_declare() -> None:
    """Each driver has its row, and its row is what it declares; what runs on a stand-in says so."""
    rows = {
        cells[0].strip("` "): [cell.strip() for cell in cells[1:]]
        for line in PAGE.splitlines()
        if line.startswith("| `") and len(cells := line.strip("|").split("|")) == 7
    }
    assert set(rows) == {"postgres", *DRIVERS}
    for kind, (module, name) in DRIVERS.items():
        declared = getattr(importlib.import_module(module), name).capabilities
        shown = [
            "real server" if BROKERS[kind][0].real else "stand-in",
            *(
                "yes" if able else "no"
                for able in (
                    declared.survives_restart,
                    declared.redelivers,
                    declared.ordered,
                    declared.deduplicates,
                )
            ),
            declared.durable,
        ]
        assert rows[kind] == shown, kind
        assert f"\n### {kind}\n" in PAGE
