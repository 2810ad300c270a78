"""Statements are counted by fingerprint: bounded, cheap, and without telling anybody's data."""

from __future__ import annotations

import asyncio
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from springtide.context import Ledger, Part, RequestContext, activate
from springtide.db import insight as module
from springtide.db._explaining import functions_of, render
from springtide.db._fingerprint import normalise
from springtide.db._statements import describe
from springtide.db.insight import Insight, Snapshot, StatementTable, StatementTotals
from springtide.signals import Signal, StatementRepeated


class Heard:
    def __init__(self) -> None:
        self.signals: list[Signal] = []

    def emit(self, signal: Signal) -> None:
        self.signals.append(signal)


def ask(table: StatementTable, sql: str, *args: Any, rows: int = 1, ledger: Ledger | None = None) -> None:
    statement = describe(sql)
    entry = ledger.add(Part.SQL, 0.001, statement.label, rows) if ledger is not None else None
    table.note(statement, sql, args, 0.001, rows, None, entry)


def only(table: StatementTable) -> StatementTotals:
    (totals,) = table.totals()
    return totals


@pytest.mark.parametrize(
    ("sql", "text"),
    [
        ("select a from t where b = 'x' -- who\n and c = 5", "select a from t where b = $1 and c = $2"),
        ("select a from t where b = $1 and c = 'x'", "select a from t where b = $1 and c = $2"),
        ("select a from t where b in (1, 2, 3)", "select a from t where b in ($1)"),
        ("insert into t values ($1, $2), ($3, $4)", "insert into t values ($1, $2)"),
        ('select "it\'s" from t /* 1 */;', 'select "it\'s" from t'),
    ],
)
def test_literals_lists_and_comments_are_out(sql: str, text: str) -> None:
    """As pg_stat_statements writes them."""
    assert normalise(sql)[0] == text


def test_texts_that_differ_in_literals_are_one_statement() -> None:
    """Calls, rows and the longest are added up under one fingerprint."""
    table = Insight().table("main")
    for number in range(5):
        ask(table, f"select a from t where b = {number}", rows=2)
    assert (only(table).calls, only(table).rows, len(table)) == (5, 10, 1)


def test_only_literals_of_the_program_are_told() -> None:
    """What differs from call to call is somebody's data; so is what is long, or stands near a secret."""
    table = Insight().table("main")
    for name in ("ann", "ben", "ann"):
        ask(table, f"select a from t where state = 'new' and name = '{name}'")
    assert only(table).constants == {"1": "'new'"}

    table = Insight().table("main")
    for _ in range(3):
        ask(table, "select a from t where email = 'ann@example.com'")
        ask(table, "select a from t where password = 'hunter2'")
    assert [totals.constants for totals in table.totals()] == [{}, {}]
    assert b"hunter2" not in msgspec.json.encode(table.totals())


def test_a_literal_seen_once_is_not_told() -> None:
    """One call says nothing about whose the literal is."""
    table = Insight().table("main")
    ask(table, "select a from t where name = 'ann'")
    assert only(table).constants == {}


@pytest.mark.parametrize("quote", ["'", "E'", "$$", "$tag$", "/* "])
def test_a_literal_that_reaches_past_what_is_looked_at_is_not_told(quote: str) -> None:
    """The end of a long literal is not seen: what there is of it is a literal all the same."""
    table = Insight().table("main")
    for letter in "ab":
        ask(table, f"insert into t values ({quote}hunter2 {letter * 30_000}")
    assert len(table) == 1
    assert b"hunter2" not in msgspec.json.encode(table.totals())


def test_the_table_is_bounded_and_keeps_what_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Past the bound the cheapest go, never the most expensive."""
    monkeypatch.setattr(module, "MAX_STATEMENTS", 40)
    table = Insight().table("main")
    for _ in range(10):
        ask(table, "select costly from t")
    for number in range(200):
        ask(table, f"select c{number} from t")
    assert len(table) <= 40
    assert table.dropped >= 160
    assert any(totals.text == "select costly from t" for totals in table.totals())


def test_how_deep_pages_go_is_known() -> None:
    """As an argument and as a literal; the deepest counts."""
    table = Insight().table("main")
    for skipped in (0, 5000, 40):
        ask(table, "select a from t order by a limit $1 offset $2", 20, skipped)
        ask(table, f"select b from t order by b limit 20 offset {skipped}")
    assert [totals.deepest_offset for totals in table.totals()] == [5000, 5000]


def one(table: StatementTable, ledger: Ledger) -> None:
    ask(table, "select a from t where id = $1", 1, ledger=ledger)


def test_a_loop_is_told_with_its_line() -> None:
    """Ten times from one line: once told, with the file and the function, and who called that."""
    heard = Heard()
    table = Insight(sink=heard).table("main")
    with activate(RequestContext()) as context:
        for _ in range(10):
            one(table, context.ledger)
    (signal,) = heard.signals
    assert isinstance(signal, StatementRepeated)
    assert re.fullmatch(
        r"tests/unit/test_db_insight.py:\d+ ask < tests/unit/test_db_insight.py:\d+ one < .*", signal.site
    )
    totals = only(table)
    assert (totals.repeated_requests, totals.repeated_calls, totals.repeated_most) == (1, 10, 10)


def test_the_same_statement_from_many_places_is_no_loop() -> None:
    """Sites are counted apart; none of them repeats."""
    heard = Heard()
    table = Insight(sink=heard).table("main")
    with activate(RequestContext()) as context:
        for line in range(9):
            code = compile("\n" * line + "ask(table, sql, 1, ledger=ledger)", f"place{line}.py", "exec")
            names = {"ask": ask, "table": table, "ledger": context.ledger}
            exec(code, {**names, "sql": "select a from t where id = $1"})
    assert heard.signals == []


def test_two_clusters_are_not_one_loop() -> None:
    """A statement that goes to every shard once is not repeated, although its fingerprint is."""
    heard = Heard()
    insight = Insight(sink=heard)
    with activate(RequestContext()) as context:
        for shard in range(12):
            one(insight.table(f"shard{shard}"), context.ledger)
    assert heard.signals == []


async def test_a_task_without_frames_is_found_by_where_it_was_made() -> None:
    """The second request of `gather(read(...), ...)` knows the line, and Python notes nothing afterwards."""
    heard = Heard()
    insight = Insight(sink=heard)
    table = insight.table("main")
    origin: dict[str, Any] = {"ask": ask, "table": table}
    # in a file of this library's, as `Pool.fetch_one` is
    code = compile(
        "async def read(ledger): ask(table, 'select a from t where id = $1', 1, ledger=ledger)",
        str(Path(module.__file__).with_name("pool.py")), "exec",
    )  # fmt: skip
    exec(code, origin)
    origin["ask"] = eval(
        compile("lambda *a, **k: real(*a, **k)", str(Path(module.__file__)), "eval"), {"real": ask}
    )
    for _ in range(2):
        with activate(RequestContext()) as context:
            await asyncio.gather(*(origin["read"](context.ledger) for _ in range(12)))
    insight._origins.enough()
    assert sys.get_coroutine_origin_tracking_depth() == 0
    assert [type(signal) for signal in heard.signals] == [StatementRepeated]


def test_whoever_runs_the_loop_is_not_the_place() -> None:
    """A script that calls `asyncio.run` is below every frame, and has asked for none of the statements."""
    table = Insight().table("main")
    origin: dict[str, Any] = {"table": table, "label": describe("select 1")}
    code = compile(
        "async def read(entry): table.note(label, 'select 1', (), 0.001, 1, None, entry)",
        str(Path(module.__file__).with_name("pool.py")), "exec",
    )  # fmt: skip
    exec(code, origin)

    async def main() -> None:
        ledger = Ledger()
        await asyncio.gather(*(origin["read"](ledger.add(Part.SQL, 0.001, "select ?")) for _ in range(12)))

    def script() -> None:
        asyncio.run(main())

    with ThreadPoolExecutor(1) as pool:
        pool.submit(script).result()
    assert only(table).sites == {}


async def test_a_snapshot_is_whole_private_and_left_behind(tmp_path: Path) -> None:
    """What a process that ended counted can be read by its owner alone; no half files, no old ones."""
    (tmp_path / "run").mkdir()
    folder = tmp_path / "run" / "statements"
    insight = Insight(folder=folder, node="app-1")
    ask(insight.table("main"), "select a from t where b = $1", 1)
    await insight.start()
    await insight.stop()
    (file,) = await asyncio.to_thread(lambda: list(folder.iterdir()))
    assert file.name == "app-1.json"
    assert file.stat().st_mode & 0o777 == 0o600
    read = msgspec.json.decode(file.read_bytes(), type=Snapshot)
    assert read.clusters["main"][0].text == "select a from t where b = $1"


async def test_nothing_is_left_where_no_platform_runs(tmp_path: Path) -> None:
    """An application that is not run by a supervisor finds no new folders beside it."""
    insight = Insight(folder=tmp_path / "run" / "statements")
    await insight.start()
    await insight.stop()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("option", ["slow_statement", "explain_timeout", "write_every"])
def test_options_that_cannot_work_are_refused(option: str) -> None:
    """With the value."""
    options: Any = {option: 0}
    with pytest.raises(ValueError, match=f"{option} must be > 0 seconds, got 0"):
        Insight(**options)


def test_functions_are_seen_wherever_they_are_called() -> None:
    """Quoted, qualified, in other alphabets, and behind a comment."""
    assert {"f", "G", "nextval"} <= functions_of("select f(1), \"G\"(2), pg_catalog.nextval ('s')")
    assert {"zähle", "do it", 'a"b'} <= functions_of('select \'"\', zähle(1), "do it"(2), "a""b" (3)')
    assert "f" in functions_of("select 1 limit f/* ( */(1)")


def test_a_plan_is_told_without_values() -> None:
    """Conditions keep their columns and lose their literals."""
    plan = {
        "Plan": {
            "Node Type": "Seq Scan", "Relation Name": "t", "Total Cost": 12.5, "Plan Rows": 3,
            "Filter": "((email = 'ann@example.com'::text) AND (age > 41))",
        }
    }  # fmt: skip
    assert render(plan).splitlines() == [
        "Seq Scan on t (cost=12 rows=3)", "  Filter: ((email = ?::text) AND (age > ?))",
    ]  # fmt: skip
