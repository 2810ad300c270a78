"""Jobs in transactions that are the application's own: of asyncpg, psycopg and SQLAlchemy over either."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import textwrap
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import msgspec
import psycopg
import pytest
from psycopg.rows import dict_row
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from tests.jobs_support import until

from springtide.context import Priority, RequestContext, activate
from springtide.db.pool import Pool
from springtide.errors import JobError, MigrationError, QueueOverloaded
from springtide.jobs import Handler, Run, checking, enqueue, job, look, operating
from springtide.jobs.alone import Jobs
from springtide.jobs.operating import Wanted
from springtide.testing import ManualClock

APPLICATION = """
CREATE SCHEMA shop;
CREATE TABLE public.person (id bigint PRIMARY KEY, name text NOT NULL);
CREATE TABLE shop.basket (id bigint PRIMARY KEY, person bigint NOT NULL REFERENCES public.person);
CREATE INDEX basket_person ON shop.basket (person);
CREATE FUNCTION shop.touch() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
CREATE TRIGGER touched BEFORE UPDATE ON shop.basket FOR EACH ROW EXECUTE FUNCTION shop.touch();
"""

THEIRS = """
SELECT n.nspname || '.' || c.relname || ' ' || c.relkind::text || ' ' || coalesce(string_agg(
    a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum), '') AS what
FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace
LEFT JOIN pg_attribute AS a ON a.attrelid = c.oid AND a.attnum > 0
WHERE n.nspname IN ('public', 'shop') GROUP BY n.nspname, c.relname, c.relkind
UNION ALL SELECT n.nspname || '.' || p.proname
FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace WHERE n.nspname IN ('public', 'shop')
UNION ALL SELECT 'trigger ' || tgname FROM pg_trigger
WHERE NOT tgisinternal AND tgrelid = 'shop.basket'::regclass
UNION ALL SELECT 'extension ' || extname FROM pg_extension
UNION ALL SELECT 'setting ' || setdatabase || array_to_string(setconfig, ',') FROM pg_db_role_setting
ORDER BY 1
"""


@job(kind="work.greet")
class Greet(msgspec.Struct, frozen=True):
    person: int


@job(kind="work.bill", concurrency=1)
class Bill(msgspec.Struct, frozen=True):
    person: int


@job(kind="work.strange")
class Strange(msgspec.Struct, frozen=True):
    person: int


class Doer:
    def __init__(self) -> None:
        self.done: list[int] = []

    async def greet(self, job: Greet, run: Run) -> None:
        self.done.append(job.person)

    async def bill(self, job: Bill, run: Run) -> None:
        await run.tx.execute("UPDATE public.person SET name = name || '!' WHERE id = $1", job.person)


HANDLERS = [Handler(Greet, Doer.greet), Handler(Bill, Doer.bill, effect="transactional")]

JOBS = Jobs("work", HANDLERS)

Execute = Callable[[str], Awaitable[Any]]
Open = Callable[[str], AbstractAsyncContextManager[tuple[Any, Execute]]]


@asynccontextmanager
async def by_asyncpg(url: str) -> AsyncIterator[tuple[Any, Execute]]:
    """With codecs of the application's own for JSON."""
    connection = await asyncpg.connect(url)
    try:
        for name in ("json", "jsonb"):
            await connection.set_type_codec(
                name, schema="pg_catalog", encoder=json.dumps, decoder=json.loads, format="text"
            )
        async with connection.transaction():
            yield connection, connection.execute
    finally:
        await connection.close()


@asynccontextmanager
async def by_asyncpg_pool(url: str) -> AsyncIterator[tuple[Any, Execute]]:
    async with (
        asyncpg.create_pool(url, min_size=1, max_size=1, statement_cache_size=0) as pool,
        pool.acquire() as connection,
        connection.transaction(),
    ):
        yield connection, connection.execute


@asynccontextmanager
async def by_psycopg(url: str) -> AsyncIterator[tuple[Any, Execute]]:
    """Its transaction begins with the first statement."""
    async with await psycopg.AsyncConnection.connect(url, row_factory=dict_row) as connection:
        yield connection, connection.execute


@asynccontextmanager
async def by_psycopg_autocommit(url: str) -> AsyncIterator[tuple[Any, Execute]]:
    async with (
        await psycopg.AsyncConnection.connect(url, autocommit=True) as connection,
        connection.transaction(),
    ):
        yield connection, connection.execute


def by_sqlalchemy(driver: str, *, session: bool) -> Open:
    @asynccontextmanager
    async def opened(url: str) -> AsyncIterator[tuple[Any, Execute]]:
        engine = create_async_engine(url.replace("postgresql://", f"postgresql+{driver}://", 1))
        try:
            if session:
                async with AsyncSession(engine) as one, one.begin():
                    yield one, (await one.connection()).exec_driver_sql
            else:
                async with engine.begin() as connection:
                    yield connection, connection.exec_driver_sql
        finally:
            await engine.dispose()

    return opened


WAYS: dict[str, Open] = {
    "asyncpg": by_asyncpg,
    "asyncpg-pool": by_asyncpg_pool,
    "psycopg": by_psycopg,
    "psycopg-autocommit": by_psycopg_autocommit,
    "sqlalchemy-asyncpg": by_sqlalchemy("asyncpg", session=False),
    "sqlalchemy-asyncpg-session": by_sqlalchemy("asyncpg", session=True),
    "sqlalchemy-psycopg": by_sqlalchemy("psycopg", session=False),
    "sqlalchemy-psycopg-session": by_sqlalchemy("psycopg", session=True),
}


@pytest.fixture(params=list(WAYS))
def way(request: pytest.FixtureRequest) -> Open:
    return WAYS[request.param]


@pytest.fixture
async def url(database_url: str) -> str:
    """A database with the application's tables and ours."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(APPLICATION)
    finally:
        await connection.close()
    await JOBS.migrate(database_url)
    return database_url


async def fetch(url: str, sql: str) -> list[Any]:
    connection = await asyncpg.connect(url)
    try:
        return list(await connection.fetch(sql))
    finally:
        await connection.close()


async def kept(url: str) -> list[tuple[str, bytes]]:
    found = await fetch(url, "SELECT kind, payload FROM work._job ORDER BY enqueued_at, id")
    return [(one["kind"], one["payload"]) for one in found]


class Undone(Exception):
    pass


async def test_a_job_is_committed_with_what_it_is_about_and_gone_with_its_rollback(
    url: str, way: Open
) -> None:
    """Whatever the driver: both rows or neither, also for a savepoint."""
    async with way(url) as (connection, execute):
        await execute("INSERT INTO public.person VALUES (1, 'Ada')")
        await JOBS.enqueue(connection, Greet(1))
        assert await kept(url) == []  # others do not see it before the commit
        await execute("SAVEPOINT one")
        await JOBS.enqueue_many(connection, [Greet(2), Bill(2)])
        await execute("ROLLBACK TO SAVEPOINT one")
    assert await kept(url) == [("work.greet", b'{"person":1}')]
    with pytest.raises(Undone):
        async with way(url) as (connection, execute):
            await execute("INSERT INTO public.person VALUES (3, 'Grace')")
            await JOBS.enqueue(connection, Greet(3))
            raise Undone
    assert await kept(url) == [("work.greet", b'{"person":1}')]
    assert [one["id"] for one in await fetch(url, "SELECT id FROM public.person")] == [1]


async def test_the_first_statement_of_a_transaction_may_be_a_job(url: str, way: Open) -> None:
    """Drivers that begin with the first statement begin with this one."""
    with pytest.raises(Undone):
        async with way(url) as (connection, _):
            await JOBS.enqueue(connection, Greet(1))
            raise Undone
    assert await kept(url) == []


async def test_every_driver_writes_the_row_that_a_write_of_ours_writes(url: str, way: Open) -> None:
    """All options, one job and many, with the context of the request: equal but for id and time."""
    at = datetime.now(UTC) + timedelta(hours=2)
    until_then = at + timedelta(hours=1)

    async def add(one: Any, many: Any) -> None:
        await one(
            Greet(7),
            run_at=at,
            priority=Priority.BULK,
            unique_key="seven %s",
            ordering_key="$1",
            deadline=until_then,
        )
        await one(Bill(8), delay=3600, limit_key="eight", deadline=7200.0)
        await one(Bill(8))
        await many(
            [Greet(9), Bill(10)],
            priority=Priority.CRITICAL,
            run_at=at,
            ordering_key="ä'\\",
            deadline=until_then,
        )
        await many([Bill(11)], limit_key="eleven", delay=1800.0)
        await many([Greet(12)])
        await many([])

    with activate(RequestContext(request_id="of the request")):
        async with way(url) as (connection, _):
            await add(
                lambda *args, **options: JOBS.enqueue(connection, *args, key=5, **options),
                lambda *args, **options: JOBS.enqueue_many(connection, *args, key=5, **options),
            )
        rows = (
            "SELECT bucket, kind, version, payload, context, unique_key, priority, state, attempt,"
            " max_attempts, ordering_key, limit_key,"
            " round(extract(epoch FROM run_at - enqueued_at) / 600) AS due,"
            " round(extract(epoch FROM deadline - enqueued_at) / 600) AS deadline, due_at = run_at AS same"
            " FROM work._job ORDER BY enqueued_at, id"
        )
        theirs = [dict(row) for row in await fetch(url, rows)]
        await fetch(url, "DELETE FROM work._job")
        async with Pool(url) as pool, JOBS.database(pool).write(5) as tx:
            await add(tx.enqueue, tx.enqueue_many)
    assert len(theirs) == 7
    assert theirs == [dict(row) for row in await fetch(url, rows)]
    assert '"of the request"' in str(theirs[0]["context"])


async def test_the_id_is_that_of_the_job_or_of_the_one_in_its_place(url: str, way: Open) -> None:
    async with way(url) as (connection, _):
        first = await JOBS.enqueue(connection, Greet(1), unique_key="one")
        again = await JOBS.enqueue(connection, Greet(1), unique_key="one")
        many = await JOBS.enqueue_many(connection, [Greet(number) for number in range(2, 2100)])
    assert again == first
    ids = [one["id"] for one in await fetch(url, "SELECT id FROM work._job ORDER BY id")]
    assert ids == [first, *many]


async def autocommitting(url: str) -> AsyncIterator[Any]:
    """Connections on which every statement commits by itself."""
    plain = await asyncpg.connect(url)
    try:
        yield plain
    finally:
        await plain.close()
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        yield connection
    for driver in ("asyncpg", "psycopg"):
        engine = create_async_engine(
            url.replace("postgresql://", f"postgresql+{driver}://", 1), isolation_level="AUTOCOMMIT"
        )
        try:
            async with engine.connect() as connected:
                yield connected
            async with AsyncSession(engine) as session:
                yield session
        finally:
            await engine.dispose()


async def test_a_connection_without_a_transaction_is_refused(url: str) -> None:
    """Nothing is sent: a job that commits at once would not be undone with what caused it."""
    asked = 0
    async for connection in autocommitting(url):
        with pytest.raises(JobError, match="none is open"):
            await JOBS.enqueue(connection, Greet(1))
        with pytest.raises(JobError, match="none is open"):
            await JOBS.enqueue_many(connection, [Greet(1)])
        asked += 1
    assert asked == 6
    assert await kept(url) == []


async def test_what_is_no_connection_of_a_known_driver_is_refused(url: str) -> None:
    """With the names of those that are."""
    for other in (object(), None, asyncpg):
        with pytest.raises(JobError, match="an asyncpg connection, a psycopg AsyncConnection"):
            await JOBS.enqueue(other, Greet(1))


async def test_what_cannot_run_is_refused_before_anything_is_sent(url: str) -> None:
    """No handler, wrong options: the transaction goes on."""
    with pytest.raises(JobError, match=r"two handlers for work\.greet/1"):
        Jobs("work", [HANDLERS[0], HANDLERS[0]])
    async with by_asyncpg(url) as (connection, _):
        with pytest.raises(JobError, match=r"no handler for work.strange/1 .* list one in Jobs"):
            await JOBS.enqueue(connection, Strange(1))
        with pytest.raises(JobError, match="no handler"):
            await JOBS.enqueue_many(connection, [Greet(1), Strange(1)])
        with pytest.raises(JobError, match="delay"):
            await JOBS.enqueue(connection, Greet(1), delay=-1.0)
        await JOBS.enqueue(connection, Greet(2))
    assert await kept(url) == [("work.greet", b'{"person":2}')]


async def test_migrations_touch_nothing_of_the_application(database_url: str) -> None:
    """Its schemas, functions, triggers, extensions and settings are as before; a second run does nothing."""
    connection = await asyncpg.connect(database_url)
    try:
        await connection.execute(APPLICATION)
        before = await connection.fetch(THEIRS)
        made = await asyncio.gather(JOBS.migrate(database_url), JOBS.migrate(database_url))
        assert await connection.fetch(THEIRS) == before
        assert len(before) > 5
        schemas = await connection.fetch(
            "SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_|^information'"
        )
        assert {row["nspname"] for row in schemas} == {"public", "shop", "work", "springtide"}
    finally:
        await connection.close()
    assert sorted(map(bool, made)) == [False, True]  # the two took turns
    assert await JOBS.migrate(database_url) == []


async def test_a_worker_refuses_a_database_whose_migrations_are_pending(database_url: str) -> None:
    with pytest.raises(MigrationError, match=r"pending: work/.*Jobs.migrate"):
        async with JOBS.working(database_url, Doer()):
            pass


async def test_a_worker_runs_them_and_its_effects_reach_the_applications_tables(url: str) -> None:
    """Also one that commits with the end of the job; `look` and `result` take the worker's database."""
    doer = Doer()
    async with by_psycopg(url) as (connection, execute):
        await execute("INSERT INTO public.person VALUES (1, 'Ada')")
        await JOBS.enqueue(connection, Greet(1))
        billed = await JOBS.enqueue(connection, Bill(1))
    async with JOBS.working(url, doer, poll=0.1), Pool(url) as pool:
        database = JOBS.database(pool)

        async def done() -> bool:
            found = await look(database, 0, billed)
            return found is not None and found.state == "done" and doer.done == [1]

        await until(done)
        async with database.write(0) as tx:  # and from writes of ours, such as a handler's
            await enqueue(tx, Greet(2))
        await until(lambda: doer.done == [1, 2])
    assert [one["name"] for one in await fetch(url, "SELECT name FROM public.person")] == ["Ada!"]


async def test_notify_wakes_a_worker_at_once_and_only_by_a_commit(url: str, way: Open) -> None:
    """A worker that hardly polls has the job nevertheless; what is due later rings nothing."""
    rung = asyncio.Queue[str]()
    listener = await asyncpg.connect(url)
    try:
        await listener.add_listener("springtide_outbox", lambda *heard: rung.put_nowait(heard[3]))
        loud, doer = Jobs("work", HANDLERS, notify=True), Doer()
        async with loud.working(url, doer, poll=300.0):
            await until(lambda: _idle(url))
            with pytest.raises(Undone):
                async with way(url) as (connection, _):
                    await loud.enqueue(connection, Greet(1))
                    raise Undone
            async with way(url) as (connection, _):
                await loud.enqueue(connection, Greet(2), delay=300.0)
                await loud.enqueue_many(connection, [Greet(2)], run_at=datetime.now(UTC) + timedelta(days=1))
            async with way(url) as (connection, _):
                await loud.enqueue(connection, Greet(3))
            await until(lambda: doer.done == [3])
            async with way(url) as (connection, _):
                await loud.enqueue_many(connection, [Greet(4), Greet(5)])
            await until(lambda: doer.done == [3, 4, 5])
    finally:
        await listener.close()
    assert [rung.get_nowait() for _ in range(rung.qsize())] == ["work", "work"]


async def _idle(url: str) -> bool:
    """The worker listens."""
    found = await fetch(
        url, "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND query ILIKE 'listen%'"
    )
    return len(found) >= 2  # its own, and the test's


async def test_operators_step_in_and_ask_before_a_deploy(url: str) -> None:
    """What the guide says of `operating` and `checking`: they take the database of the jobs."""
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction():
            id = await JOBS.enqueue(connection, Greet(7))
        await connection.execute("UPDATE work._job SET state = 'dead', finished_at = now(), error = 'no'")
        async with Pool(url, size=4) as pool:
            database = JOBS.database(pool)
            report = await checking.check({database: JOBS.handlers})
            assert (report.ready, report.queued, list(report.findings)) == (True, 1, [])
            (found,) = (await checking.check({database: HANDLERS[1:]})).findings
            assert (found.what, found.kind, found.dead) == ("no handler", "work.greet", 1)
            assert [one.id for one in await operating.retry([database], Wanted(states=["dead"]))] == [id]
            status = await look(database, 0, id)
            assert status is not None and status.state == "ready"
    finally:
        await connection.close()


PROCESS = """
    import asyncio, sys
    import msgspec
    from springtide.jobs import Handler, Run, job
    from springtide.jobs.alone import Jobs

    @job(kind="work.greet")
    class Greet(msgspec.Struct, frozen=True):
        person: int

    class Doer:
        async def greet(self, job: Greet, run: Run) -> None:
            print("began", job.person, flush=True)
            await asyncio.to_thread(sys.stdin.readline)
            print("ended", job.person, flush=True)

    jobs = Jobs("work", [Handler(Greet, Doer.greet)])
    asyncio.run(jobs.run(sys.argv[1], Doer(), slots=1, poll=0.1))
    print("left", flush=True)
"""


async def test_a_worker_process_drains_when_it_is_asked_to_end(url: str, tmp_path: Path) -> None:
    """SIGTERM: what runs is finished and written down, and the exit code is 0."""
    async with by_asyncpg(url) as (connection, _):
        await JOBS.enqueue(connection, Greet(1))
    file = tmp_path / "work.py"
    file.write_text(textwrap.dedent(PROCESS))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(sys.executable, str(file), url, stdin=pipe, stdout=pipe)
    assert process.stdin is not None and process.stdout is not None
    try:
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"began 1\n"
            process.send_signal(signal.SIGTERM)
            process.stdin.write(b"go on\n")
            assert await process.stdout.readline() == b"ended 1\n"
            assert await process.stdout.readline() == b"left\n"
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert await kept(url) == []
    (done,) = await fetch(url, "SELECT payload FROM work._job_done")
    assert done["payload"] == b'{"person":1}'


@job(kind="work.refused", max_age=60.0, overload="refuse")
class Refused(msgspec.Struct, frozen=True):
    person: int


@job(kind="work.slowed", max_age=60.0, overload="slow")
class Slowed(msgspec.Struct, frozen=True):
    person: int


async def _nobody(implementation: Any, job: Any, run: Run) -> None: ...


async def test_an_old_queue_refuses(way: Open, url: str) -> None:
    """Nothing of the refused job is sent, and the caller's transaction goes on; the age is read once a
    second, not with each job, and what is young again is taken."""
    clock = ManualClock()
    made = Jobs("work", [Handler(Refused, _nobody), Handler(Greet, _nobody)], clock=clock)
    old = "INSERT INTO work._job_age VALUES ('work.refused', clock_timestamp() - interval '100 s', now())"
    await fetch(url, old)
    async with way(url) as (connection, _):
        with pytest.raises(QueueOverloaded, match=r"work\.refused wait for 1\d\d s") as caught:
            await made.enqueue(connection, Refused(1))
        with pytest.raises(QueueOverloaded):
            await made.enqueue_many(connection, [Greet(2), Refused(2)])
        await made.enqueue(connection, Greet(3))
    assert caught.value.retry_after is not None
    assert [kind for kind, _ in await kept(url)] == ["work.greet"]
    await fetch(url, "UPDATE work._job_age SET oldest_at = NULL")
    async with way(url) as (connection, _):
        with pytest.raises(QueueOverloaded):
            await made.enqueue(connection, Refused(4))
        await clock.advance(1.0)
        await made.enqueue(connection, Refused(5))
    assert [kind for kind, _ in await kept(url)] == ["work.greet", "work.refused"]


async def test_slots_that_are_none_are_refused_by_name() -> None:
    """Before anything is opened, and not by what is derived of them."""
    made = Jobs("work", [Handler(Greet, _nobody)])
    for slots, rule in ((0, ">= 1, got 0"), (-1, ">= 1, got -1"), (1.5, r"a whole number, got 1\.5")):
        with pytest.raises(JobError, match=f"worker of work: slots must be {rule}"):
            async with made.working("postgresql://127.0.0.1:1/work", slots=slots):  # type: ignore[arg-type]
                pytest.fail("a worker without slots has started")


@pytest.mark.parametrize(
    "name",
    [
        "no schema",
        "Work",
        "",
        "9lives",
        "a" * 64,
        "public",
        "springtide",
        "information_schema",
        "pg_x",
        "select",
        7,
    ],
)
def test_a_name_that_no_schema_of_its_own_has_is_refused(name: str) -> None:
    """Where the jobs are declared, before anything is made in somebody else's schema or by a migration."""
    with pytest.raises(JobError, match=f"name of Jobs.*, got {name!r}"):
        Jobs(name, HANDLERS)


async def test_no_reserved_word_is_a_name(database_url: str) -> None:
    """None of those that the server says it has."""
    connection = await asyncpg.connect(database_url)
    try:
        words = await connection.fetch("SELECT word FROM pg_get_keywords() WHERE catcode IN ('R', 'T')")
    finally:
        await connection.close()
    assert len(words) > 90
    for (word,) in words:
        with pytest.raises(JobError, match=f"reserved words, got '{word}'"):
            Jobs(word, HANDLERS)


def test_what_nobody_can_slow_is_said() -> None:
    """A kind that slows its producers after their commit is refused where nobody sees the commit."""
    with pytest.raises(JobError, match=r"work\.slowed/1 has overload='slow', which waits after the commit"):
        Jobs("work", [Handler(Slowed, _nobody)])
