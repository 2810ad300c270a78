"""A process of market's that writes one article and is killed (SIGKILL) just before or after its commit.

Run as `python -m tests.market.searching_child before|after TITLE HOME URL...`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests.market.harness import topology

from market.content import store
from market.content.api import Content, NewArticle
from market.platform import modules
from springtide.platform import Platform

AUTHOR = (7 << 10) | 5


async def main(step: str, title: str, home: str, urls: list[str]) -> None:
    platform = Platform(topology(urls), modules=modules(), home=Path(home))
    await platform.start()
    if step == "before":
        tell = store._tell

        async def last(*args: Any) -> None:
            await tell(*args)
            os.kill(os.getpid(), signal.SIGKILL)

        store._tell = last
    await platform.service(Content).create(AUTHOR, NewArticle(title=title, description="d", body="b"))
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]))
