"""Worker processes are killed, frozen and blocked: jobs run again soon, none is lost or done twice."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.jobs_support import Deed, deeds, rows, until
from tests.jobs_worker import Hold

from springtide.db import Bucket, Database

ROOT = Path(__file__).parents[2]
Urls = tuple[str, str]

LEASE = {"lease": 3.0, "heartbeat": 0.5, "stall": 1.0, "upkeep": 0.3}


class Process:
    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self.lines: list[str] = []
        self._reading = asyncio.create_task(self._read())

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self.lines.append(line.decode().strip())

    def send(self, sig: signal.Signals) -> None:
        if self._process.returncode is None:
            os.kill(self._process.pid, sig)

    async def wait(self) -> int:
        code = await self._process.wait()
        await self._reading
        return code


@asynccontextmanager
async def process(folder: Path, urls: Urls, **options: Any) -> AsyncIterator[Process]:
    """A worker process that works; killed at the end if it still runs."""
    made = Process(
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.jobs_worker", str(folder)),
            *(msgspec.json.encode({**LEASE, **options}).decode(), *urls),
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        )
    )
    try:
        await until(lambda: "ready" in made.lines, seconds=30.0)
        yield made
    finally:
        made.send(signal.SIGKILL)
        await made.wait()


@pytest.fixture
async def database(database_urls: Urls, tmp_path: Path) -> AsyncIterator[Database]:
    async with deeds(database_urls, tmp_path / "m", size=8) as made:
        yield made


async def hold(database: Database, how: str) -> None:
    async with database.write(Bucket(0)) as tx:
        await tx.enqueue(Hold("a", how))


async def begun(*processes: Process) -> list[str]:
    return [line for made in processes for line in made.lines if line.startswith("begun")]


@pytest.mark.parametrize(
    ("how", "sig"), [("wait", signal.SIGKILL), ("wait", signal.SIGSTOP), ("block", None)]
)
async def test_a_job_of_a_dead_worker_is_run_again(
    database: Database, database_urls: Urls, tmp_path: Path, how: str, sig: signal.Signals | None
) -> None:
    """kill -9, a frozen process, a blocked event loop: another worker runs the job once its lease passed."""
    async with process(tmp_path / "m", database_urls) as first:
        await hold(database, how)
        await until(lambda: "begun a 1" in first.lines)
        if sig is not None:
            first.send(sig)
        loop = asyncio.get_running_loop()
        dead = loop.time()
        async with process(tmp_path / "m", database_urls) as second:
            await until(lambda: "begun a 2" in second.lines, seconds=30.0)
            assert loop.time() - dead < 35.0 - (30.0 - 3.0) + 10.0  # a lease of 3 s; a process starts slowly
            await until(lambda: _is(database, "done"))
            first.send(signal.SIGCONT)
            if sig is signal.SIGSTOP:
                await asyncio.sleep(1.5)  # it finds out that the job is not its own any more
            (row,) = await rows(database)
            assert (row["state"], row["attempt"]) == ("done", 2)
        effects = await database.scatter("select what from deeds.effect")
        assert len(effects) == 1


async def _is(database: Database, state: str) -> bool:
    return [row["state"] for row in await rows(database)] == [state]


async def test_a_job_that_kills_its_workers_reaches_the_dead_letters(
    database: Database, database_urls: Urls, tmp_path: Path
) -> None:
    """Attempts are counted at the claim: after three dead workers the job is tried no more."""
    await hold(database, "kill")
    for _ in range(3):
        async with process(tmp_path / "m", database_urls, lease=1.5) as victim:
            assert await victim.wait() == -signal.SIGKILL
    async with process(tmp_path / "m", database_urls, lease=1.5):
        await until(lambda: _is(database, "dead"))
    (row,) = await rows(database)
    assert row["attempt"] == 3 and "stopped renewing" in row["error"]


@pytest.mark.stress
async def test_nothing_is_lost_or_done_twice_while_workers_are_killed(
    database: Database, database_urls: Urls, tmp_path: Path
) -> None:
    """2,000 jobs with transactional effects, workers killed at random: each effect exists exactly once."""
    count, dice = 2000, random.Random(11)
    for start in range(0, count, 50):
        async with database.write(str(start)) as tx:
            for number in range(start, start + 50):
                await tx.enqueue(Deed(f"{'slow' if number % 3 else 'quick'} {number}"))
    for pool in database.pools.values():
        await pool.execute("update deeds._job set max_attempts = 1000")

    async def finished() -> bool:
        return all(row["state"] == "done" for row in await rows(database, "state <> 'done'"))

    kills = 0
    while not await finished():
        async with process(tmp_path / "m", database_urls, lease=1.5) as victim:
            await asyncio.sleep(dice.uniform(0.2, 1.5))
            victim.send(signal.SIGKILL)
            await victim.wait()
            kills += 1
        if kills == 12:
            break
    async with process(tmp_path / "m", database_urls, lease=1.5) as last:
        await until(finished, seconds=90.0)
        last.send(signal.SIGTERM)
        assert await last.wait() == 0
    found = await rows(database)
    assert len(found) == count and {row["state"] for row in found} == {"done"}
    effects = await database.scatter("select what, job from deeds.effect")
    assert len(effects) == len({row["job"] for row in effects}) == count
    assert kills > 3
    assert any(row["attempt"] > 1 for row in found)
