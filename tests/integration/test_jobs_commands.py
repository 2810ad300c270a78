"""`springtide jobs ...` on a platform: every command, as people and as programs read it."""

from __future__ import annotations

import json
from typing import Any

from tests.integration._platforms import Project, project, until

MODULES = """
from pathlib import Path
from typing import Protocol

import msgspec

from springtide.errors import JobFailed
from springtide.jobs import Handler, Run, job
from springtide.services import Module


@job(kind="deed.note")
class Note(msgspec.Struct, frozen=True):
    text: str
    password: str


class Deeds(Protocol):
    async def order(self, text: str) -> None: ...


class DeedService:
    def __init__(self, context) -> None:
        self._db = context.db

    async def order(self, text: str) -> None:
        async with self._db.write(text) as tx:
            await tx.enqueue(Note(text, "very secret"), ordering_key=text)

    async def note(self, job: Note, run: Run) -> None:
        if job.text.startswith("bad"):
            raise JobFailed("no such note")


HANDLERS = [Handler(Note, DeedService.note)]


def modules():
    migrations = Path(__file__).parent / "migrations"
    return [Module("deeds", migrations=migrations, provides=Deeds, factory=DeedService, jobs=HANDLERS)]
"""

APP = """
from operatedmodules import Deeds, modules

from springtide.platform import Platform

platform = Platform.from_topology(modules=modules())
deeds = platform.service(Deeds)


async def web(scope, receive, send):
    if scope["path"].startswith("/order/"):
        await deeds.order(scope["path"].removeprefix("/order/"))
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


app = platform.wrap(web)
"""


def test_operators_see_and_mend_the_queues() -> None:
    """Dead letters are listed, shown without their secrets, retried, discarded, replayed; kinds are paused;
    and the check before a deploy tells by its exit code."""
    with project() as made:
        made.write(app=APP)
        toml = made.folder / "springtide.toml"
        toml.write_text('modules = "operatedmodules:modules"\n' + toml.read_text())
        code = made.folder / "operatedmodules.py"
        code.write_text(MODULES)
        (made.folder / "migrations").mkdir()
        (made.folder / "migrations" / "0001_note.sql").write_text(
            "create table deeds.note"
            " (bucket smallint not null, text text not null, primary key (bucket, text));"
        )
        made.run("up", "-d")
        for text in ("bad1", "bad2", "good"):
            made.get(f"/order/{text}")
        until(lambda: [row["state"] for row in listed(made, "--state", "dead")] == ["dead"] * 2)
        first, second = (row["id"] for row in listed(made, "--state", "dead"))
        until(lambda: len(listed(made, "--state", "done")) == 1)

        assert "no such note" in made.call("jobs", "ls", "--state", "dead", "--kind", "deed.note")
        page = json.loads(made.call("jobs", "ls", "--state", "dead", "--limit", "1", "--json"))
        assert [row["id"] for row in page["jobs"]] == [first]
        assert [row["id"] for row in listed(made, "--state", "dead", "--after", page["after"])] == [second]
        assert [row["id"] for row in listed(made, "--limit", "1")] == [first]
        assert "DEAD" in made.call("jobs", "ls")

        shown = made.call("jobs", "show", first)
        assert "bad1" in shown
        assert "very secret" not in shown
        assert "very secret" in made.call("jobs", "show", first, "--secrets")
        assert len(json.loads(made.call("jobs", "show", first, "--json"))["trace_id"]) == 32
        made.call("jobs", "show", "00000000-0000-7000-8000-000000000000", code=3)

        assert "2 jobs would be ready again" in made.call("jobs", "retry", "--state", "dead", "--dry-run")
        assert "say which jobs" in made.call("jobs", "discard", code=2)
        assert [one["id"] for one in changed(made, "discard", first, "--reason", "typed wrongly")] == [first]
        (again,) = changed(made, "replay", "--kind", "deed.note")
        assert again["replayed"] == second
        until(lambda: again["id"] in [row["id"] for row in listed(made, "--state", "dead")])
        assert len(changed(made, "retry", "--state", "dead", "--older", "0s")) == 2

        made.call("jobs", "pause", "--module", "deeds", "--reason", "maintenance")
        kept = made.call("jobs", "resume", "--kind", "deed.note")
        assert "deed.note was not paused" in kept
        assert "all jobs of deeds are paused; to resume them: springtide jobs resume --module deeds" in kept
        made.call("jobs", "resume", "--module", "deeds")
        mistyped = made.call("jobs", "pause", "--kind", "deed.nots")
        assert "paused deed.nots of deeds" in mistyped
        assert "no queue here knows jobs of kind deed.nots (did you mean deed.note?)" in mistyped
        made.call("jobs", "resume", "--kind", "deed.nots")
        paused = made.call("jobs", "pause", "--kind", "deed.note", "--reason", "looking at it")
        assert "no queue here knows" not in paused
        assert "looking at it" in made.call("jobs", "ls")
        until(lambda: made.get("/order/later") == "" and listed(made, "--state", "paused", "--key", "later"))
        assert "can run them all" in made.call("jobs", "check")
        code.write_text(MODULES.replace("HANDLERS = [Handler(Note, DeedService.note)]", "HANDLERS = []"))
        check = json.loads(made.run("jobs", "check", "--json", code=3))
        assert [(one["what"], one["kind"]) for one in check["findings"]] == [("no handler", "deed.note")]
        code.write_text(MODULES)
        made.call("jobs", "resume", "--kind", "deed.note")
        until(lambda: not listed(made, "--key", "later"))
        made.run("down")
        assert made.leftovers() == []


def listed(made: Project, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(made.call("jobs", "ls", *arguments, "--json"))["jobs"]
    return found


def changed(made: Project, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(made.call("jobs", *arguments, "--json"))["jobs"]
    return found
