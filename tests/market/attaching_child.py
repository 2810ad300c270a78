"""A process of market's that shows a medium on a new listing, or as somebody's picture, and dies (SIGKILL).

Run as `python -m tests.market.attaching_child listing|person OWNER MEDIUM HOME URL...`.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

from tests.market.harness import topology

from market.catalog.api import Catalog, NewListing
from market.money import Money
from market.platform import modules
from market.users.api import FACES, AccountChanges, Users
from springtide.platform import Platform


async def main(what: str, owner: int, medium: str, home: str, urls: list[str]) -> None:
    platform = Platform(topology(urls), modules=modules(), home=Path(home))
    await platform.start()
    if what == "listing":
        lamp = NewListing(title="Lamp", price=Money(1250, "EUR"), category="lighting", media=[medium])
        await platform.service(Catalog).create(owner, lamp)
    else:
        await platform.service(Users).update(owner, AccountChanges(image=f"{FACES}{medium}"))
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4], sys.argv[5:]))
