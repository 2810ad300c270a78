"""SQL text read as PostgreSQL reads it: tokens, statements, tables named, what cannot be scattered."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from springtide.db._references import references
from springtide.db._sql import Kind, SqlTextError, statements, tokens, unscatterable, without_terminator


def kinds(sql: str) -> list[tuple[Kind, str]]:
    return [(token.kind, token.text) for token in tokens(sql)]


def test_tokens() -> None:
    sql = """SELECT E'a\\'b', 'it''s', $$x;y$$, $tag$ $$ $tag$, $1, "Q""q", e.ID, 1.5e3, U&'x', B'1'
        /* /* */ */ -- z"""
    assert kinds(sql) == [
        (Kind.WORD, "select"),
        (Kind.STRING, "E'a\\'b'"),
        (Kind.SYMBOL, ","),
        (Kind.STRING, "'it''s'"),
        (Kind.SYMBOL, ","),
        (Kind.STRING, "$$x;y$$"),
        (Kind.SYMBOL, ","),
        (Kind.STRING, "$tag$ $$ $tag$"),
        (Kind.SYMBOL, ","),
        (Kind.PARAMETER, "$1"),
        (Kind.SYMBOL, ","),
        (Kind.QUOTED, 'Q"q'),
        (Kind.SYMBOL, ","),
        (Kind.WORD, "e"),
        (Kind.SYMBOL, "."),
        (Kind.WORD, "id"),
        (Kind.SYMBOL, ","),
        (Kind.NUMBER, "1.5e3"),
        (Kind.SYMBOL, ","),
        (Kind.STRING, "U&'x'"),
        (Kind.SYMBOL, ","),
        (Kind.STRING, "B'1'"),
    ]


@given(st.text("'\"$aeE\\/*-; \n1", max_size=30))
def test_any_text_is_read_to_its_end_or_refused(sql: str) -> None:
    """No text makes the reader loop, overlap or fail otherwise than by its own error."""
    try:
        found = list(tokens(sql))
    except SqlTextError as error:
        assert 0 <= error.position < len(sql)
        return
    end = 0
    for token in found:
        assert end <= token.start < token.end
        end = token.end


@pytest.mark.parametrize("sql", ["select 'x", 'select "x', "select $$x", "/* x /* */"])
def test_what_does_not_end_is_refused(sql: str) -> None:
    with pytest.raises(SqlTextError, match="does not end"):
        list(tokens(sql))


def test_statements_are_split_outside_of_strings_comments_and_bodies() -> None:
    sql = """
    -- a; b
    select ';' ; ;
    create function n.f() returns int begin atomic select case when true then 1 end; select 2; end;
    create function n.g() returns int as $$ select 1; select 2 $$ language sql;
    select 3"""
    found = statements(sql)
    assert [s.tokens[0].text + str(len(s.text)) for s in found] == [
        "select10",
        "create94",
        "create74",
        "select8",
    ]
    assert [sql.count("\n", 0, s.start) + 1 for s in found] == [3, 4, 5, 6]
    assert found[1].begins("create", "function")
    assert not found[1].begins("create", "table")


@pytest.mark.parametrize(
    ("sql", "named"),
    [
        (
            "select extract(epoch from t) from n.a, lateral unnest($1) join n.b on x is not distinct from y",
            "n.a n.b",
        ),
        (
            "select trim(both from x), substring(x from 2) from n.a as f, n.b where x in (select 1 from n.c)",
            "n.a n.b n.c",
        ),
        (
            "with x as (delete from n.a using n.b), y (q) as not materialized (select 1) select * from x, y",
            "n.a n.b",
        ),
        ("insert into n.a (x) select x from n.b on conflict (x) do update set x = n.f(2)", "n.a n.b n.f"),
        ("update n.a set x = $1 from n.b where true", "n.a n.b"),
        ("select 1 from n.a for no key update of a", "n.a"),
        ("merge into n.a using n.b on true when matched then update set x = 1", "n.a n.b"),
        ("select * from (select * from n.a) q left join (n.b join n.c on true) using (id)", "n.a n.b n.c"),
        ("select x::n.kind, y::text from unnest($1::bigint[]) w (id)", "n.kind"),
        ("create unique index concurrently if not exists i on only n.a (x)", "n.a"),
        (
            "create table if not exists n.a (x int references n.b (id)); drop table n.c, n.d",
            "n.a n.b n.c n.d",
        ),
        ("alter table n.a alter column kind type bigint using x::bigint", "n.a"),
        ("create table n.a partition of n.b for values from (1) to (2)", "n.a n.b"),
        ("truncate n.a, n.b", "n.a n.b"),
        ("copy n.a (x) from stdin", "n.a"),
        ("lock table n.a in exclusive mode", "n.a"),
        ("drop index concurrently n.i", "n.i"),
        ("comment on table n.a is 'from n.b'", "n.a"),
        ("create trigger t before insert or update on n.a for each row execute function n.f()", "n.a n.f"),
        ("delete from n.a where x = 'from n.b' -- from n.c", "n.a"),
        ('select 1 from "N"."A"', "N.A"),
        ("select 1 from a", "a"),
        ("select a.b, a.c from n.a as a union all select 1, 2 from n.b", "n.a n.b"),
        ("select $1", ""),
    ],
)
def test_the_tables_that_a_statement_names(sql: str, named: str) -> None:
    assert " ".join(sorted(map(str, references(sql)))) == named


@pytest.mark.parametrize(
    "sql",
    [
        "select id from n.a where x is not distinct from $1",
        "select id, (select count(*) from n.b) as n from n.a",
        "select tag, sum(uses) as uses from n.a group by tag",
        "select a.limit, a.count from n.a",
        "with x as (select id from n.a order by id limit 5) select id from x",
    ],
)
def test_statements_that_can_be_scattered(sql: str) -> None:
    assert unscatterable(sql) is None


@pytest.mark.parametrize(
    ("sql", "reason"),
    [
        ("select count(*) from n.a", "scatter_sum"),
        ("select max (x) from n.a", "max()"),
        ("select id from n.a limit 5", "pass limit="),
        ("select id from n.a offset 5", "pass limit="),
        ("select distinct tag from n.a", "DISTINCT"),
        ("select row_number() over (order by id) from n.a", "window"),
    ],
)
def test_statements_whose_rows_would_not_add_up(sql: str, reason: str) -> None:
    assert reason in (unscatterable(sql) or "")


def test_terminators_are_taken_off() -> None:
    assert without_terminator("select 1 ; -- done") == "select 1"
    assert without_terminator("select ';'") == "select ';'"
