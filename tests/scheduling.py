"""A process with a scheduler for tests that kill it: `python -m tests.scheduling <folder> <die> <url>...`.

`die` is how many slots it takes before it is killed (SIGKILL) inside the transaction of the next one: moved
on and enqueued, not committed.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from tests.jobs_support import Deed, deeds

from springtide.db import WriteTransaction
from springtide.jobs import Enqueuer, Schedule, Scheduler


def at(slot: datetime) -> Deed:
    return Deed(slot.astimezone(UTC).isoformat())


EACH_SECOND = Schedule("second", at, every=1, catch_up="all")


class Mortal(Enqueuer):
    def __init__(self, slots: int) -> None:
        super().__init__()
        self._slots = slots

    async def many(self, tx: WriteTransaction, jobs: Sequence[Any], **options: Any) -> list[UUID]:
        ids = await super().many(tx, jobs, **options)
        if self._slots == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self._slots -= 1
        return ids


async def main(folder: str, die: int, urls: list[str]) -> None:
    async with deeds(urls, Path(folder)) as database:
        database.enqueue = Mortal(die)
        scheduler = Scheduler(database, [EACH_SECOND])
        await scheduler.start()
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3:]))
