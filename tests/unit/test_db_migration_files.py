"""What a folder of migrations must look like, before any database is asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from springtide.db._migration_files import load
from springtide.errors import MigrationError

TABLE = "create table n.a (bucket smallint not null, id bigint not null, primary key (bucket, id));"


def write(folder: Path, *files: str, **named: str) -> Path:
    for number, text in enumerate(files, start=1):
        (folder / f"{number:04}_x.sql").write_text(text)
    for name, text in named.items():
        (folder / f"{name}.sql").write_text(text)
    return folder


@pytest.mark.parametrize(
    "sql",
    [
        TABLE,
        "create table if not exists n.a (id bigint, bucket int2, constraint k primary key (id, bucket))",
        "create table n.a (bucket smallint primary key, x numeric(10, 2) default round(1.5, 2))",
        "create table n.a (bucket int2, id int); alter table only n.a add primary key (bucket, id)",
        "-- springtide: unsharded one row per server\ncreate table n.a (id int primary key)",
        "create temporary table t (id int); insert into t values (1)".replace("into t", "into n.t"),
        TABLE + "create table n.b partition of n.a for values with (modulus 2, remainder 0)",
        "create function n.f() returns int language sql begin atomic select 1; end",
        "-- springtide: no-transaction\ncreate index concurrently i on n.a (x); drop index concurrently n.i",
    ],
)
def test_files_that_keep_the_rules(tmp_path: Path, sql: str) -> None:
    (file,) = load(write(tmp_path, sql.replace("temporary table t", "temporary table n.t")), "n")
    assert file.number == 1
    assert file.transactional == ("no-transaction" not in sql)


@pytest.mark.parametrize(
    ("sql", "rule"),
    [
        ("create table n.a (id bigint primary key)", r"0001_x.sql:1: n.a needs `bucket smallint not null`"),
        ("\n\ncreate table n.a (id bigint, bucket int)", r"0001_x.sql:3: n.a needs `bucket"),
        ("create table n.a as select 1 as bucket", r"n.a needs `bucket"),
        ("create unlogged table n.a (x int, primary key (x))", r"n.a needs `bucket"),
        ("create table m.a (bucket int primary key)", r"m.a belongs to another schema than 'n'"),
        ("create table a (bucket int primary key)", r"a must be written with its schema, n.a"),
        (TABLE + "insert into m.b select 1 from n.a", r"m.b belongs to another schema"),
        ("begin; " + TABLE, r"0001_x.sql:1: BEGIN is the migrator's"),
        (TABLE + "\ncommit;", r"0001_x.sql:2: COMMIT is the migrator's"),
        ("create schema n", r"the migrator creates the schema 'n'"),
        ("create index concurrently i on n.a (x)", r"needs the line `-- springtide: no-transaction`"),
        (
            "-- springtide: no-transaction\ncreate index concurrently on n.a (x)",
            r"0001_x.sql:2: .*needs a name",
        ),
        (
            "-- springtide: no-transaction\nreindex index concurrently n.i",
            r"only CREATE INDEX and DROP INDEX",
        ),
        ("-- springtide: unsharded\nselect 1", r"0001_x.sql:1: .*got 'unsharded'"),
        ("-- springtide: no-transactions\nselect 1", r"got 'no-transactions'"),
        ("-- nothing\n", r"holds no statement"),
        ("select 1;\nselect 'x", r"0001_x.sql:2: a string does not end"),
    ],
)
def test_files_that_break_a_rule_are_refused_with_their_line(tmp_path: Path, sql: str, rule: str) -> None:
    with pytest.raises(MigrationError, match=rule):
        load(write(tmp_path, sql), "n")


@pytest.mark.parametrize(
    ("names", "rule"),
    [
        (["0001_a", "0003_b"], r"0003_b.sql: number 0002 is missing"),
        (["0002_a"], r"0002_a.sql: number 0001 is missing"),
        (["0001_a", "0001_b"], r"0001_a.sql and 0001_b.sql have the same number"),
        (["1_a"], r"1_a.sql: must be named like 0001_what_it_does.sql"),
        (["0001_A"], r"0001_A.sql: must be named"),
    ],
)
def test_numbers_are_consecutive_and_unique(tmp_path: Path, names: list[str], rule: str) -> None:
    with pytest.raises(MigrationError, match=rule):
        load(write(tmp_path, **dict.fromkeys(names, TABLE)), "n")


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match=r"2 faults") as refused:
        load(write(tmp_path, "create table n.a (id int)", "select 1 from m.b"), "n")
    assert "0001_x.sql:1" in str(refused.value)
    assert "0002_x.sql:1" in str(refused.value)


def test_a_folder_that_is_missing_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(MigrationError, match="does not exist"):
        load(tmp_path / "nowhere", "n")
    (tmp_path / "0001_x.sql").write_bytes(b"select '\xff'")
    with pytest.raises(MigrationError, match=r"0001_x.sql: must be UTF-8"):
        load(tmp_path, "n")


def test_an_empty_folder_has_no_migrations_and_other_files_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("x")
    assert load(tmp_path, "n") == []
