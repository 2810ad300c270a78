"""A process of market's that keeps and renders one picture and is killed (SIGKILL) at a given step.

Run as `python -m tests.market.media_child STEP HOME URL...`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn

from tests.market.harness import topology
from tests.market.media import ANNA, done, picture

from market.media.api import Media
from market.media.blobs import Blobs
from market.media.service import MediaService
from market.media.store import MediaStore
from market.platform import modules
from springtide.platform import Platform

STEPS = {
    "before the original": (Blobs, "put"),
    "original written": (Blobs, "put"),
    "variant written": (Blobs, "put"),
    "variants known": (MediaStore, "settle"),
    "deletion committed": (MediaService, "delete"),
    "blob deleted": (Blobs, "delete"),
}
"""Step -> the function before or after whose work, and before anything else, the process dies."""

STORING = ("before the original", "original written")
RENDERING = ("variant written", "variants known")


def arm(step: str) -> None:
    owner, name = STEPS[step]
    original = getattr(owner, name)

    async def last(*args: Any, **options: Any) -> NoReturn:
        if not step.startswith("before"):
            await original(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("unreachable")

    setattr(owner, name, last)


async def main(step: str, home: str, urls: list[str]) -> None:
    platform = Platform(topology(urls), modules=modules(), home=Path(home))
    await platform.start()
    media = platform.service(Media)
    if step in STORING:
        arm(step)
    medium = await media.store(ANNA, "a file", picture())
    if step in RENDERING:
        arm(step)
    await done(platform)
    arm(step)
    await media.delete(medium.id, ANNA)
    await done(platform)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3:]))
