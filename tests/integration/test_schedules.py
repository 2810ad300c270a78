"""Schedules against a real server: each slot once, whoever looks, dies, comes late or is of another release.

The clock is the database's. A test sets it back or forward by moving everything that the rows remember: what
counts is where they lie from now.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tests
from tests.jobs_support import Deed, Heard, deeds, rows, until
from tests.scheduling import EACH_SECOND, at

from springtide.db import Database
from springtide.errors import JobError
from springtide.jobs import Schedule, Scheduler, scheduled
from springtide.signals import ScheduleFired

Urls = tuple[str, str]

HOURLY = Schedule("hourly", at, cron="0 * * * *")
DAILY = Schedule("hourly", at, cron="30 3 * * *", tz="Europe/Berlin")


@pytest.fixture
async def database(database_urls: Urls, tmp_path: Path) -> AsyncIterator[Database]:
    """On two shards: a module's schedules are on the first alone."""
    async with deeds(database_urls, tmp_path / "migrations", size=8) as made:
        yield made


async def move(database: Database, by: timedelta, *, seen: bool = True) -> None:
    """As if the database's clock were set back by so much."""
    pool = database.pools["main"]
    await pool.execute("update deeds._schedule set next_at = next_at + $1, last_at = last_at + $1", by)
    if seen:
        await pool.execute(
            "update deeds._schedule_spec set declared_at = declared_at + $1, seen_at = seen_at + $1", by
        )


async def unseen(database: Database, schedule: Schedule, seconds: float) -> None:
    """The release that declares it so was seen so long ago."""
    await database.pools["main"].execute(
        "update deeds._schedule_spec set seen_at = clock_timestamp() - make_interval(secs => $2)"
        " where spec = $1",
        schedule.spec,
        seconds,
    )


async def come(database: Database, ago: timedelta = timedelta(0)) -> datetime:
    """The next slot has come, so long ago; when it was."""
    slot: datetime = await database.pools["main"].fetch_value(
        "update deeds._schedule set next_at = clock_timestamp() - $1::interval returning next_at", ago
    )
    return slot


async def slots(database: Database) -> list[datetime]:
    """Those that jobs were enqueued for, in their order."""
    found = await database.scatter("select payload from deeds._job")
    return sorted(
        datetime.fromisoformat(msgspec.json.decode(row["payload"], type=Deed).what) for row in found
    )


async def only(database: Database) -> Any:
    (found,) = await scheduled(database)
    return found


async def test_processes_that_are_killed_lose_no_slot_and_run_none_twice(
    database: Database, database_urls: Urls, tmp_path: Path
) -> None:
    """A slot each second, three processes, each killed in the middle of one and started again once."""
    root = Path(tests.__path__[0]).parent
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'apps'}"}

    async def lives(*dies: int) -> None:
        for die in dies:
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.scheduling", str(tmp_path / "child"), str(die), *database_urls,
                env=environment, cwd=root, stdout=asyncio.subprocess.DEVNULL,
            )  # fmt: skip
            try:
                assert await child.wait() == -signal.SIGKILL
            finally:
                if child.returncode is None:
                    child.kill()
                    await child.wait()

    async with asyncio.timeout(240):
        await asyncio.gather(lives(0, 1), lives(1, 0), lives(0, 0))
    last = Scheduler(database, [EACH_SECOND])
    await last.look()
    found, known = await slots(database), await only(database)
    assert len(found) == len(set(found)) == known.runs >= 2
    # a machine that stood still for long leaves more than are caught up on: those are counted
    assert found[0] + timedelta(seconds=known.runs + known.skipped - 1) == found[-1] == known.last_at
    assert known.next_at == found[-1] + timedelta(seconds=1)


async def test_many_that_look_at_once_run_a_slot_once(database: Database) -> None:
    schedulers = [Scheduler(database, [HOURLY]) for _ in range(20)]
    await asyncio.gather(*(scheduler.look() for scheduler in schedulers))
    assert await slots(database) == []
    for _ in range(3):
        slot = await come(database)
        await asyncio.gather(*(scheduler.look() for scheduler in schedulers))
        assert (await only(database)).next_at > slot
    assert len(await slots(database)) == (await only(database)).runs == 3


async def test_what_is_due_is_enqueued_by_the_service_and_nothing_before(database: Database) -> None:
    """It wakes for the slot itself; the job is in the queue of the module, on its first shard."""
    scheduler = Scheduler(database, [EACH_SECOND])
    await scheduler.start()
    try:
        await until(lambda: rows(database))
    finally:
        await scheduler.stop()
    (first, *_) = await rows(database)
    assert first["enqueued_at"] >= (await slots(database))[0]
    assert first["bucket"] == 0 and await database.pools["second"].fetch("select from deeds._schedule") == []


async def test_a_clock_that_is_set_back_runs_nothing_twice(database: Database) -> None:
    """Neither when the times are changed after that: only later slots than the last one are run."""
    scheduler = Scheduler(database, [HOURLY])
    await scheduler.look()
    await come(database)
    await scheduler.look()
    before = await slots(database)
    await move(database, timedelta(hours=5))
    for _ in range(3):
        assert await scheduler.look() > 1
    again = Scheduler(database, [HOURLY])
    await again.look()
    assert await slots(database) == before
    minutely = Schedule("hourly", at, every=60)
    await Scheduler(database, [minutely]).look()
    known = await only(database)
    assert known.timing == "every 60 s" and known.next_at > known.last_at
    assert await slots(database) == before


async def test_a_clock_that_was_ahead_keeps_no_release_from_running(database: Database) -> None:
    """Marks of the future, from before the clock was set back, are of nobody who is there."""
    await Scheduler(database, [HOURLY]).look()
    await move(database, timedelta(hours=5))
    await come(database)
    await Scheduler(database, [DAILY]).look()
    assert len(await slots(database)) == 1 and (await only(database)).timing == DAILY.when


@pytest.mark.parametrize(("catch_up", "run", "skipped"), [("one", 1, 9), ("none", 0, 10), ("all", 10, 0)])
async def test_an_outage_is_caught_up_on_as_declared(
    database: Database, catch_up: Any, run: int, skipped: int
) -> None:
    """Ten slots passed while nobody was there, the last one at least five minutes ago."""
    heard, now = Heard(), datetime.now(UTC)
    named = (Schedule(f"outage-{n}", at, every=86_400, catch_up=catch_up) for n in range(99))
    far = timedelta(seconds=86_400 - 300)  # where the slots of an interval lie depends on the name
    schedule = next(one for one in named if one.timing("deeds").after(now) - now < far)
    await Scheduler(database, [schedule]).look()
    await move(database, timedelta(days=-10), seen=False)
    scheduler = Scheduler(database, [schedule], sink=heard)
    await scheduler.look()
    await scheduler.look()
    assert len(await slots(database)) == run
    known = await only(database)
    assert (known.runs, known.skipped) == (run, skipped) and known.due_in > 0
    (signal_,) = heard.of(ScheduleFired)
    assert (signal_.module, signal_.schedule, signal_.runs, signal_.skipped) == (
        "deeds",
        schedule.name,
        run,
        skipped,
    )
    assert signal_.late >= 300


async def test_two_releases_at_once_do_not_fight(database: Database) -> None:
    """The one that was declared last is in charge, also when a process of the old one starts once more."""
    old, new = Scheduler(database, [HOURLY]), Scheduler(database, [DAILY])
    await old.look()
    await new.look()
    planned = (await only(database)).next_at
    assert (await only(database)).timing == "30 3 * * * Europe/Berlin"
    for scheduler in (old, Scheduler(database, [HOURLY]), new, old):
        await scheduler.look()
        known = await only(database)
        assert (known.timing, known.next_at) == (DAILY.when, planned)
    slot = await come(database)
    await old.look()
    assert await slots(database) == []
    await new.look()
    assert await slots(database) == [slot]


async def test_a_release_that_was_taken_back_gives_the_schedule_back(database: Database) -> None:
    """A minute after its last process was seen; deployed once more, it is in charge again."""
    old = Scheduler(database, [HOURLY])
    await old.look()
    await Scheduler(database, [DAILY]).look()
    await unseen(database, DAILY, 61)
    await old.look()
    assert (await only(database)).timing == HOURLY.when
    await Scheduler(database, [DAILY]).look()
    assert (await only(database)).timing == DAILY.when


async def test_changed_times_keep_a_slot_that_was_due(database: Database) -> None:
    """And the new ones are reckoned from now."""
    await Scheduler(database, [HOURLY]).look()
    slot = await come(database, timedelta(seconds=5))
    await Scheduler(database, [Schedule("hourly", at, every=86_400)]).look()
    assert await slots(database) == [slot]
    known = await only(database)
    assert known.timing == "every 86400 s" and known.last_at == slot and known.due_in > 0


async def test_a_schedule_that_nobody_declares_is_not_run_and_later_forgotten(database: Database) -> None:
    await Scheduler(database, [HOURLY, EACH_SECOND]).look()
    await unseen(database, EACH_SECOND, 3600)
    left = Scheduler(database, [HOURLY])
    await left.look()
    known = {one.name: one.declared for one in await scheduled(database)}
    assert known == {"hourly": True, "second": False}
    await unseen(database, EACH_SECOND, 31 * 86_400)
    await Scheduler(database, [HOURLY]).look()
    assert [one.name for one in await scheduled(database)] == ["hourly"]
    assert not any(isinstance(row, str) for row in await slots(database))


@pytest.mark.parametrize("how", ["no job is made", "it cannot be stored"])
async def test_one_that_cannot_be_enqueued_is_late_and_keeps_nobody(database: Database, how: str) -> None:
    """Its slot is not lost: it is run when what was wrong is mended."""
    broken = False

    def sometimes(slot: datetime) -> Deed:
        if not broken:
            return at(slot)
        if how == "no job is made":
            raise ValueError("not today")
        return Deed(object())  # type: ignore[arg-type]  # as code that no type checker has seen

    wrong, right = Schedule("a-wrong", sometimes, every=3600), Schedule("right", at, every=3600)
    scheduler = Scheduler(database, [wrong, right])
    await scheduler.look()
    broken = True
    await come(database)
    await scheduler.look()
    assert {one.name: one.runs for one in await scheduled(database)} == {"a-wrong": 0, "right": 1}
    broken = False
    await scheduler.look()
    assert {one.name: one.runs for one in await scheduled(database)} == {"a-wrong": 1, "right": 1}


async def test_an_idle_scheduler_asks_once_in_ten_seconds(database: Database) -> None:
    """One statement, and it writes nothing while somebody has marked the declarations lately."""
    scheduler = Scheduler(database, [HOURLY])
    await scheduler.look()
    marks = "select xmin::text || ctid::text from deeds._schedule_spec"
    before = await database.pools["main"].fetch_value(marks)
    assert 7.9 < await Scheduler(database, [HOURLY]).look() <= 10.2
    assert await database.pools["main"].fetch_value(marks) == before


async def test_two_schedules_of_one_name_are_refused(database: Database) -> None:
    with pytest.raises(JobError, match="two schedules of one name"):
        Scheduler(database, [HOURLY, DAILY])


APP = """
from pathlib import Path
from typing import Protocol
import msgspec
from springtide.jobs import Handler, Schedule, job
from springtide.services import Module

class Deeds(Protocol):
    async def count(self) -> int: ...

@job(kind="deed.report")
class Report(msgspec.Struct, frozen=True):
    pass

class Service:
    def __init__(self, context): ...
    async def count(self): return 0
    async def report(self, job, run): ...

async def app(scope, receive, send): ...

modules = [
    Module(
        "deeds", migrations=Path(__file__).parent / "migrations", provides=Deeds, factory=Service,
        jobs=[Handler(Report, Service.report)],
        schedules=[Schedule("nightly", Report(), cron="30 3 * * *", tz="Europe/Berlin")],
    )
]
"""


async def test_the_command_line_shows_them(database: Database, database_urls: Urls, tmp_path: Path) -> None:
    """`springtide schedule ls`, for people and as JSON; what no release declares is told apart."""
    await Scheduler(database, [Schedule("nightly", at, cron="30 3 * * *", tz="Europe/Berlin"), HOURLY]).look()
    await unseen(database, HOURLY, 3600)
    (tmp_path / "deeds_app.py").write_text(APP)
    (tmp_path / "springtide.toml").write_text(
        f"""
        name = "deeds"
        app = "deeds_app:app"
        modules = "deeds_app:modules"
        [nodes.db]
        kind = "postgres"
        url = "{database_urls[0]}"
        [clusters.main]
        primary = "db"
        [databases.default]
        shards = ["main"]
        """
    )

    async def said(*arguments: str) -> str:
        command = [sys.executable, "-m", "springtide.ops.cli", "schedule", "ls", *arguments]
        done = await asyncio.to_thread(
            subprocess.run, command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    text, plain = await said(), json.loads(await said("--json"))
    hourly, nightly = (line.split() for line in text.splitlines()[1:])
    assert hourly[:2] == ["deeds", "hourly"] and "not declared" in text
    assert nightly[:3] == ["deeds", "nightly", "30"] and "Europe/Berlin" in nightly
    assert {one["name"]: one["declared"] for one in plain} == {"hourly": False, "nightly": True}
