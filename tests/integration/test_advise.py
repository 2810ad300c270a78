"""`springtide db advise` on real servers: what it finds, how it checks that, and that it leaves nothing."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
from tests._cluster import Cluster, eventually
from tests._debian import debian_postgres

from springtide.context import RequestContext, activate
from springtide.db.insight import Insight
from springtide.db.pool import Pool
from springtide.errors import DatabaseUnavailable
from springtide.ops import cli
from springtide.ops.advise import commands
from springtide.ops.advise.advisor import Settings, advise
from springtide.ops.advise.catalog import AGE, read_catalog
from springtide.ops.advise.findings import Advice
from springtide.ops.advise.indexing import Allowance, ask, missing_indexes
from springtide.ops.advise.judging import open_judge
from springtide.ops.advise.observed import Observed
from springtide.ops.advise.reading import read

Clusters = Callable[..., Cluster]

SETUP = """
CREATE SCHEMA shop;
CREATE TABLE shop.buyer (id bigint PRIMARY KEY);
INSERT INTO shop.buyer SELECT g FROM generate_series(1, 2000) g;
CREATE TABLE shop.sale (
    id bigint PRIMARY KEY, buyer bigint NOT NULL REFERENCES shop.buyer, state text NOT NULL,
    at timestamptz NOT NULL, note text NOT NULL
);
INSERT INTO shop.sale SELECT g, g % 1990 + 1, CASE WHEN g % 100 = 0 THEN 'open' ELSE 'done' END,
    timestamptz '2025-01-01' + g * interval '1 minute', repeat('x', 50) FROM generate_series(1, 20000) g;
CREATE INDEX sale_at ON shop.sale (at);
CREATE INDEX sale_at_again ON shop.sale (at);
"""

NEWEST = "SELECT id, note FROM shop.sale WHERE buyer = $1 ORDER BY at DESC LIMIT 20"
OPEN = "SELECT id, note FROM shop.sale WHERE state = 'open'"


@pytest.fixture(scope="module")
def debian() -> Iterator[str]:
    """PostgreSQL 15 with HypoPG and pg_stat_statements at hand; its URL."""
    with debian_postgres(settings={"shared_preload_libraries": "pg_stat_statements"}) as (address, _):
        yield f"postgresql://owner@{address}/"


@pytest.fixture
async def with_hypopg(debian: str) -> AsyncIterator[str]:
    """A fresh database on Debian's server."""
    admin = await asyncpg.connect(debian + "postgres")
    name = f"t_{time.monotonic_ns()}"
    try:
        await admin.execute(f"CREATE DATABASE {name}")
        yield debian + name
        await admin.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await admin.close()


async def used(url: str, folder: Path, *more: str) -> None:
    """A shop's traffic on `url`, its figures in `folder`; what filled it counts nowhere. `more` are further
    statements of it, with a number."""
    (folder.parent).mkdir(exist_ok=True)
    insight = Insight(folder=folder, node="app-1", write_every=60, slow_statement=60)
    filler = await asyncpg.connect(url)
    await filler.execute(SETUP)
    await filler.execute("VACUUM ANALYZE")
    if await filler.fetchval("SELECT 1 FROM pg_extension WHERE extname = 'pg_stat_statements'"):
        await filler.execute("SELECT pg_stat_statements_reset()")
    await filler.close()
    async with Pool(url, insight=insight) as pool:
        for number in range(6):
            await pool.fetch(NEWEST, number)
            await pool.fetch(OPEN)
            for statement in more:
                await pool.execute(statement % number)
            await pool.execute("DELETE FROM shop.buyer WHERE id = $1", 1995 + number % 5)
    await insight.write()


def sql_of(advice: Advice, kind: str) -> list[str]:
    return [sql for finding in advice.findings if finding.kind == kind for sql in finding.sql]


async def what_is_there(url: str) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetch(
            "SELECT relname FROM pg_class WHERE relname !~ '^pg_'"
            " UNION ALL SELECT extname FROM pg_extension ORDER BY 1"
        )
    finally:
        await connection.close()


async def check(url: str, folder: Path, checked: str) -> None:
    await used(url, folder)
    before = await what_is_there(url)
    advice = await advise(url, statements=folder, settings=Settings(unused_after=0))
    newest, opened = sorted(sql_of(advice, "missing_index"))
    assert newest == "CREATE INDEX CONCURRENTLY sale_buyer_idx ON shop.sale (buyer);"
    assert re.fullmatch(
        r"CREATE INDEX CONCURRENTLY sale_id_part ON shop.sale \(id\)( INCLUDE \(note\))?"
        r" WHERE state = 'open';",
        opened,
    )
    (duplicate,) = sql_of(advice, "duplicate_index")
    assert duplicate.startswith("DROP INDEX CONCURRENTLY shop.sale_at")
    for finding in advice.findings:
        if finding.kind == "missing_index":
            assert finding.checked.startswith(checked)
            assert "Seq Scan on sale" in finding.evidence["plan_before"]
            assert "Seq Scan" not in finding.evidence["plan_after"]
            assert finding.evidence["statements"][0]["calls"] == 6
            assert 0 < finding.share < 1
    shares = [finding.share for finding in advice.findings]
    assert shares == sorted(shares, reverse=True)
    assert await what_is_there(url) == before

    connection = await asyncpg.connect(url)
    for statement in (*sql_of(advice, "missing_index"), duplicate):
        await connection.execute(statement)
    await connection.execute("ANALYZE")
    await connection.close()
    again = await advise(url, statements=folder, settings=Settings(unused_after=1e9))
    assert again.findings == ()


async def test_without_an_extension_a_copy_says_what_helps(database_url: str, tmp_path: Path) -> None:
    """Indexes found, the SQL runs as it stands, and afterwards there is nothing left to advise."""
    await check(database_url, tmp_path / "run" / "statements", "scratch copy of 20000 rows")


@pytest.mark.needs("postgresql-15", "postgresql-15-hypopg")
async def test_hypopg_says_what_helps(with_hypopg: str, tmp_path: Path) -> None:
    """The same on Debian's server; the extension is not left behind where it was not before."""
    await check(with_hypopg, tmp_path / "run" / "statements", "hypopg")


@pytest.mark.needs("postgresql-15", "postgresql-15-hypopg")
async def test_a_url_alone_is_enough_where_the_server_counts(with_hypopg: str, tmp_path: Path) -> None:
    """pg_stat_statements knows statements of anybody; without it only the catalog speaks."""
    alone = await advise(with_hypopg, settings=Settings(unused_after=0))
    assert alone.calls == 0
    assert any("pg_stat_statements" in note for note in alone.notes)
    connection = await asyncpg.connect(with_hypopg)
    await connection.execute("CREATE EXTENSION pg_stat_statements")
    await connection.close()
    await used(with_hypopg, tmp_path / "run" / "statements")
    advice = await advise(with_hypopg, settings=Settings(unused_after=0))
    assert advice.sources == ("pg_stat_statements",)
    assert "CREATE INDEX CONCURRENTLY sale_buyer_idx ON shop.sale (buyer);" in sql_of(advice, "missing_index")


async def test_a_foreign_key_is_told_where_rows_go(database_url: str, tmp_path: Path) -> None:
    """Deleting a buyer reads every sale: the key's index is advised once, not twice."""
    folder = tmp_path / "run" / "statements"
    (tmp_path / "run").mkdir()
    insight = Insight(folder=folder, node="app-1", write_every=60)
    async with Pool(database_url, insight=insight) as pool:
        await pool.execute(SETUP)
        await pool.execute("CREATE INDEX sale_buyer_idx ON shop.buyer (id)")  # a name is one per schema
        await pool.execute("VACUUM ANALYZE")
        for number in range(5):
            await pool.execute("DELETE FROM shop.buyer WHERE id = $1", 1995 + number)
    await insight.write()
    advice = await advise(database_url, statements=folder)
    assert sql_of(advice, "foreign_key") == [
        "CREATE INDEX CONCURRENTLY sale_buyer_idx2 ON shop.sale (buyer);"
    ]


async def test_looking_disturbs_nobody(database_url: str, tmp_path: Path) -> None:
    """While somebody writes and another holds the table, advising ends, and writers never wait for it."""
    folder = tmp_path / "run" / "statements"
    await used(database_url, folder)
    async with Pool(database_url) as pool, pool.transaction() as tx:
        await tx.execute("LOCK TABLE shop.sale IN ACCESS EXCLUSIVE MODE")
        async with asyncio.timeout(60):
            advice = await advise(database_url, statements=folder)
        assert sql_of(advice, "missing_index") == []
        assert "locked by somebody and not looked at: shop.sale" in advice.notes


async def test_who_changes_a_table_waits_for_one_look_at_most(database_url: str, tmp_path: Path) -> None:
    """A migration that waits for a lock which looking holds ends the looking; what was found until then is
    told, and nothing else is asked."""
    await used(database_url, tmp_path / "run" / "statements")
    connection, other = await asyncpg.connect(database_url), await asyncpg.connect(database_url)
    outer = connection.transaction()
    await outer.start()
    catalog, judge = await read_catalog(connection), await open_judge(connection)
    allowance = Allowance(judge)
    seen = Observed(text=NEWEST, calls=1, seconds=9.0, slowest=9.0, rows=10)
    reading = read(NEWEST, catalog)
    assert reading is not None

    async def found() -> list[str]:
        asked = [ask(seen, reading, catalog)]
        findings, _ = await missing_indexes(asked, judge, catalog, allowance, total=9.0, min_gain=0.3)
        return [finding.index for finding in findings]

    assert await found() == ["sale_buyer_idx"]
    assert allowance.ended == ""
    changing = asyncio.create_task(other.execute("ALTER TABLE shop.sale ADD COLUMN more int"))
    async with asyncio.timeout(60):
        while not await judge.in_the_way():
            await asyncio.sleep(0.01)
    assert await found() == []
    assert allowance.ended == "somebody waited for a lock that looking holds"
    await outer.rollback()
    async with asyncio.timeout(60):
        await changing
    await connection.close()
    await other.close()


async def test_no_policy_runs_for_a_copy(database_url: str, tmp_path: Path) -> None:
    """A policy may do anything, and would leave a part of the rows: there is no copy, and that is told."""
    folder = tmp_path / "run" / "statements"
    await used(database_url, folder)
    role, word = f"tenant_{time.monotonic_ns()}", secrets.token_hex(16)
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "CREATE SEQUENCE visits; ALTER TABLE shop.sale ENABLE ROW LEVEL SECURITY;"
        "CREATE POLICY counting ON shop.sale USING (nextval('visits') > 0);"
        f"CREATE ROLE {role} LOGIN PASSWORD '{word}';"
        f"GRANT USAGE ON SCHEMA shop TO {role}; GRANT SELECT ON ALL TABLES IN SCHEMA shop TO {role};"
        f"GRANT USAGE ON SEQUENCE visits TO {role}"
    )
    try:
        parts = urlsplit(database_url)
        url = urlunsplit(parts._replace(netloc=f"{role}:{word}@{parts.netloc.rpartition('@')[2]}"))
        advice = await advise(url, statements=folder)
        assert await connection.fetchval("SELECT is_called FROM visits") is False
        assert any("could not be planned again" in note for note in advice.notes)
    finally:
        await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
        await connection.close()


async def test_the_statement_for_a_loop_brings_what_the_loop_did(database_url: str, tmp_path: Path) -> None:
    """One statement for all keys, as it is told: the same rows, also of sums and of the newest few."""
    folder = tmp_path / "run" / "statements"
    await used(database_url, folder)
    keys, loops = range(1, 11), {
        "SELECT count(*) AS n FROM shop.sale WHERE buyer = $1": "n",
        "SELECT id, at FROM shop.sale WHERE (buyer = $1) ORDER BY at DESC LIMIT 2": "id",
        "SELECT max(id) AS most FROM shop.sale WHERE buyer = $1 AND state = 'done'": "most",
        "SELECT note, id FROM shop.sale WHERE id = $1": "id",
    }  # fmt: skip
    wanted: dict[str, list[Any]] = {}
    insight = Insight(folder=folder, node="app-2", write_every=60)
    async with Pool(database_url, insight=insight) as pool:
        for sql, name in loops.items():
            with activate(RequestContext()):
                rows = [row for key in keys for row in await pool.fetch(sql, key)]
            wanted[name] = sorted([*wanted.get(name, []), *(row[name] for row in rows)])
    await insight.write()
    advice = await advise(database_url, statements=folder)
    connection = await asyncpg.connect(database_url)
    found: dict[str, list[Any]] = {}
    for sql in sql_of(advice, "repeated_statement"):
        rows = await connection.fetch(sql, list(keys))
        name = next(name for name in ("n", "most", "id") if name in rows[0].keys())  # noqa: SIM118
        found[name] = sorted([*found.get(name, []), *(row[name] for row in rows)])
    await connection.close()
    assert found == wanted


async def test_what_is_sent_several_at_once_is_not_run(database_url: str, tmp_path: Path) -> None:
    """Statements behind a semicolon stay what they are: texts that were looked at."""
    folder = tmp_path / "run" / "statements"
    connection = await asyncpg.connect(database_url)
    await connection.execute("CREATE SEQUENCE visits")
    await used(database_url, folder, "SELECT id FROM shop.sale WHERE buyer = %d; SELECT nextval('visits')")
    visits = await connection.fetchval("SELECT last_value FROM visits")
    advice = await advise(database_url, statements=folder)
    assert await connection.fetchval("SELECT last_value FROM visits") == visits
    assert "1 statements could not be parsed and were not looked at" in advice.notes
    assert "CREATE INDEX CONCURRENTLY sale_buyer_idx ON shop.sale (buyer);" in sql_of(advice, "missing_index")
    await connection.close()


async def check_parts(url: str, folder: Path, checked: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(
        'CREATE SCHEMA "old.days"; CREATE TABLE day (id bigint, at int NOT NULL, who int NOT NULL, note text)'
        " PARTITION BY RANGE (at);"
        "CREATE TABLE day_1 PARTITION OF day FOR VALUES FROM (0) TO (10000);"
        'CREATE TABLE "old.days"."day.2" PARTITION OF day FOR VALUES FROM (10000) TO (20001);'
        "INSERT INTO day SELECT g, g, g % 1000, repeat('x', 50) FROM generate_series(1, 20000) g"
    )
    await connection.execute("VACUUM ANALYZE")
    folder.parent.mkdir()
    insight = Insight(folder=folder, node="app-1", write_every=60)
    async with Pool(url, insight=insight) as pool:
        for number in range(6):
            await pool.fetch("SELECT id, note FROM day WHERE who = $1", number)
            await pool.fetch("SELECT id FROM day WHERE at < $1", 20 + number)
    await insight.write()
    (finding,) = (await advise(url, statements=folder)).findings
    assert (finding.table, finding.columns) == ("public.day", ("who",))
    assert finding.checked.startswith(checked)
    for sql in finding.sql:
        await connection.execute(sql)
    assert await connection.fetchval(
        "SELECT indisvalid FROM pg_index WHERE indexrelid = 'day_who_idx'::regclass"
    )
    await connection.close()
    assert (await advise(url, statements=folder)).findings == ()


async def test_a_partitioned_table_gets_its_index_part_by_part(database_url: str, tmp_path: Path) -> None:
    """One finding for the whole; its SQL locks no writer out, runs as it stands, and leaves a valid index.
    The column that rows are split by needs none."""
    await check_parts(database_url, tmp_path / "run" / "statements", "scratch copy of 20000 rows")


@pytest.mark.needs("postgresql-15", "postgresql-15-hypopg")
async def test_hypopg_believes_in_an_index_of_parts(with_hypopg: str, tmp_path: Path) -> None:
    """The same, planned on the real parts."""
    await check_parts(with_hypopg, tmp_path / "run" / "statements", "hypopg")


async def check_refused(url: str, folder: Path) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute("CREATE DOMAIN given AS int NOT NULL")
    await connection.close()
    slow = "SELECT id, pg_sleep(0.01) FROM shop.sale WHERE id < 9 AND buyer > %d AND buyer + 1 = $1::given"
    folder.parent.mkdir()
    insight = Insight(folder=folder, node="app-2", write_every=60, slow_statement=60)
    await used(url, folder)
    async with Pool(url, insight=insight) as pool:
        for number in range(6):
            await pool.fetch(slow % number, number)
    await insight.write()
    advice = await advise(url, statements=folder)
    assert "1 statements could not be planned again: SELECT id, pg" in " ".join(advice.notes)
    assert "CREATE INDEX CONCURRENTLY sale_buyer_idx ON shop.sale (buyer);" in sql_of(advice, "missing_index")


async def test_one_statement_that_cannot_be_planned_is_one(database_url: str, tmp_path: Path) -> None:
    """The costliest one is refused by the planner; those after it are looked at."""
    await check_refused(database_url, tmp_path / "run" / "statements")


@pytest.mark.needs("postgresql-15", "postgresql-15-hypopg")
async def test_one_statement_that_hypopg_cannot_plan_is_one(with_hypopg: str, tmp_path: Path) -> None:
    """The same where HypoPG says what helps."""
    await check_refused(with_hypopg, tmp_path / "run" / "statements")


async def test_an_index_that_goes_can_be_brought_back(database_url: str) -> None:
    """Operator classes, collations, options: what is told makes the same index; and a part of a partitioned
    index, which cannot be dropped alone, is not told."""
    connection = await asyncpg.connect(database_url)
    await connection.execute(
        "CREATE TABLE note (id bigint PRIMARY KEY, text text, doc jsonb, at int);"
        "INSERT INTO note SELECT g, 'text ' || g, jsonb_build_object('n', g), g"
        " FROM generate_series(1, 9000) g;"
        "CREATE INDEX pattern ON note (text text_pattern_ops DESC NULLS LAST) WHERE id > 1;"
        "CREATE INDEX documents ON note USING gin (doc jsonb_path_ops) WITH (fastupdate = off);"
        'CREATE INDEX collated ON note (lower(text) COLLATE "C") INCLUDE (at) WITH (fillfactor = 80);'
        "CREATE TABLE day (id bigint, at int NOT NULL) PARTITION BY RANGE (at);"
        "CREATE TABLE day_1 PARTITION OF day FOR VALUES FROM (0) TO (10000);"
        "CREATE INDEX ON day (id);"
        "INSERT INTO day SELECT g, g FROM generate_series(1, 9000) g; ANALYZE"
    )
    indexes = "SELECT indexname, indexdef FROM pg_indexes WHERE tablename = 'note' ORDER BY 1"
    before = await connection.fetch(indexes)
    await connection.close()  # its figures are counted then
    advice = await advise(database_url, settings=Settings(unused_after=0))
    connection = await asyncpg.connect(database_url)
    told = [finding for finding in advice.findings if finding.kind == "unused_index"]
    assert {finding.index for finding in told} == {"pattern", "documents", "collated"}
    for finding in told:
        for sql in (*finding.sql, finding.evidence["to_bring_it_back"]):
            await connection.execute(sql)
    assert await connection.fetch(indexes) == before
    await connection.close()


def test_an_index_is_unused_only_where_every_replica_says_so(own_cluster: Clusters) -> None:
    """A replica that is not asked, that does not answer, that counts for a shorter time, or that is the one
    asked about: no index is called unused."""
    world = own_cluster(replicas=1)
    (replica,) = world.replicas
    world.primary.query(
        "create table t (id int primary key, a int);"
        "insert into t select g, g from generate_series(1, 9000) g; create index t_a on t (a); analyze",
        dbname=world.dbname,
    )
    replica.catch_up()

    def told(*replicas: str, url: str = world.url(), after: float = 0.0) -> tuple[list[str], str]:
        settings = Settings(unused_after=after)
        advice = asyncio.run(advise(url, replicas=replicas, settings=settings))
        unused = [finding.index for finding in advice.findings if finding.kind == "unused_index"]
        return unused, " ".join(advice.notes)

    assert told(world.url(replica))[0] == ["t_a"]
    unused, notes = told()
    assert not unused
    assert "1 replicas follow this server and 0 were asked" in notes
    assert told(world.url(replica), "")[0] == []
    assert told(world.url(replica), "postgresql://nobody@127.0.0.1:1/none")[0] == []
    assert "this server is a replica itself" in told(url=world.url(replica))[1]
    replica.query("select pg_stat_reset()", dbname=world.dbname)
    unused, notes = told(world.url(replica), after=float(world.primary.query(AGE, dbname=world.dbname)))
    assert not unused
    assert "use of indexes was counted for" in notes
    replica.query("set enable_seqscan = off; select id from t where a = 5", dbname=world.dbname)
    eventually(lambda: told(world.url(replica))[0] == [])


async def test_a_database_that_does_not_answer_is_an_error() -> None:
    """Not an empty report."""
    with pytest.raises(DatabaseUnavailable):
        await advise("postgresql://nobody@127.0.0.1:1/none")


def test_the_command_tells_by_its_exit_code(
    database_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """3 with findings, as text and as JSON; 0 when nothing gains enough; 1 and 2 for what is wrong."""
    folder = tmp_path / "run" / "statements"
    asyncio.run(used(database_url, folder))
    command = ["db", "advise", "--url", database_url, "--statements", str(folder)]
    assert cli.main(command) == commands.FINDINGS == 3
    assert "> CREATE INDEX CONCURRENTLY sale_buyer_idx ON shop.sale (buyer);" in capsys.readouterr().out
    assert cli.main([*command, "--json"]) == 3
    (advice,) = json.loads(capsys.readouterr().out)
    assert {"kind", "sql", "share", "evidence", "checked"} <= advice["findings"][0].keys()
    assert cli.main(["db", "advise", "--url", "postgresql://nobody@127.0.0.1:1/none"]) == 1
    assert cli.main([*command, "--min-gain", "2"]) == 2
    assert cli.main(["db", "advise", "--statements", str(folder)]) == 2
    assert "--statements goes with --url" in capsys.readouterr().err


def test_nothing_to_advise_is_zero(database_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """An empty database, asked by its address."""
    assert cli.main(["db", "advise", "--url", database_url]) == 0
    assert "nothing to advise" in capsys.readouterr().out
