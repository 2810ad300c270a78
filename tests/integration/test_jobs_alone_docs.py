"""The applications of docs/jobs-alone.md run as they stand there: each driver's service, and the worker."""

from __future__ import annotations

import asyncio
import inspect
import re
import runpy
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import asyncpg
import httpx
import pytest
from tests.jobs_support import until

from springtide.jobs.alone import Jobs

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "jobs-alone.md").read_text("utf-8")


def example(name: str) -> str:
    found = re.search(rf"<!-- test: {re.escape(name)} -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None, f"docs/jobs-alone.md has no example {name}"
    return found[1]


TABLES = """
CREATE TABLE person (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE);
CREATE TABLE joined (person bigint NOT NULL);
"""


@pytest.fixture
async def url(database_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    assert "person (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE)" in PAGE
    monkeypatch.setenv("DATABASE_URL", database_url)
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(TABLES)
    finally:
        await connection.close()
    yield database_url


@pytest.fixture
def work(url: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The page's `work.py`, as the other files import it."""
    module = ModuleType("work")
    monkeypatch.setitem(sys.modules, "work", module)
    exec(compile(example("work.py"), "work.py", "exec", dont_inherit=True), module.__dict__)
    return module


@asynccontextmanager
async def serving(name: str) -> AsyncIterator[httpx.AsyncClient]:
    module = sys.modules["service"] = ModuleType("service")  # where SQLAlchemy looks up annotations
    exec(compile(example(name), f"{name}.py", "exec", dont_inherit=True), module.__dict__)
    app = module.__dict__["app"]
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    try:
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://test") as client,
        ):
            yield client
    finally:
        if (engine := module.__dict__.get("engine")) is not None:
            await engine.dispose()
        del sys.modules["service"]


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "sqlalchemy"])
async def test_the_service_of_each_driver(driver: str, url: str, work: ModuleType) -> None:
    """Who joins is welcomed and counted once; who cannot join (the name is taken) leaves no job behind."""
    await work.jobs.migrate(url)
    connection = await asyncpg.connect(url)
    try:
        async with serving(driver) as client:
            made = [await client.post(f"/people/{name}") for name in ("Ada", "Grace", "Ada")]
        assert [answer.status_code for answer in made] == [201, 201, 500]
        people = [answer.json()["id"] for answer in made[:2]]
        kinds = "SELECT kind, count(*)::int AS jobs FROM work._job GROUP BY kind ORDER BY kind"
        assert [tuple(row) for row in await connection.fetch(kinds)] == [
            ("shop.count", 2),
            ("shop.welcome", 2),
        ]
        post = work.Post()
        async with work.jobs.working(url, post):

            async def over() -> bool:
                return not await connection.fetchval("SELECT count(*) FROM work._job")

            await until(over)
        assert sorted(post.sent.values()) == people and len(post.sent) == 2
        joined = await connection.fetch("SELECT person FROM joined ORDER BY person")
        assert [row["person"] for row in joined] == people
    finally:
        await connection.close()


async def test_the_worker_process_of_the_page(url: str, work: ModuleType, tmp_path: Path) -> None:
    """It migrates, does what was enqueued before it was there as well, and ends by SIGTERM."""
    for name in ("work.py", "worker.py"):
        (tmp_path / name).write_text(example(name))
    await work.jobs.migrate(url)
    async with serving("asyncpg") as client:
        assert (await client.post("/people/Ada")).status_code == 201
    process = await asyncio.create_subprocess_exec(sys.executable, "worker.py", cwd=tmp_path)
    connection = await asyncpg.connect(url)
    try:

        async def over() -> bool:
            return bool(await connection.fetchval("SELECT count(*) = 2 FROM work._job_done"))

        await until(over)
        process.terminate()
        async with asyncio.timeout(60):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        await connection.close()


async def test_taking_it_out_leaves_nothing(url: str, work: ModuleType) -> None:
    """By the statement of the page."""
    await work.jobs.migrate(url)
    statement = re.search(r"`(DROP SCHEMA .*?)`", PAGE)
    assert statement is not None
    connection = await asyncpg.connect(url)
    try:
        await connection.execute(statement[1])
        left = await connection.fetch(
            "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_|^information_'"
        )
        assert [row["nspname"] for row in left] == ["public"]
    finally:
        await connection.close()


async def test_the_rights_of_the_page_are_enough_to_enqueue(url: str, work: ModuleType) -> None:
    """A role that may not create anything adds jobs, one and many."""
    await work.jobs.migrate(url)
    assert "`USAGE` on the schema and `SELECT, INSERT, UPDATE` on its tables" in PAGE
    connection = await asyncpg.connect(url)
    role = f"clerk_{await connection.fetchval('SELECT current_database()')}"
    try:
        await connection.execute(
            f"CREATE ROLE {role}; GRANT USAGE ON SCHEMA work TO {role};"
            f" GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA work TO {role}"
        )
        async with connection.transaction():
            await connection.execute(f"SET LOCAL ROLE {role}")
            await work.jobs.enqueue(connection, work.Welcome(1), unique_key="one")
            await work.jobs.enqueue(connection, work.Welcome(1), unique_key="one")
            await work.jobs.enqueue_many(connection, [work.Count(1)])
        assert await connection.fetchval("SELECT count(*) FROM work._job") == 2
    finally:
        await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        await connection.close()


def test_what_the_page_says_of_options_is_so() -> None:
    options: dict[str, Any] = dict(inspect.signature(Jobs.run).parameters)
    assert options["poll"].default == 1.0 and "every `poll` seconds (1, jittered)" in PAGE
    listed = re.search(r"`enqueue` and `enqueue_many` take (.*?);", PAGE)
    assert listed is not None
    assert set(re.findall(r"`(\w+)`", listed[1])) == set(inspect.signature(Jobs.enqueue).parameters) - {
        "self", "connection", "job", "key",
    }  # fmt: skip


def test_the_page_runs_nothing_that_a_reader_does_not_have(tmp_path: Path, url: str) -> None:
    """`work.py` by itself imports."""
    (tmp_path / "work.py").write_text(example("work.py"))
    assert "jobs" in runpy.run_path(str(tmp_path / "work.py"))
