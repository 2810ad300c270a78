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

from market.media import lifecycle
from market.media.settings import MediaSettings

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
