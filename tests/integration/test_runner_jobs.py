"""Jobs on a whole platform: `springtide up`, a request that enqueues, a worker process that does it."""

from __future__ import annotations

import signal

from tests.integration._platforms import kill, project, until

APP = """
import json
from pathlib import Path
from typing import Protocol

import msgspec

from springtide.jobs import Handler, Run, job
from springtide.platform import Platform
from springtide.services import Module


@job(kind="deed.note", max_run=5.0)
class Note(msgspec.Struct, frozen=True):
    text: str


class Deeds(Protocol):
    async def order(self, text: str) -> None: ...

    async def done(self) -> list[str]: ...


class DeedService:
    def __init__(self, context) -> None:
        self._db = context.db

    async def order(self, text: str) -> None:
        async with self._db.write(text) as tx:
            await tx.enqueue(Note(text))

    async def done(self) -> list[str]:
        return [row["text"] for row in await self._db.scatter("select text from deeds.note")]

    async def note(self, job: Note, run: Run) -> None:
        await run.tx.execute("insert into deeds.note values ($1, $2)", run.tx.bucket, job.text)


def modules():
    return [
        Module(
            "deeds",
            migrations=Path(__file__).parent / "migrations",
            provides=Deeds,
            factory=DeedService,
            jobs=[Handler(Note, DeedService.note, effect="transactional")],
        )
    ]


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


def test_workers_do_what_requests_order() -> None:
    """A worker does it; after its kill -9 the next one goes on; `down` ends it in order."""
    with project() as made:
        made.write(app=APP)
        toml = made.folder / "springtide.toml"
        toml.write_text('modules = "plainapp:modules"\n' + toml.read_text())
        (made.folder / "migrations").mkdir()
        (made.folder / "migrations" / "0001_note.sql").write_text(
            "create table deeds.note"
            " (bucket smallint not null, text text not null, primary key (bucket, text));"
        )
        made.run("up", "-d")
        made.get("/order/first")
        until(lambda: made.get("/") == '["first"]')
        worker = made.pids()["worker-1"]
        kill(worker)
        until(lambda: made.pids().get("worker-1") not in (None, worker))
        made.get("/order/second")
        until(lambda: made.get("/") == '["first", "second"]')
        kill(made.pids()["worker-1"], signal.SIGTERM)
        made.run("down")
        assert made.leftovers() == []
