"""A worker process for tests that kill it: `python -m tests.jobs_worker <folder> <options> <url>...`.

With the option `transport` (kind, url and the platform's name) jobs are carried by that, which has `trust`
seconds for each.
Its handlers write what they did into deeds.effect, each in a transaction of its own unless the kind says
otherwise. Prints "ready" once it works, and each job as it begins.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from tests.jobs_support import Deed, deeds, worker

from springtide.db import Bucket, Database
from springtide.jobs import Handler, Run, _sent, job
from springtide.jobs.transports import driver


@job(kind="deed.hold", max_attempts=3, max_run=60.0, backoff=0.01)
class Hold(msgspec.Struct, frozen=True):
    """Does not end when run first; `how`: wait, block (the event loop) or kill (the process, each time)."""

    what: str
    how: str


class Worker:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def once(self, deed: Deed, run: Run) -> None:
        await run.tx.execute(
            "insert into deeds.effect (bucket, what, job) values ($1, $2, $3)",
            run.tx.bucket,
            deed.what,
            run.key,
        )
        if deed.what.startswith("slow"):
            await asyncio.sleep(0.05)

    async def hold(self, deed: Hold, run: Run) -> None:
        print(f"begun {deed.what} {run.attempt}", flush=True)
        if run.attempt == 1 or deed.how == "kill":
            if deed.how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif deed.how == "block":
                time.sleep(60)
            else:
                await asyncio.sleep(60)
        async with self._database.write(Bucket(0)) as tx:
            await tx.execute(
                "insert into deeds.effect (bucket, what, job) values (0, $1, $2)", deed.what, run.key
            )


HANDLERS: list[Handler[Any]] = [
    Handler(Deed, Worker.once, effect="transactional"),
    Handler(Hold, Worker.hold),
]


async def main(folder: str, options: dict[str, Any], urls: list[str]) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    async with deeds(urls, Path(folder), size=8) as database:
        if options.get("transport"):
            kind, url, name = options["transport"]
            _sent.TRUST = options.pop("trust")
            options["transport"] = driver(kind, url, name=name)
        made = worker(database, urls, HANDLERS, Worker(database), **options)
        await made.start()
        print("ready", flush=True)
        await stopping.wait()
        await made.stop()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], msgspec.json.decode(sys.argv[2]), sys.argv[3:]))
