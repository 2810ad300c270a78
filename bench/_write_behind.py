"""Kill writers and workers of write-behind while they are at it, and count what became of the changes.

    found = await contest(url, folder, kills=50)       # lost 0, doubled 0, disordered 0

Two processes put numbered changes of the same keys, half of them in transactions with another write, and note
each on disk once it was acknowledged; two others flush. One of the four is killed with SIGKILL again and
again, after it has been seen at work, and replaced. At the end everything is flushed and compared:

    lost        acknowledged and not applied        doubled     applied more than once
    torn        the change or the write beside it is there, without the other
    disordered  two changes of one key by one task, applied in another order than they were acknowledged in
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from springtide.cache.behind import Changed, WriteBehind
from springtide.context import RequestContext, activate
from springtide.db import Database, Migrator, ShardMap, WriteTransaction
from springtide.db.pool import Pool
from springtide.errors import SpringtideError

TASKS = 8
"""Of each writer, each with a key of its own that the other writer has too."""

PATIENCE = 120.0
"""Seconds after which a process that shows no progress counts as hanging."""

TABLES = """
CREATE TABLE behind.applied (
    bucket smallint NOT NULL,
    key    bigint   NOT NULL,
    id     bigint   NOT NULL GENERATED ALWAYS AS IDENTITY,
    writer bigint   NOT NULL,
    number bigint   NOT NULL,
    PRIMARY KEY (bucket, key, id)
);
CREATE TABLE behind.beside (
    bucket smallint NOT NULL,
    key    bigint   NOT NULL,
    writer bigint   NOT NULL,
    number bigint   NOT NULL,
    PRIMARY KEY (bucket, key, writer, number)
);
"""

Change = tuple[tuple[int, int], ...]


async def apply(tx: WriteTransaction, changes: Mapping[Changed, Change]) -> None:
    for key, change in changes.items():
        assert isinstance(key, int)
        await tx.execute(
            "INSERT INTO behind.applied (bucket, key, writer, number) SELECT $1, $2, n.writer, n.number"
            " FROM unnest($3::bigint[], $4::bigint[]) WITH ORDINALITY AS n (writer, number, place)"
            " ORDER BY n.place",
            key & 1023, key, [writer for writer, _ in change], [number for _, number in change],
        )  # fmt: skip


@asynccontextmanager
async def opened(url: str) -> Any:
    async with Pool(url, cluster="main", size=10) as pool:
        database = Database("behind", ShardMap.even(["main"]), {"main": pool})
        yield WriteBehind(
            "changes",
            database,
            Change,
            merge=lambda old, new: (*old, *new),
            apply=apply,
            every=0.05,
            batch=200,
        )


async def write(url: str, log: str, writer: int) -> None:
    """Put changes until killed."""
    acknowledged = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def task(behind: WriteBehind[Change], key: int) -> None:
        for number in range(10**9):
            with activate(RequestContext()):
                if number % 2:
                    await behind.put(key, ((writer, number),))
                else:
                    async with behind.database.write(key) as tx:
                        await tx.execute(
                            "INSERT INTO behind.beside VALUES ($1, $2, $3, $4)",
                            key & 1023,
                            key,
                            writer,
                            number,
                        )
                        await behind.put(key, ((writer, number),), tx=tx)
            os.write(acknowledged, f"{writer} {key} {number}\n".encode())

    async with opened(url) as behind, asyncio.TaskGroup() as tasks:
        for key in range(TASKS):
            tasks.create_task(task(behind, key))


async def work(url: str, log: str, _: int) -> None:
    """Flush until killed; a line for each flush that found something."""
    seen = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    async with opened(url) as behind:
        while True:
            if await behind.flush():
                os.write(seen, b"flushed\n")
            await asyncio.sleep(behind.every * random.uniform(0.5, 1.5))


class _Player:
    """One of the four processes, replaced when it is killed; each has a log of its own."""

    def __init__(self, role: str, url: str, folder: Path, number: int) -> None:
        self.role = role
        self.log = folder / f"{role}-{number}.log"
        self._url = url
        self._number = number
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        self._number += 10
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench._write_behind", self.role, self._url, str(self.log),
            str(self._number),
            cwd=Path(__file__).parents[1],
        )  # fmt: skip

    async def progress(self) -> None:
        """Until it has been seen at work since now."""
        assert self._process is not None
        before = self._size()
        async with asyncio.timeout(PATIENCE):
            while self._size() <= before:
                if self._process.returncode is not None:
                    raise RuntimeError(f"a {self.role} ended by itself with {self._process.returncode}")
                await asyncio.sleep(0.02)

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()

    def _size(self) -> int:
        return self.log.stat().st_size if self.log.exists() else 0


async def contest(url: str, folder: Path, *, kills: int, seed: int = 1) -> dict[str, int]:
    """Run it on the empty database at `url`, with files in `folder`; see the module."""
    chance = random.Random(seed)
    migrations = folder / "migrations"
    await asyncio.to_thread(migrations.mkdir)
    await asyncio.to_thread((migrations / "0001_tables.sql").write_text, TABLES)
    async with Pool(url, cluster="main") as pool:
        await Migrator("behind", migrations, {"main": pool}).apply()
    players = [
        _Player(role, url, folder, number) for role in ("writer", "worker") for number in (1, 2)
    ]  # fmt: skip
    try:
        for player in players:
            await player.start()
        for player in players:
            await player.progress()
        for _ in range(kills):
            player = chance.choice(players)
            await player.progress()
            await asyncio.sleep(chance.uniform(0, 0.1))  # so that it dies anywhere in its work
            await player.kill()
            await player.start()
        for player in players:
            await player.progress()
    finally:
        for player in players:
            await player.kill()
    lines = [
        line
        for player in players
        if player.role == "writer"
        for line in (await asyncio.to_thread(player.log.read_text)).splitlines()
    ]
    acknowledged = {tuple(map(int, line.split())) for line in lines}
    return {"kills": kills, "acknowledged": len(acknowledged), **await _judge(url, acknowledged)}


async def _judge(url: str, acknowledged: set[tuple[int, ...]]) -> dict[str, int]:
    async with opened(url) as behind:
        async with asyncio.timeout(PATIENCE):
            while await behind.database.scatter_sum("SELECT count(*) FROM behind._behind"):
                try:
                    await behind.flush()
                except SpringtideError:
                    await asyncio.sleep(0.1)
        applied = await behind.database.scatter("SELECT key, id, writer, number FROM behind.applied")
        beside = await behind.database.scatter("SELECT key, writer, number FROM behind.beside")
    applied.sort(key=lambda row: row["id"])
    times = Counter((row["writer"], row["key"], row["number"]) for row in applied)
    inside = {found for found in times if found[2] % 2 == 0}
    last: dict[tuple[int, int], int] = {}
    disordered = 0
    for row in applied:
        task = (row["writer"], row["key"])
        disordered += row["number"] < last.get(task, -1)
        last[task] = row["number"]
    return {
        "applied": len(applied),
        "lost": len(acknowledged - set(times)),
        "doubled": sum(count > 1 for count in times.values()),
        "torn": len(inside ^ {(row["writer"], row["key"], row["number"]) for row in beside}),
        "disordered": disordered,
    }


if __name__ == "__main__":
    roles = {"writer": write, "worker": work}
    asyncio.run(roles[sys.argv[1]](sys.argv[2], sys.argv[3], int(sys.argv[4])))
