"""Killed at any step, media agree with themselves: no row without its blobs, and nothing is left for ever."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest
import tests
from tests.market.media import ANNA, picture, studio
from tests.market.media_child import STEPS
from tests.market.paying import APPS
from tests.market.working import work

from market.catalog.api import Catalog, NewShop
from market.media import lifecycle
from market.media.settings import MediaSettings
from market.users.api import NewAccount, Users

ROOT = Path(tests.__path__[0]).parent

HOUR, DAY = 3600.0, 86_400.0


@pytest.fixture
def shards() -> int:
    return 1


@pytest.mark.timeout(400)
async def test_whatever_step_a_process_is_killed_at(urls: list[str], tmp_path: Path) -> None:
    """After each death every blob that a row names is there; a day later only what is attached is left."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{APPS}"}
    async with studio(urls, tmp_path, MediaSettings()) as media:
        kept = await media.ready(picture())
        await media.service.attach(ANNA, "listing:7", [kept.id], 1)
        own = await media.named()
        for step in STEPS:
            command = ["-m", "tests.market.media_child", step, str(tmp_path), *urls]
            child = await asyncio.create_subprocess_exec(sys.executable, *command, env=environment, cwd=ROOT)
            assert await child.wait() == -signal.SIGKILL, step
            assert await media.named() <= await media.names(), step
        while await media.work():
            assert await media.named() <= await media.names()
        media.clock.step(DAY + HOUR)
        await lifecycle.expire(media.service)
        await media.work()
        await media.sweep()
        assert await media.names() == await media.named() == own


@pytest.mark.timeout(400)
@pytest.mark.parametrize(("what", "module"), [("listing", "catalog"), ("person", "users")])
async def test_a_picture_that_was_chosen_outlives_who_saved_the_choice(
    urls: list[str], tmp_path: Path, what: str, module: str
) -> None:
    """Killed as soon as it is committed; what nobody chose, or chose of somebody else's, still goes."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{APPS}"}
    async with studio(urls, tmp_path, MediaSettings()) as media:
        new = NewAccount(username="anna", email="anna@example.com", password="long enough")
        owner = (await media.platform.service(Users).register(new)).id
        await media.platform.service(Catalog).open_shop(owner, NewShop(name="Anna's", currency="EUR"))
        chosen, unused = await media.ready(picture(), owner), await media.ready(picture(), owner)
        others = await media.ready(picture(), ANNA)
        for medium in (others, chosen):
            command = ["-m", "tests.market.attaching_child", what, str(owner), str(medium.id), str(tmp_path)]
            child = await asyncio.create_subprocess_exec(
                sys.executable, *command, *urls, env=environment, cwd=ROOT
            )
            assert await child.wait() == -signal.SIGKILL
        await work(media.platform, [module])
        media.clock.step(DAY + HOUR)
        await lifecycle.expire(media.service)
        left = await media.service.media([chosen.id, unused.id, others.id])
        assert [(medium.id, medium.attached) for medium in left] == [(chosen.id, True)]
