"""Jobs on a whole platform: `springtide up`, a request that enqueues, a worker process that does it."""

from __future__ import annotations

import signal
import socket
import urllib.request

from tests.integration._platforms import Project, kill, project, until

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


def _write(made: Project, toml: str = "") -> None:
    made.write(toml, app=APP)
    topology = made.folder / "springtide.toml"
    topology.write_text('modules = "plainapp:modules"\n' + topology.read_text())
    (made.folder / "migrations").mkdir()
    (made.folder / "migrations" / "0001_note.sql").write_text(
        "create table deeds.note (bucket smallint not null, text text not null, primary key (bucket, text));"
    )


def test_workers_do_what_requests_order() -> None:
    """A worker does it; after its kill -9 the next one goes on; `down` ends it in order."""
    with project() as made:
        _write(made)
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


SERIES = [
    'springtide_job_runs_total{kind="deed.note",module="deeds",outcome="done"} 1.0',
    'springtide_job_run_seconds_count{kind="deed.note",module="deeds"} 1.0',
    'springtide_job_wait_seconds_count{kind="deed.note",module="deeds"} 1.0',
    'springtide_job_attempts_count{kind="deed.note",module="deeds"} 1.0',
    'springtide_jobs{kind="deed.note",module="deeds",shard="main",state="ready"} 0.0',
    'springtide_jobs{kind="deed.note",module="deeds",shard="main",state="dead"} 0.0',
    'springtide_job_age_seconds{kind="deed.note",module="deeds",shard="main"} 0.0',
]


def test_each_worker_answers_with_its_metrics() -> None:
    """What workers count is where `status` says; a worker that comes again has its port again,
    and one whose port is taken says by which key it has it."""
    first = _free_ports(2)
    with project() as made:
        _write(made, f"[workers]\ncount = 2\nmetrics_port = {first}\n")
        made.run("up", "-d")
        status = made.run("status")
        addresses = [f"http://127.0.0.1:{port}/metrics" for port in (first, first + 1)]
        assert all(address in status for address in addresses)
        made.get("/order/first")
        until(lambda: any(all(one in _read(address) for one in SERIES) for address in addresses))
        assert "_created" not in _read(addresses[0])
        worker = made.pids()["worker-2"]
        kill(worker)
        until(lambda: made.pids().get("worker-2") not in (None, worker))
        assert "springtide_job" in _read(addresses[1])
        made.run("down")
        with socket.create_server(("127.0.0.1", first + 1)):
            assert f"workers.metrics_port: cannot listen on 127.0.0.1:{first + 1}" in made.run("up", code=1)
        assert made.leftovers() == []


def _read(address: str) -> str:
    with urllib.request.urlopen(address, timeout=10) as answer:
        return str(answer.read().decode())


def _free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody has."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            first: int = probe.getsockname()[1]
        try:
            for port in range(first, first + count):
                socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            continue
        return first
