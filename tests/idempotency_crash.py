"""A process that runs one idempotent effect and kills itself at a step; for the tests of crashes.

Arguments: the database's address, the step, the lease in seconds.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

from springtide.db import Database, ShardMap
from springtide.db.idempotency import Answer, Idempotency, Once
from springtide.db.pool import Pool

ONCE = Once.of(("subject 1", "POST", "/notes", "crash-key"), ("body",))
ANSWER = Answer(201, (("content-type", "text/plain"),), b"made")
STEPS = ("claimed", "written", "finished", "committed")


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def make_note(tx: Any) -> Answer:
    await tx.execute("insert into notes.note (bucket, id) values (1, 1 + (select count(*) from notes.note))")
    return ANSWER


async def main(url: str, step: str, lease: float) -> None:
    async with Pool(url, cluster="main", size=3, reserved=0) as pool:
        database = Database("notes", ShardMap.even(["main"]), {"main": pool})
        keys = Idempotency(database, lease=lease)
        async with keys.claim(ONCE, home=1) as claim:
            if step == "claimed":
                die()
            async with database.write(1) as tx:
                answer = await make_note(tx)
                if step == "written":
                    die()
                await claim.finish(tx, answer)
                if step == "finished":
                    die()
            die()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
