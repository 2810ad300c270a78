"""A module that reaches into another one's tables is found out by the statements it runs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.sharded import notes

from springtide.db import Bucket, Database
from springtide.testing import StatementGuard

FOREIGN = "select count(*) from other.thing"


@pytest.fixture
async def db(database_urls: tuple[str, str], tmp_path: Path) -> AsyncIterator[Database]:
    async with notes(database_urls, tmp_path, size=5) as database:
        for pool in database.pools.values():
            await pool.execute("create schema other; create table other.thing (id int)")
        yield database


async def test_a_module_that_keeps_to_its_schema_passes(db: Database) -> None:
    """Everything the data layer does for a module, ids and reservations included, is in its schema."""
    with StatementGuard() as guard:
        id = await db.ids.take_anywhere()
        async with db.reserving(id, claim={"slug": "a", "email": "b"}) as tx:
            await tx.execute("insert into notes.note (bucket, id) values ($1, $2)", id & 1023, id)
            async with db.write(id) as inner:
                await inner.execute_many("update notes.note set text = $1", [("x",)])
        async with db.read(id) as snapshot:
            await snapshot.fetch_one("select 1 from notes.note")
        await db.scatter("select id from notes.note", order=[("id", "asc")])
        await db.lookup("slug", "a")
        await db.reconcile()
    assert guard.faults() == []
    assert {executed.schema for executed in guard.statements} == {"notes", None}
    assert len(guard.statements) > 10


async def test_every_way_into_another_schema_is_seen(db: Database) -> None:
    """Reads, snapshots, writes, nested writes, scatter: each is named with its statement."""
    for number in range(6):
        with StatementGuard() as guard:
            if number == 0:
                await db.read(Bucket(0)).fetch_value(FOREIGN)
            elif number == 1:
                async with db.read(Bucket(0)) as snapshot:
                    await snapshot.fetch(FOREIGN)
            elif number == 2:
                async with db.write(Bucket(0)) as tx:
                    await tx.execute(FOREIGN)
            elif number == 5:
                async with db.write(Bucket(0)) as tx:
                    await tx.copy_in("thing", ["id"], [(1,)], schema="other")
            elif number == 3:
                await db.scatter_sum(FOREIGN)
            else:
                await db.fetch_many("select id from other.thing where id = any($1::bigint[])", [1])
        assert any("'notes' reaches into other.thing: " in fault for fault in guard.faults()), number
    with StatementGuard(foreign=["other"]) as guard:
        await db.read(Bucket(0)).fetch_value(FOREIGN)
    assert guard.faults() == []


async def test_statements_past_the_database_may_not_join_schemas(db: Database) -> None:
    pool = db.pools["main"]
    with StatementGuard() as guard:
        await pool.fetch("select 1 from notes.note")
        await pool.fetch(FOREIGN)
    assert guard.faults() == []
    with StatementGuard() as guard:
        await pool.fetch("select 1 from notes.note, other.thing")
    assert guard.faults() == ["notes and other in one statement: select 1 from notes.note, other.thing"]


async def test_tables_without_a_schema_are_found(db: Database) -> None:
    with StatementGuard() as guard:
        await db.read(Bucket(0)).fetch("with n as (select 1) select * from n, pg_class, pg_catalog.pg_index")
    assert guard.faults()[0].startswith("pg_class is written without its schema: with n as")
    assert len(guard.faults()) == 2  # once through the database, once on its pool


async def test_nothing_is_patched_afterwards(db: Database) -> None:
    before = Database.scatter
    with StatementGuard() as guard:
        assert Database.scatter is not before
        with pytest.raises(RuntimeError, match="open already"):
            guard.__enter__()
    assert Database.scatter is before
    await db.read(Bucket(0)).fetch(FOREIGN)
    assert guard.statements == []
