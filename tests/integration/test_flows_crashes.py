"""kill -9 at every point of every step: each flow ends either complete or compensated, once."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import tests
from tests.flowing import PLACE, begin, effects
from tests.flows_child import BACKWARD, FORWARD, POINTS
from tests.jobs_support import deeds

from springtide.db import Database
from springtide.flows import Flows, Step

Urls = tuple[str, str]


@pytest.fixture
async def database(database_urls: Urls, tmp_path: Path) -> AsyncIterator[Database]:
    async with deeds(database_urls, tmp_path / "migrations", size=8) as made:
        yield made


def test_the_points_are_all_of_all_steps() -> None:
    """A step that is added to the workflow is killed, too, or this fails."""
    steps = [f"do {step.name}" for step in PLACE.steps]
    undone = [f"undo {s.name}" for s in PLACE.steps if isinstance(s, Step) and s.undo is not None]
    assert (list(FORWARD), list(BACKWARD)) == (steps, undone[::-1])
    for step in (*FORWARD, *BACKWARD):
        for moment in ("before", "inside", "after"):
            assert any(point.endswith(f"{step} {moment}") for point in POINTS)


@pytest.mark.timeout(400)
async def test_whoever_is_killed_where_the_flow_is_complete_or_compensated(
    database: Database, database_urls: Urls, tmp_path: Path
) -> None:
    """A transactional effect is there once; another one at most twice, under one key; each move is recorded
    once, and nobody is stuck."""
    flows = Flows(database, [PLACE])
    ids = {point: await begin(flows, point, key=point) for point in POINTS}
    root = Path(tests.__path__[0]).parent
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.flows_child", str(tmp_path), *database_urls,
        env={**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'apps'}"}, cwd=root,
        stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said, _ = await child.communicate()
    found = json.loads(said.splitlines()[-1])
    assert found["code"] == 0 and found["died"] >= len(POINTS)
    keys: dict[str, set[str]] = {}
    for row in await database.scatter("select what, job from deeds.effect"):
        keys.setdefault(row["what"], set()).add(row["job"])
    assert all(len(one) == 1 for one in keys.values())
    for point, id in ids.items():
        status = await flows.look(point, id)
        assert status is not None
        happened = await effects(database, point)
        wanted = ["do reserve", "do pay", "do send"]
        if point.startswith("unsendable"):
            wanted = ["do reserve", "do pay", "undo pay", "undo reserve"]
        assert list(dict.fromkeys(happened)) == wanted, point
        assert status.state == ("undone" if point.startswith("unsendable") else "done"), point
        for what in ("do reserve", "do send", "undo reserve"):  # the transactional ones
            assert happened.count(what) <= 1, (point, happened)
        assert max(happened.count(what) for what in happened) <= 2, (point, happened)
        recorded = [(one.step, one.outcome) for one in status.steps]
        assert len(set(recorded)) == len(recorded) == len(wanted) + (status.state == "undone"), point
    assert await database.scatter("select id from deeds._job") == []
