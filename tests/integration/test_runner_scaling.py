"""A whole platform whose workers follow its jobs; what it says is what the guide tells KEDA to read."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # it has no types
from tests.integration._platforms import Project, kill, project, until

GUIDE = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text("utf-8")

TOML = """
[pool]
size = 6
reserved = 2

[worker_scaling]
min = 1
max = 2
time_to_drain = 1.0
down_after = 1.0
"""

MODULES = """
import asyncio
import os
from pathlib import Path
from typing import Protocol

import msgspec

from springtide.jobs import Handler, Run, job
from springtide.services import Module

HERE = Path(__file__).parent


@job(kind="deed.note", max_run=600.0)
class Note(msgspec.Struct, frozen=True):
    text: str


@job(kind="deed.hold", max_run=600.0)
class Hold(msgspec.Struct, frozen=True):
    text: str


async def there(name: str) -> None:
    while not await asyncio.to_thread((HERE / name).exists):
        await asyncio.sleep(0.02)


class Deeds(Protocol):
    async def order(self, text: str) -> None: ...

    async def done(self) -> list[str]: ...


class DeedService:
    def __init__(self, context) -> None:
        self._db = context.db

    async def order(self, text: str) -> None:
        async with self._db.write(text) as tx:
            if text.startswith("hold"):
                await tx.enqueue(Hold(text))
            else:
                await tx.enqueue_many([Note(f"{text}{number}") for number in range(6)])

    async def done(self) -> list[str]:
        return [row["text"] for row in await self._db.scatter("select text from deeds.note")]

    async def note(self, job: Note, run: Run) -> None:
        await there("go")
        async with self._db.write(job.text) as tx:
            await tx.execute("insert into deeds.note values ($1, $2)", tx.bucket, job.text)

    async def hold(self, job: Hold, run: Run) -> None:
        if os.environ["SPRINGTIDE_NODE"] == "worker-2":
            await asyncio.to_thread((HERE / "held").touch)
            await there("release")


def modules():
    return [
        Module(
            "deeds",
            migrations=HERE / "migrations",
            provides=Deeds,
            factory=DeedService,
            jobs=[Handler(Note, DeedService.note), Handler(Hold, DeedService.hold)],
        )
    ]
"""

APP = """
import json

from scaledmodules import Deeds, modules

from springtide.platform import Platform

platform = Platform.from_topology(modules=modules())
deeds = platform.service(Deeds)


async def web(scope, receive, send):
    if scope["path"].startswith("/order/"):
        await deeds.order(scope["path"].removeprefix("/order/"))
    body = json.dumps(sorted(await deeds.done())).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})


app = platform.wrap(web)
"""


def workers(made: Project) -> dict[str, str]:
    return {
        node["node"]: node["state"] for node in made.status()["nodes"] if node["node"].startswith("worker-")
    }


def jobs(made: Project, *arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(made.call("jobs", "ls", "--json", "--all", *arguments))["jobs"]
    return found


def keda() -> dict[str, Any]:
    """The guide's ScaledObject."""
    (text,) = re.findall(r"^```yaml\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
    (found,) = [one for one in yaml.safe_load_all(text) if one["kind"] == "ScaledObject"]
    return dict(found)


def at(page: Any, location: str) -> Any:
    """What a valueLocation means: names with dots between them."""
    for name in location.split("."):
        page = page[name]
    return page


@contextmanager
def scaled() -> Iterator[Project]:
    """The platform, up, with one worker."""
    with project() as made:
        made.write(TOML, app=APP)
        toml = made.folder / "springtide.toml"
        toml.write_text('modules = "scaledmodules:modules"\n' + toml.read_text())
        (made.folder / "scaledmodules.py").write_text(MODULES)
        (made.folder / "migrations").mkdir()
        (made.folder / "migrations" / "0001_note.sql").write_text(
            "create table deeds.note"
            " (bucket smallint not null, text text not null, primary key (bucket, text));"
        )
        made.run("up", "-d")
        assert workers(made) == {"worker-1": "running"}
        yield made
        made.run("down")
        assert made.leftovers() == []


def burst(made: Project) -> None:
    """Six jobs that wait until they are told to go on, and a second worker for them."""
    made.get("/order/burst-")
    until(lambda: workers(made) == {"worker-1": "running", "worker-2": "running"}, seconds=120)


@pytest.mark.timeout(300)
def test_workers_follow_the_jobs() -> None:
    """A burst: workers are added up to the most. Done: they go by drain, one that has a job finishes it
    first, and no job was lost, cut or run twice. KEDA would be told the same."""
    with scaled() as made:
        (trigger,) = keda()["spec"]["triggers"]
        location = trigger["metadata"]["valueLocation"]
        page = until_page(made)
        assert trigger["type"] == "metrics-api"
        assert trigger["metadata"]["url"].endswith("/scaling")
        assert at(page, location) == 1
        assert (page["slots_per_worker"], page["min"], page["max"], page["time_to_drain"]) == (2, 1, 2, 1.0)

        burst(made)
        assert "2 of 1 to 2 workers are wanted" in made.call("jobs", "scaling")
        assert at(until_page(made), location) == 2
        assert 'springtide_job_service_seconds{kind="deed.note"' in made.get("/metrics")
        assert "springtide_workers_wanted 2.0" in made.get("/metrics")
        (made.folder / "go").touch()
        until(lambda: made.get("/order/hold") and (made.folder / "held").exists())
        until(lambda: workers(made) == {"worker-1": "running", "worker-2": "retiring"}, seconds=120)
        until(lambda: {(one["kind"], one["state"]) for one in jobs(made)} == {("deed.hold", "running")})
        assert len(json.loads(made.get())) == 6
        (made.folder / "release").touch()
        until(lambda: workers(made) == {"worker-1": "running"})
        until(lambda: jobs(made) == [])
        assert {one["attempt"] for one in done(made)} == {1}
        assert not re.search("lost|Traceback", (made.home / "logs" / "worker-2.log").read_text())


@pytest.mark.timeout(300)
def test_the_runner_is_killed_among_more_workers() -> None:
    """The next one ends them all, and what they had in hand is done by its own."""
    with scaled() as made:
        burst(made)
        kill(made.status()["supervisor"], signal.SIGKILL)
        made.run("up", "-d")
        (made.folder / "go").touch()
        until(lambda: len(json.loads(made.get())) == 6, seconds=120)
        until(lambda: jobs(made) == [])


def until_page(made: Project) -> dict[str, Any]:
    """The page, which is there some seconds after the start, with at least a measurement behind it."""
    page: dict[str, Any] = {}

    def known() -> bool:
        try:
            page.update(json.loads(made.get("/scaling")))
        except OSError:  # 503
            return False
        return True

    until(known)
    return page


def done(made: Project) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(
        made.call("jobs", "ls", "--json", "--state", "done", "--limit", "1000")
    )["jobs"]
    return found
