"""docs/jobs.md is true: its module runs as it stands there, on a platform with two shards and alone."""

from __future__ import annotations

import asyncio
import inspect
import re
import runpy
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.integration.test_platform import topology_of
from tests.jobs_support import until

from springtide.jobs import Enqueuer, Queue, Worker, enqueue, job
from springtide.jobs.enqueue import MAX_PAYLOAD_BYTES
from springtide.lifecycle import Group
from springtide.platform import Platform

GUIDE = (Path(__file__).parents[2] / "docs" / "jobs.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", GUIDE, re.DOTALL)


class Mail:
    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []

    async def __call__(self, to: str, text: str, *, idempotency_key: str) -> None:
        self.sent.append((to, idempotency_key))


@pytest.fixture
async def platform(
    tmp_path: Path, database_urls: tuple[str, str]
) -> AsyncIterator[tuple[Platform, Mail, dict[str, Any]]]:
    """The guide's module on two shards, migrated and started, with a mail provider that keeps all."""
    (tmp_path / "users" / "migrations").mkdir(parents=True)
    for name in ("users/migrations/0001_users.sql", "users/service.py"):
        found = re.search(rf"`{re.escape(name)}`:\n\n```\w+\n(.*?)```", GUIDE, re.DOTALL)
        assert found is not None, f"docs/jobs.md has no example {name}"
        (tmp_path / name).write_text(found[1])
    names = runpy.run_path(str(tmp_path / "users" / "service.py"))
    mail = Mail()
    made = Platform(topology_of(*database_urls), modules=[names["module"](mail)])
    await made.migrate()
    async with made:
        yield made, mail, names


async def test_the_module_runs_as_written(platform: tuple[Platform, Mail, dict[str, Any]]) -> None:
    """Registering on both shards sends each mail and counts each person once."""
    made, mail, names = platform
    people = [f"{number}@example.org" for number in range(8)]
    work = Group("work", made.background(drain=5.0))
    await work.start()
    try:
        for email in people:
            await made.service(names["Users"]).register(email)
        database = made.database("users")

        async def done() -> bool:
            left = await database.scatter("select state from users._job")
            return not left and len(await database.scatter("select id from users._job_done")) == 16

        await until(done)
    finally:
        await work.stop()
    assert sorted(to for to, _ in mail.sent) == people
    assert len({key for _, key in mail.sent}) == 8
    assert await database.scatter_sum("select sum(people) from users.joined") == 8
    assert 'springtide_job_runs_total{kind="users.welcome"' in _metrics(made)


def _metrics(platform: Platform) -> str:
    from springtide.telemetry.prometheus import render

    return render(platform.metrics)[0].decode()


async def test_the_queries_of_the_guide_run(platform: tuple[Platform, Mail, dict[str, Any]]) -> None:
    made, _, names = platform
    await made.service(names["Users"]).register("a@example.org")
    (queries,) = [text for kind, text in BLOCKS if kind == "sql" and "select" in text]
    pool = made.database("users").pools["main"]
    for query in filter(None, map(str.strip, queries.split(";"))):
        await pool.execute(query)


async def test_a_worker_without_a_platform(
    platform: tuple[Platform, Mail, dict[str, Any]], database_urls: tuple[str, str]
) -> None:
    """The guide's `work`, with a service that it is given."""
    made, mail, names = platform
    (code,) = [text for kind, text in BLOCKS if kind == "python" and "async def work" in text]
    scope: dict[str, Any] = {}
    exec(code, scope)
    database = made.database("users")
    id = await made.service(names["Users"]).register("a@example.org")
    async with database.write(id) as tx:
        await enqueue(tx, names["Welcome"](id))
    service = made.service(names["Users"])
    handlers = names["module"](mail).jobs
    dsns = dict(zip(("main", "second"), database_urls, strict=True))

    async def sent() -> None:
        await until(lambda: len(mail.sent) == 2)

    await asyncio.wait_for(scope["work"](database, dsns, service, handlers, sent), 30)


async def test_many_in_order_with_a_result(
    platform: tuple[Platform, Mail, dict[str, Any]], database_urls: tuple[str, str]
) -> None:
    """The guide's second example: batches, an old version, an order, a result, each as it says."""
    made, _, _ = platform
    (code,) = [text for kind, text in BLOCKS if kind == "python" and "async def a_day" in text]
    scope: dict[str, Any] = {"__name__": "guide"}
    exec(code, scope)
    database, office = made.database("users"), scope["Office"]()
    emails = [f"{number}@example.org" for number in range(5)] + ["nobody"]

    @job(kind="users.invite", version=1)
    class Before(msgspec.Struct, frozen=True):
        email: str

    async with database.write(7) as tx:
        await enqueue(tx, Before("old@example.org"))
    database.enqueue = Enqueuer()
    dsns = dict(zip(("main", "second"), database_urls, strict=True))
    queue = Queue(database=database, handlers=scope["HANDLERS"], implementation=office)
    worker = Worker([queue], dsns=dsns, poll=0.2)
    await worker.start()
    try:
        assert await scope["a_day"](database, 7, emails) == {"rows": 2}

        async def over() -> bool:
            return await database.scatter_sum("select count(*) from users._job where state <> 'dead'") == 0

        await until(over)
    finally:
        await worker.stop()
    assert sorted(office.invited) == sorted([*emails[:-1], "old@example.org"])
    assert office.balance == [0, 10, 7, 12]
    (dead,) = await database.scatter("select error from users._job")
    assert dead["error"] == "JobFailed: nobody is no address"


def test_the_numbers_of_the_guide_are_the_defaults() -> None:
    options = {name: parameter.default for name, parameter in inspect.signature(job).parameters.items()}
    for name, shown in (("version", "1"), ("max_attempts", "15"), ("max_run", "60 s")):
        assert f"| `{name}` | {shown} |" in GUIDE
        assert float(shown.split()[0]) == options[name]
    assert (options["backoff"], options["max_backoff"]) == (2.0, 3600.0) and "2 s, 1 h" in GUIDE
    worker = {name: parameter.default for name, parameter in inspect.signature(Worker).parameters.items()}
    assert (worker["lease"], worker["heartbeat"], worker["stall"], worker["poll"]) == (30.0, 10.0, 5.0, 1.0)
    assert (worker["park_after"], worker["keep_done"]) == (10.0, 86_400.0)
    assert MAX_PAYLOAD_BYTES == 64 * 1024
