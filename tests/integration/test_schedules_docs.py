"""docs/schedules.md is true: its module runs as it stands there, and its scheduler alone."""

from __future__ import annotations

import re
import runpy
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from tests.integration.test_platform import topology_of
from tests.jobs_support import deeds, until
from tests.scheduling import EACH_SECOND

from springtide.db import Database
from springtide.jobs import scheduled
from springtide.jobs._slots import MOST, ON_TIME
from springtide.lifecycle import Group
from springtide.platform import Platform

BERLIN = ZoneInfo("Europe/Berlin")
"""A zone is a file, read where it is first named: an application does that when it is imported."""

GUIDE = (Path(__file__).parents[2] / "docs" / "schedules.md").read_text("utf-8")


@pytest.fixture
async def platform(tmp_path: Path, database_urls: tuple[str, str]) -> AsyncIterator[tuple[Platform, Any]]:
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_office.sql").write_text(
        "create table office.desk (bucket smallint not null, id bigint not null, primary key (bucket, id));"
    )
    found = re.search(r"`office/service.py`:\n\n```python\n(.*?)```", GUIDE, re.DOTALL)
    assert found is not None
    (tmp_path / "service.py").write_text(found[1])
    names = runpy.run_path(str(tmp_path / "service.py"))
    made = Platform(topology_of(*database_urls), modules=[names["module"]()])
    await made.migrate()
    async with made:
        yield made, names["Office"]


async def test_the_module_runs_as_written(platform: tuple[Platform, Any]) -> None:
    """Three nights that nobody was there for are three reports, by the platform's own workers."""
    made, office = platform
    database = made.database("office")
    work = Group("work", made.background(drain=5.0))
    await work.start()
    try:

        async def planned() -> bool:
            return len(await scheduled(database)) == 2

        await until(planned)
        await database.pools["main"].execute(
            "update office._schedule set next_at = next_at - interval '3 days' where name = 'nightly'"
        )
        await work.stop()  # its schedulers believe that they have time
        await work.start()

        async def reported() -> Any:
            return len(await made.service(office).reports()) == 3

        await until(reported)
    finally:
        await work.stop()
    known = {one.name: (one.timing, one.runs) for one in await scheduled(database)}
    assert known["nightly"] == ("30 3 * * * Europe/Berlin", 3)


async def test_a_scheduler_without_a_platform(database_urls: tuple[str, str], tmp_path: Path) -> None:
    (code,) = [text for text in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL) if "def keep" in text]
    scope: dict[str, Any] = {}
    exec(code, scope)
    async with deeds(database_urls, tmp_path / "migrations") as database:

        async def ran() -> None:
            await until(lambda: _runs(database))

        assert (await scope["keep"](database, [EACH_SECOND], ran))[0] >= 1


async def _runs(database: Database) -> bool:
    return any(one.runs for one in await scheduled(database))


def test_the_numbers_of_the_guide_are_those_of_the_code() -> None:
    assert f"the newest {MOST}" in GUIDE
    assert "a minute late" in GUIDE and ON_TIME.total_seconds() == 60
