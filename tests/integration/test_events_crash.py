"""Workers that are killed or frozen while they number and handle: nothing lost, nothing twice, no gap."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.events_support import facts, lanes, log, seen, tell
from tests.jobs_support import until
from tests.stress.test_jobs_crash import Process

from springtide.db import Database
from springtide.events import operating

ROOT = Path(__file__).parents[2]
Urls = tuple[str, str]


@asynccontextmanager
async def process(folder: Path, url: str, **options: Any) -> AsyncIterator[Process]:
    made = Process(
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.events_worker", str(folder)),
            *(msgspec.json.encode({"max_run": 1.5, **options}).decode(), url),
            stdout=asyncio.subprocess.PIPE,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        )
    )
    try:
        await until(lambda: "ready" in made.lines)
        yield made
    finally:
        for sig in (signal.SIGCONT, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):  # it has ended, and nobody has noticed yet
                made.send(sig)
        await made.wait()


@pytest.fixture
async def database(database_urls: Urls, tmp_path: Path) -> AsyncIterator[Database]:
    async with facts(database_urls[:1], tmp_path / "migrations", size=12) as made:
        yield made


async def keyed(database: Database, writer: int, count: int) -> None:
    for number in range(count):
        await tell(database, f"{writer}/{number}", key=f"writer {writer}", at="same")


async def all_seen(database: Database, count: int) -> bool:
    return len(await seen(database)) >= count


async def check(database: Database, writers: int, count: int) -> None:
    """Each event is handled once, those of each key in order, and the log has no gap."""
    found = [row["what"] for row in await seen(database)]
    assert len(found) == len(set(found)) == writers * count
    for writer in range(writers):
        mine = [what for what in found if what.startswith(f"{writer}/")]
        assert mine == [f"{writer}/{number}" for number in range(count)]
    assert await operating.check(database) == []
    assert len(await log(database)) == writers * count


async def test_killed_workers_lose_and_double_nothing(
    database: Database, database_urls: Urls, tmp_path: Path
) -> None:
    """Two workers number and handle what four writers append; one after the other is killed -9 in the middle
    of it, twice."""
    folder, url = tmp_path / "migrations", database_urls[0]
    writing = asyncio.gather(*(keyed(database, writer, 60) for writer in range(4)))
    async with process(folder, url) as one:
        async with process(folder, url) as two:
            await until(lambda: all_seen(database, 20))
            one.send(signal.SIGKILL)
            await until(lambda: all_seen(database, 60))
            two.send(signal.SIGKILL)
        async with process(folder, url):
            await writing
            await until(lambda: all_seen(database, 240))
    await check(database, 4, 60)


async def test_a_frozen_worker_comes_back_as_a_stranger(
    database: Database, database_urls: Urls, tmp_path: Path
) -> None:
    """SIGSTOP in the middle of a handler: another worker numbers on and takes the lane over when the lease
    has passed. SIGCONT: what the first had written is rolled back, it moves nothing, and both go on."""
    folder, url = tmp_path / "migrations", database_urls[0]
    # Time enough to freeze it while it holds, on a machine that is busy with other things.
    async with process(folder, url, max_run=6.0) as frozen:
        await tell(database, "hold 0", key="k", at="same")
        await until(lambda: "begun hold 0 1" in frozen.lines)
        frozen.send(signal.SIGSTOP)
        async with process(folder, url, max_run=6.0) as other:
            await tell(database, *(f"later {number}" for number in range(20)), key="k", at="same")
            await until(lambda: "begun hold 0 2" in other.lines)
            await until(lambda: all_seen(database, 21))
            frozen.send(signal.SIGCONT)
            await tell(database, *(f"last {number}" for number in range(20)), at="same")
            await until(lambda: all_seen(database, 41))
            other.send(signal.SIGKILL)
            await other.wait()
        await tell(database, *(f"end {number}" for number in range(5)))
        await until(lambda: all_seen(database, 46))
        assert frozen.lines == ["ready", "begun hold 0 1"]
    found = [row["what"] for row in await seen(database)]
    assert len(found) == len(set(found)) == 46
    assert [what for what in found if what.startswith(("hold", "later"))] == [
        "hold 0", *(f"later {number}" for number in range(20)),
    ]  # fmt: skip
    assert await operating.check(database) == []


async def test_an_event_that_kills_its_workers_is_a_dead_letter(
    database: Database, database_urls: Urls, tmp_path: Path
) -> None:
    """Each worker that takes it dies; after max_attempts of them it is set aside, and its lane goes on.

    Those before it in the same lane are handled once, those after it, too. Whoever has it tried again loses
    one worker more, and no other.
    """
    folder, url = tmp_path / "migrations", database_urls[0]
    whats = ["before 0", "before 1", "kill", "after 0"]
    await tell(database, *whats, key="k", at="same")
    deaths = 0
    while not await operating.dead_letters(database, "ears"):
        async with process(folder, url, slots=1) as made:
            await until(lambda made=made: ended(database, made))
            deaths += any(line.startswith("begun kill") for line in made.lines)
            assert deaths <= 3
    async with process(folder, url):
        await until(lambda: all_seen(database, 3))
    assert deaths == 3
    (letter,) = await operating.dead_letters(database, "ears")
    assert letter.event.position == 3 and letter.attempt == 3 and "ended in the middle" in letter.error
    assert [row["what"] for row in await seen(database)] == ["before 0", "before 1", "after 0"]
    assert max(row["pos"] for row in await lanes(database)) == 4
    assert await operating.retry(database, "ears") == 1
    async with process(folder, url) as made:
        await until(lambda: "begun kill 4" in made.lines)
        await made.wait()
    (letter,) = await operating.dead_letters(database, "ears")
    assert letter.attempt == 4 and "ended in the middle of a try" in letter.error
    assert letter.retry_at is None


async def ended(database: Database, made: Process) -> bool:
    return any(line.startswith("begun kill") for line in made.lines) or bool(
        await operating.dead_letters(database, "ears")
    )
