"""`springtide events`: what operators see and do, on a platform with two shards."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.events_support import group as make_group
from tests.integration.test_db_commands import TOPOLOGY
from tests.jobs_support import until
from tests.sharded import SHARDS, pools

from springtide.db import Database, Migrator, ShardMap
from springtide.errors import EventFailed
from springtide.events import Delivery, EventWorker, On, Subscription, operating, publish

Urls = tuple[str, str]

APP = """
from pathlib import Path
from typing import Protocol

import msgspec

from springtide.events import Group, On, event
from springtide.services import Module


@event(kind="note.made")
class Made(msgspec.Struct, frozen=True):
    text: str
    password: str = "very secret"


class Notes(Protocol):
    async def count(self) -> int: ...


class Service:
    def __init__(self, context): ...

    async def count(self) -> int:
        return 0

    async def hear(self, event, delivery): ...


async def app(scope, receive, send): ...


modules = [
    Module(
        "notes", migrations=Path(__file__).parent / "migrations", provides=Notes, factory=Service,
        publishes=[Made], groups=[Group("ears", [On(Made, Service.hear)])],
    )
]
"""


class Ears:
    broken = True

    async def hear(self, event: Any, delivery: Delivery) -> None:
        if self.broken and event.text.startswith("bad"):
            raise EventFailed("no such text at postgresql://ears:heard@nowhere")


async def springtide(project: Path, *arguments: str) -> tuple[int, str]:
    """In a thread: the worker of the test goes on meanwhile, and holds nothing that the command waits for."""
    return await asyncio.to_thread(_springtide, project, *arguments)


def _springtide(project: Path, *arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "springtide.ops.cli", "events", *arguments]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=60, check=False)
    assert not done.stderr or done.returncode, done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
async def notes(tmp_path: Path, database_urls: Urls) -> AsyncIterator[tuple[Path, Database, Any]]:
    """A project whose log has events on both shards, one of which its group could not handle."""
    (tmp_path / "springtide.toml").write_text(TOPOLOGY.format(first=database_urls[0], other=database_urls[1]))
    (tmp_path / "notes_app.py").write_text(APP)
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_note.sql").write_text(
        "create table notes.note (bucket smallint not null, id bigint not null, primary key (bucket, id));"
    )
    try:
        made = _modules(tmp_path)[0].publishes[0]
        async with pools(database_urls) as started:
            await Migrator("notes", tmp_path / "migrations", started).apply()
            database = Database("notes", ShardMap.even(list(started)), started)
            yield tmp_path, database, made
    finally:
        sys.modules.pop("notes_app", None)


def _modules(folder: Path) -> Any:
    sys.path.insert(0, str(folder))
    try:
        import notes_app  # type: ignore[import-not-found]  # of this test
    finally:
        sys.path.remove(str(folder))
    return notes_app.modules


async def test_what_operators_see_and_do(notes: tuple[Path, Database, Any], database_urls: Urls) -> None:
    """Look, find the dead letter, try it again, replay, pause, resume, remove; and check for gaps."""
    project, database, made = notes
    ears = Ears()
    one = make_group("ears", [On(made, Ears.hear)])
    subscription = Subscription(group=one, log=database, implementation=ears)
    worker = EventWorker([subscription], dsns=dict(zip(SHARDS, database_urls, strict=False)), poll=0.2)
    await worker.start()
    try:
        for number in range(4):
            async with database.write(f"key {number}") as tx:
                await publish(tx, made(f"text {number}"), key=f"note {number}")
        async with database.write("bad") as tx:
            await publish(tx, made("bad"), key="note bad")
        await until(lambda: dead(database, 1))
        await until(lambda: behind(database, 0))
        code, text = await springtide(project, "ls")
        assert code == 0 and re.search(r"notes +(main|second) +ears +0 +0.0 +0 +1", text), text
        code, text = await springtide(project, "ls", "--json")
        found = json.loads(text)
        assert sum(log["position"] for log in found["logs"]) == 5 and len(found["groups"]) == 2
        code, text = await springtide(project, "show", "notes", "ears")
        assert "EventFailed: no such text" in text and "note bad" in text, text
        code, text = await springtide(project, "read", "notes", "--key", "note 2")
        assert code == 0 and '{"text":"text 2","password":"[redacted]"}' in text, text
        assert "text 1" not in text
        code, text = await springtide(project, "show", "notes", "ears", "--json")
        assert "[redacted]" in text and "heard" not in text and "very secret" not in text, text
        code, text = await springtide(project, "show", "notes", "ears", "--json", "--secrets")
        assert "[redacted]" not in text and "heard" in text and "very secret" in text, text
        ears.broken = False
        code, text = await springtide(project, "retry", "notes", "ears")
        assert code == 0 and "1 dead letters and lanes" in text
        await until(lambda: dead(database, 0))
        assert await springtide(project, "pause", "notes", "ears") == (0, "ears is paused\n")
        code, text = await springtide(project, "replay", "notes", "ears", "--from", "beginning")
        assert text == "ears: 32 lanes begin again at beginning\n"
        code, text = await springtide(project, "ls")
        assert "paused" in text
        assert await behind(database, 5)
        assert (await springtide(project, "resume", "notes", "ears"))[0] == 0
        await until(lambda: behind(database, 0))
        code, text = await springtide(project, "skip", "notes", "ears", "--shard", "main", "--lane", "3")
        assert text == "that lane is not stuck\n"
        assert await springtide(project, "check") == (0, "every position is there, once\n")
        await database.pools["main"].execute("update notes._event_head set pos = pos + 1")
        code, text = await springtide(project, "check")
        assert code == 3 and "notes on main" in text
    finally:
        await worker.stop()
    assert await springtide(project, "remove", "notes", "ears") == (0, "ears is forgotten\n")
    code, text = await springtide(project, "remove", "notes", "ears")
    assert code == 2 and "knows no group 'ears'" in text


async def dead(database: Database, count: int) -> bool:
    return len(await operating.dead_letters(database, "ears")) == count


async def behind(database: Database, count: int) -> bool:
    return sum(group.waiting for group in await operating.groups(database)) == count


def test_the_guide_names_every_command() -> None:
    """And no other."""
    import argparse

    from springtide.ops import events_commands

    parser = argparse.ArgumentParser()
    events_commands.add_commands(parser.add_subparsers())
    (page,) = [Path(__file__).parents[2] / "docs" / "events.md"]
    named = re.findall(r"^springtide events ([\w|]+)", page.read_text(), re.MULTILINE)
    shown = {name for names in named for name in names.split("|")}
    help = parser._subparsers._group_actions[0].choices["events"]._subparsers._group_actions[0]  # type: ignore
    assert shown == set(help.choices)
