"""A worker process of bench.jobs_crash: `python -m bench._jobs_crash_worker OPTIONS` (JSON), until SIGTERM.

Its handlers write each effect in the transaction that ends the job. A `Hold` is held for ten minutes by the
one who has it first, and ends at once when it is run again.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

import msgspec
import uvloop

from springtide.db import Bucket, Database, ShardMap
from springtide.db.pool import Pool
from springtide.jobs import Handler, Queue, Run, Worker, job
from springtide.jobs.transports import driver

__all__ = ["SCHEMA", "Effect", "Hold", "New"]

SCHEMA = """
create table crash.effect (
    bucket smallint not null,
    id     bigint   not null generated always as identity,
    job    uuid     not null,
    at     timestamptz not null default clock_timestamp(),
    primary key (bucket, id)
)
"""

INSERT = "insert into crash.effect (bucket, job) values ($1, $2)"
INSERT_MANY = "insert into crash.effect (bucket, job) select $1, unnest($2::uuid[])"


@job(kind="crash.effect", max_attempts=1000, backoff=0.1, max_backoff=1.0)
class Effect(msgspec.Struct, frozen=True):
    number: int


@job(kind="crash.new", max_attempts=1000, backoff=0.1, max_backoff=1.0)
class New(msgspec.Struct, frozen=True):
    number: int


@job(kind="crash.hold", max_attempts=1000, max_run=1200.0)
class Hold(msgspec.Struct, frozen=True):
    number: int


class Handlers:
    def __init__(self, database: Database) -> None:
        self._database = database

    async def effects(self, jobs: list[Effect], runs: list[Run]) -> None:
        tx = runs[0].tx
        await tx.execute(INSERT_MANY, tx.bucket, [run.id for run in runs])

    async def new(self, job: New, run: Run) -> None:
        await run.tx.execute(INSERT, run.tx.bucket, run.id)

    async def hold(self, job: Hold, run: Run) -> None:
        if run.attempt == 1:
            print(f"held {run.id}", flush=True)
            await asyncio.sleep(600)
        async with self._database.write(Bucket(0)) as tx:
            await tx.execute(INSERT, 0, run.id)


HANDLERS: list[Handler[Any]] = [
    Handler(Effect, Handlers.effects, effect="transactional", batch=20, wait=0.01),
    Handler(Hold, Handlers.hold),
]
NEWER: list[Handler[Any]] = [*HANDLERS, Handler(New, Handlers.new, effect="transactional")]


async def main(options: dict[str, Any]) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    url = options["url"]
    async with Pool(url, cluster="main", size=12) as pool:
        database = Database("crash", ShardMap.even(["main"]), {"main": pool})
        transport = options.get("transport")
        worker = Worker(
            [
                Queue(
                    database=database,
                    handlers=NEWER if options.get("newer") else HANDLERS,
                    implementation=Handlers(database),
                )
            ],
            dsns={"main": url},
            slots=100,
            transport=driver(*transport[:2], name=transport[2]) if transport else None,
        )
        await worker.start()
        print("ready", flush=True)
        await stopping.wait()
        await worker.stop()


if __name__ == "__main__":
    uvloop.run(main(msgspec.json.decode(sys.argv[1])))
