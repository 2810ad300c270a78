"""The index keeps up with what it copies: whatever order puts and removals come in, and whoever is killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.market.harness import Api, forgotten, one_platform
from tests.market.paying import APPS
from tests.market.test_catalog_api import good, offer, seller
from tests.market.test_search import document
from tests.market.working import work

from market import indexing
from market.content.api import Content
from market.search.api import Search, SearchQuery
from market.search.service import REMEMBERED
from springtide.platform import Platform

pytestmark = one_platform

ROOT = Path(tests.__path__[0]).parent


class Step(NamedTuple):
    version: int
    removes: bool


STEPS = st.lists(st.builds(Step, st.integers(1, 6), st.booleans()), min_size=1, max_size=8)


async def titles(api: Api, text: str) -> list[str]:
    page = await api.service(Search).find(SearchQuery(text=text, limit=100))
    return [hit.title for hit in page.items]


def implementation(platform: Platform, name: str) -> Any:
    return platform._registry.implementation(name)


async def sweep(platform: Platform) -> None:
    """One round of each module, as a worker does it."""
    for module in platform.modules:
        for task in module.background:
            if task.name == "index":
                await task.method(implementation(platform, module.name))


async def forget_jobs(platform: Platform) -> None:
    for name in ("users", "content", "catalog"):
        for pool in platform.database(name).pools.values():
            await pool.execute(f"delete from {name}._job")


async def test_the_newest_wins_in_any_order(api: Api) -> None:
    """Puts and removals, some twice, in any order: the highest version decides, of one version the
    removal."""
    search, drawn = api.service(Search), list[list[Step]]()

    @settings(max_examples=60, database=None, suppress_health_check=list(HealthCheck), deadline=None)
    @given(STEPS)
    def draw(steps: list[Step]) -> None:
        drawn.append(steps)

    draw()
    expected = []
    for number, steps in enumerate(drawn):
        for step in steps:
            one = document(number, f"n{number} v{step.version}", version=step.version)
            if step.removes:
                await search.remove("article", one.id, step.version)
            else:
                await search.put([one])
        last = max(steps)
        expected.append([] if last.removes else [f"n{number} v{last.version}"])
    assert [await titles(api, f'"n{number}"') for number in range(len(drawn))] == expected


async def test_handlers_may_run_twice_and_late(api: Api) -> None:
    """A job that is run again after newer ones changes nothing, because it tells what is there now."""
    jake = await api.person("jake")
    slug = (await api.article(jake, "Old boats"))["slug"]
    content = implementation(api.platform, "content")
    id = (await api.service(Content).article(slug, None)).id
    early = await content._documents([id])
    change = {"article": {"title": "New kites"}}
    slug = (await api.call("PUT", f"/articles/{slug}", change, by=jake, expect=200))["article"]["slug"]
    await work(api.platform)
    await content._search.put(early)
    assert (await titles(api, "boats"), await titles(api, "kites")) == ([], ["New kites"])
    late = await content._documents([id])
    await api.call("DELETE", f"/articles/{slug}", by=jake, expect=204)
    await work(api.platform)
    await content._search.put(late)
    assert await titles(api, "kites") == []


@pytest.mark.parametrize("shards", [2], ids=["two-shards"], indirect=True)
async def test_a_kill_between_change_and_index_loses_nothing(
    api: Api, urls: list[str], tmp_path: Path
) -> None:
    """What was committed is indexed by whoever works next; what was not leaves no job behind."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{APPS}"}
    for step, title in (("before", "Never written"), ("after", "Written and forgotten")):
        command = ["-m", "tests.market.searching_child", step, title, str(tmp_path), *urls]
        child = await asyncio.create_subprocess_exec(sys.executable, *command, env=environment, cwd=ROOT)
        assert await child.wait() == -signal.SIGKILL, step
    assert await titles(api, "written") == []
    assert await work(api.platform, ["content"]) == 1
    assert await titles(api, "written") == ["Written and forgotten"]


async def test_the_sweep_finds_what_no_job_told_of(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Things from before the index, in rounds of a few; also those that were indexed in an older form."""
    monkeypatch.setattr(indexing, "BATCH", 3)
    monkeypatch.setattr(indexing, "PUT", 2)
    monkeypatch.setattr(indexing, "MAX_BATCHES", 2)
    anna = await seller(api)
    people = [await api.person(f"walnut{number}") for number in range(7)]
    for number, person in enumerate(people):
        await api.article(person, f"Walnut {number}")
        await offer(api, anna, title=f"Walnut lamp {number}", status="draft" if number == 0 else "active")
    await forget_jobs(api.platform)
    for _ in range(2):
        assert len(await titles(api, "walnut")) < 20
        for _ in range(3):
            await sweep(api.platform)
        assert len(await titles(api, "walnut")) == 7 + 7 + 6
        for pool in api.platform.database("search").pools.values():
            await pool.execute("update search.document set form = 0, names = '', words = ''")
        await forgotten(api.platform)


async def test_a_sweep_that_finds_nothing_to_do_is_short(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch of each kind a round, compared and not put."""
    monkeypatch.setattr(indexing, "BATCH", 3)
    people = [await api.person() for _ in range(9)]
    await work(api.platform)
    api.recorder.statements.clear()
    users = implementation(api.platform, "users")
    users._index._after = None
    await users.index()
    assert len(people) == 9 and len(api.recorder.statements) <= 2 * len(api.platform.database("users").pools)
    assert not [one for one in api.recorder.statements if "insert" in one.statement.lower()]


async def test_the_sweep_leaves_alone_what_was_removed(api: Api) -> None:
    anna = await seller(api)
    lamp = await offer(api, anna, title="Walnut lamp")
    await work(api.platform)
    await good(api, "PATCH", f"/listings/{lamp['id']}", {"status": "withdrawn"}, by=anna, if_match="*")
    await work(api.platform)
    await sweep(api.platform)
    assert await titles(api, "walnut") == []


async def test_removals_are_forgotten_after_long_enough(api: Api) -> None:
    """And not before: until then a late put is known to be late."""
    search, service = api.service(Search), implementation(api.platform, "search")
    lamps = [document(number, "Walnut", version=2) for number in range(1, 5)]
    for lamp in lamps:
        await search.remove("article", lamp.id, 2)
    await search.put([document(9, "Walnut")])
    database = api.platform.database("search")
    old = REMEMBERED + timedelta(minutes=1)
    sql = "update search.document set removed_at = removed_at - $1::interval where id = any($2)"
    for pool in database.pools.values():
        await pool.execute(sql, old, [lamps[0].id, lamps[1].id])
    await service.prune()
    assert await database.scatter_sum("select count(*) from search.document") == 3
    await search.put([lamps[2]])
    assert await titles(api, "walnut") == ["Walnut"]


async def test_every_module_sweeps(api: Api) -> None:
    names = {service.name for service in api.platform.background()}
    assert {"users.index", "content.index", "catalog.index", "search.prune"} <= names
