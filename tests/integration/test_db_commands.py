"""`springtide db` applies migrations and shows them, for people and for programs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOPOLOGY = """
name = "notes"
app = "notes_app:app"
modules = "notes_app:modules"
[nodes.first]
kind = "postgres"
url = "{first}"
[nodes.other]
kind = "postgres"
url = "{other}"
[clusters.main]
primary = "first"
[clusters.second]
primary = "other"
[databases.default]
shards = ["main", "second"]
"""

APP = """
from pathlib import Path
from typing import Protocol
from springtide.services import Module

class Notes(Protocol):
    async def count(self) -> int: ...

class Service:
    def __init__(self, context): ...
    async def count(self) -> int:
        return 0

async def app(scope, receive, send): ...

modules = [Module("notes", migrations=Path(__file__).parent / "migrations", provides=Notes, factory=Service)]
"""

NOTE = "create table notes.note (bucket smallint not null, id bigint not null, primary key (bucket, id));"


@pytest.fixture
def project(tmp_path: Path, database_urls: tuple[str, str]) -> Path:
    (tmp_path / "springtide.toml").write_text(TOPOLOGY.format(first=database_urls[0], other=database_urls[1]))
    (tmp_path / "notes_app.py").write_text(APP)
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_note.sql").write_text(NOTE)
    return tmp_path


def springtide(project: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "springtide.ops.cli", "db", *arguments]
    return subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=60, check=False)


def test_migrate_and_status_tell_what_is_and_was_done(project: Path) -> None:
    """Pending at first (exit code 1), applied on both shards, nothing left (exit code 0)."""
    before = springtide(project, "status", "--json")
    assert before.returncode == 1, before.stderr
    rows = json.loads(before.stdout)
    assert {row["state"] for row in rows} == {"pending"}
    assert {row["shard"] for row in rows if row["migration"] == "0001_note.sql"} == {"main", "second"}
    assert {row["source"] for row in rows} == {"springtide", "module"}
    done = springtide(project, "migrate", "--file", "springtide.toml")
    assert done.returncode == 0, done.stderr
    assert "applied notes/0001_note.sql on second" in done.stdout
    assert f"{len(rows)} applied" in done.stdout
    assert json.loads(springtide(project, "migrate", "--json").stdout) == {"applied": []}
    after = springtide(project, "status")
    assert after.returncode == 0, after.stderr
    listed = [line.split() for line in after.stdout.splitlines()[1:]]
    assert [line[3] for line in listed if len(line) > 3] == ["applied"] * len(rows)
    assert "UTC" in after.stdout


def test_a_changed_file_is_shown_and_refused(project: Path) -> None:
    """Exit code 2 of `migrate`, with one clear message; `status` shows the row and says why."""
    springtide(project, "migrate")
    (project / "migrations" / "0001_note.sql").write_text(NOTE + " -- changed")
    refused = springtide(project, "migrate")
    assert refused.returncode == 2
    assert "0001_note.sql on main was changed after it was applied" in refused.stderr
    assert "Traceback" not in refused.stderr
    shown = springtide(project, "status")
    assert shown.returncode == 1
    assert "changed" in shown.stdout
    assert "never edited" in shown.stderr
