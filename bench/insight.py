"""What `springtide db advise` finds of what was planted, and what it finds where nothing was.

Tables of bench._insight_cases are filled on a real PostgreSQL, their traffic runs through our pool, and the
advisor looks at both. A finding is right when a case expects it (kind, columns and their order, predicate);
any other finding about a case's tables is false.

- `advice_precision`, `advice_recall`: right of all findings, found of all planted, over the cases that were
  there while the advisor was built; `held_out_*` over other shapes, written before it ran on any of them
  (its first run found 14 of 18 without a false one; what that showed was mended for all); `lab_*` over a
  hospital's laboratory, written by somebody who had not read the advisor.
- `naive_*`: the same for the missing indexes alone, of a baseline: one index for each column that a
  sequential scan filters by. `index_*` are ours for those.
- `*_hypopg`: on Debian's PostgreSQL with HypoPG, where it is installed; the others use a scratch copy.
- `note_us`: processor time that counting adds to a statement. `index_write_us`: what one more index adds to
  a row written.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import re
import shutil
import tempfile
import time
import timeit
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import uvloop
from sqlalchemy import String, select
from sqlalchemy.ext.asyncio import AsyncAttrs, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from bench._debian_postgres import DebianPostgres
from bench._harness import finish
from bench._insight_cases import HELD_OUT, SEEN, Case, Expected
from bench._insight_lab import LAB
from springtide.context import Entry, RequestContext, activate
from springtide.db._statements import describe
from springtide.db.insight import Insight
from springtide.db.pool import Pool
from springtide.ops.advise.advisor import Settings, advise
from springtide.ops.advise.findings import Finding
from springtide.ops.runner.postgres import EmbeddedPostgres

REPEATED = 12
PEERS = ("naive", "index")
SETS = (("seen", "advice", SEEN), ("held out", "held_out", HELD_OUT), ("laboratory", "lab", LAB))
EVERY_QUICK = 2
"""With --quick, the step through the cases of each set."""


# -- traffic -------------------------------------------------------------------------------------------


async def sequence(pool: Pool, sql: str, args: Callable[[int], tuple[Any, ...]], at: int) -> None:
    for n in range(REPEATED):
        await pool.fetch_one(sql, *args(at + n))


async def gathered(pool: Pool, sql: str, args: Callable[[int], tuple[Any, ...]], at: int) -> None:
    await asyncio.gather(*(pool.fetch_one(sql, *args(at + n)) for n in range(REPEATED)))


async def service(pool: Pool, sql: str, args: Callable[[int], tuple[Any, ...]], at: int) -> None:
    async def find(n: int) -> object:
        async with pool.transaction() as tx:
            return await tx.fetch_one(sql, *args(n))

    for n in range(REPEATED):
        await find(at + n)


async def literals(pool: Pool, sql: str, args: Callable[[int], tuple[Any, ...]], at: int) -> None:
    for n in range(REPEATED):
        await pool.fetch_one(sql % args(at + n))


async def in_text(pool: Pool, sql: str, args: Callable[[int], tuple[Any, ...]], at: int) -> None:
    await pool.fetch(sql % args(at))


async def thrice(pool: Pool, sql: str, args: Callable[[int], tuple[Any, ...]], at: int) -> None:
    for n in range(3):
        await pool.fetch_one(sql, *args(at + n))


async def seven(pool: Pool, sql: str, args: Callable[[int], tuple[Any, ...]], at: int) -> None:
    for n in range(7):
        await pool.fetch_one(sql, *args(at + n))


async def held(pool: Pool, sql: str, args: Callable[[int], tuple[Any, ...]], at: int) -> None:
    async with pool.acquire() as connection:
        for n in range(REPEATED):
            await connection.fetch(sql, *args(at + n))


async def in_transaction(pool: Pool, sql: str, args: Callable[[int], tuple[Any, ...]], at: int) -> None:
    async with pool.transaction() as tx:
        for n in range(REPEATED):
            await tx.execute(sql, *args(at + n))


async def nested(pool: Pool, sql: str, args: Callable[[int], tuple[Any, ...]], at: int) -> None:
    """Parents by threes, each with four of its children, another statement between them."""

    async def children(first: int) -> None:
        for n in range(first, first + 4):
            await pool.fetch(sql, *args(n))

    for parent in range(0, REPEATED, 4):
        await pool.fetch_value("select $1::int as parent", parent)
        await children(at + parent)


async def places(pool: Pool, sql: str, args: Callable[[int], tuple[Any, ...]], at: int) -> None:
    """The same statement from twelve lines, as twelve parts of a page would send it."""
    for n in range(REPEATED):
        names: dict[str, Any] = {}
        code = "\n" * n + "async def part(pool, sql, args): return await pool.fetch_one(sql, *args)"
        exec(compile(code, "parts_of_the_page.py", "exec"), names)
        await names["part"](pool, sql, args(at + n))


LOOPS: dict[str, Callable[..., Awaitable[None]]] = {
    "sequence": sequence, "gather": gathered, "service": service, "literals": literals, "text": in_text,
    "thrice": thrice, "seven": seven, "places": places, "held": held, "in_transaction": in_transaction,
    "nested": nested,
}  # fmt: skip


async def by_orm(engine: Any, table: str, calls: int) -> None:
    """Objects that load their name when somebody looks at it."""

    class Base(AsyncAttrs, DeclarativeBase):
        pass

    name = mapped_column(String, deferred=True)
    model = type(
        f"Model_{table}", (Base,),
        {"__tablename__": table, "__annotations__": {"id": Mapped[int], "name": Mapped[str]},
         "id": mapped_column(primary_key=True), "name": name},
    )  # fmt: skip
    for _ in range(calls):
        with activate(RequestContext()):
            async with AsyncSession(engine) as session:
                for found in (await session.scalars(select(model).limit(REPEATED))).all():
                    await found.awaitable_attrs.name


async def run(pool: Pool, case: Case, engine: Any) -> None:
    for traffic in case.traffic:
        sql = traffic.text(table_of(case))
        if traffic.loop == "orm":
            await by_orm(engine, table_of(case), traffic.calls)
            continue
        for n in range(traffic.calls):
            with activate(RequestContext()):
                if traffic.loop:
                    await LOOPS[traffic.loop](
                        pool, sql, traffic.args, n * REPEATED if traffic.loop != "text" else n
                    )
                elif sql.startswith(("select", "with")):
                    await pool.fetch(sql, *traffic.args(n))
                else:
                    await pool.execute(sql, *traffic.args(n))


def chosen(step: int) -> list[Case]:
    return [case for _, _, cases in SETS for case in cases[::step]]


# -- scoring -------------------------------------------------------------------------------------------


def table_of(case: Case) -> str:
    return f"c_{case.name}"


def fits(finding: Finding, expected: Expected) -> bool:
    if finding.kind != expected.kind:
        return False
    columns = tuple(re.sub(r" (desc|asc).*", "", column, flags=re.IGNORECASE) for column in finding.columns)
    if expected.columns and columns not in expected.columns:
        return False
    if finding.kind != "missing_index" or expected.where == "*":
        return True
    where = finding.sql[0].partition(" WHERE ")[2]
    return (not where) if expected.where is None else expected.where in where


@dataclass
class Score:
    """`false` findings and `missed` cases are named, for people."""

    right: int
    false: list[str]
    missed: list[str]

    @property
    def precision(self) -> float:
        return round(self.right / max(self.right + len(self.false), 1), 3)

    @property
    def recall(self) -> float:
        return round(self.right / max(self.right + len(self.missed), 1), 3)


def score(cases: Sequence[Case], findings: Sequence[Finding], kinds: tuple[str, ...] = ()) -> Score:
    right, false, missed = 0, [], []
    for case in cases:
        own = re.compile(rf"\w+\.{table_of(case)}(_head|_owner|_shop|_post|_kind|__\w+)?$")
        about = [one for one in findings if own.match(one.table) and (not kinds or one.kind in kinds)]
        for expected in case.expected:
            if kinds and expected.kind not in kinds:
                continue
            hit = next((one for one in about if fits(one, expected)), None)
            if hit is None:
                missed.append(f"{case.name}: {expected.kind} {expected.columns}")
            else:
                about.remove(hit)
                right += 1
        false += [f"{case.name}: {one.kind} ({', '.join(one.columns)}) {one.title}" for one in about]
    return Score(right, false, missed)


async def naive(connection: Any, cases: Sequence[Case], url: str) -> list[Finding]:
    """The baseline: one index for each column that a sequential scan filters by, whatever it is worth."""
    found: dict[tuple[str, str], Finding] = {}
    for case in cases:
        for traffic in case.traffic:
            sql = traffic.text(table_of(case))
            args = traffic.args(1)
            if "%d" in sql:
                sql, args = sql % args, ()
            try:
                (plan,) = await connection.fetchval(f"EXPLAIN (VERBOSE, FORMAT JSON) {sql}", *args)
            except asyncpg.PostgresError:
                continue
            nodes = [plan["Plan"]]
            while nodes:
                node = nodes.pop()
                nodes += node.get("Plans", [])
                if node["Node Type"] != "Seq Scan" or "Filter" not in node:
                    continue
                schema, table = node["Schema"], node["Relation Name"]
                rows = await connection.fetch(
                    "select attname from pg_attribute"
                    " where attrelid = format('%I.%I', $1::text, $2::text)::regclass and attnum > 0",
                    schema,
                    table,
                )
                for row in rows:
                    if re.search(rf"\b{row['attname']}\b", node["Filter"]):
                        found[table, row["attname"]] = Finding(
                            kind="missing_index", title="naive", share=0.0, checked="",
                            table=f"{schema}.{table}", columns=(row["attname"],), sql=("CREATE INDEX",),
                        )  # fmt: skip
    return list(found.values())


# -- one server ----------------------------------------------------------------------------------------


@dataclass
class Looked:
    findings: list[Finding]
    naive: list[Finding]
    write_us: float
    seconds: float


async def look(url: str, cases: Sequence[Case], folder: Path) -> Looked:
    """Fill, run, advise; `url` is an empty database."""
    setup = await asyncpg.connect(url, statement_cache_size=0)
    await setup.set_type_codec("json", schema="pg_catalog", encoder=str, decoder=json.loads)
    for case in cases:
        await setup.execute(case.setup.replace("{t}", table_of(case)))
    await setup.execute("vacuum analyze")
    baseline = await naive(setup, cases, url)
    folder.mkdir(parents=True)
    insight = Insight(folder=folder / "statements", node="bench", write_every=60, slow_statement=60)
    engine = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"))
    insight.watch(engine)
    async with Pool(url, insight=insight, size=6) as pool:
        for case in cases:
            await run(pool, case, engine)
    await engine.dispose()
    await insight.write()
    await setup.execute("analyze")
    begun = time.perf_counter()
    advice = await advise(url, statements=folder / "statements", settings=Settings(unused_after=0))
    seconds = time.perf_counter() - begun
    for note in advice.notes:
        print("note:", note)
    written = await write_cost(setup)
    await setup.close()
    return Looked(list(advice.findings), baseline, written, seconds)


async def write_cost(connection: Any) -> float:
    """Microseconds that one more B-tree adds to a row of an INSERT, out of order as most keys come."""
    await connection.execute("create table w0 (a bigint, b bigint); create table w1 (a bigint, b bigint)")
    await connection.execute("create index on w0 (a); create index on w1 (a); create index on w1 (b)")
    spent = {"w0": 0.0, "w1": 0.0}
    for _ in range(5):
        for name in spent:
            begun = time.perf_counter()
            await connection.execute(
                f"insert into {name} select g, (g * 7919) % 20011 from generate_series(1, 20000) g"
            )
            spent[name] += time.perf_counter() - begun
    return (spent["w1"] - spent["w0"]) / 100_000 * 1e6


def note_cost() -> float:
    table = Insight().table("main")
    sql = "SELECT id, name, at FROM thing WHERE id = $1"
    statement, entry = describe(sql), Entry()
    entry.calls = 1
    number = 100_000

    def note() -> None:
        table.note(statement, sql, (1,), 0.0001, 1, None, entry)

    return min(timeit.repeat(note, timer=time.process_time, number=number, repeat=7)) / number * 1e6


def report(title: str, looked: Looked, figures: dict[str, object], suffix: str, step: int) -> None:
    for name, prefix, all_cases in SETS:
        cases = all_cases[::step]
        result = score(cases, looked.findings)
        figures[f"{prefix}_precision{suffix}"] = result.precision
        figures[f"{prefix}_recall{suffix}"] = result.recall
        planted = sum(len(case.expected) for case in cases)
        innocent = sum(not case.expected for case in cases)
        print(
            f"{title:14} {name:9} {planted} planted, {innocent} innocent cases:"
            f" precision {result.precision}, recall {result.recall}"
        )
        for line in result.false:
            print(f"    false:  {line}")
        for line in result.missed:
            print(f"    missed: {line}")
    every = chosen(step)
    for name, found in zip(PEERS, (looked.naive, looked.findings), strict=True):
        result = score(every, found, ("missing_index",))
        figures[f"{name}_precision{suffix}"] = result.precision
        figures[f"{name}_recall{suffix}"] = result.recall
    both = [f"{figures[f'{one}_precision{suffix}']} / {figures[f'{one}_recall{suffix}']}" for one in PEERS]
    print(
        f"{title:14} missing indexes alone: ours {both[1]}, one per filtered column {both[0]};"
        f" looked for {looked.seconds:.1f} s"
    )


async def measure(home: Path, quick: bool) -> dict[str, object]:
    figures: dict[str, object] = {}
    step = EVERY_QUICK if quick else 1
    every = chosen(step)
    server = EmbeddedPostgres("bench", home=home, durable=False)
    await server.start()
    try:
        looked = await look(server.url(), every, home / "embedded")
        report("scratch copy", looked, figures, "", step)
        figures["index_write_us"] = round(looked.write_us, 2)
    finally:
        await server.stop()
    if DebianPostgres.installed() and not quick:
        async with DebianPostgres(home / "debian") as debian:
            looked = await look(debian.url, every, home / "hypopg")
            report("hypopg", looked, figures, "_hypopg", step)
    figures["note_us"] = round(note_cost(), 3)
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="every second case, on the embedded server alone"
    )
    options = parser.parse_args()
    logging.getLogger("springtide").setLevel(logging.ERROR)
    home = Path(tempfile.mkdtemp(prefix="springtide-bench-"))
    home.chmod(0o755)
    try:
        figures = uvloop.run(measure(home, options.quick))
    finally:
        shutil.rmtree(home, ignore_errors=True)
    finish(figures)


if __name__ == "__main__":
    main()
