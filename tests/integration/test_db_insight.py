"""Statements of real pools and engines: counted, repeated ones found, slow ones told with their plan."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest
from sqlalchemy import ForeignKey, select
from sqlalchemy.ext.asyncio import AsyncAttrs, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from springtide.context import RequestContext, activate
from springtide.db._explaining import explain
from springtide.db.insight import Insight, StatementTotals
from springtide.db.pool import Pool
from springtide.signals import Signal, StatementRepeated, StatementSlow

SETUP = """
CREATE TABLE author (id bigint PRIMARY KEY, name text NOT NULL);
CREATE TABLE book (id bigint PRIMARY KEY, author_id bigint NOT NULL REFERENCES author, title text NOT NULL);
INSERT INTO author SELECT g, 'author ' || g FROM generate_series(1, 12) g;
INSERT INTO book SELECT g, g % 12 + 1, 'book ' || g FROM generate_series(1, 60) g;
CREATE SEQUENCE visits;
CREATE FUNCTION visit() RETURNS bigint LANGUAGE sql VOLATILE AS $$ SELECT nextval('visits') $$;
CREATE VIEW guessing AS SELECT random() AS guess, id FROM author;
CREATE VIEW visiting AS SELECT visit() AS number;
CREATE FUNCTION "look at"(bigint) RETURNS bigint LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN $1; END';
CREATE FUNCTION zähle(bigint) RETURNS bigint LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN $1; END';
CREATE FUNCTION peek(bigint, bigint) RETURNS bigint LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN $2; END';
CREATE OPERATOR @@@ (LEFTARG = bigint, RIGHTARG = bigint, FUNCTION = peek);
CREATE AGGREGATE peeked(bigint) (SFUNC = peek, STYPE = bigint);
CREATE FUNCTION opened(book) RETURNS bigint LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN 1; END';
"""


class Heard:
    def __init__(self) -> None:
        self.signals: list[Signal] = []
        self.changed = asyncio.Event()

    def emit(self, signal: Signal) -> None:
        self.signals.append(signal)
        self.changed.set()

    def repeated(self) -> list[StatementRepeated]:
        return [signal for signal in self.signals if isinstance(signal, StatementRepeated)]

    async def slow(self) -> StatementSlow:
        async with asyncio.timeout(20):
            while True:
                for signal in self.signals:
                    if isinstance(signal, StatementSlow):
                        return signal
                self.changed.clear()
                await self.changed.wait()


@asynccontextmanager
async def watched(url: str, **options: Any) -> AsyncIterator[tuple[Pool, Insight, Heard]]:
    heard = Heard()
    insight = Insight(sink=heard, write_every=60, **options)
    async with Pool(url, insight=insight) as pool:
        await pool.execute(SETUP)
        await insight.start()
        try:
            yield pool, insight, heard
        finally:
            await insight.stop()


def totals(insight: Insight, text: str) -> StatementTotals:
    (found,) = [found for found in insight.snapshot().clusters["main"] if found.text == text]
    return found


async def test_every_way_to_run_a_statement_is_counted(database_url: str) -> None:
    """On the pool, on a connection, in a transaction, many at once, by COPY; failures are counted as such."""
    async with watched(database_url) as (pool, insight, _):
        sql = "SELECT name FROM author WHERE id = $1"
        await pool.fetch_one(sql, 1)
        async with pool.acquire() as connection:
            await connection.fetch(sql, 2)
        async with pool.transaction() as tx:
            await tx.fetch_value(sql, 3)
        with pytest.raises(asyncpg.DataError):
            await pool.fetch_one(sql, "no number")
        found = totals(insight, sql)
        assert (found.calls, found.rows, found.errors) == (4, 3, 1)
        assert 0 < found.slowest <= found.seconds


LOOPS: dict[str, Callable[[Pool], Awaitable[Any]]] = {}


def loop(function: Callable[[Pool], Awaitable[Any]]) -> Callable[[Pool], Awaitable[Any]]:
    LOOPS[function.__name__] = function
    return function


@loop
async def one_after_the_other(pool: Pool) -> None:
    for id in range(1, 11):
        await pool.fetch_one("SELECT name FROM author WHERE id = $1", id)


@loop
async def all_at_once(pool: Pool) -> None:
    await asyncio.gather(
        *(pool.fetch_one("SELECT name FROM author WHERE id = $1", id) for id in range(1, 11))
    )


@loop
async def through_a_service(pool: Pool) -> None:
    async def find(id: int) -> Any:
        async with pool.transaction(read_only=True) as tx:
            return await tx.fetch_one("SELECT name FROM author WHERE id = $1", id)

    for id in range(1, 11):
        await find(id)


@loop
async def lists_of_one(pool: Pool) -> None:
    for id in range(1, 11):
        await pool.fetch(f"SELECT name FROM author WHERE id IN ({id})")


@pytest.mark.parametrize("name", LOOPS)
async def test_a_statement_in_a_loop_is_found_with_its_place(name: str, database_url: str) -> None:
    """Whatever form the loop has; the same work done once per request is not told."""
    async with watched(database_url) as (pool, _, heard):
        for _ in range(3):  # what runs all at once is found when it comes again
            with activate(RequestContext()):
                await LOOPS[name](pool)
        assert heard.repeated()
        assert all(name in signal.site for signal in heard.repeated())
        heard.signals.clear()
        for id in range(1, 11):
            with activate(RequestContext()):
                await pool.fetch_one("SELECT title FROM book WHERE id = $1", id)
        assert heard.repeated() == []


class Model(AsyncAttrs, DeclarativeBase):
    pass


class Author(Model):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Book(Model):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))
    title: Mapped[str]
    author: Mapped[Author] = relationship()


async def test_lazy_loading_of_an_orm_is_found(database_url: str) -> None:
    """SQLAlchemy sends the statements; the place is the line that touches the attribute."""
    async with watched(database_url) as (_, insight, heard):
        engine = create_async_engine(database_url.replace("postgresql://", "postgresql+asyncpg://"))
        insight.watch(engine)
        try:
            with activate(RequestContext()):
                async with AsyncSession(engine) as session:
                    for book in (await session.scalars(select(Book).limit(12))).all():
                        await book.awaitable_attrs.author
        finally:
            await engine.dispose()
        (signal,) = heard.repeated()
        assert "author" in signal.statement
        assert "test_lazy_loading_of_an_orm_is_found" in signal.site


async def test_a_slow_statement_is_told_with_its_plan_and_without_its_arguments(database_url: str) -> None:
    """A read is run again for its figures; nothing of what was asked for is in the plan."""
    async with watched(database_url, slow_statement=0.000001) as (pool, _, heard):
        heard.signals.clear()
        with activate(RequestContext(request_id="r-1")):
            await pool.fetch("SELECT id FROM book WHERE title = $1", "book of secrets")
        slow = await heard.slow()
        assert slow.statement == "SELECT id FROM book WHERE title = ?"
        assert slow.request_id == "r-1"
        assert slow.plan is not None
        assert "Seq Scan on book" in slow.plan
        assert "execution" in slow.plan
        assert "secrets" not in slow.plan


@pytest.mark.parametrize(
    ("sql", "analyzed"),
    [
        ("SELECT count(*) FROM book", True),
        ("INSERT INTO author VALUES (99, 'x')", False),
        ("WITH made AS (INSERT INTO author VALUES (99, 'x') RETURNING id) SELECT * FROM made", False),
        ("SELECT id FROM author FOR UPDATE", False),
        ("SELECT nextval('visits')", False),
        ("SELECT visit()", False),
        ("SELECT pg_sleep(0)", False),
        ("SELECT * FROM guessing", False),
        ("SELECT number FROM visiting", False),
        ("UPDATE author SET name = 'x'", False),
        ('SELECT "look at"(id) FROM author', False),
        ("SELECT zähle(id) FROM author", False),
        ("SELECT id @@@ 1::bigint FROM author", False),
        ("SELECT peeked(id) FROM author", False),
        ("SELECT book.opened FROM book", False),
        ("SELECT id FROM author LIMIT zähle /* ( */ (1)", False),
    ],
)
async def test_looking_at_a_plan_changes_nothing(sql: str, analyzed: bool, database_url: str) -> None:
    """Only what cannot have an effect runs, even where its caller took it for a read; rows and sequences
    are as before."""
    async with watched(database_url) as (pool, _, _heard):
        plan = await explain(database_url, sql, (), read=True, timeout=5)
        assert plan is not None
        assert ("execution" in plan) is analyzed
        assert await pool.fetch_value("SELECT count(*) FROM author WHERE name LIKE 'author %'") == 12
        assert await pool.fetch_value("SELECT is_called FROM visits") is False


async def test_a_plan_does_not_wait_for_a_frozen_table(database_url: str) -> None:
    """Somebody holds the table exclusively: there is no plan, soon, and no connection is left."""
    async with watched(database_url) as (pool, _, _heard):
        async with pool.transaction() as tx:
            await tx.execute("LOCK TABLE book IN ACCESS EXCLUSIVE MODE")
            assert await explain(database_url, "SELECT * FROM book", (), read=True, timeout=0.5) is None
        left = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'springtide insight'"
        async with asyncio.timeout(20):
            while await pool.fetch_value(left + " AND datname = current_database()"):
                await asyncio.sleep(0.01)
