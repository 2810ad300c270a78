"""One application process of bench.failover: writers and readers on one cluster, and what each was told.

Commands come on stdin, one a line: `go <run>` starts the load on keys of that run, `stop <file>` ends it and
writes the history there. Everything goes through what an application has: a pool that follows the primary,
servers found in the runner's file, a database, a deadline per request.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from springtide.context import RequestContext, activate
from springtide.db import Consistency, Database, ShardMap, bucket_of
from springtide.db.members import Member, RunnerFile
from springtide.db.pool import Pool
from springtide.db.servers import RoutingSettings, Servers
from springtide.errors import CommitUnknown, SpringtideError, StalenessUnknown
from springtide.topology import read_addresses

DEADLINE = 20.0
BOUND = 1.0
WRITERS = 4
PAUSE = 0.01
"""Seconds between two operations of one client, on average: the machine is not to be the limit."""

TABLE = """
CREATE SCHEMA IF NOT EXISTS bench;
CREATE TABLE IF NOT EXISTS bench.register (
    bucket smallint NOT NULL, key text NOT NULL, version integer NOT NULL, value text NOT NULL,
    PRIMARY KEY (bucket, key)
)
"""
WRITE = """
INSERT INTO bench.register (bucket, key, version, value) VALUES ($1, $2, 1, $3)
ON CONFLICT (bucket, key) DO UPDATE SET version = register.version + 1, value = excluded.value
RETURNING version
"""
READ = "SELECT version, value FROM bench.register WHERE bucket = $1 AND key = $2"

READERS = {
    "eventual": Consistency.EVENTUAL,
    "bounded": Consistency.bounded(BOUND),
    "session": Consistency.SESSION,
    "strong": Consistency.STRONG,
}


class Load:
    def __init__(self, db: Database, process: int, processes: int, run: int) -> None:
        self._db = db
        self._process = process
        self.history: list[dict[str, Any]] = []
        self.failures: Counter[str] = Counter()
        self._keys = [f"{run}-{p}-{w}" for p in range(processes) for w in range(WRITERS)]
        self._own = [f"{run}-{process}-{w}" for w in range(WRITERS)]
        self._going = True

    async def run(self, stopping: asyncio.Event) -> None:
        async with asyncio.TaskGroup() as group:
            for key in self._own:
                group.create_task(self._write(key))
            for kind in READERS:
                group.create_task(self._read(kind))
            await stopping.wait()
            self._going = False

    async def _write(self, key: str) -> None:
        n = 0
        while self._going:
            n += 1
            value, outcome, version = f"{key}.{n}", "ok", None
            began = time.monotonic()
            try:
                with activate(RequestContext(deadline=began + DEADLINE)):
                    async with self._db.write(bucket_of(key)) as tx:
                        version = await tx.fetch_value(WRITE, bucket_of(key), key, value)
            except CommitUnknown:
                outcome = "unknown"
            except SpringtideError as error:
                outcome = "failed"
                self.failures[f"write {type(error).__name__}"] += 1
            self._note("write", key, value, version if outcome == "ok" else None, began, outcome)
            await asyncio.sleep(random.uniform(0, 2 * PAUSE))

    async def _read(self, kind: str) -> None:
        consistency = READERS[kind]
        while self._going:
            key = random.choice(self._keys)
            began = time.monotonic()
            try:
                with activate(RequestContext(deadline=began + DEADLINE)):
                    reader = self._db.read(bucket_of(key), consistency=consistency)
                    row = await reader.fetch_one(READ, bucket_of(key), key)
            except StalenessUnknown:
                self.failures[f"{kind} StalenessUnknown"] += 1
            except SpringtideError as error:
                self.failures[f"{kind} {type(error).__name__}"] += 1
            else:
                version, value = (row["version"], row["value"]) if row is not None else (0, None)
                self._note(kind, key, value, version, began, "ok")
            await asyncio.sleep(random.uniform(0, 2 * PAUSE))

    def _note(
        self, kind: str, key: str, value: str | None, version: int | None, began: float, outcome: str
    ) -> None:
        # each request of a reader is a session of its own: what it may see is its consistency's matter
        session = key if kind == "write" else f"{kind}-{self._process}-{len(self.history)}"
        self.history.append({
            "kind": kind, "session": session, "key": key, "value": value, "version": version,
            "began": began, "ended": time.monotonic(), "outcome": outcome,
        })  # fmt: skip


async def main(addresses: Path, process: int, processes: int) -> None:
    known = read_addresses(addresses)
    dbname = "main"
    source = RunnerFile(addresses, "main", dbname=dbname)
    first = (await source.members())[0]
    assert first.node == known.clusters["main"].primary

    def replica(member: Member) -> Pool:
        return Pool(member.url, cluster=f"main/{member.node}", size=4, reserved=0)

    pool = Pool(
        first.url, size=8, reserved=1, acquire_timeout=5.0, primary_only=True, outage_timeout=DEADLINE
    )
    servers = Servers("main", pool, source, replica_pool=replica, settings=RoutingSettings(settle=0.5))
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    await servers.start()
    await pool.start()
    db = Database("bench", ShardMap.even(["main"]), {"main": pool}, servers={"main": servers})
    load: Load | None = None
    running: asyncio.Task[None] | None = None
    stopping = asyncio.Event()
    try:
        while line := (await lines.readline()).decode().split():
            if line[0] == "go":
                stopping = asyncio.Event()
                load = Load(db, process, processes, int(line[1]))
                running = asyncio.create_task(load.run(stopping))
            else:
                assert running is not None and load is not None
                stopping.set()
                await running
                told = {"history": load.history, "failures": load.failures}
                await asyncio.to_thread(Path(line[1]).write_text, json.dumps(told))
            print("done", flush=True)
    finally:
        await servers.stop()
        await pool.stop()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
