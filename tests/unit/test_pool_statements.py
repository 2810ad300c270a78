"""What the pool learns from a statement's text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.db._statements import MAX_CACHED, MAX_LABEL, MAX_LOOKED_AT, Dirt, Statements, describe


@pytest.mark.parametrize(
    ("sql", "label"),
    [
        ("SELECT  a,\n\tb FROM t WHERE id = $1;", "SELECT a, b FROM t WHERE id = ?"),
        ("SELECT 'it''s', E'\\'x', 42, -1.5e3, t1.c2 FROM t1", "SELECT ?, ?, ?, -?, t1.c2 FROM t1"),
        ("SELECT $tag$ secret 'x' $tag$, $$y$$", "SELECT ?, ?"),
        ("SELECT 1 -- secret\n/* 'more' */ FROM \"Odd 1\"", 'SELECT ? FROM "Odd 1"'),
        ("SELECT a FROM t WHERE id IN ($1, $2,$3)", "SELECT a FROM t WHERE id IN (...)"),
        ("INSERT INTO t VALUES (1, 'a'), (2, 'b'), (3, 'c')", "INSERT INTO t VALUES (?, ?)"),
        ("", "(empty)"),
    ],
)
def test_a_label_has_the_shape_and_not_the_values(sql: str, label: str) -> None:
    """Literals, arguments, comments and list lengths do not reach a metric's label."""
    assert describe(sql).label == label


def test_long_labels_stay_short_and_distinct() -> None:
    """Two statements that begin alike are told apart by a hash."""
    first, second = (describe(f"SELECT {'column, ' * 30} a FROM {table}") for table in ("t", "u"))
    assert first.label != second.label
    assert len(first.label) <= MAX_LABEL


@pytest.mark.parametrize(
    ("sql", "read"),
    [
        ("SELECT 1", True),
        ("  with x as (select 1) select * from x", True),
        ("VALUES (1)", True),
        ("SHOW work_mem", True),
        ("SELECT 'insert into t' FROM t", True),
        ("SELECT a FROM t WHERE note = 'nextval(1)'", True),
        ("SELECT updated, deleted FROM t FOR SHARE", True),
        ("WITH x AS (DELETE FROM t RETURNING a) SELECT a FROM x", False),
        ("SELECT nextval('s')", False),
        ("SELECT f$a$b(1), nextval('s')", False),
        ("SELECT date'\\', nextval('s')", False),
        ("SELECT a$$ FROM t; DELETE FROM t", False),
        ("SELECT $a$nextval($a$, $$delete$$", True),
        ("SELECT a INTO u FROM t", False),
        ("SELECT pg_advisory_xact_lock(1)", False),
        ("SELECT 1; DELETE FROM t", False),
        ("INSERT INTO t VALUES (1)", False),
        ("-- SELECT\nUPDATE t SET a = 1", False),
        ("EXPLAIN ANALYZE DELETE FROM t", False),
    ],
)
def test_only_what_is_harmless_twice_counts_as_a_read(sql: str, read: bool) -> None:
    """A statement is repeated after a lost connection only if its text shows no effect."""
    assert describe(sql).read is read


@pytest.mark.parametrize(
    ("sql", "dirt"),
    [
        ("SELECT 1", Dirt.NONE),
        ("UPDATE t SET a = 1", Dirt.NONE),
        ("SET LOCAL work_mem = '1MB'", Dirt.NONE),
        ("SET TRANSACTION READ ONLY", Dirt.NONE),
        ("SELECT set_config('a.b', $1, true)", Dirt.NONE),
        ("SELECT pg_advisory_xact_lock(1)", Dirt.NONE),
        ("INSERT INTO t VALUES ('LISTEN x; SET a = 1')", Dirt.NONE),
        ("PREPARE TRANSACTION 'x'", Dirt.NONE),
        ("set work_mem = '1MB'", Dirt.RESET),
        ("BEGIN; SET work_mem = '1MB'; COMMIT", Dirt.RESET),
        ("/* why */ SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", Dirt.RESET),
        ("SELECT set_config('a.b', $1, false)", Dirt.RESET),
        ("SELECT set_config('a.b', $1, true), set_config('c.d', $2, $3)", Dirt.RESET),
        ("LISTEN news", Dirt.RESET),
        ("CREATE TEMPORARY TABLE x (a int)", Dirt.RESET),
        ("SELECT a INTO TEMP x FROM t", Dirt.RESET),
        ("SELECT pg_try_advisory_lock(1)", Dirt.RESET),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", Dirt.RESET),
        ("DO $$ BEGIN PERFORM 1; END $$", Dirt.RESET),
        ("PREPARE x AS SELECT 1", Dirt.REPLACE),
        ("RESET statement_timeout", Dirt.RESET),
        ("CREATE OR REPLACE TEMP VIEW x AS SELECT 1", Dirt.RESET),
        ("CREATE TABLE pg_temp.x (a int)", Dirt.RESET),
        ("DISCARD ALL", Dirt.REPLACE),
    ],
)
def test_what_a_session_keeps_is_seen_in_the_text(sql: str, dirt: Dirt) -> None:
    """Settings, locks, temporary tables, listeners ask for a reset; prepared names for a new connection."""
    assert describe(sql).dirt is dirt


def test_a_text_too_long_to_look_at_counts_as_the_worst() -> None:
    """It is not repeated, and the session is reset after it."""
    statement = describe("SELECT " + "1, " * MAX_LOOKED_AT + "1")
    assert (statement.read, statement.dirt) == (False, Dirt.RESET)


@given(st.text(max_size=400))
def test_any_text_gets_a_bounded_label(sql: str) -> None:
    """Whatever is sent, the label is short, and describing it again gives the same."""
    label = describe(sql).label
    assert 0 < len(label) <= MAX_LABEL
    assert describe(sql).label == label


@pytest.mark.parametrize(
    "hostile", ["'" * 50_000, "(" * 50_000, "IN (" + "?," * 30_000, "/*" * 30_000, "$a" * 30_000]
)
def test_hostile_texts_are_described_in_bounded_time(hostile: str) -> None:
    """No text makes the patterns backtrack for long, however large it is."""
    begun = time.perf_counter()
    describe(f"SELECT {hostile}")
    assert time.perf_counter() - begun < 1.0


def test_the_cache_of_texts_is_bounded() -> None:
    """Statements built with literals in them do not grow the process."""
    statements = Statements()
    for number in range(MAX_CACHED + 50):
        statements.get(f"SELECT {number}")
    statements.get("SELECT '" + "x" * 100_000 + "'")
    assert len(statements) == MAX_CACHED
    assert statements.get("SELECT 1").label == "SELECT ?"


@pytest.mark.parametrize(
    ("sql", "session"),
    [
        ("SET LOCAL x = 1", ""),
        ("SET TRANSACTION READ ONLY", ""),
        ("set timezone to 'utc'", "SET"),
        ("SELECT 1; RESET ALL", "RESET"),
        ("SELECT set_config('a.b', $1, true)", ""),
        ("SELECT set_config('a.b', $1, false)", "set_config"),
        ("SELECT pg_advisory_xact_lock(1)", ""),
        ("SELECT pg_try_advisory_lock_shared(1)", "pg_try_advisory_lock_shared"),
        ("CREATE TEMP TABLE t ON COMMIT DROP AS SELECT 1", ""),
        ("CREATE LOCAL TEMPORARY TABLE t (n int) ON COMMIT DELETE ROWS", "TEMP"),
        ("CREATE TABLE pg_temp.t (n int)", "TEMP"),
        ("SELECT 1 INTO TEMPORARY t", "TEMP"),
        ("DECLARE c CURSOR FOR SELECT 1", ""),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "WITH HOLD"),
        ("PREPARE TRANSACTION 'x'", ""),
        ("PREPARE p AS SELECT 1", "PREPARE"),
        ("UNLISTEN *", "UNLISTEN"),
        ("NOTIFY news", ""),
        ("SELECT 'SET x = 1'", ""),
        ("UPDATE t SET x = 1", ""),
        ("DO $$ BEGIN SET x = 1; END $$", ""),
    ],
)
def test_what_a_statement_keeps_in_its_session_has_a_name(sql: str, session: str) -> None:
    """What ends with the transaction has none, and neither has what only looks like it."""
    assert describe(sql).session == session
